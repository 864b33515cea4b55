"""Figures of one report: pure functions from a `Report` (or plan records) to a plotly Figure.

They read no files and keep no state, so the HTML page, a notebook and an app can share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboards.style import (
    SPAN_NAMES,
    STREAMS,
    class_name,
    colour,
    drawn_s,
    ordered,
    seconds_text,
    span_class,
)
from sim.report import Report, Span, Trace

MAX_SPANS = 5_000
"""Above this the timeline keeps the ramp-up and ramp-down of each row and folds the middle."""

MAX_MEMORY_POINTS = 1_500
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "#1f2937"
_COMPUTE = "compute"


def _layout(title: str, height: int, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0.0, "xref": "paper", "xanchor": "left", "font": {"size": 16}},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "height": height,
        "margin": {"l": 10, "r": 20, "t": 60, "b": 50},
        **more,
    }


def _axis(title: str = "", **more: Any) -> dict[str, Any]:
    return {"title": title, "gridcolor": "#e5e7eb", "zerolinecolor": "#9ca3af", "automargin": True, **more}


def _time_unit(span_s: float) -> tuple[float, str]:
    return (1.0, "s") if span_s >= 2 else (1e3, "ms")


def _empty(title: str, why: str) -> go.Figure:
    figure = go.Figure(layout=_layout(title, 160))
    figure.add_annotation(text=why, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


# ---------------------------------------------------------------- timeline


def fold_spans(spans: Sequence[Span], limit: int = MAX_SPANS) -> list[Span]:
    """At most about `limit` spans: the beginning and the end of the step whole, its middle as blocks.

    A pipeline's interest lies at its two ends; its middle repeats. All rows are folded over the same
    time, and a block is named after what it holds, so nothing disappears without a word.
    """
    if len(spans) <= limit:
        return list(spans)
    ends = sorted(s.end_s for s in spans)
    starts = sorted(s.start_s for s in spans)
    rows: dict[tuple[int, str], list[Span]] = {}
    for span in spans:
        rows.setdefault((span.lane, span.stream), []).append(span)
    # Half of what is left after one block per row is kept at each end.
    keep = max(1, (limit - len(rows)) // 2)
    early_s, late_s = ends[keep], starts[-keep - 1]
    out: list[Span] = []
    for _, row in sorted(rows.items()):
        middle = [s for s in row if s.end_s >= early_s and s.start_s <= late_s]
        if len(middle) < 2:
            out += row
            continue
        out += [s for s in row if s.end_s < early_s or s.start_s > late_s]
        out.append(_block(middle))
    return out


def _block(middle: Sequence[Span]) -> Span:
    """One span in place of many of the same row."""
    counts: dict[str, int] = {}
    for span in middle:
        counts[span_class(span)] = counts.get(span_class(span), 0) + 1
    what = ", ".join(f"{n:,} {SPAN_NAMES.get(name, name)}" for name, n in sorted(counts.items()))
    start_s, end_s = min(s.start_s for s in middle), max(s.end_s for s in middle)
    share = sum(s.end_s - s.start_s for s in middle) / max(end_s - start_s, 1e-12)
    return Span(
        lane=middle[0].lane, stream=middle[0].stream, name=f"{what}; busy {share:.0%}", kind="steady state",
        micro_batch=-1, chunk=-1, start_s=start_s, end_s=end_s,
    )  # fmt: skip


def idle_spans(spans: Iterable[Span], makespan_s: float) -> list[Span]:
    """Gaps of the compute streams between 0 and the end of the step, as spans of kind "bubble"."""
    rows: dict[int, list[Span]] = {}
    for span in spans:
        if span.stream == _COMPUTE:
            rows.setdefault(span.lane, []).append(span)
    out: list[Span] = []
    for lane, row in sorted(rows.items()):
        at_s = 0.0
        ends = [(s.start_s, s.end_s) for s in sorted(row, key=lambda s: s.start_s)]
        for start_s, end_s in [*ends, (makespan_s, makespan_s)]:
            if start_s - at_s > 1e-9 * max(makespan_s, 1e-12):
                out.append(
                    Span(lane=lane, stream=_COMPUTE, name="idle", kind="bubble", micro_batch=-1, chunk=-1,
                         start_s=at_s, end_s=start_s)
                )  # fmt: skip
            at_s = max(at_s, end_s)
    return out


def _hover(span: Span, trace: Trace) -> str:
    where = f"{trace.lane_name(span.lane)} · {STREAMS.get(span.stream, span.stream)}"
    which = f"<br>micro-batch {span.micro_batch}, chunk {span.chunk}" if span.micro_batch >= 0 else ""
    took = seconds_text(span.end_s - span.start_s)
    return f"<b>{span.name}</b><br>{where}{which}<br>from {seconds_text(span.start_s)}, takes {took}"


def timeline(report: Report) -> go.Figure:
    """Gantt chart: one row per stage and stream; forward, backward, communication, idle time."""
    trace = report.trace
    if trace is None or not trace.spans:
        return _empty("Timeline of one step", "This report carries no trace.")
    until_s = drawn_s(trace)
    busy = fold_spans(trace.spans)
    spans = [*idle_spans(trace.spans, until_s), *busy]
    if len(spans) > 2 * MAX_SPANS:
        spans = busy
    scale, unit = _time_unit(until_s)
    # Compute rows stand together on top: the picture of a pipeline people know.
    rows = sorted({(s.stream != _COMPUTE, s.stream, s.lane) for s in spans})
    labels = {(lane, stream): f"{trace.lane_name(lane)} · {STREAMS.get(stream, stream)}" for _, stream, lane in rows}
    groups: dict[str, list[Span]] = {}
    for span in spans:
        groups.setdefault(span_class(span), []).append(span)
    figure = go.Figure()
    small = len(spans) <= 1_500
    first = ("bubble", "steady state", "forward", "backward")
    for name in sorted(groups, key=lambda g: (first.index(g) if g in first else 9, g)):
        row = groups[name]
        figure.add_bar(
            name=SPAN_NAMES.get(name, name),
            orientation="h",
            y=[labels[s.lane, s.stream] for s in row],
            base=[s.start_s * scale for s in row],
            x=[(s.end_s - s.start_s) * scale for s in row],
            width=0.45 if name == "bubble" else 0.82,
            marker={"color": colour(name), "line": {"width": 0.5 if small else 0, "color": "white"}},
            customdata=[_hover(s, trace) for s in row],
            hovertemplate="%{customdata}<extra></extra>",
            text=[str(s.micro_batch) if s.micro_batch >= 0 else "" for s in row] if small else None,
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="inside",
        )
    note = f" ({trace.periods_skipped} micro-batches of the steady state not drawn)" if trace.periods_skipped else ""
    figure.update_layout(
        **_layout(
            f"Timeline of one step{', layer by layer' if trace.lanes else ''}{note}",
            min(1_400, 150 + (26 if len(rows) < 24 else 19) * len(rows)),
            barmode="overlay",
            bargap=0.1,
            uniformtext={"minsize": 8, "mode": "hide"},
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            title_y=1.0,
            title_yanchor="top",
            title_pad={"t": 12},
            margin_t=96,
        )
    )
    figure.update_xaxes(**_axis(f"time ({unit})", range=[0, until_s * scale]))
    order = [labels[lane, stream] for _, stream, lane in rows]
    figure.update_yaxes(
        **_axis(autorange="reversed", categoryorder="array", categoryarray=order, tickfont={"size": 11}, dtick=1)
    )
    return figure


# ---------------------------------------------------------------- where the time goes


def where_time_goes(report: Report) -> go.Figure:
    """Waterfall of the critical stage's time by class; the last bar is the step, their sum."""
    shares = {name: value for name, value in report.breakdown.items() if value}
    if not shares:
        return _empty("Where the time goes", "This report carries no breakdown.")
    total_s = sum(shares.values())
    scale, unit = _time_unit(total_s)
    names = ordered(shares)
    figure = go.Figure()
    at_s = 0.0
    for name in names:
        value_s = shares[name]
        figure.add_bar(
            name=class_name(name), orientation="h", y=[class_name(name)], x=[value_s * scale], base=[at_s * scale],
            marker={"color": colour(name)}, text=[f"{seconds_text(value_s)} · {value_s / total_s:.1%}"],
            textposition="outside", cliponaxis=False, hovertemplate="%{y}: %{text}<extra></extra>",
        )  # fmt: skip
        at_s += value_s
    figure.add_bar(
        name="step", orientation="h", y=["step"], x=[total_s * scale], base=[0.0], marker={"color": INK},
        text=[seconds_text(total_s)], textposition="inside", hovertemplate="%{y}: %{text}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        **_layout("Where the time goes (slowest stage)", 140 + 30 * (len(names) + 1), showlegend=False,
                  barmode="overlay", bargap=0.25)
    )  # fmt: skip
    figure.update_xaxes(**_axis(f"time ({unit})", range=[0, total_s * scale * 1.18]))
    order = [*(class_name(n) for n in names), "step"]
    figure.update_yaxes(**_axis(autorange="reversed", categoryorder="array", categoryarray=order))
    return figure


