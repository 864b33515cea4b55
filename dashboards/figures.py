"""Time and plans as figures: pure functions from a `Report` (or plan records) to a plotly Figure.

Like all `figures_*` they read no files and keep no state, so the HTML page, a notebook and an app can share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboards.figures_base import INK, axis, empty, lane_text, layout, least_gap, time_unit
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
from sim.report import Report, Span

MAX_SPANS = 5_000
"""Above this the timeline keeps the ramp-up and ramp-down of each row and folds the middle."""

_COMPUTE = "compute"
LEGEND_COLUMNS, LEGEND_ROW = 4, 24  # entries side by side on a page of 1180 px; height of a row of them, px

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


def steady_window(spans: Sequence[Span], until_s: float, limit: int = MAX_SPANS) -> tuple[float, float]:
    """(from, to) seconds in the middle of a step that hold about `limit` spans: what single layers do all the time."""
    if len(spans) <= limit:
        return 0.0, until_s
    starts = sorted(s.start_s for s in spans)
    first = (len(starts) - limit) // 2
    return starts[first], starts[first + limit]


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


def _hover(span: Span, lane: str) -> str:
    where = f"{lane} · {STREAMS.get(span.stream, span.stream)}"
    which = f"<br>micro-batch {span.micro_batch}, chunk {span.chunk}" if span.micro_batch >= 0 else ""
    took = seconds_text(span.end_s - span.start_s)
    return f"<b>{span.name}</b><br>{where}{which}<br>from {seconds_text(span.start_s)}, takes {took}"


def timeline(report: Report) -> go.Figure:
    """Gantt chart: one row per stage and stream; forward, backward, communication, idle time."""
    trace = report.trace
    if trace is None or not trace.spans:
        return empty("Timeline of one step", "This report carries no trace.")
    until_s = drawn_s(trace)
    from_s, to_s = steady_window(trace.spans, until_s) if trace.lanes else (0.0, until_s)
    if trace.lanes:
        inside = [*idle_spans(trace.spans, until_s), *trace.spans]
        spans = [s for s in inside if s.end_s > from_s and s.start_s < to_s]
    else:
        busy = fold_spans(trace.spans)
        spans = [*idle_spans(trace.spans, until_s), *busy]
        if len(spans) > 2 * MAX_SPANS:
            spans = busy
    scale, unit = time_unit(until_s)
    # Compute rows stand together on top: the picture of a pipeline people know.
    rows = sorted({(s.stream != _COMPUTE, s.stream, s.lane) for s in spans})
    names = {span.lane: lane_text(report, span.lane) for span in spans}
    labels = {(lane, stream): f"{names[lane]} · {STREAMS.get(stream, stream)}" for _, stream, lane in rows}
    groups: dict[str, list[Span]] = {}
    for span in spans:
        groups.setdefault(span_class(span), []).append(span)
    figure = go.Figure()
    small = len(spans) <= 1_500
    thin_s = (to_s - from_s) / 150  # a line around a bar of a few pixels would hide its colour
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
            marker={
                "color": colour(name),
                "line": {
                    "width": [0.5 if small and s.end_s - s.start_s > thin_s else 0.0 for s in row],
                    "color": "white",
                },
            },
            customdata=[_hover(s, names[s.lane]) for s in row],
            hovertemplate="%{customdata}<extra></extra>",
            text=[str(s.micro_batch) if s.micro_batch >= 0 else "" for s in row] if small else None,
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="inside",
        )
    above = 72 + LEGEND_ROW * -(-len(groups) // LEGEND_COLUMNS)
    height = min(1_400, 54 + above + (26 if len(rows) < 24 else 19) * len(rows))
    note = f" ({trace.periods_skipped} micro-batches of the steady state not drawn)" if trace.periods_skipped else ""
    if to_s - from_s < until_s:
        note = f" ({seconds_text(to_s - from_s)} of its middle)"
    figure.update_layout(
        **layout(
            f"Timeline of one step{', layer by layer' if trace.lanes else ''}{note}",
            height,
            barmode="overlay",
            bargap=0.1,
            uniformtext={"minsize": 8, "mode": "hide"},
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            title_y=1.0,
            title_yanchor="top",
            title_pad={"t": 12},
            margin_t=above,
        )
    )
    figure.update_xaxes(**axis(f"time ({unit})", range=[from_s * scale, to_s * scale]))
    order = [labels[lane, stream] for _, stream, lane in rows]
    figure.update_yaxes(
        **axis(
            autorange="reversed",
            categoryorder="array",
            categoryarray=order,
            tickfont={"size": 11},
            dtick=least_gap(len(rows), height - above - 54),
        )
    )
    return figure


# ---------------------------------------------------------------- where the time goes


def where_time_goes(report: Report) -> go.Figure:
    """Waterfall of the critical stage's time by class; the last bar is the step, their sum."""
    shares = {name: value for name, value in report.breakdown.items() if value}
    if not shares:
        return empty("Where the time goes", "This report carries no breakdown.")
    total_s = sum(shares.values())
    scale, unit = time_unit(total_s)
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
        **layout("Where the time goes (slowest stage)", 140 + 30 * (len(names) + 1), showlegend=False,
                  barmode="overlay", bargap=0.25)
    )  # fmt: skip
    figure.update_xaxes(**axis(f"time ({unit})", range=[0, total_s * scale * 1.18]))
    order = [*(class_name(n) for n in names), "step"]
    figure.update_yaxes(**axis(autorange="reversed", categoryorder="array", categoryarray=order))
    return figure


# ---------------------------------------------------------------- plans


def plan_table(records: Sequence[Mapping[str, Any]], usable_bytes: float) -> go.Figure:
    """Ranked plans as a table; `records` are the entries of `plans` in the JSON of `moecast plan`."""
    from dashboards.plan_rows import plan_grid

    if not records:
        return empty("Plans", "No plan.")
    headers, rows = plan_grid(records, usable_bytes)
    columns = [list(column) for column in zip(*rows, strict=True)]
    stripes = ["#ffffff" if i % 2 == 0 else "#f3f4f6" for i in range(len(rows))]
    widths = [max(len(header), *(len(row[i]) for row in rows)) + 2 for i, header in enumerate(headers)]
    figure = go.Figure(
        go.Table(
            columnwidth=widths,
            header={"values": [f"<b>{h}</b>" for h in headers], "fill_color": "#e5e7eb", "align": "left", "height": 30,
                    "font": {"color": INK, "size": 12}},
            cells={"values": columns, "fill_color": [stripes], "align": "left", "height": 26,
                   "font": {"color": INK, "size": 12}},
        )
    )  # fmt: skip
    figure.update_layout(**layout("Plans, best first", 90 + 27 * len(rows)))
    figure.update_layout(margin={"l": 0, "r": 0, "t": 50, "b": 0})
    return figure
