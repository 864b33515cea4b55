"""Left-out residuals of the published runs by class of distance, and everything `intervals.toml` is made of.

For each class all runs take part: each is predicted with the whole-run parameters refitted without what the class
calls new (read off the ladders of calibration/leftout.py). Runs of a release with unknown switches are never predicted
in a class nearer than a new release (sim/interval.py), and do not count in one. The class of new trainers also holds
the published step times of other files, none of which the fit uses; there each source counts by the root of its runs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from calibration import intervals
from calibration.case import Case
from calibration.intervals import Coverage, Residual, coverages
from calibration.leftout import Effects, Refit
from calibration.parameters import priors
from calibration.spread import Situation, Spread, situation
from calibration.spread_fit import (
    NOTHING_NEW,
    SETUP,
    Observed,
    OneAnchor,
    crossed_anchors,
    fit_spread,
    nearest,
    one_anchor,
)
from calibration.validate import Row
from sim.interval import DISTANCES
from sim.plan import Plan

# What is left out for each class of distance.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "same": ("case",), "new model": ("model",), "new release": ("model", "release"), "new device": ("gpu",),
    "new model and device": ("model", "gpu"), "new trainer": ("model", "trainer"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Known:
    """A scored run of the fit: its case, its effects and the plan it was filled with."""

    case: Case
    effects: Effects
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Distances:
    """What the accuracy page says of intervals and anchors."""

    limits: intervals.Limits
    coverages: Sequence[Coverage]
    memory: tuple[float, float, int]
    spread: Spread
    gains: Mapping[str, Sequence[OneAnchor]]


def situation_of(case: Case, plan: Plan) -> Situation:
    """The situation of a case with its plan."""
    return situation(
        model=case.model.name, is_moe=case.model.is_moe, device=case.cluster.device, release=case.software.name,
        trainer=case.software.trainer, precision=case.workload.precision, seq_tokens=case.workload.seq_tokens,
        devices=case.cluster.num_devices, plan=plan,
    )  # fmt: skip


def kind_of(case: Case) -> str:
    """ "moe" or "dense"."""
    return "moe" if case.model.is_moe else "dense"


def residuals(known: Sequence[Known]) -> list[Residual]:
    """Residuals of the runs of the fit, one per run and class of distance."""
    refit = Refit([each.effects for each in known], priors({each.effects.folder for each in known}))
    out = []
    for distance in DISTANCES:
        for i, (each, values) in enumerate(zip(known, refit.left_out(*LEFT_OUT[distance]), strict=True)):
            out.append(Residual(
                kind=kind_of(each.case), distance=distance, residual=-refit.error(i, values),
                group=each.case.group["model"], source=each.case.group["source"], model=each.case.group["model"],
                device=each.case.cluster.device, release=each.case.software.name,
            ))  # fmt: skip
    return out


def at_their_distance(found: Sequence[Residual], known: Sequence[Known]) -> list[Residual]:
    """Without those of runs in classes nearer than the one they are predicted in: where a release leaves switches
    `unknown`, nearer than a new release. found: of `residuals(known)`, in its order."""
    guessed = [bool(each.case.software.unknown) for each in known]
    nearer = DISTANCES[: DISTANCES.index("new release")]
    return [r for i, r in enumerate(found) if not (guessed[i % len(known)] and r.distance in nearer)]


def other_residuals(rows: Sequence[tuple[Row, Case]]) -> list[Residual]:
    """Step times of files that take no part in the fit, as the class of new trainers; groups are their sources."""
    return [
        Residual(
            kind=kind_of(case), distance="new trainer", residual=-math.log1p(row.error), group=case.group["release"],
            source=case.group["release"], model=case.model.name, device=case.cluster.device, release=case.software.name,
        )
        for row, case in rows
        if row.measure == "step_s" and row.error is not None
    ]  # fmt: skip


def balanced(found: Sequence[Residual]) -> list[Residual]:
    """The same with weights in the class of new trainers: a source counts by the root of its runs."""
    sizes = Counter((r.kind, r.source) for r in found if r.distance == "new trainer")
    return [replace(r, weight=sizes[(r.kind, r.source)] ** -0.5) if r.distance == "new trainer" else r for r in found]


def repeat_spread(rows: Sequence[Row]) -> float:
    """Spread of the log of equal runs of one release: median over groups of the median distance from the middle."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.scored and row.measured:
            groups[row.key].append(math.log(row.measured))
    apart = [median(abs(x - median(g)) for x in g) for g in groups.values() if len(g) > 1]
    return median(apart) if apart else 0.0


