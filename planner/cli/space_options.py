"""Options of `moecast plan` that say which plans are looked at: stages, device types, what else is searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from planner.cli.options import _LAYOUT, Asked, _option

if TYPE_CHECKING:
    from rich.console import Console

    from planner.stage_plan.refine import Refinement

WAYS = ("uniform", "auto", "ilp")  # of choosing stages, as `planner.stage_plan.refine` has them


@dataclass(frozen=True, kw_only=True)
class AskedSpace(Asked):
    """The question, and how far the search goes beyond its table."""

    stages: Annotated[
        str, _option("--stages", "Layers of pipeline stages: uniform (as even as layers go, ends lighter), auto (the "
                     "plans listed also with stages and recompute by integer programme) or ilp (further layouts too). "
                     "Default: uniform.", "WAY", _LAYOUT)
    ] = "uniform"  # fmt: skip


def print_stages(console: Console, found: Refinement) -> None:
    """What the programme chose for each layout, and what no stages could beat."""
    from dashboards.style import seconds_text
    from planner.cli.tables import grid

    rows = []
    for row in found.rows:
        solved = row.solution
        rows.append((
            row.label, " ".join(map(str, row.stages)), ", ".join(row.recompute) or ("none" if row.stages else ""),
            "" if row.step_s is None else seconds_text(row.step_s),
            "" if row.even_s is None else seconds_text(row.even_s), seconds_text(row.free_bound_s),
            "" if solved is None else solved.status, row.outcome,
        ))  # fmt: skip
    headers = ("layout", "layers of each stage", "recompute", "step", "even", "bound", "programme", "")
    left = ("layers of each stage", "recompute", "programme", "")
    console.print()
    console.print(grid("Stages by integer programme", headers, rows, left=left))
    why = {"listed": "of the plans listed", "bound": "of every layout that could be faster", "limit": "to the limit"}
    console.print(
        f"Chosen {why[found.stopped]}. No layout of the table is faster than {seconds_text(found.bound_s)} with any "
        f"stages (gap {found.gap:.1%}). Even stages: {seconds_text(found.even_s)}, {found.even_certificate}"
        + ("" if found.even_certificate != "gap" else f" {found.even_gap:.1%}")
    )
