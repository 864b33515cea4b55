"""Own measured runs as anchors of predictions: read, predicted, and turned into the posterior of another prediction.

The rows are those of `moecast validate`. Each usable one gives a residual, log(measured / predicted step time); what
it says about another prediction follows from what the two runs share (calibration/spread.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.case import Case, Unusable
from calibration.distances import situation_of
from calibration.runs import read_cases
from calibration.spread import Situation, Spread, posterior, shipped_spread, situation
from calibration.validate import Row, predict
from hwprofiles.catalogue import device_of
from hwprofiles.errors import UserError
from sim.interval import Novelty, anchored, limits, novelty
from sim.plan import Plan
from sim.report import Adjustment, Anchor, Estimate
from sim.scenario import Scenario

MOST_APART = 4.0  # measured over predicted beyond it (either way) is a slip: another unit, or all GPUs for one
SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A usable anchor: its row and file, what it is, measured over predicted step time."""

    id: str
    where: str
    run: Situation
    ratio: float


@dataclass(frozen=True, kw_only=True)
class AnchorSet:
    """Usable anchors, and (row, reason) of the rest."""

    measured: tuple[Measured, ...]
    unusable: tuple[tuple[str, str], ...]
    spread: Spread

    def adjustment(self, target: Situation, new: Novelty, *, without: tuple[str, float] | None = None) -> Adjustment:
        """What the anchors say of a prediction. without: (id, ratio) of its own run, which is no anchor of itself."""
        used = [m for m in self.measured if without is None or (m.id, m.ratio) != without]
        found = posterior(self.spread, [m.run for m in used], [math.log(m.ratio) for m in used], target, new)
        share = min(1.0, self.spread.factor * math.sqrt(found.variance / found.prior))
        before = limits(new.distance, is_moe=target.is_moe)
        after = anchored(
            Estimate(value=1.0, low=before[0], high=before[1]),
            Adjustment(factor=math.exp(found.mean), share=share, before=before, after=before, anchors=()),
        )
        return Adjustment(
            factor=math.exp(found.mean), share=share, before=before, after=(after.low, after.high),
            anchors=tuple(
                Anchor(id=m.id, where=m.where, ratio=m.ratio, weight=w)
                for m, w in zip(used, found.weights, strict=True)
            ),
            unusable=self.unusable,
        )  # fmt: skip

    def of_scenario(self, scenario: Scenario) -> Adjustment:
        """What the anchors say of a scenario's step time."""
        device = device_of(scenario.cluster)
        target = situation(
            model=scenario.model.name, is_moe=scenario.model.is_moe, device=scenario.cluster.device,
            release=scenario.software.name, trainer=scenario.software.trainer, precision=scenario.workload.precision,
            seq_tokens=scenario.workload.seq_tokens, devices=scenario.cluster.num_devices, plan=scenario.plan,
        )  # fmt: skip
        return self.adjustment(target, novelty(scenario.model.name, device, scenario.software))

    def adjusted_row(self, row: Row, case: Case, plan: Plan) -> Row:
        """A row of `validate` with the anchors' word in it; a row that is itself an anchor is predicted without it."""
        if row.measure not in ("tokens_per_s_gpu", "step_s"):
            return row
        assert row.predicted is not None and row.low is not None and row.high is not None
        new = novelty(case.model.name, device_of(case.cluster), case.software)
        own = None if case.measured is None else (row.id, _ratio(row, case))
        found = self.adjustment(situation_of(case, plan), new, without=own)
        value = Estimate(value=row.predicted, low=row.low, high=row.high)
        time = row.measure == "step_s"
        moved = anchored(value, found) if time else anchored(value.inverse(1.0), found).inverse(1.0)
        said = {"factor": found.factor, "share": found.share, "anchors": [a.id for a in found.anchors]}
        return replace(row, predicted=moved.value, low=moved.low, high=moved.high, anchored=said)


def read_anchors(paths: Sequence[Path], *, progress: Callable[[int, int], None] | None = None) -> AnchorSet:
    """Predict every row of files of own runs and keep what can serve.

    Raises UserError naming every file that cannot be read, and one with every row's reason where no row can serve.
    """
    problems: list[str] = []
    cases: list[tuple[str, Case | Unusable]] = []
    for path in paths:
        try:
            cases += [(path.name, case) for case in read_cases(path)]
        except UserError as error:
            problems += [f"{error.where}: {said}" if error.where else said for said in error.problems]
    if problems:
        raise UserError(problems, where="--anchor")
    measured: list[Measured] = []
    unusable: list[tuple[str, str]] = []
    for place, (where, case) in enumerate(cases, start=1):
        if isinstance(case, Unusable):
            unusable.append((case.id, f"{case.status}: {case.reason}"))
        elif case.measure != "peak_bytes":  # a run's peak stands beside its step time
            found = _measure(where, case)
            if isinstance(found, Measured):
                measured.append(found)
            else:
                unusable.append((case.id, found))
        if progress is not None:
            progress(place, len(cases))
    if not measured:
        lines = [f"row {ident}: {reason}" for ident, reason in unusable[:SHOWN]]
        more = [f"and {len(unusable) - SHOWN} rows more"] if len(unusable) > SHOWN else []
        raise UserError(["no row can serve as an anchor; mend a row below", *lines, *more], where="--anchor")
    return AnchorSet(measured=tuple(measured), unusable=tuple(unusable), spread=shipped_spread())


def _measure(where: str, case: Case) -> Measured | str:
    """A row as an anchor, or why it cannot be one."""
    if case.measure not in ("tokens_per_s_gpu", "step_s"):
        return "states no step time and no tokens/s; fill step_time_s or tokens_per_s_gpu"
    if case.measured is None:
        return "nothing measured; fill step_time_s or tokens_per_s_gpu"
    if not case.scored:
        return "its figure carries a doubt or follows from printed TFLOP/s; give tokens/s or the step time"
    row, report = predict(case)
    if report is None or row.predicted is None:
        return f"{row.status}: {row.reason}"
    ratio = _ratio(row, case)
    if not 1.0 / MOST_APART <= ratio <= MOST_APART:
        return (
            f"measured step time is {ratio:.3g} x the predicted one; check the unit, and that tokens/s are those of "
            "one GPU"
        )
    return Measured(id=case.id, where=where, run=situation_of(case, report.plan), ratio=ratio)


def _ratio(row: Row, case: Case) -> float:
    """Measured over predicted step time."""
    assert row.predicted is not None and case.measured is not None
    return case.measured / row.predicted if case.measure == "step_s" else row.predicted / case.measured
