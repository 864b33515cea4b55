"""A job's place on a page: started once, progress with a cancel button, errors in words, dropped with its question."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboards import jobs
from hwprofiles.errors import UserError


def _page() -> None:
    import streamlit as st

    from dashboards import frame_jobs

    asked = {"case": st.query_params.get("case", "a")}
    said = st.query_params.get("start")
    found = frame_jobs.result_of("here", "plan", asked, start=said == "1", unasked=said == "unasked")
    st.text(f"result {found}")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[jobs.Job]:
    """Every job that the page starts; none does anything."""
    made: list[jobs.Job] = []

    def start(name: str, payload: Any) -> jobs.Job:
        made.append(jobs.Job(name=name, payload=payload))
        return made[-1]

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "remembered", lambda name, payload: None)
    return made


def opened(**query: str) -> AppTest:
    page = AppTest.from_function(_page, default_timeout=30)
    for key, value in query.items():
        page.query_params[key] = value
    return page.run()


def test_nothing_starts_unasked(started: list[jobs.Job]) -> None:
    assert opened().text[0].value == "result None" and not started


def test_a_job_is_started_once_and_its_result_is_drawn(started: list[jobs.Job]) -> None:
    page = opened(start="1")
    page.query_params["start"] = "0"
    page.run()
    (job,) = started
    job.progress = ("simulating", 3, 10)
    page.run()
    assert "simulating, 3 of 10" in str(page.get("progress")[0].proto)
    job.result, job.state = {"x": 1}, "done"
    assert page.run().text[0].value == "result {'x': 1}" and len(started) == 1


def test_cancel_ends_it(started: list[jobs.Job]) -> None:
    page = opened(start="1")
    page.button[0].click().run()
    assert started[0].state == "cancelled"
    page.query_params["start"] = "0"
    page.run()
    assert "Stopped before" in page.caption[0].value and not page.button


def test_what_starts_unasked_does_not_start_again_unasked(started: list[jobs.Job]) -> None:
    page = opened(start="unasked")
    page.button[0].click().run()
    page.run()
    assert len(started) == 1 and started[0].state == "cancelled"
    assert page.button[0].label == "Start again"
    page.button[0].click().run()
    assert len(started) == 2


def test_another_question_ends_the_job_of_the_first(started: list[jobs.Job]) -> None:
    page = opened(start="1")
    page.query_params["case"] = "b"
    page.run()
    first, second = started
    assert first.state == "cancelled" and second.payload == {"case": "b"}


def test_an_error_is_told_and_it_may_be_asked_again(started: list[jobs.Job]) -> None:
    page = opened(start="1")
    started[0].error, started[0].state = UserError("too <b>many", where="--gpus"), "failed"
    page.query_params["start"] = "0"
    page.run()
    said = page.get("html")[0].proto.body
    assert "--gpus" in said and "too &lt;b&gt;many" in said
    page.query_params["start"] = "1"
    page.run()
    assert len(started) == 2
