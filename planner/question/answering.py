"""A question of `plan` answered: the search, over counts and types of devices where that is asked for, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from planner.question import money, sizes, switches
from planner.question.placed import placement_of, replica_warning, with_placement
from planner.question.read import Question, one_of, scenario_of, software_for
from planner.question.space import WAYS
from planner.question.switches import AskedSwitched
from planner.question.trainer import completed

if TYPE_CHECKING:
    from hwprofiles.specs import SoftwareProfile
    from planner.energy import EnergyAsk
    from planner.goals import Reached
    from planner.placement.records import PlacementResult
    from planner.search import PlanResult
    from planner.switches import Tried
    from planner.table import Progress
    from sim.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answer. question: on the devices of the best plan. reached: what a whole run takes, where it was asked.
    tried: switches of the trainer tried on the plans, where that was asked. placed: the experts of the first plan under
    `--placement auto`."""

    question: Question
    result: PlanResult
    reached: Reached | None
    tried: Tried | None
    placed: PlacementResult | None

    def to_json(self) -> dict[str, Any]:
        """The plan file of the answer."""
        from planner.planfile import plan_json

        data = plan_json(self.result)
        data["switches"] = None if self.tried is None else self.tried.to_json()
        data = with_placement(data, self.placed)
        return data if self.reached is None else money.with_goal(data, self.reached)


def answered(
    asked: AskedSwitched,
    question: Question,
    *,
    progress: Progress,
    adjusted: Callable[[PlanResult, Scenario], PlanResult] | None = None,
    front: bool = False,
) -> Found:
    """Search for the best plans of a question, read from `sizes.first_of(asked)`.

    adjusted: what own measured runs make of a result, given its first plan; front: also look for the Pareto front of
    time, memory, money and devices where no whole run was asked for. Raises NoPlanError with the candidates lost
    per rule, and UserError with what is wrong in the options of `asked` beyond the question.
    """
    mode = switches.read_mode(asked)
    stages = one_of(asked.stages, WAYS, "--stages")
    others = sizes.questions_of(asked, question, asked.node_types)
    search = partial(_search, asked=asked, stages=stages, progress=progress, adjusted=adjusted)

    def searched(first: Question, tried: Sequence[str] = (), below_s: float = math.inf) -> switches.Answer:
        """The answer where the first question's trainer has other switches on; those of other clusters follow it.

        tried: switches that are searched besides; below_s: a step that some plan is known to take.
        """
        questions = {
            name: first if name == first.cluster.name else switches.alike(other, question, first)
            for name, other in others.items()
        }
        if not (front or money.asked_for(asked)):
            return search(first, tried=tried, below_s=below_s), None
        reached = money.reached(
            asked, questions,
            lambda cluster, lean, energy: search(sizes.question_on(questions, cluster), lean=lean, energy=energy),
        )  # fmt: skip
        return reached.chosen, reached

    first, result, reached, tried = switches.answered(
        mode, question, searched, progress, wide=asked.search is not None
    )  # fmt: skip
    of_type = others.get(result.cluster.name, first)
    final = switches.with_chosen(of_type, result, result.plans[0])
    best = result.plans[0].report.plan
    placed = placement_of(final.routing, final.model, best.ep)
    more = replica_warning(placed, final.model, best)
    result = replace(result, warnings=(*question.notes, *result.warnings, *more))
    return Found(question=final, result=result, reached=reached, tried=tried, placed=placed)


def _search(
    question: Question,
    *,
    asked: AskedSwitched,
    stages: str,
    progress: Progress,
    adjusted: Callable[[PlanResult, Scenario], PlanResult] | None,
    lean: int = 0,
    energy: EnergyAsk | None = None,
    tried: Sequence[str] = (),
    below_s: float = math.inf,
) -> PlanResult:
    """The search of one question, over what is searched besides degrees."""
    from planner.search import find_plans
    from planner.variants import axes_of
    from sim.imbalance import with_imbalance

    axes = None
    if asked.search is not None:

        def trained_in(precision: str) -> SoftwareProfile:
            """The release under another precision, with what the question changed in it."""
            name = completed(asked)[0].software
            plain, other = (
                software_for(name, question.cluster, question.model, each)
                for each in (question.workload.precision, precision)
            )
            mine = {f.name: getattr(question.software, f.name) for f in fields(plain)}
            return replace(other, **{key: v for key, v in mine.items() if v != getattr(plain, key)})

        axes = axes_of(
            [name.strip() for name in asked.search.split(",")], question.model, question.cluster, question.software,
            question.workload, question.fixed, trained_in=trained_in, switches=tried,
        )  # fmt: skip
    found = find_plans(
        question.model, question.cluster, question.software, question.workload, fixed=question.fixed,
        target=question.target, top=question.top, progress=progress, seed=question.seed, routing=question.routing,
        ranks=question.ranks, lean=lean, stages=stages, energy=energy, axes=axes,
        below_s=below_s,
    )  # fmt: skip
    first = found.plans[0]
    scenario = scenario_of(switches.with_chosen(question, found, first), first.report.plan, first.report.ranks)
    first = replace(first, report=with_imbalance(first.report, scenario))
    found = replace(found, plans=(first, *found.plans[1:]))
    return found if adjusted is None else adjusted(found, scenario)
