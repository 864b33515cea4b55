"""A plan search after anchoring: one factor on every second of the answer, so that nothing changes places.

The search itself runs on simulated seconds. Own measured runs move all candidates by the same factor, bounds and
steps alike: order, gap and certificate stay what they were.
"""

from __future__ import annotations

from dataclasses import replace

from planner.runs import Misfit
from planner.search import PlanResult
from sim.interval import adjusted
from sim.report import Adjustment


def scaled(result: PlanResult, adjustment: Adjustment) -> PlanResult:
    """The result with reports, bounds and neighbours in seconds as the anchors have them."""
    by = adjustment.factor
    return replace(
        result,
        plans=tuple(replace(p, report=adjusted(p.report, adjustment), bound_s=p.bound_s * by) for p in result.plans),
        lean=tuple(replace(p, report=adjusted(p.report, adjustment), bound_s=p.bound_s * by) for p in result.lean),
        search=replace(result.search, bound_s=result.search.bound_s * by),
        next_best=tuple(replace(c, bound_s=c.bound_s * by) for c in result.next_best),
        misfits=_misfits(result.misfits, by),
        fast_misfits=_misfits(result.fast_misfits, by),
        neighbours=tuple(
            replace(n, bound_s=_times(n.bound_s, by), step_s=_times(n.step_s, by)) for n in result.neighbours
        ),
        stages=None if result.stages is None else result.stages.scaled(by),
        options={**result.options, "anchors": [[a.id, a.ratio] for a in adjustment.anchors]},
    )


def _misfits(found: tuple[Misfit, ...], by: float) -> tuple[Misfit, ...]:
    return tuple(replace(m, bound_s=m.bound_s * by) for m in found)


def _times(value: float | None, by: float) -> float | None:
    return None if value is None else value * by
