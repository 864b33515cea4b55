"""The step seen as a whole: waits are found, both panels share their axis, long steps stay quick."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import figures, figures_gantt
from sim.report import Report, Span
from tests.dashboards.handmade import make_report


def span(start_s: float, end_s: float, stream: str = "compute", lane: int = 0) -> Span:
    return Span(
        lane=lane, stream=stream, name="forward", kind="forward", micro_batch=0, chunk=0, start_s=start_s, end_s=end_s
    )


def length(spans: list[Span]) -> float:
    return sum(s.end_s - s.start_s for s in spans)


def test_a_wait_is_idle_time_under_the_lanes_own_communication() -> None:
    spans = [
        span(0, 1),
        span(3, 4),
        span(0.5, 1.5, "pp"),
        span(1.2, 2, "dp"),
        span(2.5, 3.5, "pp"),
        span(1, 3, "pp", 1),
    ]
    found = figures_gantt.exposed_spans(spans, 5.0)
    assert [(s.lane, s.start_s, s.end_s) for s in found] == [(0, 1, 2), (0, 2.5, 3)]


@given(
    st.lists(st.tuples(st.sampled_from(["compute", "pp", "dp"]), st.integers(0, 40), st.integers(1, 9)), max_size=30)
)
def test_waits_are_counted_to_the_second(drawn: list[tuple[str, int, int]]) -> None:
    """Against counting every second of the lane."""
    spans, free = [], 0
    for stream, gap, took in drawn:
        start = free + gap % 4 if stream == "compute" else gap
        spans.append(span(start, start + took, stream))
        free = start + took if stream == "compute" else free
    until = max([60, *(int(s.end_s) for s in spans)])
    at = {name: {t for s in spans if (s.stream == "compute") == name for t in range(int(s.start_s), int(s.end_s))}
          for name in (True, False)}  # fmt: skip
    wanted = len(at[False] - at[True]) if at[True] else 0
    found = figures_gantt.exposed_spans(spans, float(until))
    assert length(found) == pytest.approx(wanted)
    assert all(a.end_s <= b.start_s for a, b in pairwise(found))


def test_both_panels_show_what_the_single_figures_show(report: Report) -> None:
    figure = figures_gantt.step_view(report)
    upper = [t for t in figure.data if t.type == "bar"]
    lower = [t for t in figure.data if t.type == "scatter"]
    wanted = {t.name: sum(t.x) for t in figures.timeline(report).data}
    assert {t.name: sum(t.x) for t in upper if t.name != figures_gantt.EXPOSED} == pytest.approx(wanted)
    assert [t.name for t in lower] == [f"stage {i}" for i in range(4)]
    assert {t.xaxis for t in lower} == {"x2"} and figure.layout.xaxis.matches == "x2"
    assert tuple(figure.layout.xaxis2.range) == tuple(figures.timeline(report).layout.xaxis.range)
    assert {s.yref for s in figure.layout.shapes} == {"y2"}
    assert list(figure.layout.yaxis.categoryarray) == list(figures.timeline(report).layout.yaxis.categoryarray)
    # a legend of its own, so that stages and kinds of tasks do not mix
    assert {t.legend for t in lower} == {"legend2"} and "legend2" in figure.layout


def test_waits_are_drawn_on_the_rows_of_their_lanes_and_said(report: Report) -> None:
    trace = report.trace
    assert trace is not None
    found = figures_gantt.exposed_spans(trace.spans, trace.makespan_s)
    (marked,) = [t for t in figures_gantt.step_view(report).data if t.name == figures_gantt.EXPOSED]
    assert sum(marked.x) == pytest.approx(1e3 * length(found)) and length(found) > 0
    assert set(marked.y) <= {f"stage {i} · compute" for i in range(4)}
    share = length(found) / (4 * trace.makespan_s)
    assert f"{share:.1%} in all while" in figures_gantt.step_words(report)
    assert "most on stage 0, 14.0 GiB" in figures_gantt.step_words(report)


def test_without_a_trace_it_says_so(report: Report) -> None:
    bare = replace(report, trace=None)
    assert "no trace" in figures_gantt.step_view(bare).layout.annotations[0].text
    assert "no trace" in figures_gantt.step_words(bare)


def test_fifteen_thousand_tasks_are_a_few_traces_within_a_moment() -> None:
    long = make_report(8, 650)
    assert long.trace is not None and len(long.trace.spans) > 14_900
    started = time.perf_counter()
    figure = figures_gantt.step_view(long)
    text = figure.to_json()
    assert time.perf_counter() - started < 5.0
    assert len(figure.data) <= 20
    assert sum(len(t.x) for t in figure.data if t.type == "bar") <= 2 * figures.MAX_SPANS + figures_gantt.MAX_MARKED
    assert len(text) < 6_000_000
