"""Records of stages refined: what was chosen for each layout, and what no stages could beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from planner.runs import BOUND_TOLERANCE
from planner.stage_plan.records import Modules, StageSolution
from sim.report import Report


@dataclass(frozen=True, kw_only=True)
class RefinedRow:
    """One layout whose stages were chosen. outcome: "adopted", "not faster", "does not fit", "no stages fit", or the
    rule of the target that forbids them. even_s: simulated step of the listed plan with even stages, None of other
    rows. free_bound_s: no stages of this layout give a shorter step. solution: the programme's; None where nothing
    was solved.
    """

    label: str
    outcome: str
    step_s: float | None
    even_s: float | None
    free_bound_s: float
    stages: tuple[int, ...]
    recompute: Modules
    solution: StageSolution | None


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What refining did. way: auto or ilp. plans: (report, bound) of those adopted. bound_s: no row of the table,
    with any stages, is faster; gap: (best - bound_s) / best. even_s: the best step with even stages, with its gap and
    certificate. stopped: "listed" (auto: others may be faster too), "bound" (no other row could be), "limit" or
    "interrupted" (what was chosen until then stands). bounded: layouts bounded with whole layers that fit. kept_even:
    schedules of the table whose stages are not chosen; the bound is of any stages of theirs too.
    """

    way: str
    rows: tuple[RefinedRow, ...]
    plans: tuple[tuple[Report, float], ...]
    even_s: float
    even_gap: float
    even_certificate: str
    bound_s: float
    gap: float
    stopped: str
    bounded: int = 0
    kept_even: tuple[str, ...] = ()

    @property
    def void(self) -> bool:
        """Whether a simulated step came out below its bound, so that nothing is proven."""
        return any(r.step_s is not None and r.step_s < r.free_bound_s * (1.0 - BOUND_TOLERANCE) for r in self.rows)

    def scaled(self, by: float) -> Refinement:
        """The same after anchoring: every simulated second times `by`; the closed form stays what it is."""
        rows = tuple(
            replace(r, step_s=_times(r.step_s, by), even_s=_times(r.even_s, by), free_bound_s=r.free_bound_s * by)
            for r in self.rows
        )
        return replace(self, rows=rows, even_s=self.even_s * by, bound_s=self.bound_s * by)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, SI units."""
        return {
            "way": self.way, "even_s": self.even_s, "even_gap": self.even_gap,
            "even_certificate": self.even_certificate, "bound_s": self.bound_s, "gap": self.gap,
            "stopped": self.stopped, "bounded": self.bounded, "rows": [_row_json(row) for row in self.rows],
        }  # fmt: skip


def _times(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _row_json(row: RefinedRow) -> dict[str, Any]:
    s = row.solution
    solved = None if s is None or s.choice is None else {
        "objective_s": s.choice.objective_s, "bound_s": s.bound_s, "gap": s.gap, "status": s.status, "nodes": s.nodes,
        "solver": s.solver,
    }  # fmt: skip
    return {
        "label": row.label, "outcome": row.outcome, "step_s": row.step_s, "even_s": row.even_s,
        "free_bound_s": row.free_bound_s, "stages": list(row.stages), "recompute": list(row.recompute),
        "programme": solved,
    }  # fmt: skip
