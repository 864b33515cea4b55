"""What a little more of every link buys, as a job: the same plan simulated with one rate raised after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dashboards.work import Progress
from planner.elastic import MORE, Gain, rates_of, step_with
from planner.question.case import question_of, scenario_of_case
from planner.reask import Asked
from sim.scenario import Scenario

LINK, MEMORY = " bandwidth", "memory bandwidth"


def links(payload: Mapping[str, Any], progress: Progress) -> list[dict[str, Any]]:
    """The gains of the links of a case (`case`), as plain values, most telling first.

    Raises UserError as the command line does.
    """
    case = payload["case"]
    scenario = scenario_of_case(case, question_of(case))
    asked = asked_as(scenario)
    changes = {n: change for n, change in rates_of(scenario.cluster).items() if n.endswith(LINK) and n != MEMORY}
    progress("simulating", 0, 1 + len(changes))
    base_s = step_with(asked, None, 1.0)
    found = []
    for done, (what, change) in enumerate(changes.items(), start=1):
        progress(what, done, 1 + len(changes))
        step_s = step_with(asked, change, MORE)
        found.append(Gain(what=what, factor=MORE, of="same plan", step_s=step_s, gain=base_s / step_s - 1.0))
    return [asdict(gain) for gain in sorted(found, key=lambda g: -(g.gain or 0.0))]


def asked_as(scenario: Scenario) -> Asked:
    """A scenario as a question asked again, of its own plan alone."""
    return Asked(
        model=scenario.model, cluster=scenario.cluster, software=scenario.software, workload=scenario.workload,
        routing=scenario.routing, plan=scenario.plan, ranks=scenario.ranks, fixed={}, target="layout",
        maps=(scenario.ranks,), seed=0, max_simulated=None, stale="",
    )  # fmt: skip