# ---------------------------------------------------------------- memory


def thin_steps(points: Sequence[tuple[float, float]], limit: int = MAX_MEMORY_POINTS) -> list[tuple[float, float]]:
    """At most about `limit` points of a step curve; each bucket keeps its lowest and highest point."""
    if len(points) <= limit:
        return list(points)
    size = -(-len(points) // (limit // 2))
    out: list[tuple[float, float]] = []
    for at in range(0, len(points), size):
        bucket = range(at, min(at + size, len(points)))
        low = min(bucket, key=lambda i: points[i][1])
        high = max(bucket, key=lambda i: points[i][1])
        out += [points[i] for i in sorted({low, high})]
    return out if out[-1] == points[-1] else [*out, points[-1]]


def _stage_colours(count: int) -> list[str]:
    from plotly.colors import sample_colorscale

    steps = [i / max(1, count - 1) * 0.9 for i in range(count)]
    return [str(c) for c in sample_colorscale("Viridis", steps)]


def _capacity_line(figure: go.Figure, report: Report) -> None:
    gib = report.mem_capacity_bytes / 2**30
    figure.add_hline(
        y=gib, line={"color": "#B91C1C", "dash": "dash", "width": 1.5},
        annotation={"text": f"device memory {gib:,.1f} GiB", "font": {"color": "#B91C1C"}},
        annotation_position="top right",
    )  # fmt: skip


def _memory_top(report: Report, highest_bytes: float) -> list[float]:
    return [0, max(report.mem_capacity_bytes, highest_bytes) / 2**30 * 1.08]


def _shown_stages(memory: Sequence[Sequence[tuple[float, float]]], most: int = 6) -> set[int]:
    """Stages drawn at first: all of a few; of many the fullest, the ends and some between."""
    count = len(memory)
    if count <= most:
        return set(range(count))
    fullest = max(range(count), key=lambda i: max((b for _, b in memory[i]), default=0.0))
    return {fullest, *(round(i * (count - 1) / (most - 2)) for i in range(most - 1))}


def memory_over_time(report: Report) -> go.Figure:
    """Bytes in use on each pipeline stage through the step, with the device's memory as a line."""
    trace = report.trace
    if trace is None or not any(trace.memory):
        return _empty("Memory over time", "This report carries no trace.")
    until_s = drawn_s(trace)
    scale, unit = _time_unit(until_s)
    figure = go.Figure()
    shown = _shown_stages(trace.memory)
    for lane, (points, line) in enumerate(zip(trace.memory, _stage_colours(len(trace.memory)), strict=True)):
        kept = thin_steps(points)
        figure.add_scatter(
            name=trace.lane_name(lane), mode="lines", 
            visible=True if lane in shown else "legendonly", line={"shape": "hv", "width": 1.6, "color": line},
            x=[t * scale for t, _ in kept], y=[b / 2**30 for _, b in kept],
            hovertemplate=f"{trace.lane_name(lane)}: %{{y:.2f}} GiB at %{{x:.4g}} {unit}<extra></extra>",
        )  # fmt: skip
    _capacity_line(figure, report)
    highest = max(b for points in trace.memory for _, b in points)
    figure.update_layout(
        **_layout("Memory over time" + ("" if len(shown) == len(trace.memory) else " (click a stage to add it)"), 420)
    )
    figure.update_xaxes(**_axis(f"time ({unit})", range=[0, until_s * scale]))
    figure.update_yaxes(**_axis("GiB in use", range=_memory_top(report, highest)))
    return figure


_TAG_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0C808", "#6A3D9A", "#94A3B8", "#A0522D",
)  # fmt: skip


