"""Background jobs: a search that ends, one that fails in words, one that is cancelled, and what is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from dashboards import jobs
from dashboards.answers import Remembered, answer, timeline_report
from dashboards.state import START, Knobs
from hwprofiles.errors import UserError

SMALL = {"model": "mixtral-8x7b", "cluster": "dgx-h100", "gpus": "16", "global_batch": "64", "top": "2"}
LARGE = {"model": "DeepSeek-V3", "cluster": "dgx-h100", "gpus": "16384", "global_batch": "16384"}
PATIENCE_S = 120.0


def waited(job: jobs.Job, until: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < end_s, job
        time.sleep(0.02)


def payload(case: dict[str, str]) -> dict[str, Any]:
    return {"case": Knobs.of(case).case(), "money": {}}


def test_a_search_gives_a_plan_file_and_is_remembered() -> None:
    job = jobs.start("plan", payload(SMALL))
    waited(job, lambda: job.over)
    assert job.state == "done", job.error
    assert job.result["plans"][0]["rank"] == 1
    assert job.result["search"]["certificate"] in ("exact", "best exact")
    again = jobs.start("plan", payload(SMALL))
    assert again.over
    assert again.result == job.result


def test_a_search_without_a_plan_says_why() -> None:
    job = jobs.start("plan", payload({**SMALL, "tp": "3"}))
    waited(job, lambda: job.over)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.problems


def test_a_search_is_cancelled() -> None:
    job = jobs.start("plan", payload(LARGE))
    waited(job, lambda: job.state == "running" and job.progress[0] not in ("starting", "waiting for its turn"))
    job.cancel()
    waited(job, lambda: job.over)
    # what was found until then may be its result, but is not remembered as the answer
    assert job.state in ("cancelled", "done")
    assert jobs.remembered("plan", payload(LARGE)) is None


def test_a_job_that_waits_is_cancelled_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Semaphore

    monkeypatch.setattr(jobs, "_slots", Semaphore(0))
    job = jobs.start("plan", payload({**SMALL, "seed": "7"}))
    job.cancel()
    assert job.state == "cancelled"


def test_answers_are_those_of_the_command_line() -> None:
    from sim.run import simulate

    knobs = Knobs.of(START)
    found = answer(knobs)
    assert found.report.step_s == simulate(found.scenario, trace=False).step_s
    assert answer(knobs) is found
    trace = timeline_report(knobs).trace
    assert trace is not None
    assert trace.makespan_s == pytest.approx(found.report.step_s.value, rel=0.2)


def test_what_cannot_be_answered_raises_and_is_not_kept() -> None:
    with pytest.raises(UserError):
        answer(Knobs.of({**START, "tp": "3"}))
    with pytest.raises(UserError):
        answer(Knobs.of({"model": "nobody"}))


def test_remembered_is_bounded_and_makes_each_value_once() -> None:
    made: list[int] = []

    def make(key: int) -> int:
        made.append(key)
        return key * key

    squares: Remembered[int, int] = Remembered(make, kept=2)
    assert [squares(k) for k in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert made == [1, 2, 3, 2]
    squares.clear()
    assert squares(1) == 1
    assert made[-1] == 1


def test_two_who_ask_at_once_share_the_work() -> None:
    from threading import Thread

    made: list[int] = []

    def make(key: int) -> int:
        time.sleep(0.05)
        made.append(key)
        return key

    slow: Remembered[int, int] = Remembered(make, kept=2)
    threads = [Thread(target=slow, args=(1,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
