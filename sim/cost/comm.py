"""Collectives as latency plus bytes on the links of a lane: "scale_up" (NVLink) and "scale_out" (NIC).

Inside one scale-up domain times come from the measured tables; across domains the hierarchical
counts below set bytes per NIC. `bytes` is nccl-tests "size": the full buffer of one rank.
With g ranks in d domains of i: a ring all-gather or reduce-scatter of S moves S (i-1)/i over scale-up and
S (d-1)/(d i) over each NIC; all-reduce twice that; all-to-all sends S (g-i)/g over the NIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.factors import Factors
from hwprofiles.measured import KernelTables
from hwprofiles.specs import ClusterSpec
from hwprofiles.topology import device_bytes_per_s
from sim.cost.dispatch import DispatchRates, expected_hits
from sim.mesh import Group

RING_MESSAGES = 4  # messages in a row per doubling of the domains
TABLE_OPS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "all_to_all": "alltoall",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CommTime:
    """latency_s, then seconds each link is busy when alone; they run side by side."""

    latency_s: Any
    up_s: Any
    out_s: Any

    @property
    def alone_s(self) -> Any:
        """Duration with no other traffic."""
        return self.latency_s + np.maximum(self.up_s, self.out_s)

    def __add__(self, other: CommTime) -> CommTime:
        return CommTime(
            latency_s=self.latency_s + other.latency_s, up_s=self.up_s + other.up_s, out_s=self.out_s + other.out_s
        )


class CommCost:
    """Costs of collectives on one cluster."""

    def __init__(self, cluster: ClusterSpec, tables: KernelTables, factors: Factors) -> None:
        self.cluster = cluster
        self.tables = tables
        self.factors = factors
        self.provenance: set[str] = set()
        self.rates = DispatchRates(tables)
        self.up_rate = device_bytes_per_s(cluster, cluster.scale_up)
        self.out_rate = device_bytes_per_s(cluster, cluster.scale_out)
        # message times were measured on fabrics of the reference latency
        self.extra_latency_s = max(0.0, cluster.scale_out.latency_s - factors.reference_latency_s)
        # tables were taken at the reference NVLink rate; other links of the same device scale their bandwidth part
        self._up_scale = factors.scale_up_reference_bytes_per_s / self.up_rate

    def link_rates(self) -> dict[str, float]:
        """Rate of each link of a lane, bytes/s. Seconds above are already effective, so flows are
        seconds times these rates."""
        return {"scale_up": self.up_rate, "scale_out": self.out_rate}

    def dispatch(self, nbytes: Any, grp: Group, *, top_k: int, group_limit: int = 0, hybrid: bool = False) -> CommTime:
        """Time of a deduplicating dispatch or combine of `nbytes` = rows x k x D x 2 over `grp`."""
        size, intra = np.asarray(grp.size, float), np.asarray(grp.intra, float)
        domains = np.ceil(size / intra)
        token_bytes = np.asarray(nbytes, float) / top_k
        remote = expected_hits(top_k, domains, group_limit) * (domains - 1.0) / domains
        forwarded = expected_hits(top_k, size) * (intra - 1.0) / intra
        up = token_bytes * forwarded / self.rates.nvlink_bytes_per_s(intra, hybrid=hybrid) * self._up_scale
        out = token_bytes * remote / (self.out_rate * self.factors.scale_out_efficiency["dispatch"])
        self.provenance.add(f"expert dispatch: {self.rates.provenance}")
        some = size > 1
        # measured on a fabric of the reference latency; a slower one adds to the way there and the notification back
        extra = np.where(domains > 1, 2.0 * self.extra_latency_s, 0.0)
        latency = self.rates.latency_s(domains) + extra
        return CommTime(
            latency_s=np.where(some, latency, 0.0), up_s=np.where(some, up, 0.0), out_s=np.where(some, out, 0.0)
        )

    def collective(self, kind: str, nbytes: Any, grp: Group) -> CommTime:
        """Time of one collective over `grp`; zero for groups of one."""
        size, intra = np.asarray(grp.size, float), np.asarray(grp.intra, float)
        domains = np.ceil(size / intra)
        nbytes = np.asarray(nbytes, float)
        alone = size <= 1
        if np.all(alone):  # one device needs no table of collectives
            nothing = np.zeros(np.broadcast(size, nbytes).shape)
            return CommTime(latency_s=nothing, up_s=nothing, out_s=nothing)
        if kind == "p2p":
            up, out, lat = self._p2p(nbytes, domains)
        elif kind == "ring":
            up, out, lat = self._ring(nbytes, size, domains)
        else:
            # of an all-to-all only its share stays inside a domain
            share = intra / size if kind == "all_to_all" else 1.0
            up, lat = self._inside(kind, nbytes * share, intra)
            out = self._across(kind, nbytes, size, intra, domains)
            # an all-to-all posts one message per remote peer, a ring or tree grows with the logarithm
            steps = size - intra if kind == "all_to_all" else np.log2(np.maximum(domains, 1.0)) * RING_MESSAGES
            hops = np.where(domains > 1, np.ceil(np.log2(np.maximum(domains, 2.0))), 0.0)
            waits = np.where(domains > 1, 1.0, 0.0) if kind == "all_to_all" else hops
            lat = lat + self.factors.message_s * steps + self.extra_latency_s * waits
        zero = np.zeros(np.broadcast(size, nbytes).shape)
        return CommTime(
            latency_s=np.where(alone, zero, lat), up_s=np.where(alone, zero, up), out_s=np.where(alone, zero, out)
        )

    def _inside(self, kind: str, nbytes: Any, intra: Any) -> tuple[Any, Any]:
        if np.all(intra <= 1):  # nobody else in the domain
            nothing = np.zeros(np.broadcast(nbytes, intra).shape)
            return nothing, nothing
        op = TABLE_OPS[kind]
        seconds, provenance = self.tables.collective_s(op, np.maximum(intra, 2), nbytes)
        floor, _ = self.tables.collective_s(op, np.maximum(intra, 2), np.minimum(nbytes, 1024.0))
        self.provenance.add(f"{kind}: {provenance}")
        floor = np.minimum(floor, seconds)
        up = np.maximum(seconds - floor, 0.0) * np.maximum(self._up_scale, 0.0)
        none = intra <= 1
        return np.where(none, 0.0, up), np.where(none, 0.0, floor)

    def _across(self, kind: str, nbytes: Any, size: Any, intra: Any, domains: Any) -> Any:
        rate = self.out_rate * self.factors.scale_out_efficiency[kind]
        if kind == "all_to_all":
            wire = nbytes * (size - intra) / size
        else:
            wire = nbytes * (domains - 1) / (domains * intra) * (2.0 if kind == "all_reduce" else 1.0)
        return np.where(domains > 1, wire / rate, 0.0)

    def _p2p(self, nbytes: Any, domains: Any) -> tuple[Any, Any, Any]:
        eff = self.factors.scale_out_efficiency["p2p"]
        up = nbytes / (self.up_rate * eff)
        out = nbytes / (self.out_rate * eff)
        cross = domains > 1
        lat = np.where(cross, self.cluster.scale_out.latency_s, self.cluster.scale_up.latency_s)
        return np.where(cross, 0.0, up), np.where(cross, out, 0.0), lat

    def _ring(self, nbytes: Any, size: Any, domains: Any) -> tuple[Any, Any, Any]:
        eff = self.factors.scale_out_efficiency["ring"]
        wire = nbytes * (size - 1) / size
        up = wire / (self.up_rate * eff)
        out = np.where(domains > 1, wire / (self.out_rate * eff), 0.0)
        lat = (size - 1) * np.where(domains > 1, self.cluster.scale_out.latency_s, self.cluster.scale_up.latency_s)
        return up, out, lat