def memory_by_tag(report: Report) -> go.Figure:
    """Bytes by tag at each stage's peak, stacked, with the device's memory as a line."""
    if not report.memory:
        return _empty("Memory by tag at the peak", "This report carries no memory table.")
    size: dict[str, float] = {}
    for stage in report.memory:
        for tag, value in stage.items():
            size[tag] = size.get(tag, 0.0) + value
    tags = sorted((t for t in size if size[t] > 0), key=lambda t: (-size[t], t))
    figure = go.Figure()
    stages = [f"stage {i}" for i in range(len(report.memory))]
    for i, tag in enumerate(tags):
        figure.add_bar(
            name=tag.replace("_", " "), x=stages, y=[stage.get(tag, 0.0) / 2**30 for stage in report.memory],
            marker={"color": _TAG_COLOURS[i % len(_TAG_COLOURS)]},
            hovertemplate=f"%{{x}}, {tag}: %{{y:.2f}} GiB<extra></extra>",
        )  # fmt: skip
    _capacity_line(figure, report)
    highest = max(sum(stage.values()) for stage in report.memory)
    figure.update_layout(
        **_layout("Memory by tag at each stage's peak", 420, barmode="stack", bargap=0.35 if len(stages) > 3 else 0.6)
    )
    figure.update_xaxes(**_axis())
    figure.update_yaxes(**_axis("GiB", range=_memory_top(report, highest)))
    return figure


