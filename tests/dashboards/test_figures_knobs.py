"""Tornado, map of two knobs and sweep draw what they are given."""

from __future__ import annotations

from typing import Any

import pytest

from dashboards import figures_knobs
from dashboards.figures_knobs import Cell, Grid
from planner.elastic import Gain


def gain(what: str, share: float | None, factor: float = 1.1, **more: Any) -> Gain:
    step = None if share is None else 1.0 / (1.0 + share)
    return Gain(what=what, factor=factor, of=more.pop("of", "same plan"), step_s=step, gain=share, **more)


MORE = [gain("scale-out", 0.02), gain("FLOP/s", 0.06, elasticity=-0.6), gain("host", 0.0)]
LESS = [gain("FLOP/s", -0.07, 0.9), gain("scale-out", -0.03, 0.9)]
LARGER = [gain("one more node", 0.4, 1.5, of="new search"), gain("memory", None, of="new search", note="no plan: x")]


def test_tornado_ranks_by_what_tells_most() -> None:
    lower, upper = figures_knobs.tornado(MORE, LESS).data
    assert list(upper.y) == ["FLOP/s", "scale-out", "host"]
    assert list(upper.x) == pytest.approx([6.0, 2.0, 0.0]) and list(lower.x) == pytest.approx([-7.0, -3.0, 0.0])
    assert "elasticity of the step -0.600" in upper.customdata[0]


def test_a_new_search_has_its_own_axis() -> None:
    figure = figures_knobs.tornado([*MORE, *LARGER])
    assert [t.xaxis for t in figure.data] == ["x", "x", "x2", "x2"]
    assert list(figure.data[3].y) == ["one more node"] and list(figure.data[3].x) == pytest.approx([40.0])
    assert figure.layout.xaxis.range[1] < figure.layout.xaxis2.range[1]
    words = figures_knobs.tornado_words([*MORE, *LARGER], LESS)
    assert "one more node +40.0 %" in words and "memory: no plan: x" in words and "No change by host" in words


def test_a_tornado_of_nothing_says_so() -> None:
    assert "nothing was simulated" in figures_knobs.tornado(LARGER[1:]).layout.annotations[0].text


def grid(**more: Any) -> Grid:
    cells = (
        Cell(x="1", y="1", step_s=1.0, rate=100.0, peak_bytes=1e9), Cell(x="2", y="1", step_s=0.5, rate=200.0),
        Cell(x="1", y="2", step_s=0.4, rate=250.0, peak_bytes=9e10, reason="out of memory"),
        Cell(x="2", y="2", reason="world-product: <b>degrees</b> must fill the world"),
    )  # fmt: skip
    return Grid(x_name="TP", y_name="PP", xs=("1", "2"), ys=("1", "2"), cells=more.pop("cells", cells), here=("1", "1"))


def test_the_map_crosses_what_is_not_possible_and_frames_the_best() -> None:
    figure = figures_knobs.knob_map(grid())
    heat = figure.data[0]
    assert [list(row) for row in heat.z] == [[100.0, 200.0], [None, None]]
    crosses = next(t for t in figure.data if t.name == "not possible")
    assert list(zip(crosses.x, crosses.y, strict=True)) == [("1", "2"), ("2", "2")]
    assert "out of memory" in crosses.text[0] and "&lt;b&gt;" in crosses.text[1]
    best, now = figure.layout.shapes
    assert (best.x0 + best.x1) / 2 == 1 and (best.y0 + best.y1) / 2 == 0
    assert (now.x0 + now.x1) / 2 == 0 and (now.y0 + now.y1) / 2 == 0
    assert "2 of them not possible; the fastest is TP 2, PP 1" in figures_knobs.knob_map_words(grid())


def test_maps_without_a_number_say_why() -> None:
    lost = tuple(Cell(x=x, y="1", reason="no") for x in ("1", "2"))
    assert "no combination fits" in figures_knobs.knob_map(grid(cells=lost)).layout.annotations[0].text
    assert "no combination was simulated" in figures_knobs.knob_map(grid(cells=())).layout.annotations[0].text


ROWS: list[dict[str, Any]] = [
    {"ask.gpus": str(n), "ask.tp": tp, "ask.model": "m", "status": "ok", "error": "", "step_s": n / 100 / tp,
     "label": f"TP{tp}"}
    for n in (64, 8, 128) for tp in (1, 2)
] + [{"ask.gpus": "256", "ask.tp": 1, "ask.model": "m", "status": "no plan", "error": "x"}]  # fmt: skip


def test_a_sweep_draws_each_case_that_has_the_figure() -> None:
    figure = figures_knobs.sweep(ROWS, "ask.gpus", "step_s", "ask.tp")
    assert [t.name for t in figure.data] == ["tp 1", "tp 2"]
    assert list(figure.data[0].x) == [8.0, 64.0, 128.0]
    assert list(figure.data[1].y) == pytest.approx([40.0, 320.0, 640.0]), "a step below two seconds is in ms"
    assert figures_knobs.columns(ROWS) == (["ask.gpus", "ask.tp"], ["step_s"])
    assert "7 cases (6 ok, 1 no plan)" in figures_knobs.sweep_words(ROWS, "ask.gpus", "step_s")


def test_a_sweep_over_words_and_of_nothing() -> None:
    figure = figures_knobs.sweep(ROWS, "ask.model", "step_s")
    assert figure.layout.xaxis.type == "category" and set(figure.data[0].x) == {"m"}
    assert "no case has both" in figures_knobs.sweep(ROWS, "ask.gpus", "mfu").layout.annotations[0].text


def test_a_clicked_cell_is_found_by_what_the_figure_calls_it() -> None:
    """Names of a figure are escaped; what is no cell is none."""
    cells = tuple(Cell(x=x, y=y, rate=1.0) for x in ("<b>1</b>", "2") for y in ("1", "2"))
    grid = Grid(x_name="a", y_name="b", xs=("<b>1</b>", "2"), ys=("1", "2"), cells=cells)
    figure = figures_knobs.knob_map(grid)
    for x in figure.data[0].x:
        for y in figure.data[0].y:
            found = grid.clicked(x, y)
            assert found is not None and (found.x, found.y) == (x.replace("&lt;", "<").replace("&gt;", ">"), y)
    assert grid.clicked("3", "1") is None and grid.clicked(None, {}) is None
    assert "select" in figure.layout.clickmode
