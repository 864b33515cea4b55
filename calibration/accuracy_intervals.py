"""The sections of docs/accuracy.md on intervals by distance and on what anchors gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from calibration.accuracy_rows import left_table, percent, table
from calibration.intervals import pooled
from calibration.score import cases_of, errors
from calibration.spread_fit import needed

if TYPE_CHECKING:
    from calibration.accuracy import Scored
    from calibration.distances import Distances
    from calibration.spread_fit import OneAnchor

RUNS = "training_runs.csv"


def interval_sections(scored: Scored) -> list[str]:
    """Both sections as paragraphs; empty where no intervals were made."""
    if scored.distances is None:
        return []
    return [*_intervals(scored, scored.distances), *_anchors(scored.distances)]


def _intervals(scored: Scored, found: Distances) -> list[str]:
    rows = [
        [
            f"{c.kind}, {c.distance}", c.cases, f"{c.low:.3f}", f"{c.high:.3f}", percent(c.half_width),
            percent(c.coverage),
        ]
        for c in found.coverages
    ]  # fmt: skip
    shared = [c for c in found.coverages if c.distance != "new trainer"]
    near = [c.half_width for c in shared if "device" not in c.distance for _ in range(c.cases)]
    new = [c for c in found.coverages if c.distance == "new trainer"]
    inside = errors(cases_of(scored.rows[RUNS]))["coverage"]
    others = [r for f, group in scored.rows.items() if f != RUNS for r in group if r.measure == "step_s" and r.error]
    low, high, peaks = found.memory
    return [
        "## Intervals",
        "Conformal bounds of measured / predicted step time that hold 80 % of the runs left out of the fit, by what a "
        "prediction does not share with the calibrated runs: nothing new (the run itself left out), its model, its "
        "trainer release (with the model), its GPU, both, or its trainer (with the model). For each class all runs are "
        "predicted with the whole-run parameters refitted without that (effects added in the logarithm); the class of "
        "new trainers also holds the step times of the other files, which no fit uses, each source counting by the "
        "root of its runs. Runs of a release with switches nobody stated are predicted as of a new release at "
        "least, and count in no class nearer than that. A class is never narrower than one that shares more. No "
        "factor is assumed: what was an assumed widening for borrowed kernel tables is the class of a new GPU. This "
        "command writes the bounds to `hwprofiles/fitted/intervals.toml`.",
        table(("class", "cases", "low", "high", "half-width", "coverage, unseen"), rows),
        "`coverage, unseen`: each model (source, where its runs are of another file) is tried on bounds made without "
        f"it, sources of the class of new trainers weighted as above. Aim 80 %; pooled {percent(pooled(shared))} over "
        f"{sum(c.cases for c in shared)} left-out cases of known trainers, {percent(pooled(new))} over "
        f"{sum(c.cases for c in new)} of new ones. Median half-width on calibrated GPUs with known trainers "
        f"{percent(median(near))} (aim: at most 25 %). Of the shipped predictions {percent(inside)} lie inside, of the "
        f"step times of the other files {percent(errors(others)['coverage'])}.",
        f"Peak memory: measured / predicted between {low:.3f} and {high:.3f}, from {peaks} published peaks to which no "
        "parameter is fitted, each source counting by the root of its rows.",
    ]


def _gain(name: str, found: Sequence[OneAnchor], distances: Distances, distance: str) -> list[str]:
    """Mean absolute error before and after, groups counting equally, how much of the interval is left, and how many
    runs lie in what is left."""
    whole = sum(x.weight for x in found)

    def mean(value: Callable[[OneAnchor], float]) -> float:
        return sum(x.weight * value(x) for x in found) / whole

    def share(x: OneAnchor) -> float:
        return min(1.0, distances.spread.factor * math.sqrt(x.left))

    def inside(x: OneAnchor) -> float:
        limits = x.target.limits or distances.limits["moe" if x.target.run.is_moe else "dense"][distance]
        return float(needed(x.after, limits) <= share(x))

    before, after = mean(lambda x: abs(math.expm1(-x.target.residual))), mean(lambda x: abs(math.expm1(-x.after)))
    change = percent(after / before - 1.0, sign=True)
    return [name, str(len(found)), percent(before), percent(after), change, percent(mean(share)), percent(mean(inside))]


def _distance(name: str) -> str:
    """Class of the predictions of a line: by what was left out of the fit."""
    return "new trainer" if "trainer left out" in name else "new device" if "left out" in name else "new model"


def _anchors(found: Distances) -> list[str]:
    rows = []
    for name, each in found.gains.items():
        for kind, moe in (("MoE", True), ("dense", False)):
            mine = [x for x in each if x.target.run.is_moe == moe]
            if mine:
                rows.append(_gain(f"{name}: {kind}", mine, found, _distance(name)))
        if each:
            rows.append(_gain(f"{name}: all", each, found, _distance(name)))
    spread = found.spread
    effects = [
        ("model on the device", spread.v_model), ("the same with the release", spread.v_setup),
        ("device with release, all models", spread.v_release), ("between runs that agree", spread.v_noise),
    ]  # fmt: skip
    return [
        "### What one own run says about others",
        "`--anchor` takes own measured runs as anchors. How far one moves another prediction follows from how errors "
        "of left-out runs go together (`calibration/spread.py`). Below every run is predicted with one other run as "
        "its only anchor, both predicted without their model (or GPU, or trainer); each group of runs counts "
        "equally. Within a model, the variances behind it are estimated without that model. `width left`: of the "
        "80 % interval; `inside it`: runs that lie in what is left.",
        table(("anchor shares", "pairs", "error", "with one anchor", "change", "width left", "inside it"), rows),
        "Variances behind it, as standard deviations of the log error:",
        left_table(("effect", "standard deviation"), [(name, percent(math.sqrt(v))) for name, v in effects]),
        f"Likeness falls by e over {spread.l_seq:.1f} octaves of sequence length, {spread.l_devices:.1f} of devices, "
        f"{spread.l_tokens:.1f} of tokens per micro-batch, and by {percent(1 - math.exp(-spread.p_precision))} for "
        f"another precision, {percent(1 - math.exp(-spread.q_layout))} for another layout.",
        "Putting part of the shift into clock and host times was tried and explained nothing more: given these "
        "effects, their variances come out as zero. What all models on a calibrated GPU and release share is in the "
        "fitted clock already; so an anchor of another model says something only where GPU or trainer are new.",
    ]
