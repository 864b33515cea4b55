"""The cost model: ops in, seconds out. It knows no clock and no contention.

`CostModel` joins a cluster, its device's measured tables and the calibrated factors. The same
instance serves one plan (numbers) and a block of 10^5 plans (columns).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprofiles.catalogue import device_of
from hwprofiles.factors import Factors
from hwprofiles.folders import is_own
from hwprofiles.forms.dispatch import PAYLOAD_BYTES
from hwprofiles.scaling import factors_of, families_scaled, tables_of
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.cost.comm import CommCost, CommTime
from sim.cost.compute import ComputeCost
from sim.cost.memo import remembered
from sim.mesh import DEFAULT_MAP, RankMap, group
from sim.ops import Op, exchange_phase
from sim.plan import Degrees
from sim.routing import Routing

BALANCED = Routing()

SCALING_RULE = "arithmetic by peak, traffic by memory and link rate, floors kept"
# Parts of a layer that a graph of the whole MoE layer holds.
MOE_SCOPES = ("moe_router", "moe_preprocess", "experts")


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
        self.factors = override or factors_of(self.device)
        kernel_tables = remembered(tables_of(self.device))
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
        if "moe" in graph and op.scope in MOE_SCOPES:
            return 0.0
        launches = op.kernels if op.host_launches is None else op.host_launches
        return launches * self.launch_s + op.experts * self.expert_launch_s

    @property
    def launch_s(self) -> float:
        """Time of the launching thread for one eager kernel."""
        return self._host_s(self.factors.host_launch_s)

    @property
    def expert_launch_s(self) -> float:
        """Time of the launching thread for one library call in a bare loop, as that over local experts."""
        return self._host_s(self.factors.host_expert_s)

    def _host_s(self, seconds: float) -> float:
        """Seconds of the launching thread on this host, with a profiler attached or not."""
        traced = self.factors.traced_launch if self.software.traced else 1.0
        return seconds * traced * self.factors.host_time / self.device.host_speed

    def device_s(self, op: Op, precision: str = "") -> Any:
        """Device time of a compute op; precision: what the run trains in, where it matters for the clock."""
        return self.compute.seconds(op, precision)

    def comm_time(
        self, op: Op, plan: Degrees, *, top_k: int = 1, group_limit: int = 0, groups: int = 0,
        routing: Routing = BALANCED,
    ) -> CommTime:  # fmt: skip
        """Latency and link time of a collective op over its group axis; `group_limit` of `groups`: of routing, which
        says how far tokens spread over domains."""
        grp = group(plan, op.axis, self.cluster, self.ranks)
        between_experts = op.collective == "all_to_all" and op.axis == "ep"
        if between_experts and self.software.dispatcher in ("deepep", "hybridep"):
            hybrid = self.software.dispatcher == "hybridep"
            wide = np.asarray(op.bytes) * (PAYLOAD_BYTES["bf16"] / PAYLOAD_BYTES[op.dtype])
            return self.comm.dispatch(
                wide, grp, top_k=top_k, hidden=op.n, experts=op.groups, phase=exchange_phase(op), payload=op.dtype,
                group_limit=group_limit, groups=groups, hybrid=hybrid, mode=self.software.dispatch_kernel,
                spread=routing.spread_for(grp.size, grp.domains, num_experts=op.groups, top_k=top_k),
                consecutive=routing.consecutive,
            )  # fmt: skip
        assert op.collective is not None
        algorithm = self.software.all_to_all if between_experts else "library"
        found = self.comm.collective(op.collective, op.bytes, grp, algorithm)
        return found if np.all(np.asarray(op.bytes) > 0) else found.where(np.asarray(op.bytes) > 0)

    def sm_share(self, kernel: str) -> float:
        """Share of the multiprocessors that a communication kernel (`Factors.overlap_sms`) takes from compute it runs
        beside; on a small device all but one at most, so that compute goes on."""
        most = max(0.0, self.device.num_sms - 1.0)
        return float(min(self.factors.overlap_sms[kernel], most) / self.device.num_sms)

    def provenance(self) -> tuple[str, ...]:
        """What the numbers rest on, worst kind first."""
        order = ("assumed", "scaled", "extrapolated", "interpolated", "measured")
        notes = self.compute.provenance | self.comm.provenance
        folder, name = self.device.measured, self.device.name
        if is_own(folder):
            extra = {f"kernel tables of {name}: measured"}
            taken = {key: s for key, s in self.compute.tables.sources.items() if key != "attention_core"}
            extra |= {f"{table} tables: assumed ({s.title})" for table, s in taken.items() if s.kind == "assumed"}
        elif scaled := families_scaled(self.device):
            what = "kernels" if not folder else " and ".join(scaled)
            extra = {f"{what} of {name}: scaled from {self.device.scaled_from} ({SCALING_RULE})"}
        else:
            extra = {f"kernel tables of {folder}: borrowed by {name}"} if folder.lower() != name.lower() else set()
        f = self.factors
        how = {"measured": f"measured on {name}", "assumed": f"assumed ({f.clock_source})"}
        extra.add(f"sustained clock {f.clock:.3f}: {how.get(f.clock_kind, 'fitted to whole runs')}")

        def rank(note: str) -> tuple[int, str]:
            return next((i for i, word in enumerate(order) if word in note), len(order)), note

        return tuple(sorted(notes | extra, key=rank))
