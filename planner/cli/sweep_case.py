"""One case of a study on a worker: the question as the command line would read it, its answer as a flat row."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import NoPlanError, UserError
from planner.question.asked import Asked
from planner.question.read import Question, read_plan, read_question, scenario_of
from planner.study.overrides import of_record, with_cluster, with_model, with_software
from planner.study.pools import Batch
from planner.study.store import FAILED, ILLEGAL, NO_FIT, NO_PLAN, OK, Row

if TYPE_CHECKING:
    from sim.plan import Plan
    from sim.report import Report

# Options of a question that make sense in a study: what goes to files does not.
_NOT_ASKED = ("json", "out", "trace", "trace_lanes", "report", "strict", "anchor")
OPTIONS = tuple(item.name for item in fields(Asked) if item.name not in _NOT_ASKED)


class Illegal(UserError):
    """A plan that breaks rules of the layout or the trainer: what a grid is expected to hold."""


def run_simulations(batch: Batch) -> tuple[Row, ...]:
    """Rows of cases of the verb `simulate`."""
    return tuple(_row(digest, case, _simulated) for digest, case in batch)


def run_plans(batch: Batch) -> tuple[Row, ...]:
    """Rows of cases of the verb `plan`."""
    return tuple(_row(digest, case, _planned) for digest, case in batch)


WORK = {"simulate": run_simulations, "plan": run_plans}


def _row(digest: str, case: Mapping[str, Any], answer: Any) -> Row:
    """The row of a case; whatever goes wrong in it is its error, not the end of the study."""
    started = time.perf_counter()
    status, error, result = FAILED, "", dict[str, Any]()
    try:
        status, result = answer(case)
    except NoPlanError as problem:
        status, error, result = NO_PLAN, "; ".join(problem.problems), {"rejected": dict(problem.search)}
    except Illegal as problem:
        status, error = ILLEGAL, "; ".join(problem.problems)
    except UserError as problem:
        error = str(problem).replace("\n", "; ")
    except Exception as problem:  # a defect in one case
        error = f"{type(problem).__name__}: {problem}"
    clean = json.loads(json.dumps(result, allow_nan=False, default=str))
    return Row(digest=digest, status=status, error=error, result=clean, seconds=time.perf_counter() - started)


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


def _plan(question: Question, extra: Mapping[str, Any]) -> Plan:
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
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in extra.items()}
    made = replace(made, **values)
    broken = check(
        made, question.model, question.cluster, question.software, question.workload, target=question.target,
        ranks=question.ranks[0],
    )  # fmt: skip
    if broken:
        raise Illegal([str(v) for v in broken], where=made.label())
    return made


def _simulated(case: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    from planner.ranks import best_map
    from sim.run import simulate

    question = question_of(case)
    plan = _plan(question, of_record(case, "plan"))
    same_order = [each for each in question.ranks if each.order == question.ranks[0].order]
    scenario = scenario_of(question, plan, same_order[0])
    report = simulate(replace(scenario, ranks=best_map(scenario, same_order)), trace=False)
    return (OK if report.fits else NO_FIT), figures(report)


def _planned(case: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    from planner.search import find_plans

    question = question_of(case)
    result = find_plans(
        question.model, question.cluster, question.software, question.workload,
        fixed=question.fixed | of_record(case, "plan"), target=question.target, top=question.top, seed=question.seed,
        routing=question.routing, ranks=question.ranks,
    )  # fmt: skip
    search = result.search
    found = {"certificate": search.certificate, "gap": search.gap, "simulated": search.simulated, "raw": search.raw}
    best = result.plans[0]
    return OK, figures(best.report) | {"bound_s": best.bound_s} | found


def figures(report: Report) -> dict[str, Any]:
    """The numbers of a row, SI units; `record` holds the whole plan record of `plan --json`."""
    from planner.planfile import plan_record

    step = report.step_s
    return {
        "label": report.plan.label(),
        "devices": report.devices,
        "step_s": step.value,
        "step_low_s": step.low,
        "step_high_s": step.high,
        "tokens_per_s_per_gpu": report.tokens_per_s_per_gpu.value,
        "mfu": report.mfu.value,
        "tflops_per_gpu": report.tflops_per_gpu,
        "usd_per_step": report.usd_per_step,
        "bubble_fraction": report.bubble_fraction,
        "peak_mem_bytes": report.peak_mem_bytes,
        "usable_mem_bytes": report.usable_mem_bytes,
        "fits": report.fits,
        "record": plan_record(report),
    }
