"""The screened table: what survives the rules and the memory, in order of its lower bound.

Blocks stream through: generate, ask the rules, screen memory and bound, keep the rows that fit and
the nearest of those that do not. Nothing here runs events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.rules import Context, Rule, apply
from sim.columns import DEGREE_FIELDS, Columns
from sim.plan import Plan

OUT_OF_MEMORY = "out of memory"
NOT_LAID_OUT = "not laid out"  # screening gives no finite bound: it found no place for the layers
NEAREST_KEPT = 3

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
    """A plan with what screening says of it."""

    plan: Plan
    bound_s: float
    peak_bytes: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that fit, block by block, and the counts of those that do not.

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


def tie_key(plan: Plan) -> tuple[object, ...]:
    """The explicit order between plans of equal time."""
    degrees = tuple(getattr(plan, name) for name in TIE_ORDER)
    return (*degrees, plan.account_ends, plan.zero_stage, plan.fsdp_shard, plan.schedule, plan.recompute)


def _lowest(found: list[Candidate], block: Columns, rows: ScreenedRows, where: NDArray[np.int64]) -> list[Candidate]:
    """The NEAREST_KEPT of smallest peak of `found` and of this block's `where` rows."""
    few = where[np.argsort(rows.peak_bytes[where], kind="stable")[:NEAREST_KEPT]]
    fresh = [
        Candidate(plan=block.plan(int(i)), bound_s=float(rows.bound_s[i]), peak_bytes=float(rows.peak_bytes[i]))
        for i in few
    ]
    return sorted(found + fresh, key=lambda c: (c.peak_bytes, tie_key(c.plan)))[:NEAREST_KEPT]


def _front(found: list[Candidate], block: Columns, rows: ScreenedRows, where: NDArray[np.int64]) -> list[Candidate]:
    """The Pareto front in (bound, peak) of `found` and this block's `where` rows, fastest first."""
    order = where[np.lexsort((rows.peak_bytes[where], rows.bound_s[where]))]
    peak = rows.peak_bytes[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], peak[:-1]]))
    fresh = [
        Candidate(plan=block.plan(int(i)), bound_s=float(rows.bound_s[i]), peak_bytes=float(rows.peak_bytes[i]))
        for i in order[peak < best_before]
    ]
    front: list[Candidate] = []
    for item in sorted(found + fresh, key=lambda c: (c.bound_s, c.peak_bytes, tie_key(c.plan))):
        if not front or item.peak_bytes < front[-1].peak_bytes:
            front.append(item)
    return front


def build_table(
    blocks: Iterable[Columns], ctx: Context, rules: Sequence[Rule], screen_fn: ScreenFn, progress: Progress | None
) -> Table:
    """Stream blocks through rules and screening; a row without a finite bound counts as NOT_LAID_OUT."""
    kept: list[Columns] = []
    bounds: list[NDArray[np.float64]] = []
    peaks: list[NDArray[np.float64]] = []
    raw = legal = fits = 0
    rejected: dict[str, int] = {}
    nearest: list[Candidate] = []
    front: list[Candidate] = []
    for block in blocks:
        raw += len(block)
        mask, lost = apply(block, ctx, rules)
        for rule, count in lost.items():
            rejected[rule] = rejected.get(rule, 0) + count
        rows = block.take(mask)
        legal += len(rows)
        if len(rows):
            screened = screen_fn(rows)
            finite = np.isfinite(screened.bound_s)
            ok = np.asarray(screened.fits, dtype=bool) & finite
            if not finite.all():
                rejected[NOT_LAID_OUT] = rejected.get(NOT_LAID_OUT, 0) + int(np.count_nonzero(~finite))
            unfit = np.flatnonzero(~ok & finite)
            if len(unfit):
                rejected[OUT_OF_MEMORY] = rejected.get(OUT_OF_MEMORY, 0) + len(unfit)
                nearest = _lowest(nearest, rows, screened, unfit)
                front = _front(front, rows, screened, unfit)
            good = np.flatnonzero(ok)
            if len(good):
                kept.append(rows.take(good))
                bounds.append(np.asarray(screened.bound_s, dtype=np.float64)[good])
                peaks.append(np.asarray(screened.peak_bytes, dtype=np.float64)[good])
                fits += len(good)
        if progress is not None:
            progress("screening", raw, None)
    return Table(
        blocks=tuple(kept),
        bounds=tuple(bounds),
        peaks=tuple(peaks),
        raw=raw,
        legal=legal,
        fits=fits,
        rejected=rejected,
        nearest=tuple(nearest),
        unfit_front=tuple(front),
    )


def in_order(table: Table, limit: int | None) -> list[Candidate]:
    """The `limit` candidates of smallest bound in order (all when None); equal bounds by tie order.

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
    keys = [block_rank, *(columns[name] for name in reversed(TIE_ORDER)), bound[chosen]]
    order = chosen[np.lexsort(keys)][:limit]
    return [
        Candidate(
            plan=table.blocks[of_block[i]].plan(int(of_row[i])), bound_s=float(bound[i]), peak_bytes=float(peak[i])
        )
        for i in order
    ]
