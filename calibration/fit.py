"""Fit the whole-run parameters: one sustained clock per device and two host times, nothing else.

Least absolute log error with equal weight per (source, model) group, by coordinate descent on a
fixed ladder of values: deterministic, no gradient, no random start. Kernel and link figures come from
their own measurements and are not touched here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from calibration.fill import fill
from calibration.runs import Case, read_cases
from hwprofiles.catalogue import device_of
from hwprofiles.errors import UserError
from hwprofiles.factors import Factors, factors
from sim.cost.model import CostModel
from sim.plan import Plan
from sim.run import Simulation
from sim.scenario import Scenario

CLOCK_BOUNDS = (0.60, 1.00)  # a sustained clock cannot exceed the burst clock
LAUNCH_BOUNDS = (4e-6, 40e-6)
EXPERT_BOUNDS = (3e-6, 40e-6)
# The other published files are left out of the fit: they stay a test.
FITTED_FILES = ("training_runs.csv",)
HOST = ("host_launch_s", "host_expert_s")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Values by name ("clock.h100", "host_launch_s", ...), and the objective reached."""

    values: Mapping[str, float]
    objective: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One case with its plan (filled once), its measured value and weight."""

    case: Case
    plan: Plan
    folder: str
    weight: float


def samples(*paths: Path) -> list[Sample]:
    """Scored cases, one per case key, weighted so that each (source, model) counts equally."""
    seen: dict[str, Case] = {}
    for case in (case for path in paths for case in read_cases(path)):
        if isinstance(case, Case) and case.scored and case.measured and case.measure in ("tokens_per_s_gpu", "step_s"):
            seen.setdefault(case.weight_key, case)
    groups: dict[tuple[str, str], int] = defaultdict(int)
    kept: list[tuple[Case, Plan]] = []
    for case in seen.values():
        try:
            plan = fill(case, CostModel(case.cluster, case.software)).plan
        except UserError:
            continue
        kept.append((case, plan))
        groups[(case.group["source"], case.group["model"])] += 1
    weights = {key: 1.0 / np.sqrt(count) for key, count in groups.items()}
    return [
        Sample(
            case=c, plan=p, folder=device_of(c.cluster).measured,
            weight=weights[(c.group["source"], c.group["model"])],
        )
        for c, p in kept
    ]  # fmt: skip


def log_error(sample: Sample, values: Mapping[str, float]) -> float:
    """log(predicted / measured) under a set of parameter values."""
    base = factors(sample.folder)
    override = apply_values(base, sample.folder, values)
    case = sample.case
    scenario = Scenario(
        model=case.model, cluster=case.cluster, software=case.software, workload=case.workload, plan=sample.plan
    )
    sim = Simulation(scenario, cost=CostModel(case.cluster, case.software, override=override))
    report = sim.report(trace=False)
    got = report.tokens_per_s_per_gpu.value if case.measure == "tokens_per_s_gpu" else report.step_s.value
    assert case.measured is not None
    return float(np.log(got / case.measured))


def apply_values(base: Factors, folder: str, values: Mapping[str, float]) -> Factors:
    """Factors of a device with fitted values put in."""
    changes: dict[str, Any] = {name: values[name] for name in HOST if name in values}
    if f"clock.{folder}" in values:
        changes["clock"] = values[f"clock.{folder}"]
    return replace(base, **changes)


def objective(errors: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean absolute log error."""
    return float(np.average(np.abs(errors), weights=weights))


def fit(
    data: Sequence[Sample], *, rounds: int = 3, note: Callable[[str], None] | None = None,
    start: Mapping[str, float] | None = None,
) -> Fitted:  # fmt: skip
    """Coordinate descent: clocks on their own device's rows, host times on all rows."""
    folders = sorted({s.folder for s in data})
    values: dict[str, float] = {f"clock.{f}": factors(f).clock for f in folders}
    values |= {name: getattr(factors(folders[0]), name) for name in HOST}
    values |= dict(start or {})
    errors = {id(s): log_error(s, values) for s in data}

    def score(rows: Sequence[Sample], trial: Mapping[str, float]) -> tuple[float, dict[int, float]]:
        new = {id(s): log_error(s, trial) for s in rows}
        return objective(list(new.values()), [s.weight for s in rows]), new

    steps = {**{f"clock.{f}": 0.06 for f in folders}, "host_launch_s": 0.25, "host_expert_s": 0.25}
    for turn in range(rounds):
        for name, step in steps.items():
            rows = [s for s in data if name.split(".")[-1] in (s.folder, name)]
            best = objective([errors[id(s)] for s in rows], [s.weight for s in rows])
            size = step / (2.5**turn)
            for sign in (1.0, -1.0):
                moved = False
                while True:
                    value = _bounded(name, values[name] * (1.0 + sign * size))
                    if value == values[name]:
                        break
                    trial = {**values, name: value}
                    got, new = score(rows, trial)
                    if got >= best - 1e-6:
                        break
                    best, values, moved = got, trial, True
                    errors.update(new)
                if moved:
                    break
            if note is not None:
                note(f"round {turn + 1} {name} = {values[name]:.4g}: mean |log error| {best:.4f}")
    total = objective(list(errors.values()), [s.weight for s in data])
    return Fitted(values=values, objective=total)


def _bounded(name: str, value: float) -> float:
    low, high = CLOCK_BOUNDS if name.startswith("clock") else LAUNCH_BOUNDS if "launch" in name else EXPERT_BOUNDS
    return min(high, max(low, value))


def write(fitted: Fitted) -> list[Path]:
    """Put fitted values into hwprofiles/fitted/*.toml, leaving everything else in the files as it is."""
    folder = Path(str(resources.files("hwprofiles"))) / "fitted"
    changed = []
    for name, value in fitted.values.items():
        file, key = (f"{name.split('.')[1]}.toml", "clock") if name.startswith("clock.") else ("common.toml", name)
        path = folder / file
        text = re.sub(rf"(?m)^{key} = \S+", f"{key} = {value:.4g}", path.read_text(encoding="utf-8"), count=1)
        path.write_text(text, encoding="utf-8")
        changed.append(path)
    return changed


def main() -> int:
    """`python -m calibration.fit`: refit from the shipped runs and write the factors."""
    import sys

    folder = Path(str(resources.files("calibration"))) / "published"
    result = fit(samples(*(folder / name for name in FITTED_FILES)), note=lambda text: print(text, file=sys.stderr))
    write(result)
    sys.stderr.write(f"mean |log error| {result.objective:.4f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
