"""The cost model: ops in, seconds out. It knows no clock and no contention.

`CostModel` joins a cluster, its device's measured tables and the calibrated factors. The same
instance serves one plan (numbers) and a block of 10^5 plans (columns).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprofiles.catalogue import device_of
from hwprofiles.factors import Factors, factors
from hwprofiles.folders import is_own
from hwprofiles.forms.dispatch import PAYLOAD_BYTES
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.cost.comm import CommCost, CommTime
from sim.cost.compute import ComputeCost
from sim.cost.memo import remembered
from sim.mesh import DEFAULT_MAP, RankMap, group
from sim.ops import Op, exchange_phase
from sim.plan import Degrees
from sim.routing import Routing

BALANCED = Routing()


class CostModel:
    """Seconds, link time and host time of every op on one cluster under one trainer release."""

    def __init__(
        self,
        cluster: ClusterSpec,
        software: SoftwareProfile,
        *,
        override: Factors | None = None,
        ranks: RankMap = DEFAULT_MAP,
    ) -> None:
        self.cluster = cluster
        self.ranks = ranks
        self.software = software
        self.device = device_of(cluster)
        self.factors = override or factors(self.device.measured)
        kernel_tables = remembered(self.device.measured)
        self.compute = ComputeCost(
            self.device, kernel_tables, self.factors, attention_kernel=software.attention_kernel,
            plain_torch=software.elementwise == "torch", neighbours=cluster.num_devices > 1,
        )  # fmt: skip
        self.comm = CommCost(cluster, kernel_tables, self.factors)

    @property
    def usable_bytes(self) -> float:
        """Bytes a rank may allocate: device memory less context, reserved buffers and fragmentation."""
        f = self.factors
        return (self.device.mem_bytes - f.context_bytes - self.software.reserved_bytes) / (1.0 + f.fragmentation)

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

    def comm_time(
        self, op: Op, plan: Degrees, *, top_k: int = 1, group_limit: int = 0, routing: Routing = BALANCED
    ) -> CommTime:
        """Latency and link time of a collective op over its group axis; routing: how far tokens spread over domains."""
        grp = group(plan, op.axis, self.cluster, self.ranks)
        if op.collective == "all_to_all" and self.software.dispatcher in ("deepep", "hybridep"):
            hybrid = self.software.dispatcher == "hybridep"
            wide = np.asarray(op.bytes) * (PAYLOAD_BYTES["bf16"] / PAYLOAD_BYTES[op.dtype])
            return self.comm.dispatch(
                wide, grp, top_k=top_k, hidden=op.n, experts=op.groups, phase=exchange_phase(op), payload=op.dtype,
                group_limit=group_limit, hybrid=hybrid, mode=self.software.dispatch_kernel,
                spread=routing.spread_for(grp.size, grp.domains, num_experts=op.groups, top_k=top_k),
            )  # fmt: skip
        assert op.collective is not None
        between_experts = op.collective == "all_to_all" and op.axis == "ep"
        algorithm = self.software.all_to_all if between_experts else "library"
        found = self.comm.collective(op.collective, op.bytes, grp, algorithm)
        return found if np.all(np.asarray(op.bytes) > 0) else found.where(np.asarray(op.bytes) > 0)

    def provenance(self) -> tuple[str, ...]:
        """What the numbers rest on, worst kind first."""
        order = ("assumed", "extrapolated", "interpolated", "measured")
        notes = self.compute.provenance | self.comm.provenance
        folder, name = self.device.measured, self.device.name
        if is_own(folder):
            extra = {f"kernel tables of {name}: measured"}
            taken = {key: s for key, s in self.compute.tables.sources.items() if key != "attention_core"}
            extra |= {f"{table} tables: assumed ({s.title})" for table, s in taken.items() if s.kind == "assumed"}
        else:
            extra = {f"kernel tables of {folder}: borrowed by {name}"} if folder.lower() != name.lower() else set()
        f = self.factors
        how = {"measured": f"measured on {name}", "assumed": f"assumed ({f.clock_source})"}
        extra.add(f"sustained clock {f.clock:.3f}: {how.get(f.clock_kind, 'fitted to whole runs')}")

        def rank(note: str) -> tuple[int, str]:
            return next((i for i, word in enumerate(order) if word in note), len(order)), note

        return tuple(sorted(notes | extra, key=rank))
