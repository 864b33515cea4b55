"""The search for plans as a job: the plan file's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dashboards.work import Progress
from planner.question.answering import answered
from planner.question.asked import Asked
from planner.question.case import OPTIONS, question_of
from planner.question.switches import AskedSwitched
from planner.study.overrides import of_record


def plan(payload: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The plan file of a case (`case`) and what a whole run may take (`money`: options of `plan` as text).

    Raises UserError as the command line does.
    """
    case, money = payload["case"], payload.get("money", {})
    question = question_of(case)
    question = replace(question, fixed=question.fixed | of_record(case, "plan"))
    own = {f.name for f in fields(AskedSwitched)} - {f.name for f in fields(Asked)}
    typed: dict[str, Any] = {name: str(case[name]) for name in OPTIONS if name in case}
    typed |= {name: str(text) for name, text in money.items() if name in own}
    asked = AskedSwitched(**typed)
    return answered(asked, question, progress=progress, front=True).to_json()
