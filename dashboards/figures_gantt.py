"""One step seen as a whole: its Gantt chart and, on the same time axis, the memory of its lanes.

Made of `figures.timeline` and `figures_memory.memory_over_time`, so that each is drawn in one place; added is the time
in which a lane waits for its own communication, hatched over the idle time that it is part of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import LEGEND_COLUMNS, LEGEND_ROW, idle_spans, steady_window, timeline
from dashboards.figures_base import empty, lane_text, layout, time_unit
from dashboards.figures_memory import memory_over_time
from dashboards.style import STREAMS, colour, drawn_s, gib_text, seconds_text
from sim.report import Report, Span

TITLE = "One step: tasks and memory"
EXPOSED = "exposed communication"
MEMORY_HEIGHT, BETWEEN = 240, 96  # px of the lower panel; px between the two, for axis and legend of the lower
NEAR = 500  # tasks of single layers in sight at first
MAX_MARKED = 1_500  # waits drawn, the longest; the words count all
_COMPUTE = "compute"


def exposed_spans(spans: Sequence[Span], until_s: float) -> list[Span]:
    """Idle time of the compute streams in which another stream of the lane is at work: communication nothing hides."""
    other: dict[int, list[tuple[float, float]]] = {}
    for span in spans:
        if span.stream != _COMPUTE:
            other.setdefault(span.lane, []).append((span.start_s, span.end_s))
    busy = {lane: _union(parts) for lane, parts in other.items()}
    rows: dict[int, list[Span]] = {}
    for gap in idle_spans(spans, until_s):
        rows.setdefault(gap.lane, []).append(gap)
    out: list[Span] = []
    for lane, gaps in sorted(rows.items()):
        parts, at = busy.get(lane, []), 0
        for gap in gaps:
            while at < len(parts) and parts[at][1] <= gap.start_s:
                at += 1
            i = at
            while i < len(parts) and parts[i][0] < gap.end_s:
                start_s, end_s = max(parts[i][0], gap.start_s), min(parts[i][1], gap.end_s)
                out.append(
                    Span(lane=lane, stream=_COMPUTE, name=EXPOSED, kind=EXPOSED, micro_batch=-1, chunk=-1,
                         start_s=start_s, end_s=end_s)
                )  # fmt: skip
                i += 1
    return out


def _union(parts: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Intervals in order, those that touch as one."""
    out: list[tuple[float, float]] = []
    for start_s, end_s in sorted(parts):
        if out and start_s <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end_s))
        else:
            out.append((start_s, end_s))
    return out


