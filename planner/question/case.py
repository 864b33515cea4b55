"""A case: a question and a plan as one flat mapping, as a study file, a saved scenario and the dashboard hold them.

Keys are the options of a question, or `record.field` (`cluster.scale_out.bytes_per_s`, `plan.stages`) for one field of
a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import UserError
from hwprofiles.reader import build
from planner.question.asked import Asked
from planner.question.read import Question, read_plan, read_question, scenario_of
from planner.study.overrides import of_record, with_cluster, with_model, with_software

if TYPE_CHECKING:
    from sim.plan import Plan
    from sim.scenario import Scenario

# Options of a question that make sense in a case: what goes to files does not.
_NOT_ASKED = ("json", "out", "trace", "trace_lanes", "report", "strict", "anchor")
_LARGEST = 2**31  # of a whole number of a plan: beyond it is no plan
OPTIONS = tuple(item.name for item in fields(Asked) if item.name not in _NOT_ASKED)


class Illegal(UserError):
    """A plan that breaks rules of the layout or the trainer: what a grid is expected to hold."""


def _text(value: Any) -> str:
    """A value as one would type it: lists with commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def question_of(case: Mapping[str, Any]) -> Question:
    """The question of a case, with the fields of records it sets. Raises UserError."""
    typed: dict[str, Any] = {name: _text(case[name]) for name in OPTIONS if name in case}
    question = read_question(Asked(**typed))
    cluster = with_cluster(question.cluster, of_record(case, "cluster"), of_record(case, "device"))
    software = with_software(question.software, of_record(case, "software"))
    return replace(question, model=with_model(question.model, of_record(case, "model")), cluster=cluster,
                   software=software)  # fmt: skip


def plan_of(question: Question, extra: Mapping[str, Any]) -> Plan:
    """The one plan of a case; extra: fields of the plan it sets. Raises Illegal with every broken rule."""
    from planner.rules import check
    from sim.plan import Plan

    try:
        made = read_plan(question)
    except UserError as error:
        raise Illegal(error.problems, where=error.where) from None
    if not extra:
        return made
    unknown = sorted(set(extra) - {item.name for item in fields(Plan)})
    if unknown:
        known = ", ".join(item.name for item in fields(Plan))
        raise UserError(f"no field {', '.join(unknown)}; known: {known}", where="plan")
    stated = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(made).items() if v is not None}
    made = build(Plan, stated | dict(extra), where="plan")
    for name, value in asdict(made).items():
        if any(isinstance(n, int) and abs(n) > _LARGEST for n in (value if isinstance(value, tuple) else (value,))):
            raise UserError(f"{name} = {str(value)[:40]}: give at most {_LARGEST:,}", where="plan")
    broken = check(
        made, question.model, question.cluster, question.software, question.workload, target=question.target,
        ranks=question.ranks[0],
    )  # fmt: skip
    if broken:
        raise Illegal([str(v) for v in broken], where=made.label())
    return made


def scenario_of_case(case: Mapping[str, Any], question: Question) -> Scenario:
    """The step of a case: its plan on the best of its rank maps of the preferred order. Raises UserError."""
    from planner.ranks import best_map

    plan = plan_of(question, of_record(case, "plan"))
    same_order = [each for each in question.ranks if each.order == question.ranks[0].order]
    scenario = scenario_of(question, plan, same_order[0])
    return replace(scenario, ranks=best_map(scenario, same_order))
