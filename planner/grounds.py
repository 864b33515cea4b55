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

from hwprofiles.specs import ClusterSpec
from planner.ranks import Laying, Question, spread
from planner.rules import Context, Rule
from planner.space import space
from planner.variants import Axes, Chosen, Ground, offload_text
from sim.columns import Columns
from sim.mesh import RankMap
from sim.screen import Screened, Screener
from sim.workload import Offload, Workload

Floats = NDArray[np.float64]
FREE = -1  # in place of a share: the optimizer on a host that takes no time
NO_TIME_BYTES_PER_S = 1e30


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

    def workload(self, share: int, away: int) -> Workload:
        """The workload with an offload."""
        if share == FREE:
            part = replace(self.axes.away[away], optimizer=1.0, overlap=True)
            return replace(self.ground.workload, offload=part)
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

    def layouts(self, fixed: Mapping[str, Any], rules: Sequence[Rule], recomputes: Sequence[tuple[str, ...]]
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
        from planner.table import NOT_LAID_OUT

        bound_s = self.relaxed(FREE, 0, ranks, rows).bound_s
        there = np.flatnonzero(np.isfinite(bound_s))
        if len(there) < len(rows):
            lost[NOT_LAID_OUT] = lost.get(NOT_LAID_OUT, 0) + len(rows) - len(there)
        return [Part(rows=rows.take(there), bound_s=bound_s[there], ranks=ranks)] if len(there) else []


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


def most_of(axes: Axes) -> dict[str, int]:
    """Of each kind of activation offload the one that leaves least on the device: by modules, by whole layers, none."""
    kinds: dict[str, int] = {}
    for at, part in enumerate(axes.away):
        kind = kind_of(part)
        if kind not in kinds or _size(part) > _size(axes.away[kinds[kind]]):
            kinds[kind] = at
    return kinds


def kind_of(part: Offload) -> str:
    """How activations go to the host."""
    return "layers" if part.layers else "modules" if part.modules else "none"


def _size(part: Offload) -> tuple[int, int]:
    return part.layers, len(part.modules)