def step_view(report: Report) -> go.Figure:
    """Tasks of every lane and stream above, bytes in use below, on one time axis that zooms both."""
    trace = report.trace
    if trace is None or not trace.spans:
        return empty(TITLE, "This report carries no trace.")
    gantt = timeline(report)
    until_s = drawn_s(trace)
    scale, unit = time_unit(until_s)
    shown = gantt.layout.xaxis.range
    if trace.lanes:  # single layers are told apart only from near; the rest of what is drawn is there to pan to
        shown = [at_s * scale for at_s in steady_window(trace.spans, until_s, NEAR)]
        gantt.update_xaxes(range=shown)
    gantt.update_layout(title={"x": 0.0, "xref": "container", "pad": {"l": 12}})
    _mark(gantt, report, scale)
    entries = len(gantt.data)
    above = 72 + LEGEND_ROW * -(-entries // LEGEND_COLUMNS)
    rows_height = gantt.layout.height - gantt.layout.margin.t - 54
    memory = memory_over_time(report) if any(trace.memory) else None
    if memory is None:
        gantt.update_layout(height=above + rows_height + 54, margin_t=above)
        return gantt
    inside = rows_height + BETWEEN + MEMORY_HEIGHT
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[rows_height, MEMORY_HEIGHT], vertical_spacing=BETWEEN / inside
    )  # fmt: skip
    figure.add_traces(gantt.data, rows=1, cols=1)
    for trace_of_stage in memory.data:
        figure.add_trace(trace_of_stage.update(legend="legend2"), row=2, col=1)
    lower = MEMORY_HEIGHT / inside
    figure.update_layout(
        **layout(
            "",
            inside + above + 54,
            barmode="overlay",
            bargap=0.1,
            uniformtext={"minsize": 8, "mode": "hide"},
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            legend2={"orientation": "h", "y": lower, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            margin_t=above,
            margin_b=54,
        )
    )
    figure.update_layout(title=gantt.layout.title)
    shapes, notes = _lines(memory)
    figure.update_layout(shapes=shapes, annotations=notes)
    figure.update_xaxes(_plain(gantt.layout.xaxis), row=1, col=1)
    figure.update_xaxes(title="", showticklabels=True, row=1, col=1)
    figure.update_xaxes(_plain(memory.layout.xaxis), row=2, col=1)
    figure.update_xaxes(range=shown, title=f"time ({unit}), both panels", row=2, col=1)
    figure.update_yaxes(_plain(gantt.layout.yaxis), row=1, col=1)
    figure.update_yaxes(_plain(memory.layout.yaxis), row=2, col=1)
    return figure


def _mark(gantt: go.Figure, report: Report, scale: float) -> None:
    """Hatch the longest waits for communication on the compute rows."""
    trace = report.trace
    assert trace is not None
    found = exposed_spans(trace.spans, drawn_s(trace))
    longest = sorted(found, key=lambda s: (s.start_s - s.end_s, s.lane, s.start_s))[:MAX_MARKED]
    drawn = sorted(longest, key=lambda s: (s.lane, s.start_s))
    if not drawn:
        return
    names = {lane: lane_text(report, lane) for lane in {s.lane for s in drawn}}
    gantt.add_bar(
        name=EXPOSED,
        orientation="h",
        y=[f"{names[s.lane]} · {STREAMS.get(_COMPUTE, _COMPUTE)}" for s in drawn],
        base=[s.start_s * scale for s in drawn],
        x=[(s.end_s - s.start_s) * scale for s in drawn],
        width=0.45,
        marker={"color": colour("communication"), "line": {"width": 0},
                "pattern": {"shape": "/", "size": 5, "solidity": 0.35, "fgcolor": colour("ep")}},
        customdata=[
            f"<b>{EXPOSED}</b><br>{names[s.lane]} waits<br>from {seconds_text(s.start_s)}, "
            f"takes {seconds_text(s.end_s - s.start_s)}"
            for s in drawn
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _plain(axis: go.layout.XAxis | go.layout.YAxis) -> dict[str, object]:
    """An axis as values, without what ties it to its own figure."""
    return {k: v for k, v in axis.to_plotly_json().items() if k not in ("anchor", "domain", "matches")}


def _lines(memory: go.Figure) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Shapes and notes of the memory figure, moved to the lower panel."""
    shapes, notes = (
        [{**each.to_plotly_json(), "yref": "y2", "xref": "x2 domain"} for each in found]
        for found in (memory.layout.shapes, memory.layout.annotations)
    )
    return shapes, notes


def step_words(report: Report) -> str:
    """What the two panels show: length, idle and exposed share of the compute streams, the fullest lane."""
    trace = report.trace
    if trace is None or not trace.spans:
        return "No timeline: this report carries no trace."
    until_s = drawn_s(trace)
    lanes = sorted({s.lane for s in trace.spans if s.stream == _COMPUTE})
    room_s = until_s * max(1, len(lanes))
    idle_s = sum(s.end_s - s.start_s for s in idle_spans(trace.spans, until_s))
    exposed_s = sum(s.end_s - s.start_s for s in exposed_spans(trace.spans, until_s))
    words = (
        f"Gantt chart of {seconds_text(until_s)} on {len(lanes)} {'lane' if len(lanes) == 1 else 'lanes'}: compute "
        f"streams are idle for {idle_s / room_s:.1%} of the time, {exposed_s / room_s:.1%} in all while the lane's own "
        f"communication runs (hatched)."
    )
    if any(trace.memory):
        fullest = max(range(len(trace.memory)), key=lambda i: (max((b for _, b in trace.memory[i]), default=0.0), -i))
        top = max(b for _, b in trace.memory[fullest])
        words += f" Memory below, on the same axis: most on {trace.lane_name(fullest)}, {gib_text(top)}."
    return words
