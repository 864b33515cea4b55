"""Regret on published sweeps: what trusting the prediction costs where others measured several mappings.

A sweep is a group of published runs with equal model, GPU, GPU count, sequence, global batch, precision and trainer
release and at least three mappings (degrees and micro-batch). The planner's first choice among them is the mapping
it predicts fastest of those it predicts to fit; its regret is the share of the best measured throughput that it
gives away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.validate import Row

MIN_MAPPINGS = 3
SWEPT_BY = ("model", "gpu", "n_gpus", "seq_len", "global_batch", "precision", "release")  # equal within a sweep


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """One mapping of a sweep: tokens/s per GPU, measured and predicted (medians of its cases).

    fits: whether a case of it is predicted to fit in memory. ids: of its cases.
    """

    plan: str
    measured: float
    predicted: float
    fits: bool
    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A group of at least three mappings, fastest measured first."""

    name: tuple[str, ...]
    mappings: tuple[Mapping, ...]

    @property
    def best(self) -> Mapping:
        """The fastest as measured."""
        return self.mappings[0]

    @property
    def chosen(self) -> Mapping:
        """The fastest as predicted of those that fit (of all, where none does).

        Of equal predictions the slowest as measured counts: nothing told them apart.
        """
        return min(self.mappings, key=lambda m: (not m.fits, -m.predicted, m.measured))

    @property
    def regret(self) -> float:
        """Share of the best measured throughput that the choice gives away, 0 to 1."""
        return 1.0 - self.chosen.measured / self.best.measured

    @property
    def blind(self) -> float:
        """The regret to expect of a mapping drawn blindly: every one as likely."""
        return 1.0 - float(np.mean([m.measured for m in self.mappings])) / self.best.measured


def sweeps(cases: Sequence[Row], *, min_mappings: int = MIN_MAPPINGS) -> list[Sweep]:
    """Every sweep among the cases (see `calibration.score.cases_of`), in order of its name."""
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        if case.measure == "tokens_per_s_gpu" and case.measured is not None and case.predicted is not None:
            groups[tuple(case.group.get(key, "") for key in SWEPT_BY)][case.plan].append(case)
    found = []
    for name, plans in sorted(groups.items()):
        if len(plans) >= min_mappings:
            made = [_mapping(plan, members) for plan, members in plans.items()]
            found.append(Sweep(name=name, mappings=tuple(sorted(made, key=lambda m: (-m.measured, m.plan)))))
    return found


def _mapping(plan: str, members: Sequence[Row]) -> Mapping:
    measured = float(np.median([m.measured for m in members if m.measured is not None]))
    predicted = float(np.median([m.predicted for m in members if m.predicted is not None]))
    fits = any(not m.reason for m in members)  # of a predicted row the reason is that its memory does not fit
    return Mapping(
        plan=plan, measured=measured, predicted=predicted, fits=fits, ids=tuple(sorted(m.id for m in members))
    )


def mean_regret(found: Sequence[Sweep]) -> float:
    """Mean over sweeps of the regret; not a number where there is none."""
    return float(np.mean([sweep.regret for sweep in found])) if found else float("nan")
