"""Memory of a report as figures: over time on every stage, and by tag at the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from dashboards.figures_base import LIMIT, axis, empty, layout, time_unit
from dashboards.style import drawn_s
from sim.report import Report

MAX_MEMORY_POINTS = 1_500
_LEAST_MOVE = 0.005 * 2**30  # bytes: less is written as nothing
TITLE_CHANGES = "Memory by tag against the baseline (fullest stage)"
_STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


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
    """Okabe-Ito of a few; of many the middle of a scale, whose ends vanish on a dark or a light page."""
    from plotly.colors import sample_colorscale

    if count <= len(_STAGE_COLOURS):
        return list(_STAGE_COLOURS[:count])
    steps = [0.3 + 0.5 * i / (count - 1) for i in range(count)]
    return [str(c) for c in sample_colorscale("Viridis", steps)]


def _capacity_line(figure: go.Figure, report: Report) -> None:
    """What plans have to fit in as a line, what the device has as a fainter one."""
    for nbytes, what, place, dash in (
        (report.usable_mem_bytes, "usable", "bottom right", "dash"),
        (report.mem_capacity_bytes, "device memory", "top right", "dot"),
    ):
        gib = nbytes / 2**30
        figure.add_hline(
            y=gib, line={"color": LIMIT, "dash": dash, "width": 1.5},
            annotation={"text": f"{what} {gib:,.1f} GiB", "font": {"color": LIMIT}}, annotation_position=place,
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
        return empty("Memory over time", "This report carries no trace.")
    until_s = drawn_s(trace)
    scale, unit = time_unit(until_s)
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
        **layout("Memory over time" + ("" if len(shown) == len(trace.memory) else " (click a stage to add it)"), 420)
    )
    figure.update_xaxes(**axis(f"time ({unit})", range=[0, until_s * scale]))
    figure.update_yaxes(**axis("GiB in use", range=_memory_top(report, highest)))
    return figure


def _fullest(report: Report) -> Mapping[str, float]:
    """Bytes by tag of the stage with the highest peak."""
    stages: list[Mapping[str, float]] = list(report.memory)
    return max(stages, key=_sum) if stages else {}


def _sum(stage: Mapping[str, float]) -> float:
    return sum(stage.values())


def _tag_moves(report: Report, base: Report) -> list[tuple[str, float]]:
    """(tag, bytes more than in the baseline) on the fullest stage of each, the largest move first."""
    now, then = _fullest(report), _fullest(base)
    moved = {tag: now.get(tag, 0.0) - then.get(tag, 0.0) for tag in {*now, *then}}
    return sorted(((t, b) for t, b in moved.items() if abs(b) >= _LEAST_MOVE), key=lambda m: (-abs(m[1]), m[0]))


def memory_tag_changes(report: Report, base: Report) -> go.Figure:
    """What each tag takes more or less than in the baseline, on the fullest stage of each."""
    moves = _tag_moves(report, base)
    if not moves:
        return empty(TITLE_CHANGES, "no tag takes more or less than in the baseline")
    gib = [b / 2**30 for _, b in moves]
    figure = go.Figure(
        go.Bar(
            orientation="h", y=[tag.replace("_", " ") for tag, _ in moves], x=gib, cliponaxis=False,
            text=[f"{x:+.2f} GiB" for x in gib], textposition="outside",
            marker={"color": ["#D55E00" if x > 0 else "#0072B2" for x in gib]},
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(**layout(TITLE_CHANGES, 130 + 30 * len(moves), showlegend=False))
    low, high = min(0.0, *gib), max(0.0, *gib)
    pad = 0.22 * (high - low)
    figure.update_xaxes(**axis("GiB", range=[low - pad * (low < 0), high + pad * (high > 0)]))
    figure.update_yaxes(**axis(autorange="reversed"))
    return figure


def memory_changes_words(report: Report, base: Report) -> str:
    """The tags that moved most."""
    moves = _tag_moves(report, base)
    said = ", ".join(f"{tag.replace('_', ' ')} {b / 2**30:+.2f} GiB" for tag, b in moves[:4])
    return f"On the fullest stage, against the baseline: {said or 'no tag moved'}."


_TAG_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0C808", "#6A3D9A", "#94A3B8", "#A0522D",
)  # fmt: skip


def memory_by_tag(report: Report) -> go.Figure:
    """Bytes by tag at each stage's peak, stacked, with the device's memory as a line."""
    if not report.memory:
        return empty("Memory by tag at the peak", "This report carries no memory table.")
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
        **layout("Memory by tag at each stage's peak", 420, barmode="stack", bargap=0.35 if len(stages) > 3 else 0.6)
    )
    figure.update_xaxes(**axis())
    figure.update_yaxes(**axis("GiB", range=_memory_top(report, highest)))
    return figure
