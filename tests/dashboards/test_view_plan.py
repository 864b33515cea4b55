"""The view Plan: search, click, open, take away."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest

from dashboards.answers import Answer, answer
from dashboards.exports import offers
from dashboards.opened import open_record, plan_changes
from dashboards.plan_points import points_of
from dashboards.state import Knobs
from dashboards.views import plan as view
from hwprofiles.errors import UserError
from planner.export import EXPORTS
from tests.dashboards.page import Done, at_once, figures_of, page_of, query_of, text_of

__all__ = ["at_once"]

DENSE = {"model": "llama2-7b", "cluster": "dgx-h100", "gpus": "8", "global_batch": "16"}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The answer for a small dense model on one node, as the job gives it."""
    job = Done()("plan", {"case": Knobs.of(DENSE).case(), "money": {}})
    assert job.error is None
    result: dict[str, Any] = job.result
    return result


def test_the_answer_holds_a_front_without_tokens(found: dict[str, Any]) -> None:
    points = points_of(found)
    assert len(points) > len(found["plans"]), "lean plans beside the fastest"
    assert sum(p.best for p in points) == 1 and points[0].best


def test_every_plan_of_an_answer_opens_as_itself(found: dict[str, Any]) -> None:
    """The knobs of a clicked point are its plan: the same degrees, the same step to the last digit."""
    knobs = Knobs.of({**DENSE, "tp": "8", "recompute": "full", "plan.account_ends": "true"})
    for point in points_of(found):
        opened = open_record(knobs, found, point.part, point.index, layers=32)
        again = answer(opened)
        plan = again.scenario.plan
        said = found[point.part][point.index]
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in vars(plan).items()} == said["plan"]
        assert again.report.step_s.value == pytest.approx(point.step_s, rel=1e-12)


def test_what_the_options_cannot_say_is_set_as_a_field_of_the_plan() -> None:
    from sim.plan import Plan

    plan = Plan(pp=2, stages=(15, 17), zero_stage=3, schedule="gpipe", micro_batch_group=2, recompute=("moe_act",))
    changes = plan_changes(Knobs(), plan, devices=16, rank_order="tp-cp-ep-pp-dp", layers=32)
    set_ = {k: v for k, v in changes.items() if v is not None}
    assert set_ == {
        "gpus": "16", "pp": "2", "plan.stages": "[15, 17]", "zero": "3", "schedule": "gpipe", "recompute": "moe_act",
        "micro_batch_group": "2", "rank_order": "tp-cp-ep-pp-dp",
    }  # fmt: skip


def test_a_plan_that_is_not_there_is_a_user_error(found: dict[str, Any]) -> None:
    for part, index in (("plans", 99), ("nothing", 0)):
        with pytest.raises(UserError, match="no such plan"):
            open_record(Knobs.of(DENSE), found, part, index, layers=32)


def test_a_search_is_free_in_the_layout_but_for_what_is_kept() -> None:
    knobs = Knobs.of({**DENSE, "tp": "8", "pp": "2", "schedule": "gpipe", "plan.stages": "[1]"})
    assert view.asked_of(knobs, ()) == Knobs.of(DENSE)
    assert view.asked_of(knobs, ("tp",)) == Knobs.of({**DENSE, "tp": "8"})


def test_search_and_open(at_once: Done) -> None:
    page = page_of("plan", {**DENSE, "tp": "2", "goal.tokens": "1B", "top": "3"}).run()
    assert not page.exception and "Exact" not in text_of(page)
    next(b for b in page.button if b.label == "Search").click().run()
    assert not page.exception
    ((name, payload),) = at_once.asked
    assert name == "plan" and payload["money"] == {"tokens": "1B"} and "tp" not in payload["case"]
    said = text_of(page)
    assert "no other candidate of the table can beat" in said and "time to train" in said
    assert len(figures_of(page)) == 3
    at = page.selectbox(key="open-plan")
    at.select(at.options and 1)
    next(b for b in page.button if b.label == "Open it").click().run()
    opened = Knobs.of({k: query_of(page, k)[-1] for k in page.query_params})
    second = points_of(page.session_state["plan-shown"][1])[1]
    assert answer(opened).report.step_s.value == pytest.approx(second.step_s, rel=1e-12)
    assert query_of(page, "goal.tokens") == ["1B"], "what a run may take stays in the URL"
    assert "question has changed" not in text_of(page), "opening a plan asks nothing new"


def test_a_changed_question_says_that_the_answer_is_old(at_once: Done) -> None:
    page = page_of("plan", DENSE).run()
    next(b for b in page.button if b.label == "Search").click().run()
    page.query_params["global_batch"] = "32"
    page.run()
    assert "question has changed" in text_of(page) and len(at_once.asked) == 1