# ---------------------------------------------------------------- plans


def plan_table(records: Sequence[Mapping[str, Any]], capacity_bytes: float) -> go.Figure:
    """Ranked plans as a table; `records` are the entries of `plans` in the JSON of `moecast plan`."""
    from dashboards.plan_rows import HEADERS, plan_row

    if not records:
        return _empty("Plans", "No plan.")
    rows = [plan_row(record, capacity_bytes) for record in records]
    columns = [list(column) for column in zip(*rows, strict=True)]
    stripes = ["#ffffff" if i % 2 == 0 else "#f3f4f6" for i in range(len(rows))]
    widths = [max(len(header), *(len(row[i]) for row in rows)) + 2 for i, header in enumerate(HEADERS)]
    figure = go.Figure(
        go.Table(
            columnwidth=widths,
            header={"values": [f"<b>{h}</b>" for h in HEADERS], "fill_color": "#e5e7eb", "align": "left", "height": 30,
                    "font": {"color": INK, "size": 12}},
            cells={"values": columns, "fill_color": [stripes], "align": "left", "height": 26,
                   "font": {"color": INK, "size": 12}},
        )
    )  # fmt: skip
    figure.update_layout(**_layout("Plans, best first", 90 + 27 * len(rows)))
    figure.update_layout(margin={"l": 0, "r": 0, "t": 50, "b": 0})
    return figure
