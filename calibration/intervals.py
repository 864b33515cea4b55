"""Intervals from left-out residuals: conformal quantiles per class, and the file that predictions read.

A residual is measured over predicted step time of a run whose model took no part in the fit. Each
is divided by the widening its prediction gets (sim/interval.py), so that widened and plain
predictions together hold 80 %.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

SHARE = 0.8
CLASSES = ("moe", "dense")


@dataclass(frozen=True, kw_only=True)
class Residual:
    """One left-out case: class, group it was left out with, measured / predicted step time, widening."""

    kind: str
    group: str
    ratio: float
    widen: float

    @property
    def plain(self) -> float:
        """The ratio with the widening taken off: 1 + (ratio - 1) / widen."""
        return 1.0 + (self.ratio - 1.0) / self.widen


def path() -> Path:
    """Where the intervals are kept."""
    return Path(str(resources.files("hwprofiles"))) / "fitted" / "intervals.toml"


def conformal(ratios: Sequence[float], share: float = SHARE) -> tuple[float, float]:
    """Split-conformal bounds (low <= 1 <= high) that a new exchangeable ratio keeps to with `share`.

    Order statistics floor((n + 1)(1 - share) / 2) and ceil((n + 1)(1 + share) / 2) of n ratios, clipped to
    the smallest and largest (Vovk et al., Algorithmic Learning in a Random World, 2005, ch. 2).

    >>> conformal([0.8 + 0.05 * i for i in range(9)])
    (0.8, 1.2)

    Raises ValueError on no ratios.
    """
    if not ratios:
        raise ValueError("no residuals: score at least one case of each class")
    ordered = sorted(ratios)
    n = len(ordered)
    tail = (1.0 - share) / 2.0
    # a hair of tolerance, so that (n + 1) * tail = 1.0000000000000002 is 1
    first = max(1, math.floor((n + 1) * tail + 1e-9))
    last = min(n, math.ceil((n + 1) * (1.0 - tail) - 1e-9))
    return min(1.0, ordered[first - 1]), max(1.0, ordered[last - 1])


def bounds(residuals: Sequence[Residual]) -> dict[str, tuple[float, float]]:
    """Bounds per class, from residuals with their widening taken off."""
    return {kind: conformal([r.plain for r in residuals if r.kind == kind]) for kind in CLASSES}


def covered(residuals: Sequence[Residual], limits: Mapping[str, tuple[float, float]]) -> float:
    """Share of residuals within the (widened) bounds of their class."""
    inside = [limits[r.kind][0] <= r.plain <= limits[r.kind][1] for r in residuals]
    return sum(inside) / len(inside) if inside else float("nan")


def crossed(residuals: Sequence[Residual]) -> float:
    """Coverage of bounds that have not seen the group they are tried on: one group left out at a time."""
    inside = 0.0
    for group in sorted({r.group for r in residuals}):
        mine = [r for r in residuals if r.group == group]
        inside += covered(mine, bounds([r for r in residuals if r.group != group])) * len(mine)
    return inside / len(residuals)


def distance(residual: Residual, limits: Mapping[str, tuple[float, float]]) -> float:
    """How many times the distance from 1 to its bound a residual lies out."""
    low, high = limits[residual.kind]
    out = residual.plain - 1.0
    return out / (high - 1.0) if out > 0.0 else out / (low - 1.0)


def new_trainer(others: Sequence[Residual], limits: Mapping[str, tuple[float, float]]) -> float:
    """Widening that holds 80 % of runs of trainers no run of the fit shares; at least 1.

    The mean over groups (files) of each group's 80 % conformal quantile of `distance`, so that the longest
    file does not decide. 1 without such runs.
    """
    found = []
    for group in sorted({r.group for r in others}):
        ordered = sorted(distance(r, limits) for r in others if r.group == group)
        found.append(ordered[min(len(ordered), math.ceil((len(ordered) + 1) * SHARE - 1e-9)) - 1])
    return max(1.0, sum(found) / len(found)) if found else 1.0


def render(
    limits: Mapping[str, tuple[float, float]], counts: Mapping[str, int], *, old: str, date: str, outside: float,
    calibrated: Sequence[str],
) -> str:  # fmt: skip
    """The text of intervals.toml. The two assumed widenings are kept as the file has them (`old`)."""
    kept = tomllib.loads(old)
    lines = [
        "# 80 % intervals of predicted step time. Written by `python -m calibration.accuracy`, which keeps the first",
        "# two widenings: assumptions of how much further out the bounds lie where the device borrows another chip's",
        "# kernel tables, and where a switch of the release is not known.",
        f"borrowed = {kept['borrowed']}  # assumed",
        f"unknown_switch = {kept['unknown_switch']}  # assumed",
        f"new_trainer = {outside:.2f}  # trainers not in `calibrated`: fitted to the other published step times",
        "calibrated = [",
        *(f'    "{name}",' for name in calibrated),
        "]",
    ]
    for kind in CLASSES:
        low, high = limits[kind]
        lines += [
            "",
            f"[{kind}]  # bounds of measured / predicted step time",
            f"low = {low:.4f}",
            f"high = {high:.4f}",
            f"cases = {counts[kind]}",
        ]
    lines += [
        "",
        "[source]",
        'kind = "fitted"',
        'title = "10 % and 90 % conformal quantiles of leave-one-model-out residuals, per class"',
        'where = "calibration/intervals.py over calibration/published/training_runs.csv"',
        f'date = "{date}"  # newest run used',
        'licence = "Apache-2.0"',
        'note = "borrowed and unknown_switch are assumed"',
    ]
    return "\n".join(lines) + "\n"


def write(
    residuals: Sequence[Residual], *, date: str, target: Path | None = None, others: Sequence[Residual] = (),
    calibrated: Sequence[str] = (),
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Put the bounds of these residuals into intervals.toml; returns them. date: of the newest run used.

    others: runs of trainers outside the fit (widening taken off as for the rest); calibrated: names of the
    trainer profiles that runs of the fit used.

    Raises OSError where the package folder cannot be written.
    """
    limits = bounds(residuals)
    file = target or path()
    counts = {kind: sum(r.kind == kind for r in residuals) for kind in CLASSES}
    text = render(limits, counts, old=file.read_text(encoding="utf-8"), date=date,
                  outside=new_trainer(others, limits), calibrated=sorted(set(calibrated)))  # fmt: skip
    file.write_text(text, encoding="utf-8")
    return limits