def test_a_stopped_search_shows_what_it_has(at_once: Done, found: dict[str, Any]) -> None:
    stopped = {**found, "search": {**found["search"], "stopped": "interrupted", "simulated": 19, "gap": 0.043}}
    page = page_of("plan", DENSE)
    payload = {"case": view.asked_of(Knobs.of(DENSE), ()).case(), "money": {}}
    page.session_state["plan-shown"] = (payload, stopped)
    page.run()
    (said,) = page.warning
    assert "stopped after 19 simulated plans" in said.value and "4.3 % faster may exist" in said.value
    assert len(figures_of(page)) == 3
    assert view.stopped_words(found["search"]) == ""
    assert "proven" in view.stopped_words({**stopped["search"], "certificate": "void"})


def test_nothing_that_fits_is_told_as_the_command_line_does(at_once: Done) -> None:
    page = page_of("plan", {"model": "deepseek-v3", "cluster": "dgx-h100", "gpus": "8"}).run()
    next(b for b in page.button if b.label == "Search").click().run()
    assert not page.exception
    assert "candidates were rejected" in text_of(page) and "out of memory" in text_of(page)


def test_a_wrong_amount_is_told_with_its_option(at_once: Done) -> None:
    page = page_of("plan", {**DENSE, "goal.tokens": "many"}).run()
    next(b for b in page.button if b.label == "Search").click().run()
    assert "--tokens" in text_of(page) and "is no number" in text_of(page)


def test_the_planner_may_be_asked_from_elsewhere(at_once: Done) -> None:
    page = page_of("plan", DENSE)
    page.session_state["search"] = True
    page.run()
    assert [name for name, _ in at_once.asked] == ["plan"]


@pytest.fixture(scope="module")
def scenario() -> Answer:
    return answer(Knobs.of({"model": "Mixtral-8x7B", "cluster": "dgx-h100", "gpus": "16", "global_batch": "64",
                            "pp": "2", "ep": "8"}))  # fmt: skip


def test_every_target_is_offered_or_says_why_not(scenario: Answer) -> None:
    made = offers(scenario)
    assert {offer.target for offer in made} == set(EXPORTS)
    for offer in made:
        assert bool(offer.data) != bool(offer.problems), offer.target
    megatron = next(offer for offer in made if offer.target == "megatron-lm")
    archive = zipfile.ZipFile(io.BytesIO(megatron.data))
    names = archive.namelist()
    assert names == [f"megatron-lm/{name}" for name in megatron.names] and len(names) > 1
    scripts = [entry for entry in archive.infolist() if archive.read(entry).startswith(b"#!")]
    assert scripts and all(entry.external_attr >> 16 & 0o100 for entry in scripts)
    flags = b"".join(archive.read(name) for name in names)
    assert b"--pipeline-model-parallel-size 2" in flags and b"--expert-model-parallel-size 8" in flags


def test_what_a_target_builds_on_is_named(scenario: Answer) -> None:
    made = {o.target: o for o in offers(scenario, {"kubernetes": "registry/trainer:1"}, {"slurm": "22.05"})}
    assert made["kubernetes"].data and b"registry/trainer:1" in zip_text(made["kubernetes"].data)
    assert made["slurm"].version == "22.05"
    assert any("image" in problem for o in offers(scenario) if o.target == "kubernetes" for problem in o.problems)


def zip_text(data: bytes) -> bytes:
    """All files of a zip, or the file itself."""
    if not data.startswith(b"PK"):
        return data
    archive = zipfile.ZipFile(io.BytesIO(data))
    return b"".join(archive.read(name) for name in archive.namelist())


def test_a_layout_that_breaks_rules_does_not_stop_a_search(at_once: Done) -> None:
    """The search is free in the layout: what the knobs say of it need not be possible."""
    page = page_of("plan", {**DENSE, "tp": "3"}).run()
    next(b for b in page.button if b.label == "Search").click().run()
    assert not page.exception and 'class="problem"' not in text_of(page) and len(figures_of(page)) == 3


def test_the_report_of_a_plan_that_uses_one_link_is_made(found: dict[str, Any]) -> None:
    """One stage on one node: a figure of links with a single panel."""
    from dashboards.answers import timeline_report
    from dashboards.html_report import report_html

    chosen = open_record(Knobs.of(DENSE), found, "plans", 0, layers=32)
    report = timeline_report(chosen)
    assert report.trace is not None and len({link for _, link in report.trace.link_rates}) == 1
    assert "figure-link-use" in report_html(report, records=found["plans"], search=found["search"])


def test_exports_are_the_same_byte_for_byte(scenario: Answer) -> None:
    assert [offer.data for offer in offers(scenario)] == [offer.data for offer in offers(scenario)]


@pytest.mark.parametrize(
    ("customdata", "place"),
    [(["plans", 2], ("plans", 2)), ({"0": "pareto", "1": 0}, ("pareto", 0)), (None, None), (["x", 1], None),
     ("ab", None)],
)  # fmt: skip
def test_only_points_of_plans_are_opened(customdata: Any, place: Any) -> None:
    assert view._place(customdata) == place
