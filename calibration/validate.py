"""`validate`: predict runs from their configuration, then read what was measured and score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibration.case import Case, Unusable
from calibration.fill import DECIDING, fill
from calibration.runs import read_cases
from hwprofiles.errors import UserError
from hwprofiles.factors import Factors
from sim.cost.model import CostModel
from sim.interval import novelty
from sim.plan import Plan
from sim.report import Estimate, Report
from sim.run import Simulation

Progress = Callable[[int, int], None]
Adjust = Callable[["Row", Case, Plan], "Row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One predicted run. error = predicted / measured - 1; None without a measurement. anchored: factor, share and ids
    of the own runs that moved the prediction."""

    id: str
    status: str
    reason: str = ""
    measure: str = ""
    measured: float | None = None
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    filled: Mapping[str, Any] = field(default_factory=dict)
    plan: str = ""
    scored: bool = False
    ranked: bool = False
    key: str = ""
    group: Mapping[str, str] = field(default_factory=dict)
    peak_bytes: float | None = None
    anchored: Mapping[str, Any] | None = None
    breakdown: Mapping[str, float] = field(default_factory=dict)


def predict(case: Case, *, override: Factors | None = None) -> tuple[Row, Report | None]:
    """Predict one case; nothing measured is read here."""
    empty = Row(
        id=case.id, status="ok", measure=case.measure, group=case.group, key=case.weight_key, scored=case.scored,
        ranked=case.ranked,
    )  # fmt: skip
    if all(case.known.get(k) is None for k in DECIDING):
        return replace(empty, status="undetermined", reason="tp, pp, ep and micro-batch are all unknown"), None
    try:
        cost = CostModel(case.cluster, case.software, override=override)
        found = fill(case, cost)
        scenario = case.scenario(found.plan)
        report = Simulation(scenario, cost=cost).report(trace=False)
    except UserError as error:
        return replace(empty, status="infeasible", reason=str(error)), None
    value = {"tokens_per_s_gpu": report.tokens_per_s_per_gpu, "step_s": report.step_s}.get(case.measure)
    if case.measure == "peak_bytes":
        value = report.peak_mem
    if case.measure == "fits":
        flag = 1.0 if report.fits else 0.0
        value = Estimate(value=flag, low=flag, high=flag)
    assert value is not None
    distance = novelty(case.model.name, cost.device, case.software).distance
    note = "" if found.fits else f"predicted peak {report.peak_mem_bytes / 2**30:.1f} GiB exceeds the device"
    row = replace(
        empty, predicted=value.value, low=value.low, high=value.high, filled={**case.assumed, **found.filled},
        plan=found.plan.label(), reason=note, peak_bytes=report.peak_mem_bytes, breakdown=report.breakdown,
        group={**case.group, "distance": distance},
    )  # fmt: skip
    return row, report


def with_measured(row: Row, case: Case) -> Row:
    """Join a prediction with what the source measured."""
    if case.measured is None or row.predicted is None:
        return replace(row, measured=case.measured)
    error = None if case.measure == "fits" else row.predicted / case.measured - 1.0
    return replace(row, measured=case.measured, error=error)


def predict_file(
    path: Path, *, override: Factors | None = None, progress: Progress | None = None,
    keep: Callable[[Case], bool] | None = None, adjust: Adjust | None = None,
) -> list[Row]:  # fmt: skip
    """Predict every row of a file, adjust it (`AnchorSet.adjusted_row`), then read the measured columns."""
    cases = read_cases(path)
    rows: list[Row] = []
    for i, case in enumerate(cases):
        if isinstance(case, Unusable):
            rows.append(Row(id=case.id, status=case.status, reason=case.reason, group=case.group))
        elif keep is None or keep(case):
            row, report = predict(case, override=override)
            if adjust is not None and report is not None:
                row = adjust(row, case, report.plan)
            rows.append(with_measured(row, case))
        if progress is not None:
            progress(i + 1, len(cases))
    return rows


def validate(
    paths: Sequence[Path], *, progress: Progress | None = None, adjust: Adjust | None = None
) -> dict[str, Any]:  # fmt: skip
    """Predict and score files of runs: {"rows": [...], "summary": {...}}. adjust: see `predict_file`.

    A file that cannot be read is one row of status "unsupported"; raises UserError when none can be read.
    """
    from calibration.score import summary

    rows: list[Row] = []
    errors: list[UserError] = []
    for path in paths:
        try:
            rows += predict_file(path, progress=progress, adjust=adjust)
        except UserError as error:
            errors.append(error)
            rows.append(Row(id=path.name, status="unsupported", reason=str(error)))
    if len(errors) == len(paths):
        raise errors[0] if len(errors) == 1 else UserError([str(error) for error in errors])
    return {"rows": [row_json(r) for r in rows], "summary": summary(rows)}


def row_json(row: Row) -> dict[str, Any]:
    """One row as plain values."""
    return {
        "id": row.id, "status": row.status, "reason": row.reason, "measure": row.measure, "measured": row.measured,
        "predicted": row.predicted, "low": row.low, "high": row.high, "error": row.error,
        "filled": {k: list(v) if isinstance(v, tuple) else v for k, v in row.filled.items()}, "plan": row.plan,
        "scored": row.scored, "peak_bytes": row.peak_bytes, "group": dict(row.group), "anchored": row.anchored,
    }  # fmt: skip
