"""Plans as points and figures: what is in the JSON is what is drawn, and a click leads back to it."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboards import figures_plans
from dashboards.plan_points import PlanPoint, points_of, varied
from hwprofiles.errors import UserError
from tests.dashboards.plan_answers import GIB, answer_json, plan_of, record_of


@pytest.fixture
def points() -> tuple[PlanPoint, ...]:
    return points_of(answer_json())


def said(figure: go.Figure) -> str:
    return str(figure.layout.annotations[0].text)


def test_points_of_an_answer_know_the_front_and_their_place(points: tuple[PlanPoint, ...]) -> None:
    assert [(p.part, p.index, p.front, p.best) for p in points] == [
        ("plans", 0, True, True), ("plans", 1, False, False), ("pareto", 0, True, False),
    ]  # fmt: skip
    # 0.1 USD a step of 2 x 4096 tokens
    assert points[0].usd == pytest.approx(0.1 / 8192 * 1e9)


def test_a_plan_in_both_lists_is_one_point() -> None:
    data = answer_json()
    same = data["plans"][0]
    data["pareto"].append({**same, "devices": 8, "step_s": 1.0, "usd": 0.1, "rank_order": None})
    assert len(points_of(data)) == 3


def test_with_tokens_the_price_is_that_of_the_whole_run() -> None:
    data = answer_json()
    data["goal"] = {"terms": {"tokens": 2e9}}
    data["plans"][0]["training"] = {"usd": {"value": 500.0}}
    data["pareto"][0]["usd"] = 700.0
    found = {(p.part, p.index): p.usd for p in points_of(data)}
    assert found["plans", 0] == pytest.approx(250.0) and found["pareto", 0] == pytest.approx(350.0)


@pytest.mark.parametrize("broken", [{"step_s": "fast"}, {"plan": None}, {"peak_mem_bytes": float("nan")}])
def test_a_mangled_plan_is_a_user_error(broken: dict[str, Any]) -> None:
    data = answer_json()
    data["plans"][0].update(broken)
    with pytest.raises(UserError, match="mangles a field"):
        points_of(data)


def test_every_point_of_the_trade_leads_back_to_its_record(points: tuple[PlanPoint, ...]) -> None:
    figure = figures_plans.trade(points, "time", "memory", 75 * GIB)
    data = answer_json()
    drawn = {}
    for trace in figure.data:
        for x, y, key in zip(trace.x, trace.y, trace.customdata or (), strict=False):
            drawn[tuple(key)] = (x, y)
    assert set(drawn) == {("plans", 0), ("plans", 1), ("pareto", 0)}
    for (part, index), (x, y) in drawn.items():
        record = data[part][index]
        step = record["step_s"]
        assert x == (step if isinstance(step, float) else step["value"])
        assert y == pytest.approx(record["peak_mem_bytes"] / GIB)
    assert [shape.y0 for shape in figure.layout.shapes] == [75.0]
    ring = next(t for t in figure.data if t.name == "the answer")
    assert (ring.x[0], ring.y[0]) == (1.0, pytest.approx(70.0))


def test_counts_of_gpus_are_told_apart(points: tuple[PlanPoint, ...]) -> None:
    data = answer_json()
    data["pareto"].append({**data["pareto"][0], "devices": 16, "label": "TP2 PP4 DP2", "step_s": 1.1})
    names = {t.name for t in figures_plans.trade(points_of(data)).data}
    assert {"8 GPUs, on the Pareto front", "16 GPUs, on the Pareto front", "the answer"} <= names
    assert list(figures_plans.trade(points_of(data), "gpus", "time").layout.xaxis.tickvals) == [8, 16]


def test_what_cannot_be_drawn_says_why(points: tuple[PlanPoint, ...]) -> None:
    assert "no plan" in said(figures_plans.trade(()))
    data = answer_json()
    for record in (*data["plans"], *data["pareto"]):
        record["usd"] = record["usd_per_step"] = None
    assert "no price" in said(figures_plans.trade(points_of(data), "time", "usd"))
    assert "no search" in said(figures_plans.ruled_out({}))
    assert "one plan" in said(figures_plans.choices(points[:1]))


def test_ruled_out_counts_every_reason_with_its_rule() -> None:
    figure = figures_plans.ruled_out(answer_json())
    (bars,) = figure.data
    count = dict(zip(bars.y, bars.x, strict=True))
    assert count["all candidates"] == 1000 and count["legal"] == 100 and count["fit in memory"] == 40
    assert count["simulated"] == 3 and count["lost: degrees fill the world"] == 800
    assert "lost: &lt;b&gt;rule&lt;/b&gt;" in count, "a name from a file is text"
    hover = dict(zip(bars.y, bars.customdata, strict=True))
    text = hover["lost: degrees fill the world"]
    assert text.startswith("degrees fill the world; lower one") and "(world-product)" in text
    assert "proven best" in figures_plans.ruled_out_words(answer_json())


def test_reasons_are_words_and_no_names_of_rules() -> None:
    data = answer_json()
    long = "attention and experts have the same pipelines: in orders that do not end in pp the axes inside agree"
    data["rules"]["rank-order-pipelines"] = {"text": long, "remedy": "", "source": ""}
    data["search"]["rejected"] |= {"rank-order-pipelines": 90, "same groups": 80}
    (bars,) = figures_plans.ruled_out(data).data
    labels = " ".join(bars.y).replace("<br>", " ")
    assert "lost: attention and experts have the same pipelines: in" in labels and "…" in labels
    assert any(long in text.replace("<br>", " ") for text in bars.customdata), "all of it on hover"
    assert "lost: out of memory" in labels
    assert "same groups" not in labels and "another rank map lays every group" in labels
    assert "world-product" not in figures_plans.ruled_out_words(data)


def test_many_reasons_become_one_bar() -> None:
    data = answer_json()
    data["search"]["rejected"] = {f"rule-{i}": i + 1 for i in range(20)}
    (bars,) = figures_plans.ruled_out(data).data
    count = dict(zip(bars.y, bars.x, strict=True))
    assert count["lost: 8 more reasons"] == sum(range(1, 9))


def test_choices_show_only_what_differs(points: tuple[PlanPoint, ...]) -> None:
    figure = figures_plans.choices(points)
    heat, bars = figure.data
    assert list(figure.layout.xaxis.ticktext) == ["TP", "PP", "recompute"]
    assert [list(row) for row in heat.text] == [["1", "1", "none"], ["8", "1", "none"], ["2", "4", "full"]]
    assert list(bars.x) == [1.0, 1.5, 2.0] and [tuple(k) for k in bars.customdata][2] == ("pareto", 0)
    words = figures_plans.choices_words(points)
    assert "TP (1, 2, 8)" in words and "CP 1" in words


def test_plans_that_differ_in_rank_order_alone_are_told_apart() -> None:
    data = answer_json()
    data["plans"].append({**data["plans"][0], "rank": 3, "rank_order": "tp-cp-ep-pp-dp"})
    points = points_of(data)
    figure = figures_plans.choices(points)
    at = list(figure.layout.xaxis.ticktext).index("rank order")
    assert {row[at] for row in figure.data[0].text} == {"tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"}
    assert "rank order (tp-cp-ep-dp-pp, tp-cp-ep-pp-dp)" in figures_plans.choices_words(points)
    assert sum("rank order tp-cp-ep-pp-dp" in text for text in figure.data[1].hovertext) == 1


def test_of_many_plans_the_fastest_are_shown() -> None:
    data = answer_json()
    data["plans"] = [record_of(1.0 + i / 100, 70.0, plan=plan_of(tp=i + 1)) for i in range(60)]
    points = points_of(data)
    figure = figures_plans.choices(points)
    assert len(figure.data[1].x) == figures_plans.MAX_PLANS and "of 61" in figure.layout.title.text


def test_names_are_text_in_every_figure() -> None:
    data = answer_json()
    data["plans"][0]["label"] = data["pareto"][0]["label"] = "<a href='x'>TP1</a>"
    data["plans"][0]["plan"]["schedule"] = "<img>"
    points = points_of(data)
    for figure in (figures_plans.trade(points), figures_plans.choices(points)):
        text = json.dumps(figure.to_plotly_json(), default=list)
        assert "<a" not in text and "<img" not in text
    assert "<a href" in figures_plans.trade_words(points), "words are plain text: the page escapes them"


def test_varied_orders_numbers_before_texts(points: tuple[PlanPoint, ...]) -> None:
    differ, shared = varied(points)
    assert differ["TP"] == [1, 2, 8] and differ["recompute"] == ["full", "none"] and shared["GPUs"] == 8


def test_recomputed_modules_are_not_cut(points: tuple[PlanPoint, ...]) -> None:
    from dataclasses import replace

    modules = ["layernorm", "moe_act", "mla_up_proj"]
    several = (*points, replace(points[0], plan={**points[0].plan, "recompute": modules}, index=7))
    cells = [text for row in figures_plans.choices(several).data[0].text for text in row]
    assert ", ".join(modules) in cells and not any("…" in text for text in cells)
