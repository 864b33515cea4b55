"""A plan file that somebody brings: opened with its question, or told what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dashboards import uploads
from dashboards.answers import answer
from dashboards.opened import SHOWN, asked_of_file, plan_file
from dashboards.state import Knobs
from dashboards.work_plan import plan
from hwprofiles.errors import UserError
from tests.dashboards.page import page_of, text_of

DENSE = {"model": "llama2-7b", "cluster": "dgx-h100", "gpus": "8", "global_batch": "16", "tp": "8"}


@pytest.fixture(scope="module")
def searched() -> dict[str, Any]:
    """An answer as the file holds it."""
    found: dict[str, Any] = json.loads(json.dumps(plan({"case": DENSE}, lambda *_: None)))
    return found


def token_of(data: Any) -> str:
    return uploads.add("plan", "plan.json", json.dumps(data).encode())


def test_an_opened_file_asks_for_its_best_plan(searched: dict[str, Any]) -> None:
    knobs = asked_of_file(plan_file(token_of(searched)))
    best = searched["plans"][0]
    assert answer(knobs).report.step_s.value == pytest.approx(best["step_s"]["value"], rel=1e-9)
    assert answer(knobs).report.plan.label() == best["label"]


def test_the_plan_view_shows_the_file(searched: dict[str, Any]) -> None:
    page = page_of("plan", dict(asked_of_file(searched).values))
    page.session_state[SHOWN] = (None, searched)
    page.run()
    assert not page.exception
    said = text_of(page)
    assert "plan file that was loaded" in said and searched["plans"][0]["label"] in said


@pytest.mark.parametrize(
    "path, value",
    [
        (("plans", 0, "stages"), "<img src=x onerror=alert(1)>"), (("plans", 0, "usable_mem_bytes"), None),
        (("inputs",), []), (("inputs", "workload"), {}), (("search",), 7), (("plans", 0, "plan", "tp"), "8; DROP"),
        (("plans", 0, "plan"), {"stages": "__import__('os')"}), (("plans",), [3]),
    ],
)  # fmt: skip
def test_a_mangled_file_gets_words(searched: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    data = json.loads(json.dumps(searched))
    spot = data
    for name in path[:-1]:
        spot = spot[name]
    spot[path[-1]] = value
    with pytest.raises(UserError) as caught:
        answer(asked_of_file(plan_file(token_of(data))))
    said = str(caught.value)
    assert str(Path(uploads.path(token_of(data))).parent) not in said


def test_a_broken_file_is_left_out_of_the_page(searched: dict[str, Any]) -> None:
    """What the check let through and the view cannot draw is told in words, not as a defect."""
    data = json.loads(json.dumps(searched))
    del data["plans"][0]["mfu"]
    page = page_of("plan", DENSE)
    page.session_state[SHOWN] = (None, data)
    page.run()
    assert not page.exception and "lacks or mangles a field" in text_of(page)


def test_a_field_of_a_plan_in_the_address_is_checked() -> None:
    for field, text in (("stages", "x"), ("stages", "[[1]]"), ("fsdp_shard", '{"a": {}}'), ("tp", "1e400"),
                        ("tp", "99999999999999999999")):  # fmt: skip
        with pytest.raises(UserError, match=r"stages|fsdp_shard|tp"):
            answer(Knobs.of({**DENSE, f"plan.{field}": text}))
