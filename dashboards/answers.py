"""Work behind the page, remembered: a scenario's report, its timeline, its layers. Thread-safe and bounded.

Everything here raises `UserError` with the words the command line would print.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Generic, TypeVar

from dashboards.state import Knobs
from planner.compare import Side
from planner.planfile import plan_record
from planner.question.case import question_of, scenario_of_case
from planner.question.read import Question, with_timeline
from sim.report import Report
from sim.scenario import Scenario
from sim.workload import workload_fields

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
REPORTS_KEPT, TRACES_KEPT = 256, 12  # a trace of a large step is some ten MB


class Remembered(Generic[Key, Value]):
    """The last results of a function; whoever asks for one that is being made waits for it."""

    def __init__(self, make: Callable[[Key], Value], kept: int) -> None:
        self._make, self._kept = make, kept
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._making: dict[Key, Lock] = {}
        self._lock = Lock()

    def __call__(self, key: Key) -> Value:
        """The value of a key. Whatever the function raises is raised, and nothing is kept."""
        with self._lock:
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._held:
                    self._held.move_to_end(key)
                    return self._held[key]
            try:
                made = self._make(key)
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._held[key] = made
                while len(self._held) > self._kept:
                    self._held.popitem(last=False)
            return made

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._held.clear()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A scenario answered; the report has intervals and what uneven experts cost, and no trace."""

    knobs: Knobs
    question: Question
    scenario: Scenario
    report: Report


def side_of(found: Answer, where: str) -> Side:
    """The answer as one side of a comparison, under the name `where`."""
    report = found.report
    asked = {"model": report.model, "cluster": report.cluster, "software": report.software, "devices": report.devices}
    return Side(where=where, record=plan_record(report), asked=asked | workload_fields(found.question.workload))


def _answered(knobs: Knobs) -> Answer:
    from sim.imbalance import with_imbalance
    from sim.run import Simulation

    case = knobs.case()
    question = question_of(case)
    scenario = scenario_of_case(case, question)
    run = Simulation(scenario)
    report = with_imbalance(run.report(trace=False), scenario, run=run)
    return Answer(knobs=knobs, question=question, scenario=scenario, report=report)


def _timeline(knobs: Knobs) -> Report:
    found = answer(knobs)
    return with_timeline(found.report, found.scenario)


def _layers(asked: tuple[Knobs, str]) -> Report:
    from sim.detail import simulate_layers

    knobs, lanes = asked
    found = answer(knobs)
    return replace(found.report, trace=simulate_layers(found.scenario, lanes=lanes))


answer: Remembered[Knobs, Answer] = Remembered(_answered, REPORTS_KEPT)
timeline_report: Remembered[Knobs, Report] = Remembered(_timeline, TRACES_KEPT)
_layers_kept: Remembered[tuple[Knobs, str], Report] = Remembered(_layers, TRACES_KEPT)


def layers_report(knobs: Knobs, lanes: str = "hottest") -> Report:
    """The report with the trace of single layers (attention, dispatch, experts, ...) of these ranks of a stage."""
    return _layers_kept((knobs, lanes))
