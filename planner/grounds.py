"""Layouts of one ground (`planner.variants.Ground`): what the rules leave of them, and how they are screened under each
offload.

Relaxed, for every recompute setting and every offload at once: without recompute (which only adds work), activations on
the device (moving them only adds work), the optimizer on a host that takes no time. So the bound of a row holds for
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.catalogue import device_of
from hwprofiles.specs import ClusterSpec
from planner.ranks import Laying, Question, spread
from planner.rules import Context, Rule
from planner.space import space
from planner.stage_plan.free import free_bounds
from planner.stage_plan.priced import SCHEDULES
from planner.table import NOT_LAID_OUT
from planner.variants import Axes, Chosen, Ground, offload_text
from sim.columns import Columns
from sim.mesh import RankMap
from sim.screen import Screened, Screener
from sim.workload import Offload, Workload

Floats = NDArray[np.float64]
FREE = -1  # in place of a share: the optimizer on a host that takes no time
ALL = -1  # in place of activations on the host: those of every layer, the least that can stay on the device
ALL_LAYERS = 1 << 20
NO_TIME_BYTES_PER_S = 1e30
NO_END_BYTES = 1e18


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Rows of one block under one rank map, and what no plan of each goes below."""

    rows: Columns
    bound_s: Floats
    ranks: RankMap

    def below(self, step_s: float) -> Part:
        """The rows that may be faster."""
        return self.take(np.flatnonzero(self.bound_s < step_s))

    def take(self, rows: NDArray[Any]) -> Part:
        """Some of the rows."""
        return Part(rows=self.rows.take(rows), bound_s=self.bound_s[rows], ranks=self.ranks)


class Priced:
    """One ground under every offload of the axes; screenings and layings are made once. made: screenings of the ground
    as it is, that were made before."""

    def __init__(
        self, ground: Ground, axes: Axes, question: Question, maps: Sequence[RankMap],
        made: Mapping[RankMap, Any] | None = None,
    ) -> None:  # fmt: skip
        self.ground, self.axes, self.maps = ground, axes, tuple(maps)
        self.question = replace(question, software=ground.software, workload=ground.workload)
        self._pipelines = question.pipelines  # they see neither the profile nor the offload
        self._free = _no_time(question.cluster)
        self._screeners: dict[tuple[int, int, RankMap], Screener] = {(0, 0, m): s for m, s in (made or {}).items()}
        self._layings: dict[tuple[int, int, RankMap], Laying] = {}
        self._piped: list[tuple[RankMap, Columns]] = []  # rows whose stages can be chosen

    def workload(self, share: int, away: int) -> Workload:
        """The workload with an offload."""
        if share == FREE or away == ALL:
            part = Offload(layers=ALL_LAYERS) if away == ALL else self.axes.away[away]
            rest = self.axes.shares[0] if share == 0 else Offload(optimizer=1.0, overlap=True)
            return replace(
                self.ground.workload, offload=replace(rest, layers=part.layers, modules=part.modules)
            )  # fmt: skip
        return replace(self.ground.workload, offload=self.axes.offload(share, away))

    def laying(self, share: int, away: int, ranks: RankMap) -> Laying:
        """What prices plans under an offload and a rank map."""
        key = (share, away, ranks)
        if key not in self._layings:
            question = replace(self.question, workload=self.workload(share, away))
            screener = None if share == FREE else self.screener(share, away, ranks)
            self._layings[key] = Laying(ranks=ranks, question=question, prepared=screener)
        return self._layings[key]

    def screener(self, share: int, away: int, ranks: RankMap) -> Screener:
        """Bound and memory under an offload; `FREE` stands for every share of the optimizer."""
        key = (share, away, ranks)
        if key not in self._screeners:
            q, workload = self.question, self.workload(share, away)
            if share == 0:
                made = Screener(
                    q.model, q.cluster, q.software, workload, routing=q.routing, ranks=ranks, pipelines=self._pipelines
                )
            else:
                cluster = self._free if share == FREE else q.cluster
                made = self.screener(0, away, ranks).with_ends(cluster, workload)
            self._screeners[key] = made
        return self._screeners[key]

    def relaxed(self, share: int, away: int, ranks: RankMap, rows: Columns) -> Screened:
        """Bound and memory of rows; where no offload of the optimizer is searched the own one."""
        return self.screener(share if len(self.axes.shares) > 1 else 0, away, ranks)(rows)

    def chosen(self, share: int, away: int, recompute: tuple[str, ...]) -> Chosen:
        """What a plan under these settings runs with."""
        said = list(self.ground.said)
        if "offload" in self.axes.dimensions:
            said.append(("offload", offload_text(self.axes.offload(share, away))))
        if "recompute" in self.axes.dimensions:
            said.append(("recompute", "+".join(recompute) or "none"))
        return Chosen(
            software=self.ground.software, workload=self.workload(share, away), switches=self.ground.switches,
            said=tuple(said),
        )  # fmt: skip

    def layouts(
        self, fixed: Mapping[str, Any], rules: Sequence[Rule], recomputes: Sequence[tuple[str, ...]]
    ) -> tuple[list[Part], int, dict[str, int]]:  # fmt: skip
        """(rows with their relaxed bounds, how many were looked at, rows lost for each reason).

        Rules that look at recompute or offload are left for later where these are searched.
        """
        given = {**fixed, **self.ground.fixed, "recompute": recomputes[0] if len(recomputes) == 1 else ()}
        q = self.question
        hidden = (len(recomputes) > 1, len(self.axes.shares) * len(self.axes.away) > 1)
        contexts = [_without(self.laying(0, 0, ranks).ctx, offload=hidden[1]) for ranks in self.maps]
        parts: list[Part] = []
        lost: dict[str, int] = {}
        raw = 0
        for block in space(q.model, q.cluster, self.ground.workload, given, self.ground.software):
            raw += len(block)
            rows = block.take(allowed(block, contexts[0], rules, lost, blind=hidden[0]))
            if not len(rows):
                continue
            parts += self._screened(rows, self.maps[0], lost)
            met = [(np.ones(len(rows), dtype=bool), spread(rows, q.cluster, self.maps[0]))]
            for ranks, ctx in zip(self.maps[1:], contexts[1:], strict=True):
                legal = allowed(rows, ctx, rules, {}, blind=hidden[0])
                lies = spread(rows, q.cluster, ranks)
                fresh = legal.copy()
                for before, there in met:
                    fresh &= ~(before & (lies == there).all(axis=1))
                met.append((legal, lies))
                if fresh.any():
                    raw += int(np.count_nonzero(fresh))
                    parts += self._screened(rows.take(fresh), ranks, lost)
        return parts, raw, lost

    def _screened(self, rows: Columns, ranks: RankMap, lost: dict[str, int]) -> list[Part]:
        bound_s = self.relaxed(FREE, 0, ranks, rows).bound_s
        if rows.schedule in SCHEDULES and (piped := rows.pp > 1).any():
            self._piped.append((ranks, rows.take(piped)))
        there = np.flatnonzero(np.isfinite(bound_s))
        if len(there) < len(rows):
            lost[NOT_LAID_OUT] = lost.get(NOT_LAID_OUT, 0) + len(rows) - len(there)
        return [Part(rows=rows.take(there), bound_s=bound_s[there], ranks=ranks)] if len(there) else []

    def free_s(self) -> float:
        """Seconds that none of the layouts goes below, whatever layers its stages hold and wherever anything rests."""
        device = device_of(self.question.cluster)
        endless = replace(device, mem_bytes=NO_END_BYTES)
        cluster = replace(self.question.cluster, device_spec=endless)
        question = replace(self.question, cluster=cluster, workload=self.workload(0, 0))
        found = (free_bounds(question, ranks, rows, [rows.recompute]) for ranks, rows in self._piped)
        return min((float(each.min()) for each in found), default=np.inf)


