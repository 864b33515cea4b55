"""What a search over variants found (`planner.wide`), and what is known of each value of each dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from planner.grounds import Priced
from planner.ranks import Laying
from planner.result import Certificate, RankedPlan, SearchSummary
from planner.variants import Axes, Chosen, offload_text
from sim.mesh import RankMap
from sim.plan import Plan
from sim.report import Report

BEYOND_BEST = "cannot beat the best"
NOT_TO_THE_END = "not searched to the end"
NO_LAYOUT = "no layout is legal"
OUT_OF_MEMORY_ANYHOW = "out of memory, whatever goes to the host"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Ground, share of the optimizer and activations on the host, by their places on the axes."""

    ground: int = 0
    share: int = 0
    away: int = 0


@dataclass(frozen=True, kw_only=True)
class Ran:
    """An event run whose plan fits."""

    step_s: float
    report: Report
    bound_s: float
    setting: Setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Wide:
    """What was found over all variants, the table's own included. done: what fits, best first, and what it runs with;
    bound_s: no plan under any variant is faster; lines: of each value of each dimension."""

    done: tuple[tuple[Ran, Chosen], ...]
    bound_s: float
    stopped: str
    void: tuple[str, ...]
    raw: int
    legal: int
    fits: int
    simulated: int
    rejected: Mapping[str, int]
    lines: tuple[Mapping[str, Any], ...]
    grounds: tuple[Priced, ...] = field(repr=False)

    def plans(self) -> tuple[RankedPlan, ...]:
        """Everything that was run, best first."""
        return tuple(
            RankedPlan(rank=i + 1, report=ran.report, bound_s=ran.bound_s, chosen=chosen)
            for i, (ran, chosen) in enumerate(self.done)
        )

    def asked(self, report: Report) -> Chosen:
        """What a plan runs with that was run with what was asked."""
        return self.grounds[0].chosen(0, 0, report.plan.recompute)

    def listed(self, top: int) -> tuple[RankedPlan, ...]:
        """The fastest plans, each layout once, under the best of its settings."""
        once: dict[tuple[Plan, str], RankedPlan] = {}
        for each in self.plans():
            once.setdefault((replace(each.report.plan, recompute=()), each.report.ranks.order), each)
        return tuple(replace(each, rank=i + 1) for i, each in enumerate(list(once.values())[:top]))

    def with_stages(self, summary: SearchSummary, best_s: float) -> SearchSummary:
        """The summary where stages were chosen on one setting: other settings are bounded without their memory."""
        bound_s = min(summary.bound_s, self.free_s(), self.bound_s)
        certificate: Certificate = "best exact" if bound_s >= best_s else "gap"
        return replace(
            summary, bound_s=bound_s, gap=max(0.0, (best_s - bound_s) / best_s),
            certificate="void" if summary.certificate == "void" else certificate,
        )  # fmt: skip

    def free_s(self) -> float:
        """Seconds that no layout goes below under any variant, whatever layers its stages hold."""
        return min((priced.free_s() for priced in self.grounds), default=np.inf)

    def summary(self) -> SearchSummary:
        """Counts and proof, over all variants; of the plans behind the first nothing is proven."""
        best_s = self.done[0][0].step_s
        certificate: Certificate = "best exact" if self.bound_s >= best_s else "gap"
        return SearchSummary(
            raw=self.raw, legal=self.legal, fits=self.fits, simulated=self.simulated, bound_s=self.bound_s,
            gap=(best_s - self.bound_s) / best_s, certificate="void" if self.void else certificate,
            stopped=self.stopped, rejected=self.rejected,
        )  # fmt: skip

    def laying(self, plan: RankedPlan, ranks: RankMap) -> Laying:
        """What prices other plans under the settings of one."""
        at = self._setting(plan)
        return self.grounds[at.ground].laying(at.share, at.away, ranks)

    def alike(self, plan: RankedPlan) -> list[tuple[float, Report, float]]:
        """(step, report, bound) of everything that was run under the settings of one plan, best first."""
        at = self._setting(plan)
        return [(ran.step_s, ran.report, ran.bound_s) for ran, _ in self.done if ran.setting == at]

    def steps(self, plan: RankedPlan) -> Mapping[tuple[Plan, RankMap], float]:
        """Steps of what was run under the settings of one plan."""
        return {(report.plan, report.ranks): step_s for step_s, report, _ in self.alike(plan)}

    def _setting(self, plan: RankedPlan) -> Setting:
        return next(ran.setting for ran, chosen in self.done if chosen is plan.chosen)


def values_of(
    axes: Axes, recomputes: Sequence[tuple[str, ...]], least: Sequence[float]
) -> dict[tuple[str, str], float]:
    """Every (dimension, value) that was searched, and seconds that no layout goes below with it, where that is known
    by itself. least: of each ground that was looked at."""
    values: dict[tuple[str, str], float] = {}
    for ground, least_s in zip(axes.grounds, least, strict=False):
        for said in ground.said:
            values[said] = min(values.get(said, np.inf), least_s)
    if "offload" in axes.dimensions:
        parts = [*(replace(part, optimizer=0.0, overlap=False) for part in axes.away), *axes.shares[1:]]
        values |= {("offload", offload_text(part)): 0.0 for part in parts}
    if "recompute" in axes.dimensions:
        values |= {("recompute", "+".join(modules) or "none"): 0.0 for modules in recomputes}
    return values


def lines_of(told: Sequence[tuple[Ran, Chosen]], values: Mapping[tuple[str, str], float], floor_s: float
             ) -> list[dict[str, Any]]:  # fmt: skip
    """Of each value the fastest plan simulated with it, or that none is faster than the best, which holds only where
    the value's bound reaches the best step: a search that stopped early leaves it below. floor_s: nothing at all is
    faster.
    """
    lines = []
    best_s = min((ran.step_s for ran, _ in told), default=np.inf)
    for (name, value), least_s in values.items():
        found = next((ran for ran, chosen in told if _has(chosen, name, value)), None)
        step_s = np.inf if found is None else found.step_s
        beyond = BEYOND_BEST if max(floor_s, least_s) >= best_s else NOT_TO_THE_END
        lines.append({
            "label": f"{name} {value}", "step_s": None if found is None else found.step_s,
            "plan": None if found is None else found.report.plan.label(),
            "bound_s": None if np.isinf(least_s) else float(min(max(floor_s, least_s), step_s)), "certificate": None,
            "why": "" if found is not None else NO_LAYOUT if np.isinf(least_s) else beyond,
        })  # fmt: skip
    return lines


def _has(chosen: Chosen, name: str, value: str) -> bool:
    """Whether a plan runs with a value; of an offload, whether it is one part of what goes to the host."""
    if name != "offload":
        return dict(chosen.said).get(name) == value
    offload = chosen.workload.offload
    parts = (replace(offload, optimizer=0.0, overlap=False), replace(offload, layers=0, modules=()))
    if value == "nothing":
        return offload_text(offload) == value
    return value in map(offload_text, parts)
