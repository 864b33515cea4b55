"""Figures say the numbers of the report."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import figures, figures_memory
from dashboards.figures_base import DARK_LIMIT, LIMIT, few_ticks, themed
from dashboards.style import seconds_text, significant, span_class
from sim.plan import Plan
from sim.report import Report, Span
from tests.dashboards.handmade import GIB, make_report, pipeline_trace


def bars(figure: go.Figure, name: str) -> list[float]:
    return [float(x) for trace in figure.data if trace.name == name for x in trace.x]


def test_where_time_goes_sums_to_the_step(report: Report) -> None:
    figure = figures.where_time_goes(report)
    parts = [t for t in figure.data if t.name != "step"]
    ends = [t.base[0] + t.x[0] for t in parts]
    # The bars form a staircase: each begins where the one before ended, the last ends at the step.
    assert [t.base[0] for t in parts] == pytest.approx([0.0, *ends[:-1]])
    assert ends[-1] == pytest.approx(report.step_s.value * 1e3)
    assert bars(figure, "step") == pytest.approx([report.step_s.value * 1e3])


def test_timeline_draws_every_span_and_all_idle_time(report: Report) -> None:
    trace = report.trace
    assert trace is not None
    figure = figures.timeline(report)
    for kind in ("forward", "backward", "optimizer"):
        wanted = sum(s.end_s - s.start_s for s in trace.spans if s.kind == kind) * 1e3
        assert sum(bars(figure, kind)) == pytest.approx(wanted)
    idle = sum(trace.makespan_s - busy for busy in trace.lane_busy_s) * 1e3
    assert sum(bars(figure, "idle (bubble)")) == pytest.approx(idle)


def test_long_timelines_are_folded_in_the_middle_and_lose_no_time() -> None:
    trace = pipeline_trace(8, 500)
    assert len(trace.spans) > 8_000
    kept = figures.fold_spans(trace.spans)
    assert len(kept) <= figures.MAX_SPANS
    for lane in range(8):
        whole = [s for s in trace.spans if s.lane == lane and s.stream == "compute"]
        row = sorted((s for s in kept if s.lane == lane and s.stream == "compute"), key=lambda s: s.start_s)
        assert row[0].start_s == min(s.start_s for s in whole)
        assert row[-1].end_s == max(s.end_s for s in whole)
        assert sum(s.kind == "steady state" for s in row) == 1
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(row))
    assert len(figures.timeline(make_report(8, 500)).data) > 0


def test_timelines_of_many_lanes_stay_readable() -> None:
    """Several lanes a stage are not called stages, and labels of hundreds of rows do not touch."""
    figure = figures.timeline(make_report(120, 8, plan=Plan(pp=4)))
    rows = len(figure.layout.yaxis.categoryarray)
    assert rows == 239 and figure.layout.yaxis.categoryarray[0] == "lane 0 · compute"
    assert figure.layout.height <= 1_400
    assert (figure.layout.height - 150) / rows * figure.layout.yaxis.dtick >= 11


def test_skipped_periods_are_not_drawn_as_idle_time(report: Report) -> None:
    trace = report.trace
    assert trace is not None
    longer = replace(report, trace=replace(trace, makespan_s=10 * trace.makespan_s, periods_skipped=80))
    idle = sum(bars(figures.timeline(report), "idle (bubble)"))
    figure = figures.timeline(longer)
    assert sum(bars(figure, "idle (bubble)")) == pytest.approx(idle)
    assert "80 micro-batches of the steady state not drawn" in figure.layout.title.text


def test_memory_figures_show_the_peak_and_the_capacity(report: Report) -> None:
    over_time = figures_memory.memory_over_time(report)
    assert max(max(t.y) for t in over_time.data) == pytest.approx(14.0)
    by_tag = figures_memory.memory_by_tag(report)
    stage0 = sum(t.y[0] for t in by_tag.data)
    assert stage0 == pytest.approx(sum(report.memory[0].values()) / GIB)
    for figure in (over_time, by_tag):
        assert [shape.y0 for shape in figure.layout.shapes] == [76.0, 80.0]  # usable, device


@given(st.lists(st.floats(0, 1e12, allow_nan=False), min_size=1, max_size=5000), st.integers(10, 500))
def test_thinned_memory_keeps_the_extremes_and_both_ends(values: list[float], limit: int) -> None:
    points = [(float(i), v) for i, v in enumerate(values)]
    kept = figures_memory.thin_steps(points, limit)
    assert len(kept) <= max(limit, 0) + 3
    assert max(v for _, v in kept) == max(values)
    assert min(v for _, v in kept) == min(values)
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)


def test_plan_table_has_a_row_per_plan(report: Report) -> None:
    record = {
        "rank": 1, "plan": {"tp": 2, "cp": 1, "dp": 4, "pp": 4, "vpp": 1, "ep": 8, "etp": 1, "micro_batch_seqs": 1,
                            "recompute": ["moe_act"]},
        "step_s": {"value": 2.0, "low": 1.8, "high": 2.2}, "tokens_per_s_per_gpu": {"value": 1000.0},
        "mfu": {"value": 0.4}, "peak_mem_bytes": 64 * GIB, "bubble_fraction": 0.1,
        "exposed_comm_s": {"ep": 0.3, "tp": 0.1},
    }  # fmt: skip
    table = figures.plan_table([record, record | {"rank": 2}], 80 * GIB).data[0]
    cells = dict(zip((h.strip("<b>/") for h in table.header.values), table.cells.values, strict=True))
    assert list(cells["#"]) == ["1", "2"]
    assert cells["step s (80 %)"][0] == "2.00 (1.80-2.20)"
    assert cells["comm %"][0] == "20.0"
    assert cells["GiB"][0] == "64.0/80"


def test_reports_without_a_trace_say_so(report: Report) -> None:
    bare = replace(report, trace=None)
    for figure in (figures.timeline(bare), figures_memory.memory_over_time(bare)):
        assert "no trace" in figure.layout.annotations[0].text


@pytest.mark.parametrize(
    ("kind", "group"),
    [("F", "forward"), ("B", "backward"), ("p2p", "pp"), ("grad_sync", "dp"), ("optimizer", "optimizer"),
     ("something new", "other")],
)  # fmt: skip
def test_span_classes(kind: str, group: str) -> None:
    span = Span(lane=0, stream="x", name="y", kind=kind, micro_batch=0, chunk=0, start_s=0, end_s=1)
    assert span_class(span) == group


def test_numbers_as_text() -> None:
    assert seconds_text(12.345) == "12.3 s"
    assert seconds_text(0.0456) == "45.6 ms"
    assert seconds_text(7.89e-6) == "7.89 us"
    assert seconds_text(0.9999) == "1.00 s"
    assert significant(1234567.0) == "1,234,567"
    assert significant(float("nan")) == "unknown"


def test_memory_against_the_baseline_is_the_difference_of_the_fullest_stages(report: Report) -> None:
    leaner = replace(report, memory=({"weights": 4 * GIB}, {"weights": 6 * GIB, "workspace": GIB}))
    fuller = replace(report, memory=({"weights": 9 * GIB, "activations": 2 * GIB}, {"weights": GIB}))
    (bar,) = figures_memory.memory_tag_changes(fuller, leaner).data
    assert dict(zip(bar.y, bar.x, strict=True)) == pytest.approx(
        {"weights": 3.0, "activations": 2.0, "workspace": -1.0}
    )
    assert sum(bar.x) == pytest.approx(11 - 7), "the changes add up to that of the peaks"
    assert "weights +3.00 GiB" in figures_memory.memory_changes_words(fuller, leaner)
    assert not figures_memory.memory_tag_changes(report, report).data
    assert "no tag moved" in figures_memory.memory_changes_words(report, report)


@given(st.floats(0.0, 1e9), st.floats(1e-3, 1e9))
def test_an_axis_has_three_ticks_or_more(low: float, span: float) -> None:
    high = low + span
    step = few_ticks(low, high)
    assert 2 <= math.floor(high / step) - math.ceil(low / step) <= 10


def test_limits_are_bright_on_a_dark_page() -> None:
    figure = go.Figure(go.Scatter(x=[1], y=[1], mode="markers", marker={"color": LIMIT, "line": {"color": LIMIT}}))
    figure.add_hline(y=2, line={"color": LIMIT}, annotation={"text": "usable", "font": {"color": LIMIT}})
    dark, light = themed(figure, dark=True), themed(figure, dark=False)
    for drawn, colour in ((dark, DARK_LIMIT), (light, LIMIT)):
        assert drawn.layout.shapes[0].line.color == drawn.layout.annotations[0].font.color == colour
        assert drawn.data[0].marker.color == drawn.data[0].marker.line.color == colour
