"""Intervals from left-out residuals: conformal bounds per kind of model and distance, and the file predictions read.

A residual is the log of measured over predicted step time of a run that the fit did not see, left out in the way its
class of distance says (calibration/distances.py): the run alone, its model, its device, ... Bounds are split-conformal,
and a class that shares less is never narrower than one that shares more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from calibration.spread import Spread, spread_table
from sim.interval import DISTANCES

SHARE = 0.8
SHARE_SD = 1.2816  # standard deviations of a Gaussian that hold SHARE on both sides
KINDS = ("moe", "dense")
# Classes that share more than a class does: its bounds hold theirs.
NEARER: Mapping[str, tuple[str, ...]] = {
    "same": (), "new model": ("same",), "new release": ("same", "new model"), "new device": ("same",),
    "new model and device": ("same", "new model", "new device"), "new trainer": ("same", "new model", "new release"),
}  # fmt: skip
Limits = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Residual:
    """One left-out run: kind, class of distance, log(measured / predicted step time), where it was measured.

    group: what its bounds are tried without (the model, or the source of the other files). weight: how much it counts
    (1, or less where one source would decide alone).
    """

    kind: str
    distance: str
    residual: float
    group: str
    source: str
    model: str = ""
    device: str = ""
    release: str = ""
    weight: float = 1.0


def path() -> Path:
    """Where the intervals are kept."""
    return Path(str(resources.files("hwprofiles"))) / "fitted" / "intervals.toml"


def conformal(
    ratios: Sequence[float], weights: Sequence[float] | None = None, share: float = SHARE
) -> tuple[float, float]:  # fmt: skip
    """Split-conformal bounds (low <= 1 <= high) that a new exchangeable ratio keeps to with `share`.

    Order statistics floor((n + 1)(1 - share) / 2) and ceil((n + 1)(1 + share) / 2) of n ratios, clipped to
    the smallest and largest (Vovk et al., Algorithmic Learning in a Random World, 2005, ch. 2). With weights the
    ranks are sums of weights, and the new ratio weighs as their mean (Tibshirani et al., NeurIPS 2019).

    >>> conformal([0.8 + 0.05 * i for i in range(9)])
    (0.8, 1.2)

    Raises ValueError on no ratios.
    """
    if not ratios:
        raise ValueError("no residuals: score at least one case of each class")
    weights = [1.0] * len(ratios) if weights is None else weights
    mean = sum(weights) / len(weights)
    # a hair of tolerance, so that (n + 1) * tail = 1.0000000000000002 is 1
    tail, hair = (sum(weights) + mean) * (1.0 - share) / 2.0, 1e-9 * mean
    top = sum(weights) + mean - tail
    low = high = None
    rank = 0.0
    for ratio, weight in sorted(zip(ratios, weights, strict=True)):
        rank += weight
        if low is None or rank <= tail + hair:
            low = ratio
        if high is None or rank - weight < top - hair:
            high = ratio
    assert low is not None and high is not None
    return min(1.0, low), max(1.0, high)


def bounds(residuals: Sequence[Residual]) -> dict[str, dict[str, tuple[float, float]]]:
    """(low, high) of measured / predicted per kind and distance; a class without runs has those of the nearer ones."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for kind in KINDS:
        found: dict[str, tuple[float, float]] = {}
        for distance in DISTANCES:
            mine = [r for r in residuals if r.kind == kind and r.distance == distance]
            own = [conformal([math.exp(r.residual) for r in mine], [r.weight for r in mine])] if mine else []
            both = [*own, *(found[name] for name in NEARER[distance])]
            if not both:
                raise ValueError(f"no residuals: score at least one {kind} case")
            found[distance] = min(low for low, _ in both), max(high for _, high in both)
        out[kind] = found
    return out


def within(residual: Residual, limits: Limits) -> bool:
    """Whether a left-out run lies inside its bounds."""
    low, high = limits[residual.kind][residual.distance]
    return math.log(low) <= residual.residual <= math.log(high)


def covered(residuals: Sequence[Residual], limits: Limits) -> float:
    """Share of residuals within the bounds of their class."""
    return sum(within(r, limits) for r in residuals) / len(residuals) if residuals else math.nan


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Of one kind and distance: bounds, cases, (weighted) share of them within bounds made without their own model
    (source, for runs of other files)."""

    kind: str
    distance: str
    low: float
    high: float
    cases: int
    coverage: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval over the prediction."""
        return (self.high - self.low) / 2.0


