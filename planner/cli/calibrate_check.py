"""`moecast calibrate check`: predict the measured blocks and training steps with a profile of the same device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import output
from planner.cli.taking import JSON_OPTION

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.check import Checked, CheckedPoint

WORDS = {
    "block": "block time",
    "block_ranks": "  of these over several ranks",
    "step": "training step time",
    "step_ranks": "  of these over several ranks",
    "memory": "peak memory",
}


def check(
    folder: Annotated[str, typer.Argument(metavar="PROFILE_OR_ROWS", help="What `fit` or `measure` wrote.")],
    rows: Annotated[
        str | None, typer.Option(metavar="ROWS_DIR", help="With a profile: the measured rows it is held against.")
    ] = None,
    json: Annotated[str | None, JSON_OPTION] = None,
) -> None:
    """Predict measured MoE blocks and training steps from the microbenchmarks alone; show errors and verdict.

    Of a folder of rows a profile is fitted first. The exit code is 0 whatever the verdict.
    """
    from pathlib import Path

    output.check_targets(json=json)
    with output.progress("fitting and predicting"):
        from calibration.check import check as run

        result = run(Path(folder), rows=None if rows is None else Path(rows))
    if json:
        output.write_text(json, output.json_text(result.to_json()), "--json")
    if json != output.STDOUT:
        print_checked(output.console(), result)


def print_checked(console: Console, result: Checked) -> None:
    """Every point, errors by kind, the verdict, and what the predictions rest on."""
    from planner.cli.tables import grid

    header = ("op", "part", "shape", "measured ms", "spread", "predicted ms", "error", "peak MB", "error", "")
    console.print(grid(f"Closed loop, {result.device}", header, [_cells(p) for p in result.points], ("part", "shape")))
    lines = [
        (what, s.name, f"{s.count}", f"{s.mean:.1%}", f"{s.median:.1%}", f"{s.bias:+.1%}")
        for what, summaries in (("time", result.times()), ("peak memory", result.memory()))
        for s in summaries
    ]
    console.print(
        grid("Errors by kind", ("of", "op and part", "points", "mean", "median", "bias"), lines, ("op and part",))
    )
    for v in result.verdicts():
        if not v.count:
            text = "not measured"
        elif v.target is None:
            text = f"mean error {v.mean:.1%} over {v.count} points, no target on a {result.kind.upper()}"
        else:
            text = f"mean error {v.mean:.1%} over {v.count} points, target {v.target:.0%}: "
            text += "met" if v.met else "MISSED"
        console.print(f"{WORDS[v.name]}: {text}", markup=False, soft_wrap=True)
    for why, count in result.left.items():
        console.print(f"{count} points not predicted, {why}", markup=False, soft_wrap=True)
    console.print("\nThe predictions rest on")
    for note in result.provenance:
        console.print(f"  {note}", markup=False, soft_wrap=True)


def _cells(point: CheckedPoint) -> tuple[str, ...]:
    measured, predicted = point.measured, point.predicted
    memory, peak = "", ""
    if measured.peak_bytes is not None and point.memory_error is not None:
        peak, memory = f"{measured.peak_bytes / 1e6:.1f}", f"{point.memory_error:+.1%}"
    times = f"{measured.seconds * 1e3:.3f}", f"{measured.spread:.0%}", f"{predicted.seconds * 1e3:.3f}"
    note = "host-bound" if predicted.host_bound else ""
    return measured.op, measured.part, measured.label, *times, f"{point.error:+.1%}", peak, memory, note
