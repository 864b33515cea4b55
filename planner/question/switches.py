"""`--switches` of `moecast plan`: switches of the trainer that help the plans of a search, told or applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Protocol

from hwprofiles.errors import NoPlanError
from planner.question import money
from planner.question.asked import LAYOUT, Option
from planner.question.money import AskedPlan
from planner.question.read import Problems, Question, one_of, scenario_of

if TYPE_CHECKING:
    from planner.goals import Reached
    from planner.search import PlanResult, RankedPlan
    from planner.switches import Tried
    from planner.table import Progress

MODES = ("try", "apply", "search", "off")
MOST_ROUNDS = 4
Answer = tuple["PlanResult", "Reached | None"]


class Searched(Protocol):
    """The search of a question. tried: switches that are searched besides; below_s: a step that some plan takes."""

    def __call__(self, first: Question, tried: Sequence[str] = (), below_s: float = math.inf) -> Answer:
        """The answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class AskedSwitched(AskedPlan):
    """What the user typed after `plan`: with what to do about the trainer's switches."""

    switches: Annotated[
        str, Option("--switches", "Switches of the trainer beyond the release's: try tells which help the plans, "
                     "apply searches with them on, search does so for each one, off. Default: try.", "NAME", LAYOUT)
    ] = "try"  # fmt: skip


def read_mode(asked: AskedSwitched) -> str:
    """The mode. Raises UserError for another word."""
    problems = Problems()
    mode = problems.attempt(lambda: one_of(asked.switches, MODES, "--switches"))
    if mode == "search" and money.asked_for(asked):
        problems.found.append("--switches search ranks by the step; with goals of a whole run use --switches apply")
    problems.stop()
    return mode or "try"


def answered(
    mode: str, question: Question, searched: Searched, progress: Progress, *, wide: bool = False
) -> tuple[Question, PlanResult, Reached | None, Tried | None]:
    """The answer of `searched`, with the switches that were tried on its plans.

    Applied: searched again with what helps, until nothing does; the question then has the profile with them on.
    wide: more than degrees is searched, switches with it.
    """
    if mode == "search":
        return _searched_besides(question, searched) if wide else _each_searched(question, searched)
    from planner.switches import try_switches

    applied: tuple[str, ...] = ()
    result, reached = searched(question)
    tried = None
    for _ in range(MOST_ROUNDS):
        if mode == "off" or result.search.stopped == "interrupted":
            return question, _noted(result, applied), reached, None
        progress("trying switches of the trainer", 0, None)
        anchored = result.plans[0].report.anchored
        scale = 1.0 if anchored is None else anchored.factor
        plans = [
            (
                scenario_of(with_chosen(question, result, ranked), ranked.report.plan, ranked.report.ranks),
                ranked.report.step_s.value / scale,
            )
            for ranked in result.plans
        ]
        try:
            tried = try_switches(plans, result.target, applied=applied, scale=scale)
        except KeyboardInterrupt:  # the plans were found before
            stopped = replace(result, search=replace(result.search, stopped="interrupted"))
            return question, _noted(stopped, applied), reached, None
        if mode != "apply" or tried.best is None:
            break
        applied = tuple(sorted((*applied, *tried.best.switches)))
        question = _turned(question, tried.best.switches)
        # chosen stages are no row of a table: their step says nothing of what its search will find
        known = result.plans[tried.best.rank - 1].report.plan.stages is None
        result, reached = searched(question, below_s=tried.best.step_s / scale if known else math.inf)
    return question, _noted(result, applied), reached, tried


def with_chosen(question: Question, result: PlanResult, plan: RankedPlan) -> Question:
    """The question that one of the plans answers: on its cluster, with what it runs with."""
    return replace(
        question, cluster=result.cluster, software=result.software_of(plan), workload=result.workload_of(plan)
    )  # fmt: skip


def alike(other: Question, before: Question, after: Question) -> Question:
    """Another question with the switches on that `after` has on beyond `before`."""
    names = [f.name for f in fields(after.software)
             if getattr(after.software, f.name) != getattr(before.software, f.name)]  # fmt: skip
    return _turned(other, names) if names else other


def _turned(question: Question, names: Sequence[str]) -> Question:
    from planner.switches import turned_on

    return replace(question, software=turned_on(question.software, names))


def _noted(result: PlanResult, applied: tuple[str, ...]) -> PlanResult:
    """The result with the switches that are on, so that its file says them."""
    return replace(result, options={**result.options, "switches": list(applied)}) if applied else result


def _each_searched(question: Question, searched: Searched) -> tuple[Question, PlanResult, Reached | None, Tried]:
    """All layouts searched with each single switch besides those that are on, until none makes a faster plan."""
    from planner.rules.flags import switches_of
    from planner.switches import Tried

    result, reached = searched(question)
    applied: tuple[str, ...] = ()
    while True:
        best = None
        proven = True
        tried = switches_of(result.target, question.software)
        for switch in tried:
            try:
                other, _ = searched(_turned(question, (switch.name,)))
            except NoPlanError:
                continue
            proven &= other.search.certificate in ("exact", "best exact")
            found, ahead = other.plans[0], (result if best is None else best[1]).plans[0]
            if found.report.step_s.value < ahead.report.step_s.value:
                best = (switch.name, other)
        if best is None:
            names = tuple(switch.name for switch in tried)
            proven &= result.search.certificate in ("exact", "best exact")
            told = Tried(
                tried=len(tried), plans=len(result.plans), singles=(), best=None, applied=applied, searched=names,
                proven=proven,
            )  # fmt: skip
            return question, _noted(result, applied), reached, told
        applied = tuple(sorted((*applied, best[0])))
        question, result = _turned(question, (best[0],)), best[1]


def _searched_besides(question: Question, searched: Searched) -> tuple[Question, PlanResult, Reached | None, Tried]:
    """Every layout and variant with each single switch besides those that are on, in one search, until the best plan
    has no further one."""
    from planner.rules.flags import switches_of
    from planner.switches import Tried

    applied: tuple[str, ...] = ()
    below_s = math.inf
    while True:
        names = tuple(switch.name for switch in switches_of(question.target, question.software))
        result, reached = searched(question, names, below_s)
        best = result.plans[0]
        turned = () if best.chosen is None else tuple(name for name, on in best.chosen.switches if name in names and on)
        if not turned or result.search.stopped == "interrupted":
            proven = result.search.certificate in ("exact", "best exact")
            told = Tried(
                tried=len(names), plans=len(result.plans), singles=(), best=None, applied=applied, searched=names,
                proven=proven,
            )  # fmt: skip
            return question, _noted(result, applied), reached, told
        applied = tuple(sorted((*applied, *turned)))
        question = _turned(question, turned)
        anchored = best.report.anchored
        if best.report.plan.stages is None:
            below_s = best.report.step_s.value / (1.0 if anchored is None else anchored.factor)
