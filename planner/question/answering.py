"""A question of `plan` answered: the search, over counts of devices where time or money is asked for, and its JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from planner.question import money
from planner.question.read import Question, scenario_of

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.goals import Reached
    from planner.question.money import AskedPlan
    from planner.search import PlanResult
    from planner.table import Progress
    from sim.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answer. question: on the devices of the best plan. reached: what a whole run takes, where it was asked."""

    question: Question
    result: PlanResult
    reached: Reached | None

    def to_json(self) -> dict[str, Any]:
        """The plan file of the answer."""
        from planner.planfile import plan_json

        data = plan_json(self.result)
        return data if self.reached is None else money.with_goal(data, self.reached)


def answered(
    asked: AskedPlan,
    question: Question,
    *,
    progress: Progress,
    adjusted: Callable[[PlanResult, Scenario], PlanResult] | None = None,
    front: bool = False,
) -> Found:
    """Search for the best plans of a question. adjusted: what own measured runs make of a result, given its first plan;
    front: also look for the Pareto front of time, memory, money and devices where no whole run was asked for.

    Raises NoPlanError with the candidates lost per rule.
    """
    from planner.search import find_plans
    from sim.imbalance import with_imbalance

    def search(cluster: ClusterSpec, lean: int = 0) -> PlanResult:
        found = find_plans(
            question.model, cluster, question.software, question.workload, fixed=question.fixed, target=question.target,
            top=question.top, progress=progress, seed=question.seed, routing=question.routing, ranks=question.ranks,
            lean=lean,
        )  # fmt: skip
        first = found.plans[0]
        scenario = scenario_of(money.question_on(question, found), first.report.plan, first.report.ranks)
        first = replace(first, report=with_imbalance(first.report, scenario))
        found = replace(found, plans=(first, *found.plans[1:]))
        return found if adjusted is None else adjusted(found, scenario)

    reached = money.reached(asked, question, search) if front or money.asked_for(asked) else None
    result = search(question.cluster) if reached is None else reached.chosen
    return Found(question=money.question_on(question, result), result=result, reached=reached)