def coverages(residuals: Sequence[Residual]) -> list[Coverage]:
    """Per kind and distance: bounds from all residuals, and how many lie within bounds that have not seen them."""
    limits = bounds(residuals)
    inside: dict[tuple[str, str], float] = {}
    for group in sorted({r.group for r in residuals}):
        rest = [r for r in residuals if r.group != group]
        if {r.kind for r in rest} != set(KINDS):
            continue
        unseen = bounds(rest)
        for r in residuals:
            if r.group == group:
                key = (r.kind, r.distance)
                inside[key] = inside.get(key, 0.0) + r.weight * within(r, unseen)
    out = []
    for kind in KINDS:
        for distance in DISTANCES:
            mine = [r for r in residuals if r.kind == kind and r.distance == distance]
            if mine:
                low, high = limits[kind][distance]
                share = inside.get((kind, distance), 0.0) / sum(r.weight for r in mine)
                out.append(Coverage(kind=kind, distance=distance, low=low, high=high, cases=len(mine), coverage=share))
    return out


def pooled(found: Sequence[Coverage]) -> float:
    """Coverage over the cases of several classes together."""
    return sum(c.coverage * c.cases for c in found) / sum(c.cases for c in found) if found else math.nan


def extra(residuals: Sequence[Residual], limits: Limits) -> dict[str, dict[str, float]]:
    """Variance a new device and a new trainer add, and the part of it that models have in common (see `Spread`).

    The whole from the widths of the classes, relative to the class that shares them; the common part from products of
    residuals of different models on one new device (with one new release).
    """
    plan = {"device": ("new device", "same", ("device",)), "trainer": ("new trainer", "new model", ("release",))}
    out: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        out[kind] = {}
        for name, (distance, over, fields) in plan.items():
            wide, plain = (math.log(limits[kind][d][1] / limits[kind][d][0]) for d in (distance, over))
            more = max(0.0, (wide / plain) ** 2 - 1.0) if plain > 0.0 else 0.0
            scale = more * (plain / 2.0 / SHARE_SD) ** 2
            mine = [r for r in residuals if r.kind == kind and r.distance == distance]
            common = min(1.0, max(0.0, shared_variance(mine, fields) / scale)) if scale > 0.0 else 0.0
            out[kind] |= {name: float(f"{more:.3g}"), f"{name}_common": float(f"{common:.3g}")}
    return out


def shared_variance(residuals: Sequence[Residual], fields: Sequence[str]) -> float:
    """Mean product of the residuals of two runs that share `fields` but not the model; groups count by their root."""
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for r in residuals:
        place = tuple(getattr(r, name) for name in fields)
        groups.setdefault(place, {}).setdefault(r.model, []).append(r.residual)
    total = weights = 0.0
    for models in groups.values():
        count = sum(map(len, models.values()))
        pairs = count**2 - sum(len(m) ** 2 for m in models.values())
        if pairs:
            product = sum(map(sum, models.values())) ** 2 - sum(sum(m) ** 2 for m in models.values())
            total += math.sqrt(count) * product / pairs
            weights += math.sqrt(count)
    return total / weights if weights else 0.0


def render(
    limits: Limits, counts: Mapping[tuple[str, str], int], memory: tuple[float, float, int], spread: Spread, *,
    date: str, known: Mapping[str, Sequence[str]],
) -> str:  # fmt: skip
    """The text of intervals.toml."""
    lines = ["# 80 % intervals of predictions, by what they share with the runs below. Made by calibration.accuracy."]
    for name in ("models", "devices", "releases", "trainers"):
        lines += [f"{name} = [", *(f'    "{each}",' for each in sorted(set(known[name]))), "]"]
    for kind in KINDS:
        for distance in DISTANCES:
            low, high = limits[kind][distance]
            lines += [
                "", f'[step.{kind}."{distance}"]  # bounds of measured / predicted step time',
                f"low = {low:.4f}", f"high = {high:.4f}", f"cases = {counts.get((kind, distance), 0)}",
            ]  # fmt: skip
    low, high, rows = memory
    lines += ["", "[memory]  # bounds of measured / predicted peak", f"low = {low:.4f}", f"high = {high:.4f}"]
    lines += [f"rows = {rows}", "", "# Random effects of the log residual; formula and meaning: calibration/spread.py."]
    table: dict[str, Any] = spread_table(spread)
    more = table.pop("extra")
    lines += ["[anchors]", *(f"{name} = {value:.6g}" for name, value in table.items())]
    for kind in KINDS:
        lines += ["", f"[anchors.extra.{kind}]", *(f"{name} = {value:.6g}" for name, value in more[kind].items())]
    lines += [
        "",
        "[source]",
        'kind = "fitted"',
        'title = "Conformal quantiles of left-out residuals by kind and distance, and variances of their effects"',
        'where = "calibration/intervals.py and calibration/spread_fit.py over calibration/published"',
        f'date = "{date}"  # newest run used',
        'licence = "Apache-2.0"',
        'note = "the classes: sim/interval.py; what is left out for each: calibration/distances.py"',
    ]
    return "\n".join(lines) + "\n"
