"""Switches of the trainer tried on the plans of a search, which covers layouts under the switches it was given.

One at a time on the first plan, then together, greedily; on each other plan the best set found so far and every switch
by itself, as one that is of no use to the first plan may make another the fastest. A plan and a switch count where the
target's rules allow them together and the plan still fits. This is no search over all of both: the words of
`Tried.certificate` say what was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from hwprofiles.specs import SoftwareProfile
from planner.rules import check
from planner.rules.flags import SWITCHES, Switch, switches_of
from sim import run
from sim.columns import columns_of
from sim.report import Report
from sim.scenario import Scenario
from sim.screen import screen


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A plan (its place in the list) with switches on: its step, and the share of the first plan's step it saves."""

    rank: int
    switches: tuple[str, ...]
    said: tuple[str, ...]
    step_s: float
    gain: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Tried:
    """singles: single switches that help the first plan, best first. best: of all plans and sets tried, or None.

    tried: pairs of plan and switches that were legal; plans: how many plans they were tried on. applied: switches
    that were turned on before, for the search. searched: switches with each of which all layouts were searched too,
    and whether these searches prove their best plan.
    """

    tried: int
    plans: int
    singles: tuple[Trial, ...]
    best: Trial | None
    applied: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()
    proven: bool = False

    @property
    def certificate(self) -> str:
        """What is known of layouts and switches, in words."""
        layouts = f"layouts searched with {', '.join(self.applied)} on" if self.applied else "layouts searched"
        if self.searched:
            how = "none is faster (proven)" if self.proven else "none was found faster (not searched to the end)"
            return f"layouts and switches: {layouts}, and with each of {', '.join(self.searched)} besides: {how}"
        if not self.tried:
            return f"{layouts}; no switch of the target is left to try"
        found = "none helps" if self.best is None else f"{', '.join(self.best.switches)} would help"
        return f"{layouts}; switches tried on {self.plans} of its plans ({self.tried} runs or bounds): {found}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "applied": list(self.applied),
            "tried": self.tried,
            "plans": self.plans,
            "singles": [asdict(trial) for trial in self.singles],
            "best": None if self.best is None else asdict(self.best),
            "searched": list(self.searched),
            "certificate": self.certificate,
        }


def turned_on(software: SoftwareProfile, names: Sequence[str]) -> SoftwareProfile:
    """The profile with switches on."""
    fields: dict[str, Any] = dict.fromkeys(names, True)
    return replace(software, **fields)


def known(names: Sequence[str], target: str) -> bool:
    """Whether every name is a switch of the target, as a plan file must have it."""
    return {*names} <= {switch.name for switch in SWITCHES.get(target, ())}


def legal(asked: Scenario, target: str) -> bool:
    """Whether the target's rules allow the plan of a scenario."""
    return not check(
        asked.plan, asked.model, asked.cluster, asked.software, asked.workload, target=target, ranks=asked.ranks
    )


def _bound_s(asked: Scenario) -> float:
    """Lower bound of the step; infinite where the plan does not fit."""
    seen = screen(
        asked.model, asked.cluster, asked.software, asked.workload, columns_of([asked.plan])[0],
        routing=asked.routing, ranks=asked.ranks,
    )  # fmt: skip
    return float(seen.bound_s[0]) if bool(seen.fits[0]) else inf


def simulated_below(asked: Scenario, below_s: float) -> Report | None:
    """The event run of a scenario that fits and is faster than this; None for another, by its bound if that tells."""
    if asked.plan.stages is None and _bound_s(asked) >= below_s:
        return None
    report = run.simulate(asked, trace=False)
    return report if report.fits and report.step_s.value < below_s else None


def try_switches(
    plans: Sequence[tuple[Scenario, float]], target: str, *, applied: Sequence[str] = (), scale: float = 1.0
) -> Tried:
    """Try the switches of the target on plans, each with its simulated step in seconds, the fastest first.

    applied: switches that the search had on already. scale: of all steps that are told, where anchors move them.
    """
    (first, base_s), *others = plans
    trials = _Trials(target=target, base_s=base_s, scale=scale)
    singles = trials.of(first, 1, [(switch,) for switch in switches_of(target, first.software)], base_s)
    best = next(iter(singles), None)
    while best is not None:
        sets = [(*best.set, switch) for switch in trials.legal if switch not in best.set]
        found = trials.of(first, 1, sets, best.seconds)
        if not found:
            break
        best = found[0]
    for rank, (plan, _) in enumerate(others, 2):
        sets = [(switch,) for switch in switches_of(target, plan.software)]
        if best is not None and best.set not in sets:
            sets.append(best.set)
        found = trials.of(plan, rank, sets, base_s if best is None else best.seconds)
        best = found[0] if found else best
    return Tried(
        tried=trials.count,
        plans=len(plans),
        singles=tuple(one.trial for one in singles),
        best=None if best is None else best.trial,
        applied=tuple(applied),
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    set: tuple[Switch, ...]
    seconds: float
    trial: Trial


class _Trials:
    """Runs plans with switches on, and counts them. legal: switches that were allowed alone."""

    def __init__(self, *, target: str, base_s: float, scale: float) -> None:
        self.target, self.base_s, self.scale = target, base_s, scale
        self.count = 0
        self.legal: list[Switch] = []

    def of(self, plan: Scenario, rank: int, sets: Sequence[tuple[Switch, ...]], below_s: float) -> list[_Found]:
        """The sets with which a plan fits and takes less than this, the fastest first."""
        found = []
        for switches in sets:
            names = tuple(switch.name for switch in switches)
            other = replace(plan, software=turned_on(plan.software, names))
            if ("sequence_parallel" in names and plan.plan.tp == 1) or not legal(other, self.target):
                continue
            self.count += 1
            if rank == 1 and len(switches) == 1:
                self.legal.append(switches[0])
            report = simulated_below(other, below_s)
            if report is not None:
                step_s = report.step_s.value
                trial = Trial(
                    rank=rank, switches=names, said=tuple(switch.said for switch in switches),
                    step_s=step_s * self.scale, gain=1.0 - step_s / self.base_s, label=plan.plan.label(),
                )  # fmt: skip
                found.append(_Found(set=switches, seconds=step_s, trial=trial))
        return sorted(found, key=lambda one: (one.seconds, one.trial.switches))
