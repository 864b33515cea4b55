"""The view Compare: scenarios of the URL, plan files, what is best and what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dashboards import sides, uploads
from dashboards.answers import answer
from dashboards.sides import differing, figure_rows, side_of, side_of_file
from dashboards.state import Knobs
from hwprofiles.errors import UserError
from planner.compare import compare
from planner.planfile import load_plan
from tests.dashboards.page import figures_of, page_of, query_of, text_of
from tests.dashboards.plan_answers import side_of as made_by_hand

NOW = {"model": "Mixtral-8x7B", "cluster": "dgx-h100", "gpus": "16", "global_batch": "64", "pp": "2", "ep": "4",
       "recompute": "moe_act"}  # fmt: skip
OTHER = {**NOW, "pp": "4"}


def query(values: dict[str, str]) -> str:
    return Knobs.of(values).query()


def file_of(**changes: Any) -> str:
    """Token of an uploaded plan file."""
    data = load_plan(Path(__file__).parents[1] / "data/plan-format-1.json")
    data["inputs"]["model"] = "<img src=x>"
    data["plans"] = [data["plans"][0], {**data["plans"][0], "rank": 2}]
    data |= changes
    return uploads.add("plan", "plan.json", json.dumps(data).encode())


def test_a_side_is_what_the_command_line_compares() -> None:
    a, b = (side_of(answer(Knobs.of(values)), name) for values, name in ((NOW, "a"), (OTHER, "b")))
    found = compare(a, b)
    assert [line.name for line in found.asked] == []
    assert "pp" in {line.name for line in found.plan}
    step = next(line for line in found.figures if line.name == "step_s")
    assert sum(line.change or 0.0 for line in found.breakdown) == pytest.approx(step.change)


def test_baseline_list_and_knobs_stand_side_by_side() -> None:
    page = page_of("compare", {**NOW, "base": query({**NOW, "pp": "1", "recompute": "full"}),
                               "s": [query(OTHER), query(NOW)]}).run()  # fmt: skip
    assert not page.exception
    said = text_of(page)
    assert "A · baseline: TP1 PP1" in said and "B · TP1 PP4" in said and "C · TP1 PP2" in said
    assert "D ·" not in said, "the knobs are in the list already"
    assert "★" in said and len(figures_of(page)) == 4
    assert "recompute" in said and "moe_act" in said


def test_add_and_remove_write_the_url() -> None:
    page = page_of("compare", NOW).run()
    assert "One scenario alone" in text_of(page)
    next(b for b in page.button if b.label == "Add this scenario").click().run()
    assert query_of(page, "s") == [query(NOW)]
    page.query_params["pp"] = "4"
    page.run()
    assert "B · now: TP1 PP4" in text_of(page)
    page.button(key="remove-0").click().run()
    assert not query_of(page, "s") and query_of(page, "pp") == ["4"]


def test_a_scenario_that_breaks_rules_is_told_and_the_others_stand() -> None:
    page = page_of("compare", {**NOW, "s": [query({**NOW, "tp": "3"}), query(OTHER)]}).run()
    assert not page.exception
    said = text_of(page)
    assert 'class="problem"' in said and "A · TP1 PP4" in said and "B · now" in said


def test_plan_files_join_and_their_names_are_text() -> None:
    token = file_of()
    page = page_of("compare", {**NOW, "p": [token, f"{token}#2"]}).run()
    assert not page.exception
    assert "A · plan.json" in text_of(page) and "B · plan.json #2" in text_of(page)
    html = "".join(element.proto.body for element in page.get("html"))
    assert "<img" not in html and "&lt;img" in html


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: "upload:" + "0" * 20 + ":plan.json", "upload it again"),
        (lambda: "/etc/passwd", "not an upload"),
        (lambda: file_of() + "#9", "plans 1 to 2"),
        (lambda: uploads.add("plan", "x.json", b"[1]"), "not a plan file"),
        (lambda: uploads.add("plan", "y.json", b"{"), "not JSON"),
        (lambda: file_of(plans=[{"plan": 3, "label": "x"}]), "plans.0: rank, stages, .* missing"),
    ],
)
def test_files_that_are_none_are_refused_without_a_path(make: Any, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        side_of_file(make())
    assert "/tmp" not in str(caught.value) and "moecast-" not in str(caught.value)


def test_rows_mark_the_best_and_the_change() -> None:
    rows = {name: cells for name, *cells in figure_rows([made_by_hand("a"), made_by_hand("b", 0.5, 60.0)])}
    assert rows["step time"] == ["1.000 s", "500.0 ms (×0.500) ★"]
    assert rows["model FLOP utilisation"] == ["40.0 %", "40.0 %"]


def test_what_does_not_fit_is_best_in_nothing() -> None:
    rows = {name: cells for name, *cells in figure_rows([made_by_hand("a"), made_by_hand("b", 0.5, 90.0)])}
    assert not any("★" in cells[1] for cells in rows.values())
    assert rows["fits in memory"] == ["yes", "no"]


def test_only_what_differs_is_listed() -> None:
    a, b = (side_of(answer(Knobs.of(values)), "x") for values in (NOW, {**OTHER, "seq_len": "8192"}))
    found = dict(differing([a, b]))
    assert found["pp"] == ["2", "4"] and found["seq_tokens"] == ["4096", "8192"] and "tp" not in found
    faster = side_of(answer(Knobs.of({**NOW, "cluster.scale_out.bytes_per_s": "1e11"})), "x")
    assert ("cluster.scale_out.bytes_per_s", ["-", "1e11"]) in differing([a, faster])
    assert sides.plain(["moe_act", "mlp"]) == "moe_act, mlp" and sides.plain(()) == "-"
    assert sides.plain({"name": "adam", "exp_avg": None}) == "name adam"
