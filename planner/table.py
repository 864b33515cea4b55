"""The screened table: what survives the rules and the memory, in order of its lower bound.

Blocks stream through: generate, ask the rules, screen memory and bound, keep the rows that fit and
the nearest of those that do not. Nothing here runs events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwprofiles.specs import ClusterSpec
from planner.rules import Context, Rule, apply
from sim.columns import DEGREE_FIELDS, Columns
from sim.mesh import DEFAULT_MAP, RankMap
from sim.plan import Plan

OUT_OF_MEMORY = "out of memory"
SAME_GROUPS = "same groups"  # another rank map of the table puts every group of the plan on like devices
NOT_LAID_OUT = "not laid out"  # screening gives no finite bound: it found no place for the layers
NEAREST_KEPT = 3
LOT_ROWS = 1 << 18  # rows that stand in memory at a time, some 20 MB

Progress = Callable[[str, int, int | None], None]

# Ties in step or bound: fewer tp, then fewer of everything that communicates, then the smaller rest.
TIE_ORDER = ("tp", "cp", "pp", "etp", "ep", "vpp", "micro_batch_seqs", "dp", "edp")


class ScreenedRows(Protocol):
    """What `sim.screen.screen` gives per row: a true lower bound, the peak memory, and the verdict."""

    @property
    def bound_s(self) -> NDArray[np.float64]:
        """Seconds no event run of the row can beat."""
        ...

    @property
    def peak_bytes(self) -> NDArray[np.float64]:
        """Bytes on the fullest device."""
        ...

    @property
    def fits(self) -> NDArray[np.bool_]:
        """True where the peak stays within the device."""
        ...


ScreenFn = Callable[[Columns], ScreenedRows]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A plan, its rank map, and what screening says of them."""

    plan: Plan
    bound_s: float
    peak_bytes: float
    ranks: RankMap = DEFAULT_MAP


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that fit, block by block, and the counts of those that do not; ranks: the rank map of each block.

    nearest: the candidates with the smallest memory excess; unfit_front: those that memory rejects
    and no other of them beats in both bound and peak (what more memory would buy), fastest first.
    """

    blocks: tuple[Columns, ...]
    bounds: tuple[NDArray[np.float64], ...]
    peaks: tuple[NDArray[np.float64], ...]
    raw: int
    legal: int
    fits: int
    rejected: Mapping[str, int]
    nearest: tuple[Candidate, ...]
    unfit_front: tuple[Candidate, ...]
    ranks: tuple[RankMap, ...]


def tie_key(plan: Plan) -> tuple[object, ...]:
    """The explicit order between plans of equal time."""
    degrees = tuple(getattr(plan, name) for name in TIE_ORDER)
    return (*degrees, plan.account_ends, plan.zero_stage, plan.fsdp_shard, plan.schedule, plan.recompute)


def _candidate(block: Columns, rows: ScreenedRows, i: int, ranks: RankMap) -> Candidate:
    bound_s, peak_bytes = float(rows.bound_s[i]), float(rows.peak_bytes[i])
    return Candidate(plan=block.plan(i), bound_s=bound_s, peak_bytes=peak_bytes, ranks=ranks)


def _lowest(
    found: list[Candidate], block: Columns, rows: ScreenedRows, where: NDArray[np.int64], ranks: RankMap
) -> list[Candidate]:
    """The NEAREST_KEPT of smallest peak of `found` and of this block's `where` rows."""
    few = where[np.argsort(rows.peak_bytes[where], kind="stable")[:NEAREST_KEPT]]
    fresh = [_candidate(block, rows, int(i), ranks) for i in few]
    return sorted(found + fresh, key=lambda c: (c.peak_bytes, tie_key(c.plan)))[:NEAREST_KEPT]


