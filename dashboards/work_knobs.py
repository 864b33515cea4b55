"""Sensitivity as jobs: what more of each rate gives, what a larger machine gives, and two knobs at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from dashboards.work import Progress
from hwprofiles.errors import UserError
from planner.elastic import MORE, Gain, rate_gains, rates_of, size_gains
from planner.question.case import question_of, scenario_of_case
from planner.question.read import Question
from planner.reask import Asked
from planner.search import DEFAULT_MAX_SIMULATED
from sim.scenario import Scenario

MAX_CELLS = 100


def _asked(question: Question, scenario: Scenario) -> Asked:
    """The step with its question, as `planner.elastic` takes it; a search on it is free to choose the layout."""
    return Asked(
        model=scenario.model, cluster=scenario.cluster, software=scenario.software, workload=scenario.workload,
        routing=question.routing, plan=scenario.plan, ranks=scenario.ranks, fixed={}, target=question.target,
        maps=question.ranks, seed=question.seed, max_simulated=DEFAULT_MAX_SIMULATED, stale="", stages="uniform",
    )  # fmt: skip


def gains(payload: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The step of a case (`case`) with each rate raised by a tenth, and lowered by as much. Raises UserError."""
    from sim.run import simulate

    progress("simulating the step", 0, None)
    question = question_of(payload["case"])
    scenario = scenario_of_case(payload["case"], question)
    asked = _asked(question, scenario)
    step_s = simulate(scenario, trace=False).step_s.value
    total, done = 2 * len(rates_of(scenario.cluster)), 0

    def tell(what: str) -> None:
        nonlocal done
        progress(f"simulating with another {what}", done, total)
        done += 1

    found: dict[str, list[Gain]] = {}
    for name, by in (("more", MORE), ("less", 1.0 / MORE)):
        found[name] = list(rate_gains(asked, step_s, by, tell))
    return {"step_s": step_s, "label": scenario.plan.label()} | {k: [asdict(g) for g in v] for k, v in found.items()}


def sizes(payload: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The best plan of a case's question now, with a tenth more memory, and with one more node. Raises UserError."""
    question = question_of(payload["case"])
    asked = _asked(question, scenario_of_case(payload["case"], question))
    progress("searching on the machine as it is", 0, 3)
    best = asked.search().plans[0].report
    asked = replace(asked, plan=best.plan, ranks=best.ranks)
    found = []
    for at, gain in enumerate(size_gains(asked, best.step_s.value), start=2):
        found.append(asdict(gain))
        progress("searching with one more node", min(at, 2), 3)
    return {"step_s": best.step_s.value, "label": best.plan.label(), "gains": found}


def grid(payload: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Cells of two knobs: `x` and `y` are [key, values] of the case. An interrupt keeps what was done.

    Raises UserError where there are too many.
    """
    (x_key, xs), (y_key, ys) = payload["x"], payload["y"]
    pairs = [(x, y) for y in ys for x in xs]
    if len(pairs) > MAX_CELLS:
        raise UserError(f"{len(pairs)} combinations; choose at most {MAX_CELLS}", where="knobs")
    cells = []
    try:
        for at, (x, y) in enumerate(pairs):
            progress(f"{x_key} {x}, {y_key} {y}", at, len(pairs))
            cells.append({"x": str(x), "y": str(y)} | cell(payload["case"] | {x_key: x, y_key: y}))
    except KeyboardInterrupt:
        if not cells:
            raise
    return {"cells": cells}


def cell(case: Mapping[str, Any]) -> dict[str, Any]:
    """Step, tokens/s per GPU and peak of a case, or why there is none."""
    from sim.run import simulate

    try:
        report = simulate(scenario_of_case(case, question_of(case)), trace=False)
    except UserError as error:
        return {"reason": "; ".join(error.problems)[:400]}
    short, gib = report.out_of_memory, 2.0**30
    reason = "" if short is None else (
        f"out of memory: needs {short.need_bytes / gib:.1f} of {short.have_bytes / gib:.1f} GiB, most of it {short.tag}"
    )  # fmt: skip
    return {"step_s": report.step_s.value, "rate": report.tokens_per_s_per_gpu.value,
            "peak_bytes": report.peak_mem_bytes, "reason": reason}  # fmt: skip
