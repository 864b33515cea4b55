"""Errors on what was never fitted: refit the whole-run parameters without a group, predict that group.

A full refit simulates every run hundreds of times. Here each parameter's effect on each run is simulated
once on a short ladder of values around the shipped one, and a refit reads the ladders: effects are
taken to add up in the logarithm. The left-out runs are then simulated at the refitted values, so only the
fit is approximate, not the prediction. Unknown cells keep the plan they were filled with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.case import Case
from calibration.parameters import CLOCK, NAMES, apply_values, bounds_of, of_device, parameter, shipped
from hwprofiles.catalogue import device_of
from hwprofiles.factors import factors
from sim.cost.model import CostModel
from sim.plan import Plan
from sim.run import Simulation

Array = npt.NDArray[np.float64]

SHARES = (0.0, 0.35, 0.7, 1.0)  # places between the bounds of a parameter, beside the shipped value
GRID = 81  # values a refit tries per parameter
ROUNDS = 20  # coordinate descent ends earlier, when nothing moves


@dataclass(frozen=True, kw_only=True)
class Effects:
    """One case on the ladders: log(predicted / measured) as shipped, and by parameter (value, change)."""

    key: str
    folder: str
    groups: Mapping[str, str]
    weight_group: tuple[str, str]
    error: float
    ladders: Mapping[str, tuple[tuple[float, float], ...]]


def log_rate(case: Case, plan: Plan, values: Mapping[str, float]) -> float:
    """log of predicted tokens/s/GPU of a case under parameter values."""
    folder = device_of(case.cluster).measured
    override = apply_values(factors(folder), folder, values)
    sim = Simulation(case.scenario(plan), cost=CostModel(case.cluster, case.software, override=override))
    return float(np.log(sim.report(trace=False).tokens_per_s_per_gpu.value))


def effects(case: Case, plan: Plan) -> Effects:
    """Simulate a case along the ladder of each parameter. The measured value is read last."""
    folder = device_of(case.cluster).measured
    base = shipped(folder)
    at_base = log_rate(case, plan, base)
    ladders = {}
    for name, value in base.items():
        low, high = bounds_of(name)
        if parameter(name).moe_only and not case.model.is_moe:
            continue
        places = sorted({low * (high / low) ** share for share in SHARES})
        points = [(v, log_rate(case, plan, {**base, name: v}) - at_base) for v in places]
        ladders[name] = tuple(sorted([*points, (value, 0.0)]))
    groups = {
        "model": case.group["model"], "gpu": folder, "release": case.group["release"], "trainer": case.software.trainer,
        "case": case.weight_key,
    }  # fmt: skip
    return Effects(
        key=case.weight_key, folder=folder, groups=groups, weight_group=(case.group["source"], case.group["model"]),
        error=at_base - float(np.log(measured_rate(case))), ladders=ladders,
    )  # fmt: skip


def measured_rate(case: Case) -> float:
    """Measured tokens/s of one device, also where the source gives the step time."""
    assert case.measured is not None
    if case.measure == "tokens_per_s_gpu":
        return case.measured
    tokens = case.workload.global_batch_seqs * case.workload.seq_tokens
    return tokens / case.measured / case.cluster.num_devices


class Refit:
    """Refits on any subset of cases, by table. The objective: mean absolute log error, each (source, model) group
    weighing the root of its cases.

    prior: (value, standard deviation of its logarithm) by parameter; errors then count as Laplace distributed with the
    mean absolute error at the start as their scale. Without, only the bounds hold a parameter.
    """

    def __init__(self, cases: Sequence[Effects], prior: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.cases = tuple(cases)
        self.penalty: dict[str, Array] = {}
        self.folders = tuple(sorted({c.folder for c in cases}))
        self.grids: dict[str, Array] = {}
        self.changes: dict[str, Array] = {}
        self.start: dict[str, int] = {}
        for name in (*(n for f in self.folders for n in of_device(f)), *NAMES):
            low, high = bounds_of(name)
            value = shipped(name.partition(".")[2] or self.folders[0])[name]
            grid = np.unique(np.append(np.geomspace(low, high, GRID), value))
            self.grids[name], self.start[name] = grid, int(np.argmin(np.abs(grid - value)))
            self.changes[name] = np.array([_along(c.ladders.get(name), grid) for c in cases])
            middle, sd = (prior or {}).get(name, (value, np.inf))
            self.penalty[name] = 0.5 * (np.log(grid / middle) / sd) ** 2

    def fit(self, keep: Callable[[Effects], bool]) -> dict[str, float]:
        """Parameter values that fit the kept cases best.

        A device without any takes the mean of the others' clocks, and what its host would be without any run.
        """
        rows = np.array([keep(c) for c in self.cases])
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for c, used in zip(self.cases, rows, strict=True):
            sizes[c.weight_group] += int(used)
        weight = np.array([sizes[c.weight_group] ** -0.5 if u else 0.0 for c, u in zip(self.cases, rows, strict=True)])
        at = dict(self.start)
        total = np.array([c.error for c in self.cases])
        scale = float(weight @ np.abs(total)) / max(float(weight.sum()), 1e-12)
        for _ in range(ROUNDS):
            moved = False
            for name, changes in self.changes.items():
                rest = total - changes[:, at[name]]
                cost = weight @ np.abs(rest[:, None] + changes) + scale * self.penalty[name]
                best = int(np.argmin(cost))
                if cost[best] < cost[at[name]] - 1e-9:
                    total, at[name], moved = rest + changes[:, best], best, True
            if not moved:
                break
        values = {name: float(self.grids[name][i]) for name, i in at.items()}
        seen = {c.folder for c, used in zip(self.cases, rows, strict=True) if used}
        clock = float(np.mean([values[f"{CLOCK}.{f}"] for f in seen])) if seen else 0.0
        for name in (n for f in self.folders if seen and f not in seen for n in of_device(f)):
            values[name] = clock if name.startswith(CLOCK) else parameter(name).prior
        return values

    def error(self, index: int, values: Mapping[str, float]) -> float:
        """log(predicted / measured) of a case at parameter values, by table."""
        case = self.cases[index]
        moves = [_along(ladder, np.array([values[name]]))[0] for name, ladder in case.ladders.items()]
        return case.error + float(np.sum(moves))

    def left_out(self, *by: str) -> list[dict[str, float]]:
        """For each case the values refitted without all that share its group: by "model", "gpu", "release", "trainer"
        or "case"; by several names: without all that share any of them. Where nothing is left, the values as shipped.
        """
        found: dict[tuple[str, ...], dict[str, float]] = {}
        for case in self.cases:
            names = tuple(case.groups[each] for each in by)
            if names not in found:
                found[names] = self.fit(_without(by, names))
        return [found[tuple(case.groups[each] for each in by)] for case in self.cases]


def _without(by: Sequence[str], names: Sequence[str]) -> Callable[[Effects], bool]:
    """Keeps the cases outside every one of these groups."""
    return lambda case: all(case.groups[each] != name for each, name in zip(by, names, strict=True))


def _along(ladder: Sequence[tuple[float, float]] | None, values: Array) -> Array:
    """Change of the log rate at parameter values, linear in the logarithm between the rungs."""
    if ladder is None:
        return np.zeros(len(values))
    x, y = np.log([v for v, _ in ladder]), np.array([c for _, c in ladder])
    return np.asarray(np.interp(np.log(values), x, y), float)