def _front(
    found: list[Candidate], block: Columns, rows: ScreenedRows, where: NDArray[np.int64], ranks: RankMap
) -> list[Candidate]:
    """The Pareto front in (bound, peak) of `found` and this block's `where` rows, fastest first."""
    order = where[np.lexsort((rows.peak_bytes[where], rows.bound_s[where]))]
    peak = rows.peak_bytes[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], peak[:-1]]))
    fresh = [_candidate(block, rows, int(i), ranks) for i in order[peak < best_before]]
    front: list[Candidate] = []
    for item in sorted(found + fresh, key=lambda c: (c.bound_s, c.peak_bytes, tie_key(c.plan))):
        if not front or item.peak_bytes < front[-1].peak_bytes:
            front.append(item)
    return front


class Priced(Protocol):
    """A rank map and what prices plans under it (`planner.ranks.Laying`)."""

    @property
    def ranks(self) -> RankMap:
        """The map."""
        ...

    @property
    def ctx(self) -> Context:
        """What the rules compare under it."""
        ...

    @property
    def screen(self) -> ScreenFn:
        """Its screening."""
        ...


class _Builder:
    """Collects a table block by block."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.blocks: list[Columns] = []
        self.bounds: list[NDArray[np.float64]] = []
        self.peaks: list[NDArray[np.float64]] = []
        self.ranks: list[RankMap] = []
        self.raw = self.legal = 0
        self.rejected: dict[str, int] = {}
        self.nearest: list[Candidate] = []
        self.front: list[Candidate] = []

    def lose(self, reason: str, count: int) -> None:
        """Count candidates lost for one reason."""
        if count:
            self.rejected[reason] = self.rejected.get(reason, 0) + count

    def kept(self, block: Columns, ctx: Context) -> NDArray[np.bool_]:
        """Rows of a block that keep the rules; the others are counted."""
        mask, lost = apply(block, ctx, self.rules)
        self.raw += len(block)
        for rule, count in lost.items():
            self.lose(rule, count)
        return mask

    def screened(self, rows: Columns, screen_fn: ScreenFn, ranks: RankMap) -> Columns:
        """Screen legal rows and keep those that fit; returns them."""
        self.legal += len(rows)
        if len(rows) == 0:
            return rows
        screened = screen_fn(rows)
        finite = np.isfinite(screened.bound_s)
        ok = np.asarray(screened.fits, dtype=bool) & finite
        self.lose(NOT_LAID_OUT, int(np.count_nonzero(~finite)))
        unfit = np.flatnonzero(~ok & finite)
        if len(unfit):
            self.lose(OUT_OF_MEMORY, len(unfit))
            self.nearest = _lowest(self.nearest, rows, screened, unfit, ranks)
            self.front = _front(self.front, rows, screened, unfit, ranks)
        good = np.flatnonzero(ok)
        fit = rows.take(good)
        if len(good):
            self.blocks.append(fit)
            self.bounds.append(np.asarray(screened.bound_s, dtype=np.float64)[good])
            self.peaks.append(np.asarray(screened.peak_bytes, dtype=np.float64)[good])
            self.ranks.append(ranks)
        return fit

    def under_others(self, fit: Columns, base: Context, others: Sequence[Priced], spread_of: SpreadFn) -> None:
        """The same plans under further rank maps, each as a candidate of its own.

        Memory does not see the ranks, so that what does not fit under one map fits under none. A plan whose groups lie
        as they do under an earlier map is not priced again.
        """
        if len(fit) == 0:
            return
        met = [(np.ones(len(fit), dtype=bool), spread_of(fit, base.cluster, base.ranks))]
        for other in others:
            mask = self.kept(fit, other.ctx)
            lies = spread_of(fit, base.cluster, other.ranks)
            same = np.zeros(len(fit), dtype=bool)
            for legal, before in met:
                same |= legal & (lies == before).all(axis=1)
            met.append((mask, lies))
            self.lose(SAME_GROUPS, int(np.count_nonzero(mask & same)))
            fresh = mask & ~same
            if fresh.any():
                self.screened(fit.take(fresh), other.screen, other.ranks)


SpreadFn = Callable[[Columns, ClusterSpec, RankMap], NDArray[np.int64]]


def build_table(
    blocks: Iterable[Columns],
    ctx: Context,
    rules: Sequence[Rule],
    screen_fn: ScreenFn,
    progress: Progress | None,
    others: Sequence[Priced] = (),
    spread_of: SpreadFn | None = None,
) -> Table:
    """Stream blocks through rules and screening; a row without a finite bound counts as NOT_LAID_OUT.

    ctx and screen_fn: of the first rank map; others: the rest, told apart by `spread_of` (`planner.ranks.spread`).
    A screening with a method `expect` is told of rows before it is asked for them.
    """
    made = _Builder(rules)
    expect = getattr(screen_fn, "expect", None)
    for lot in _lots(blocks):
        legal = [block.take(made.kept(block, ctx)) for block in lot]
        for rows in legal:
            if expect is not None:
                expect(rows)
        for rows in legal:
            fit = made.screened(rows, screen_fn, ctx.ranks)
            if others and spread_of is not None:
                made.under_others(fit, ctx, others, spread_of)
            if progress is not None:
                progress("screening", made.raw, None)
    return Table(
        blocks=tuple(made.blocks),
        bounds=tuple(made.bounds),
        peaks=tuple(made.peaks),
        raw=made.raw,
        legal=made.legal,
        fits=sum(map(len, made.blocks)),
        rejected=made.rejected,
        nearest=tuple(made.nearest),
        unfit_front=tuple(made.front),
        ranks=tuple(made.ranks),
    )


def _lots(blocks: Iterable[Columns]) -> Iterator[list[Columns]]:
    """Blocks in lots of some `LOT_ROWS` rows."""
    lot: list[Columns] = []
    for block in blocks:
        lot.append(block)
        if sum(map(len, lot)) >= LOT_ROWS:
            yield lot
            lot = []
    yield lot


def in_order(table: Table, limit: int | None) -> list[Candidate]:
    """The `limit` candidates of smallest bound in order (all when None); equal bounds by tie order, then rank map.

    Only what may be simulated is sorted and turned into plans: a partition finds the cut first.
    """
    if not table.blocks:
        return []
    bound = np.concatenate(table.bounds)
    peak = np.concatenate(table.peaks)
    of_block = np.concatenate([np.full(len(b), i) for i, b in enumerate(table.blocks)])
    of_row = np.concatenate([np.arange(len(b)) for b in table.blocks])
    chosen = np.arange(len(bound))
    if limit is not None and limit < len(bound):
        cut = np.partition(bound, limit - 1)[limit - 1]
        chosen = np.flatnonzero(bound <= cut)  # ties at the cut stay: the tie order decides between them
    columns = {name: np.concatenate([getattr(b, name) for b in table.blocks])[chosen] for name in DEGREE_FIELDS}
    discrete = [(b.account_ends, b.zero_stage, b.fsdp_shard, b.schedule, b.recompute) for b in table.blocks]
    place = {key: i for i, key in enumerate(sorted(set(discrete)))}
    block_rank = np.array([place[key] for key in discrete])[of_block[chosen]]
    maps = {ranks: i for i, ranks in enumerate(dict.fromkeys(table.ranks))}
    map_rank = np.array([maps[ranks] for ranks in table.ranks])[of_block[chosen]]
    keys = [map_rank, block_rank, *(columns[name] for name in reversed(TIE_ORDER)), bound[chosen]]
    order = chosen[np.lexsort(keys)][:limit]
    return [
        Candidate(
            plan=table.blocks[of_block[i]].plan(int(of_row[i])),
            bound_s=float(bound[i]),
            peak_bytes=float(peak[i]),
            ranks=table.ranks[of_block[i]],
        )
        for i in order
    ]


def in_order_of_parts(table: Table, first: RankMap, limit: int | None) -> list[Candidate]:
    """The `limit` candidates of smallest bound of the first rank map and as many of all others, in one order."""
    parts = []
    for own in (True, False):
        chosen = [i for i, ranks in enumerate(table.ranks) if (ranks == first) == own]
        names = ("blocks", "bounds", "peaks", "ranks")
        kept: dict[str, Any] = {name: tuple(getattr(table, name)[i] for i in chosen) for name in names}
        part = replace(table, **kept)
        parts.append(in_order(part, limit))
    return list(merge(*parts, key=lambda candidate: candidate.bound_s))
