"""`--anchor`: own measured runs read for `plan`, `simulate` and `validate`, and what they did in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import TYPE_CHECKING, Any

from planner.cli import output

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.anchors import AnchorSet
    from sim.report import Adjustment

MOST = 8
SMALL_WEIGHT = 0.005  # a weight that rounds to 0.00
FAR = 3.0  # times the half-width of the interval


def read(files: Sequence[str] | None, bar: output.Progress) -> AnchorSet | None:
    """The anchors of these files; None without the option. Raises UserError with all problems."""
    if not files:
        return None
    from pathlib import Path

    from calibration.anchors import read_anchors

    return read_anchors(
        [Path(name) for name in dict.fromkeys(files)],
        progress=lambda done, total: bar.update("predicting the anchors", done, total),
    )


def half_width(bounds: Sequence[float]) -> float:
    """Half the width of an interval over its middle."""
    return (bounds[1] - bounds[0]) / (bounds[1] + bounds[0])


def lines(found: Adjustment) -> list[str]:
    """What the anchors did: the shift, the interval before and after, each run, and the rows that could not serve."""
    before, after = half_width(found.before), half_width(found.after)
    said = [
        f"step time moved by {found.factor - 1.0:+.1%}; 80 % interval narrowed from +-{before:.1%} to +-{after:.1%}"
        if found.share < 1.0
        else f"step time moved by {found.factor - 1.0:+.1%}; 80 % interval as wide as before, +-{before:.1%}"
    ]
    order = sorted(found.anchors, key=lambda a: (-abs(a.weight), a.id))
    for anchor in order[:MOST]:
        weight = f"weight {anchor.weight:.2f}" if abs(anchor.weight) >= SMALL_WEIGHT else "says nothing here"
        wide = abs(log(anchor.ratio)) > FAR * log(found.before[1] / found.before[0]) / 2.0
        far = "; far outside the interval, check the row" if wide else ""
        said.append(f"{anchor.id} ({anchor.where}): measured step {anchor.ratio - 1.0:+.1%}, {weight}{far}")
    if len(order) > MOST:
        said.append(f"{len(order) - MOST} more anchors (see --json)")
    return said + unusable(found.unusable)


def unusable(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Rows that could not serve, with their reasons."""
    said = [f"row {ident} is no anchor: {reason}" for ident, reason in rows[:MOST]]
    return [*said, *([f"{len(rows) - MOST} more rows are no anchors (see --json)"] if len(rows) > MOST else [])]


def print_anchors(console: Console, found: Adjustment | None) -> None:
    """The section under the answer of `plan` and `simulate`."""
    if found is None:
        return
    from planner.cli.tables import notes

    notes(console, "Anchored to own runs", lines(found), 2 * MOST + 3)


def summary(anchors: AnchorSet) -> dict[str, Any]:
    """The anchors as the JSON of `validate` has them."""
    return {
        "runs": [{"id": m.id, "where": m.where, "ratio": m.ratio} for m in anchors.measured],
        "unusable": [{"id": ident, "reason": reason} for ident, reason in anchors.unusable],
    }


def print_validated(console: Console, data: Mapping[str, Any]) -> None:
    """The section under the answer of `validate`."""
    from planner.cli.tables import notes

    found = data.get("anchors")
    if not found:
        return
    moved = [row["anchored"] for row in data["rows"] if row["anchored"]]
    many = len(found["runs"])
    said = [f"{many} own {'run' if many == 1 else 'runs'}; a row that is itself an anchor is predicted without it"]
    if moved:
        shifts = sorted(row["factor"] - 1.0 for row in moved)
        share = sum(row["share"] for row in moved) / len(moved)
        said.append(
            f"step times moved by {shifts[0]:+.1%} to {shifts[-1]:+.1%}; intervals {share:.0%} as wide on average"
        )
    rows = [(row["id"], row["reason"]) for row in found["unusable"]]
    notes(console, "Anchored to own runs", said + unusable(rows), MOST + 3)