def memory_bounds(rows: Sequence[Row]) -> tuple[float, float, int]:
    """Conformal bounds of measured over predicted peak; a source counts by the root of its rows."""
    mine = [r for r in rows if r.measure == "peak_bytes" and r.scored and r.error is not None]
    sizes = Counter(r.group.get("source", "") for r in mine)
    ratios = [1.0 / (1.0 + (r.error or 0.0)) for r in mine]
    low, high = intervals.conformal(ratios, [sizes[r.group.get("source", "")] ** -0.5 for r in mine])
    return low, high, len(mine)


def calibrate(
    known: Sequence[Known], rows: Sequence[tuple[Row, Case]], trained: Sequence[Row], *, date: str, target: Path
) -> Distances:
    """All of it from the runs of the fit (`known`; `trained`: their rows) and the other files' rows, put into `target`.

    Raises OSError where it cannot be written, ValueError where a kind has no run.
    """
    every = residuals(known)
    found = balanced([*at_their_distance(every, known), *other_residuals(rows)])
    limits = intervals.bounds(found)
    memory = memory_bounds([row for row, _ in rows])
    # without its model, so that all runs of a setup are predicted with the same parameters, none fitted to them
    observed = [
        replace(seen, limits=limits[kind_of(each.case)]["new release"]) if each.case.software.unknown else seen
        for seen, each in zip(_observed(known, every, "new model"), known, strict=True)
    ]
    unseen = {kind == "moe": limits[kind]["new model"] for kind in intervals.KINDS}
    repeat_sd, extra = repeat_spread(trained), intervals.extra(found, limits)
    spread = fit_spread(observed, limits=unseen, repeat_sd=repeat_sd, extra=extra)
    within = crossed_anchors(observed, limits=unseen, repeat_sd=repeat_sd, extra=extra)
    names = {
        "models": [k.case.model.name for k in known], "devices": [k.effects.folder for k in known],
        "releases": [k.case.software.name for k in known], "trainers": [k.case.software.trainer for k in known],
    }  # fmt: skip
    counts = Counter((r.kind, r.distance) for r in found)
    target.write_text(intervals.render(limits, counts, memory, spread, date=date, known=names), encoding="utf-8")
    return Distances(
        limits=limits, coverages=coverages(found), memory=memory, spread=spread,
        gains={
            "same GPU, release and model": within, "the most similar run of them": nearest(within),
            **_gains(spread, known, every, observed),
        },
    )  # fmt: skip


def _observed(known: Sequence[Known], every: Sequence[Residual], distance: str) -> list[Observed]:
    """The runs of the fit with their residuals of one class; every: of `residuals(known)`, in its order."""
    values = [r.residual for r in every if r.distance == distance]
    return [
        Observed(run=situation_of(each.case, each.plan), residual=value)
        for each, value in zip(known, values, strict=True)
    ]


def _gains(
    spread: Spread, known: Sequence[Known], every: Sequence[Residual], seen: Sequence[Observed]
) -> dict[str, list[OneAnchor]]:
    """What one anchor does to runs of another model (or release), by what they share and what the fit left out. seen:
    with their model left out."""
    machine, trainer = (_observed(known, every, d) for d in ("new device", "new trainer"))
    device = replace(NOTHING_NEW, device=True)
    return {
        "same GPU and release, another model": one_anchor(spread, seen, within=SETUP[:2], other_models=True),
        "same GPU, left out of the fit; any model and release": one_anchor(
            spread, machine, within=SETUP[:1], new=device
        ),
        "same GPU and release, trainer left out of the fit; another model": one_anchor(
            spread, trainer, within=SETUP[:2], other_models=True, new=replace(NOTHING_NEW, trainer=True)
        ),
    }
