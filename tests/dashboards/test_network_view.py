"""The network view: the drawing, its table, and gains that are worked out behind the page."""

from __future__ import annotations

import time

import pytest

from dashboards import jobs, work_links
from dashboards.state import Knobs
from planner.elastic import rate_gains, step_with
from planner.question.case import question_of, scenario_of_case
from tests.dashboards.viewing import SMALL, charts, texts, view


@pytest.fixture(scope="module")
def gains() -> list[dict[str, object]]:
    return work_links.links({"case": Knobs.of(SMALL).case()}, lambda *_: None)


def test_gains_are_those_of_the_planner(gains: list[dict[str, object]]) -> None:
    case = Knobs.of(SMALL).case()
    asked = work_links.asked_as(scenario_of_case(case, question_of(case)))
    wanted = {g.what: g.gain for g in rate_gains(asked, step_with(asked, None, 1.0))}
    assert {str(g["what"]) for g in gains} == {"scale-up bandwidth", "scale-out bandwidth", "host link bandwidth"}
    assert {str(g["what"]): g["gain"] for g in gains} == pytest.approx(
        {str(g["what"]): wanted[g["what"]] for g in gains}
    )


def test_drawing_table_and_gains(monkeypatch: pytest.MonkeyPatch, gains: list[dict[str, object]]) -> None:
    payload = {"case": Knobs.of(SMALL).case()}
    monkeypatch.setitem(jobs._results, jobs.key_of("links", payload), gains)
    app = view("network")
    drawing, bar, traffic = charts(app)
    assert drawing.startswith("Network of dgx-h100: 16 H100 in 2 nodes") and "Busiest in the step" in drawing
    assert bar.startswith("The same plan with one rate raised by 10%") and "forward dispatch" in traffic
    assert "scale_out" in texts(app) and "50" in texts(app)
    app.toggle[0].set_value(True).run()
    assert not app.exception and len(charts(app)) == 4


def test_gains_are_worked_out_in_a_process_of_their_own() -> None:
    job = jobs.start("links", {"case": Knobs.of({**SMALL, "global_batch": "16"}).case()})
    until = time.monotonic() + 90
    while not job.over and time.monotonic() < until:
        time.sleep(0.1)
    assert job.state == "done" and [g["what"] for g in job.result]


def test_a_job_that_cannot_says_why() -> None:
    job = jobs.start("links", {"case": Knobs.of({**SMALL, "ep": "7"}).case()})
    until = time.monotonic() + 90
    while not job.over and time.monotonic() < until:
        time.sleep(0.1)
    assert job.state == "failed" and job.error is not None and job.error.problems
