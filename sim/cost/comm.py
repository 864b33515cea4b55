"""Collectives as latency plus bytes on the links of a lane: "scale_up" (NVLink), "scale_out" (NIC), leaf, pod, site.

Inside one scale-up domain times come from the measured tables, across domains from the fitted form of
`hwprofiles.forms.collectives`. `bytes` is nccl-tests "size": the full buffer of one rank. Each level of the network
above the port is a link of its own, a device's share of it; the form sees the slowest of them as the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np

from hwprofiles.collectives import FABRIC, REFERENCE, collective_forms
from hwprofiles.factors import Factors
from hwprofiles.forms import collectives as form
from hwprofiles.forms.dispatch import Exchange
from hwprofiles.measured import KernelTables
from hwprofiles.specs import ClusterSpec
from hwprofiles.topology import device_bytes_per_s, link_rates
from sim.cost.dispatch import DispatchCost
from sim.mesh import Group, Pattern, fabric_seconds, fabric_slowdown, levels

TABLE_OPS = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "all_to_all": "alltoall",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CommTime:
    """latency_s, then seconds each link is busy when alone; they run side by side.

    up_s: NVLink; out_s: the network port; fabric_s: levels of the network above it, innermost first (empty where the
    cluster has none).
    """

    latency_s: Any
    up_s: Any
    out_s: Any
    fabric_s: tuple[Any, ...] = ()

    @property
    def network_s(self) -> tuple[Any, ...]:
        """Seconds of the port and of each level above it."""
        return (self.out_s, *self.fabric_s)

    @property
    def wire_s(self) -> Any:
        """Seconds of the slowest link of the network."""
        return reduce(np.maximum, self.fabric_s, self.out_s)

    @property
    def alone_s(self) -> Any:
        """Duration with no other traffic."""
        return self.latency_s + np.maximum(self.up_s, self.wire_s)

    def where(self, chosen: Any) -> CommTime:
        """These seconds where `chosen`, none elsewhere."""
        latency_s, up_s, out_s, *fabric_s = (
            np.where(chosen, seconds, 0.0) for seconds in (self.latency_s, self.up_s, *self.network_s)
        )
        return CommTime(latency_s=latency_s, up_s=up_s, out_s=out_s, fabric_s=tuple(fabric_s))

    def times(self, count: Any) -> CommTime:
        """These seconds `count` times over, one after the other."""
        latency_s, up_s, out_s, *fabric_s = (
            count * seconds for seconds in (self.latency_s, self.up_s, *self.network_s)
        )
        return CommTime(latency_s=latency_s, up_s=up_s, out_s=out_s, fabric_s=tuple(fabric_s))

    def __add__(self, other: CommTime) -> CommTime:
        return CommTime(
            latency_s=self.latency_s + other.latency_s, up_s=self.up_s + other.up_s, out_s=self.out_s + other.out_s,
            fabric_s=tuple(a + b for a, b in zip(self.fabric_s, other.fabric_s, strict=True)),
        )  # fmt: skip


class CommCost:
    """Costs of collectives on one cluster."""

    def __init__(self, cluster: ClusterSpec, tables: KernelTables, factors: Factors) -> None:
        self.cluster = cluster
        self.tables = tables
        self.factors = factors
        self.provenance: set[str] = set()
        self.kernels = DispatchCost(tables, factors)
        self.up_rate = device_bytes_per_s(cluster, cluster.scale_up)
        self.out_rate = device_bytes_per_s(cluster, cluster.scale_out)
        self.network = tuple(link_rates(cluster))[1:]  # the port and the levels above it, in order of `network_s`
        # message times were measured on fabrics of the reference latency
        self.extra_latency_s = max(0.0, cluster.scale_out.latency_s - factors.reference_latency_s)
        # tables were taken at the reference NVLink rate; other links of the same device scale their bandwidth part
        self._up_scale = factors.scale_up_reference_bytes_per_s / self.up_rate
        forms = collective_forms()
        links = tables.links or (tables.device,)
        self._domain, self._fabric = forms.domain(*links), forms.fabrics[FABRIC]
        self._measured_nodes = forms.nodes[FABRIC]
        self._borrowed = "" if set(links) & set(forms.domains) else f", scale-up links of {REFERENCE}"

    def link_rates(self) -> dict[str, float]:
        """Rate of each link of a lane, bytes/s: NVLink, port, then the levels; a device's share when all use it.
        Seconds above are already effective, so flows are seconds times these rates."""
        return link_rates(self.cluster)

    def nothing(self, shape: tuple[int, ...] = ()) -> CommTime:
        """No communication."""
        zero = np.zeros(shape)
        return CommTime(latency_s=zero, up_s=zero, out_s=zero, fabric_s=(zero,) * (len(self.network) - 1))

    def dispatch(
        self, nbytes: Any, grp: Group, *, top_k: int, hidden: Any, phase: str, experts: Any = np.inf,
        payload: str = "bf16", group_limit: int = 0, groups: int = 0, hybrid: bool = False, mode: str = "normal",
        spread: Any = 1.0, consecutive: bool = False,
    ) -> CommTime:  # fmt: skip
        """Time of a deduplicating dispatch or combine (`phase`) of `nbytes` = rows x k x hidden x 2 over `grp`, rows
        being those of the most loaded rank; `payload`: what the kernel sends for 16 bits; `mode`: normal or
        low_latency; `spread`: domains of a token over those of uniform routing; `consecutive`: its experts lie side
        by side."""
        tokens = np.asarray(nbytes, float) / (top_k * np.asarray(hidden, float) * 2.0)
        x = Exchange(
            tokens=tokens, hidden=hidden, top_k=top_k, experts=experts, ranks=np.asarray(grp.size, float),
            domains=grp.domains, payload=payload, sms=self.factors.overlap_sms["hybridep" if hybrid else "deepep"],
            group_limit=group_limit, groups=groups,
            nvlink_scale=self.up_rate / self.factors.scale_up_reference_bytes_per_s,
            nic_bytes_per_s=self._out_rate(grp, "spread") * self.factors.exchange_share, node_spread=spread,
            consecutive=consecutive,
        )  # fmt: skip
        parts = self.kernels.parts(x, phase, mode=mode, hybrid=hybrid)
        self.provenance |= self.kernels.notes
        # measured on a fabric of the reference latency; a slower one adds to the way there and the notification back
        if self.network[1:]:
            wait_s = self._span(grp, "all_to_all").exchange_wait_s
        else:
            wait_s = np.where(grp.domains > 1, self.extra_latency_s, 0.0)
        return self._on_links(form.Parts(parts.latency_s + 2.0 * wait_s, parts.nvlink_s, parts.nic_s), grp, "spread")

    def collective(self, kind: str, nbytes: Any, grp: Group, algorithm: form.Algorithm = "library") -> CommTime:
        """Time of one collective over `grp`; zero for groups of one.

        `algorithm`: what the library would choose (the fastest it has), or a fixed one of `form.ALGORITHMS`, whose time
        is the form's also inside a domain. An all-to-all has one way there, whichever it takes across domains.
        """
        nbytes = np.asarray(nbytes, float)
        far = grp.domains > 1
        if np.all(np.asarray(grp.size) <= 1):  # one device needs no table of collectives
            return self.nothing(np.broadcast(np.asarray(grp.size), nbytes).shape)
        tabled = kind in TABLE_OPS and (algorithm == "library" or kind == "all_to_all")
        inside = self._inside(kind, nbytes, grp) if tabled and not np.all(far) else None
        if inside is not None and not np.any(far):
            return self._on_links(inside, grp, _pattern(kind))
        found = form.collective(kind, nbytes, self._span(grp, kind), self._domain, self._fabric, algorithm)
        if kind == "all_to_all":
            found = self._in_step(found)
        self._note(kind, grp)
        return self._on_links(found if inside is None else _either(far, found, inside), grp, _pattern(kind))

    def exchange(
        self, near_bytes: Any, far_bytes: Any, grp: Group, *, messages: Any = None, message_bytes: Any = None
    ) -> CommTime:
        """An all-to-all that need not be even: the most bytes that any rank sends or receives inside its domain (near)
        and across domains (far); `form.loads` makes both of a matrix of bytes by pair.

        messages, message_bytes: that one rank posts to far ranks; default: one to each, of equal size.
        """
        near, far_bytes = np.asarray(near_bytes, float), np.asarray(far_bytes, float)
        if np.all(np.asarray(grp.size) <= 1):
            return self.nothing(np.broadcast(np.asarray(grp.size), near + far_bytes).shape)
        size, intra = np.asarray(grp.size, float), np.asarray(grp.intra, float)
        far, near_ranks = grp.domains > 1, np.maximum(intra - 1.0, 1.0)
        inside = self._inside("all_to_all", near * intra / near_ranks, grp) if not np.all(far) else None
        if inside is not None and not np.any(far):
            return self._on_links(inside, grp, "spread")
        peers = np.maximum(size - intra, 1.0) if messages is None else messages
        part = far_bytes / np.maximum(peers, 1.0) if message_bytes is None else message_bytes
        found = form.exchange(
            near, far_bytes, part, self._span(grp, "all_to_all"), self._domain, self._fabric,
            messages=peers, message_bytes=part,
        )  # fmt: skip
        self._note("all_to_all", grp)
        found = self._in_step(found)
        return self._on_links(found if inside is None else _either(far, found, inside), grp, "spread")

    def tp_aware_all_to_all(self, nbytes: Any, grp: Group, tp: Group) -> CommTime:
        """An all-to-all of rows that all ranks of a tensor-parallel group hold: each sends its share, then they gather.

        The bytes across domains divide by tp; the all-gather of the received rows runs inside `tp`.
        """
        share = np.asarray(nbytes, float) / np.asarray(tp.size, float)
        return self.collective("all_to_all", share, grp) + self.collective("all_gather", nbytes, tp)

    def _span(self, grp: Group, kind: str) -> form.Span:
        """The group for the form: rates, and what links beyond those of the reference add."""
        found = levels(self.cluster, grp)
        size = np.asarray(grp.size, float)
        extra = [self.extra_latency_s, *(b.latency_s - a.latency_s for a, b in pairwise(found[1:]))]
        inside = [np.minimum(np.asarray(level.members, float), size) for level in found[:-1]]
        blocks = [np.where(size > held, np.ceil(size / np.maximum(held, 1.0)), 0.0) for held in inside]
        return form.Span(
            size=grp.size,
            intra=grp.intra,
            up_bytes_per_s=self.up_rate,
            out_bytes_per_s=self._out_rate(grp, _pattern(kind)),
            ring_wait_s=sum(more * count for more, count in zip(extra, blocks, strict=True)),
            tree_wait_s=sum(
                2.0 * more * np.ceil(np.log2(np.maximum(count, 1.0))) for more, count in zip(extra, blocks, strict=True)
            ),
            exchange_wait_s=sum(more * (count > 1) for more, count in zip(extra, blocks, strict=True)),
        )

    def _out_rate(self, grp: Group, pattern: Pattern) -> Any:
        """Bytes/s of the port as far as the slowest link above it lets them pass."""
        return self.out_rate / fabric_slowdown(self.cluster, grp, pattern) if self.network[1:] else self.out_rate

    def _on_links(self, parts: form.Parts, grp: Group, pattern: Pattern) -> CommTime:
        """As link times, the slowest link of the network as `parts` say; nothing where the group has one rank."""
        some = np.asarray(grp.size) > 1
        latency_s, up_s, out_s = (np.where(some, seconds, 0.0) for seconds in np.broadcast_arrays(*parts))
        if not self.network[1:]:
            return CommTime(latency_s=latency_s, up_s=up_s, out_s=out_s)
        above = fabric_seconds(self.cluster, grp, pattern)
        out_s = out_s / reduce(np.maximum, above, np.ones(()))
        return CommTime(latency_s=latency_s, up_s=up_s, out_s=out_s, fabric_s=tuple(out_s * over for over in above))

    def _in_step(self, parts: form.Parts) -> form.Parts:
        """An all-to-all in a training step reaches less of the port than alone on idle links (`exchange_share`):
        the ranks are not in step and other traffic shares the fabric."""
        idle = self._fabric.line * self._fabric.exchange
        slower = max(1.0, idle / self.factors.exchange_share)
        return parts._replace(out_s=parts.out_s * slower)

    def _inside(self, kind: str, nbytes: Any, grp: Group) -> form.Parts:
        """Measured time of a collective among the `intra` ranks of a domain."""
        intra = np.asarray(grp.intra, float)
        op = TABLE_OPS[kind]
        seconds, provenance = self.tables.collective_s(op, np.maximum(intra, 2), nbytes)
        floor, _ = self.tables.collective_s(op, np.maximum(intra, 2), np.minimum(nbytes, 1024.0))
        self.provenance.add(f"{kind}: {provenance}")
        floor = np.minimum(floor, seconds)
        up = np.maximum(seconds - floor, 0.0) * np.maximum(self._up_scale, 0.0)
        return form.Parts(floor, up, np.zeros(np.shape(up)))

    def _note(self, kind: str, grp: Group) -> None:
        """What a time across domains rests on."""
        far = np.asarray(grp.domains)[np.asarray(grp.domains) > 1]
        if far.size:
            low, high = self._measured_nodes
            known = "interpolated" if far.min() >= low and far.max() <= high else "extrapolated"
            self.provenance.add(f"{kind} across domains: {known}, fitted form{self._borrowed}")


def _pattern(kind: str) -> Pattern:
    return "spread" if kind in ("all_to_all", "p2p", "ring") else "ring"


def _either(chosen: Any, one: form.Parts, other: form.Parts) -> form.Parts:
    return form.Parts(*(np.where(chosen, a, b) for a, b in zip(one, other, strict=True)))
