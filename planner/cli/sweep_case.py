"""One case of a study on a worker: the question as the command line would read it, its answer as a flat row."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import NoPlanError, UserError
from planner.question.case import Illegal, question_of, scenario_of_case
from planner.study.overrides import of_record
from planner.study.pools import Batch
from planner.study.store import FAILED, ILLEGAL, NO_FIT, NO_PLAN, OK, Row

if TYPE_CHECKING:
    from sim.report import Report


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
    status, error, clean = FAILED, "", dict[str, Any]()
    try:
        status, result = answer(case)
        clean = _plain(result)
    except NoPlanError as problem:
        status, error = NO_PLAN, "; ".join(problem.problems)
        clean = _plain({"rejected": dict(problem.search)})
    except Illegal as problem:
        status, error = ILLEGAL, "; ".join(problem.problems)
    except UserError as problem:
        error = str(problem).replace("\n", "; ")
    except Exception as problem:  # a defect of ours in one case must not cost the others of a study of days
        status, error = FAILED, f"{type(problem).__name__}: {problem}"
    return Row(digest=digest, status=status, error=error, result=clean, seconds=time.perf_counter() - started)


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values; a number that JSON does not know is a ValueError."""
    made: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False, default=str))
    return made


def _simulated(case: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    from sim.run import simulate

    report = simulate(scenario_of_case(case, question_of(case)), trace=False)
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