def _no_time(cluster: ClusterSpec) -> ClusterSpec:
    """The cluster with a host that is never waited for."""
    link = replace(cluster.host_link, bytes_per_s=NO_TIME_BYTES_PER_S, latency_s=0.0)
    return replace(cluster, host_link=link, host_mem_bytes_per_s=NO_TIME_BYTES_PER_S)


class _Looked(Exception):
    """A rule asked for what is still open."""


class _Blind:
    """A record that does not tell some of its fields."""

    def __init__(self, record: Any, hidden: tuple[str, ...]) -> None:
        self._record, self._hidden = record, hidden

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise _Looked(name)
        return getattr(self._record, name)

    def __len__(self) -> int:
        return len(self._record)


def _without(ctx: Context, *, offload: bool) -> Context:
    blind: Any = _Blind(ctx.workload, ("offload",))
    return replace(ctx, workload=blind) if offload else ctx


def allowed(
    block: Columns, ctx: Context, rules: Sequence[Rule], lost: dict[str, int], *, blind: bool = False
) -> NDArray[np.bool_]:
    """Rows that keep every rule, as `planner.rules.apply` finds them; a rule that asks for what is open (recompute with
    `blind`, what `ctx` does not tell) is kept. lost: counts by rule, added to."""
    index, rows = np.arange(len(block)), block
    for rule in rules:
        if not len(rows):
            break
        asked: Any = _Blind(rows, ("recompute",)) if blind else rows
        try:
            ok = np.broadcast_to(np.asarray(rule.ok(asked, ctx), dtype=bool), (len(rows),))
        except _Looked:
            continue
        if not ok.all():
            keep = np.flatnonzero(ok)
            lost[rule.id] = lost.get(rule.id, 0) + len(rows) - len(keep)
            index, rows = index[keep], rows.take(keep)
    mask = np.zeros(len(block), dtype=bool)
    mask[index] = True
    return mask


def by_size(axes: Axes) -> list[tuple[int, tuple[int, ...]]]:
    """(activation offload, those that leave no more on the device), those with most on the host first."""
    parts = axes.away
    order = sorted(range(len(parts)), key=lambda at: (-parts[at].layers, -len(parts[at].modules), at))
    return [(at, tuple(other for other in order if other != at and _covers(parts[other], parts[at]))) for at in order]


def _covers(more: Offload, less: Offload) -> bool:
    """Whether everything that goes to the host with `less` does with `more`."""
    if less.layers:
        return more.layers > less.layers
    return not more.layers and set(less.modules) < set(more.modules)
