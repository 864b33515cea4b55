"""What was searched besides degrees, and stages by integer programme, as tables of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from planner.stage_plan.refine import Refinement


def print_variants(console: Console, plans: Sequence[Mapping[str, Any]], variants: Sequence[Mapping[str, Any]]) -> None:
    """What the listed plans run with; of every value that was searched the fastest plan simulated, and the values with
    which nothing can be faster, apart from those that the search did not get to."""
    from dashboards.style import seconds_text
    from planner.cli.tables import grid, notes
    from planner.wide_answer import NOT_TO_THE_END

    said = [(str(plan["rank"]), plan["chosen"]["label"]) for plan in plans if plan.get("chosen")]
    console.print()
    console.print(grid("Runs with", ("#", "what was searched besides"), said, left=("what was searched besides",)))
    best_s = plans[0]["step_s"]["value"]
    found = sorted((v for v in variants if v["step_s"] is not None), key=lambda v: float(v["step_s"]))
    rows = [(v["label"], v["plan"], seconds_text(v["step_s"]), f"{v['step_s'] / best_s - 1.0:+.1%}") for v in found]
    console.print()
    console.print(grid("Searched besides", ("with", "plan", "step", "over the best"), rows, left=("plan",)))
    beaten: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    floor_s = min((v["bound_s"] for v in variants if v["bound_s"] is not None), default=best_s)
    for each in variants:
        if each["step_s"] is None:
            name, _, value = each["label"].partition(" ")
            bound_s = each["bound_s"]
            least = " (no layout is legal)" if bound_s is None else ""
            least = f" (from {seconds_text(bound_s)})" if bound_s is not None and bound_s > floor_s else least
            (unknown if each["why"] == NOT_TO_THE_END else beaten).setdefault(name, []).append(value + least)
    titles = {"No faster plan with": beaten, "Not searched to the end, a faster plan may exist with": unknown}
    for title, rest in titles.items():
        notes(console, title, [f"{name}: {'; '.join(values)}" for name, values in rest.items()])


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
    if rows:
        console.print(grid("Stages by integer programme", headers, rows, left=left))
    why = {
        "listed": "Chosen for the plans listed and the most promising others.",
        "bound": "Chosen for every layout that could be faster.",
        "limit": "Chosen for layouts up to the limit.",
        "interrupted": "Stopped by an interrupt; what was chosen until then stands.",
    }
    kept = f"stages of {', '.join(found.kept_even)} stay even" if found.kept_even else ""
    said = why[found.stopped] + (f" But {kept}." if kept else "") if rows else (
        f"No stages were chosen: {kept}, and no layout of another schedule could be faster." if kept and
        found.stopped != "interrupted" else
        "No stages were chosen: no plan that is listed runs a pipeline, and no other layout could be faster."
        if found.stopped != "interrupted" else "Stopped by an interrupt before any stages were chosen."
    )  # fmt: skip
    console.print(
        f"{said} No layout of the table is faster than {seconds_text(found.bound_s)} with any stages (gap "
        f"{found.gap:.1%}; {found.bounded} layouts bounded with whole layers). Even stages: "
        f"{seconds_text(found.even_s)}, {found.even_certificate}"
        + ("" if found.even_certificate != "gap" else f" {found.even_gap:.1%}")
    )
