"""The cost model: ops in, seconds out. It knows no clock and no contention.

`CostModel` joins a cluster, its device's measured tables and the calibrated factors. The same
instance serves one plan (numbers) and a block of 10^5 plans (columns).
"""

from __future__ import annotations

from typing import Any

from hwprofiles.catalogue import device_of
from hwprofiles.factors import Factors, factors
from hwprofiles.measured import tables
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.cost.comm import CommCost, CommTime, expected_remote_domains
from sim.cost.compute import ComputeCost
from sim.mesh import group
from sim.ops import Op
from sim.plan import Degrees


class CostModel:
    """Seconds, link time and host time of every op on one cluster under one trainer release."""

    def __init__(self, cluster: ClusterSpec, software: SoftwareProfile, *, override: Factors | None = None) -> None:
        self.cluster = cluster
        self.software = software
        self.device = device_of(cluster)
        self.factors = override or factors(self.device.measured)
        kernel_tables = tables(self.device.measured)
        self.compute = ComputeCost(
            self.device, kernel_tables, self.factors, attention_kernel=software.attention_kernel
        )
        self.comm = CommCost(cluster, kernel_tables, self.factors)

    def host_s(self, op: Op) -> Any:
        """Time of the launching thread for one op; captured scopes cost nothing per kernel."""
        graph = self.software.cuda_graph
        if "full_iteration" in graph or (op.scope and op.scope in graph):
            return 0.0
        launches = op.kernels if op.host_launches is None else op.host_launches
        f = self.factors
        return (launches * f.host_launch_s + op.experts * f.host_expert_s) / self.device.host_speed

    def device_s(self, op: Op) -> Any:
        """Device time of a compute op."""
        return self.compute.seconds(op)

    def comm_time(self, op: Op, plan: Degrees, *, top_k: int = 1, group_limit: int = 0) -> CommTime:
        """Latency and link time of a collective op over its group axis."""
        grp = group(plan, op.axis, self.cluster.domain_devices)
        fan_out = None
        if op.collective == "all_to_all" and self.software.dispatcher in ("deepep", "hybridep"):
            # deduplicated: a token crosses the NIC once per remote domain, then fans out over NVLink
            fan_out = expected_remote_domains(top_k, grp.domains, group_limit) / top_k
        assert op.collective is not None
        return self.comm.collective(op.collective, op.bytes, grp, fan_out=fan_out)

    def provenance(self) -> tuple[str, ...]:
        """What the numbers rest on, worst kind first."""
        order = ("assumed", "extrapolated", "interpolated", "measured")
        notes = self.compute.provenance | self.comm.provenance
        folder = self.device.measured
        borrowed = folder.lower() != self.device.name.lower()
        extra = {f"kernel tables of {folder}: borrowed by {self.device.name}"} if borrowed else set()
        extra.add(f"sustained clock {self.factors.clock:.3f}: fitted to whole runs")

        def rank(note: str) -> tuple[int, str]:
            return next((i for i, word in enumerate(order) if word in note), len(order)), note

        return tuple(sorted(notes | extra, key=rank))
