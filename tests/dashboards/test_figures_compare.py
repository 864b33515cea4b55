"""Scenarios side by side: sums, differences, marks of the best, and names that are text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import figures_compare, side_numbers
from planner.compare import Side
from tests.dashboards.plan_answers import GIB, side_of

FIGURES = (figures_compare.time_side_by_side, figures_compare.time_changes, figures_compare.intervals,
           figures_compare.memory)  # fmt: skip
WORDS = (figures_compare.time_words, figures_compare.changes_words, figures_compare.intervals_words,
         figures_compare.memory_words)  # fmt: skip


@pytest.fixture
def sides() -> list[Side]:
    return [side_of("base"), side_of("fast", 0.5, 60.0), side_of("big", 2.0, 90.0)]


def test_stacked_bars_sum_to_each_step(sides: list[Side]) -> None:
    figure = figures_compare.time_side_by_side(sides)
    totals = [sum(t.x[i] for t in figure.data) for i in range(3)]
    assert totals == pytest.approx([1.0, 0.5, 2.0])
    assert [a.text for a in figure.layout.annotations] == ["1.00 s", "500 ms<br>×0.500", "2.00 s<br>×2.00"]


def test_the_legend_leaves_no_hole_above_the_bars(sides: list[Side]) -> None:
    legend = figures_compare.time_side_by_side(sides).layout.legend
    assert (legend.yref, legend.y, legend.yanchor) == ("container", 0.0, "bottom")


def test_the_axes_of_both_panels_have_ticks(sides: list[Side]) -> None:
    figure = figures_compare.intervals(sides)
    for axis in (figure.layout.xaxis, figure.layout.xaxis2):
        low, high = axis.range
        assert high // axis.dtick - -(-low // axis.dtick) >= 2


def test_changes_sum_to_that_of_the_step(sides: list[Side]) -> None:
    figure = figures_compare.time_changes(sides)
    for trace, change in zip(figure.data, (-500.0, 1000.0), strict=True):
        by = dict(zip(trace.y, trace.x, strict=True))
        assert by["step"] == pytest.approx(change)
        assert sum(v for name, v in by.items() if name != "step") == pytest.approx(change)


def test_whiskers_are_the_intervals(sides: list[Side]) -> None:
    steps, rates = figures_compare.intervals(sides[:2]).data
    assert list(steps.x) == pytest.approx([1000.0, 500.0])
    assert list(steps.error_x.array) == pytest.approx([100.0, 50.0])
    assert rates.x[0] == pytest.approx(8192.0), "tokens of all 8 GPUs"


def test_memory_stands_beside_what_is_usable(sides: list[Side]) -> None:
    bars, room = figures_compare.memory(sides).data
    assert list(bars.x) == pytest.approx([70.0, 60.0, 90.0]) and list(room.x) == pytest.approx([75.0] * 3)
    assert bars.marker.color[2] == figures_compare.LIMIT
    assert "does not fit" in figures_compare.memory(sides).layout.annotations[2].text


def test_differences_say_which_way_is_better(sides: list[Side]) -> None:
    found = side_numbers.differences(sides[1], sides[0])
    assert (found["step time"].text, found["step time"].better) == ("×0.500", True)
    assert (found["tokens/s"].text, found["tokens/s"].better) == ("×2.00", True)
    assert found["peak memory"].better is True and found["GPUs"].better is None
    leaner = side_numbers.differences(side_of("x", mfu={"value": 0.44}), sides[0])
    assert (leaner["model FLOP utilisation"].text, leaner["model FLOP utilisation"].better) == ("+4.0 points", True)
    assert found["model FLOP utilisation"].text == "same" and found["model FLOP utilisation"].better is None
    assert side_numbers.usd_per_billion(sides[0]) == pytest.approx(0.1 / 8192 * 1e9)


def test_money_has_its_sign() -> None:
    by_name = {m.name: m.text for m in side_numbers.MEASURES}
    assert by_name["USD per step"](12.5) == "$12.50" and by_name["USD per 1e9 tokens"](0.4321) == "$0.4321"


def test_the_best_of_each_measure_is_known(sides: list[Side]) -> None:
    best = {m.name: side_numbers.best_of(m, sides) for m in side_numbers.MEASURES}
    assert best["step time"] == {1} and best["peak memory"] == {1} and best["tokens/s"] == {1}
    assert best["model FLOP utilisation"] == set() and best["GPUs"] == set()


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
def test_a_change_reads_the_right_way(value: float, base: float) -> None:
    text = side_numbers.change_text(value, base)
    if text.startswith("×"):
        assert value >= 2 * base or value <= base / 2
    elif text != "same":
        assert (text[0] == "+") == (value > base)


def test_names_are_text_and_told_apart() -> None:
    sides = [side_of("<b>x</b>"), side_of("<b>x</b>", 1.2, breakdown={"<i>y</i>": 1.2})]
    for draw in FIGURES:
        text = json.dumps(draw(sides).to_plotly_json(), default=list)
        assert "<b>" not in text and "<i>" not in text
    assert figures_compare.names_of(sides) == ["A · <b>x</b>", "B · <b>x</b>"]
    for words in WORDS:
        assert "B · <b>x</b>" in words(sides), "words are plain text: the page escapes them"


@pytest.mark.parametrize("record", [{}, {"step_s": "x", "breakdown": [1], "peak_mem_bytes": None, "memory": 3}])
def test_records_that_hold_nothing_are_drawn_as_nothing(record: dict[str, Any]) -> None:
    side = Side(where="odd", record=record, asked={})
    for draw in FIGURES:
        assert draw([side]).layout.annotations[0].text
    assert side_numbers.differences(side, side) == {}


def test_one_scenario_alone_has_no_difference(sides: list[Side]) -> None:
    assert "add another" in figures_compare.time_changes(sides[:1]).layout.annotations[0].text
    assert side_numbers.number(True) is None and side_numbers.interval({"value": 2 * GIB}) == (0.0, 0.0)
