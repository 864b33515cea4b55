"""What all figures share: fonts, axes, and the figure that says why there is nothing to draw."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from sim.report import Report

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "#1f2937"


def layout(title: str, height: int, **more: Any) -> dict[str, Any]:
    """Layout of a figure; `height` in pixels."""
    return {
        "title": {"text": title, "x": 0.0, "xref": "paper", "xanchor": "left", "font": {"size": 16}},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "height": height,
        "margin": {"l": 10, "r": 20, "t": 60, "b": 50},
        **more,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis of the common look."""
    return {"title": title, "gridcolor": "#e5e7eb", "zerolinecolor": "#9ca3af", "automargin": True, **more}


def time_unit(span_s: float) -> tuple[float, str]:
    """(factor, unit) for a time axis of that length."""
    return (1.0, "s") if span_s >= 2 else (1e3, "ms")


def empty(title: str, why: str) -> go.Figure:
    """A figure with nothing but the reason."""
    figure = go.Figure(layout=layout(title, 160))
    figure.add_annotation(text=why, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def lane_text(report: Report, lane: int) -> str:
    """A row's name: what the trace says of its lane, else the pipeline stage where there is one lane to a stage."""
    trace = report.trace
    if trace is not None and 0 <= lane < len(trace.lanes):
        return trace.lane_name(lane)
    lanes = 0 if trace is None else len(trace.memory)
    return f"stage {lane}" if 0 <= lane < report.plan.pp and lanes <= report.plan.pp else f"lane {lane}"


def least_gap(count: int, height: int, text: int = 14) -> int:
    """Rows from one label to the next so that labels of `text` pixels do not touch on an axis of `height` pixels."""
    gap = max(1, -(-count * text // max(1, height)))
    return next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, gap) if step >= gap)


def few_ticks(low: float, high: float) -> float:
    """Distance of the ticks of an axis from `low` to `high`: round, and at least three of them."""
    span = high - low
    if not span > 0.0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(span))
    steps = (scale * part for part in (1.0, 0.5, 0.25, 0.2, 0.1))
    return next(step for step in steps if math.floor(high / step) - math.ceil(low / step) >= 2)


LIMIT, DARK_LIMIT = "#DC2626", "#FF7B72"  # a line that may not be crossed, on light and on dark paper
DARK_INK, DARK_GRID, DARK_LINE = "#e5e7eb", "#3f434b", "#6b7280"


def _on_dark(colour: str | None) -> str:
    return DARK_LIMIT if colour == LIMIT else DARK_INK


def themed(figure: go.Figure, *, dark: bool) -> go.Figure:
    """The figure for a page of that theme: no ground of its own, and ink, grid and lines that can be seen on it."""
    out = go.Figure(figure)
    out.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    if not dark:
        return out
    out.update_layout(font={"color": DARK_INK}, legend={"font": {"color": DARK_INK}}, title_font_color=DARK_INK)
    out.update_layout(hoverlabel={"bgcolor": "#1f2937", "font": {"color": DARK_INK}})
    out.update_xaxes(gridcolor=DARK_GRID, zerolinecolor=DARK_LINE, tickfont_color=DARK_INK, title_font_color=DARK_INK)
    out.update_yaxes(gridcolor=DARK_GRID, zerolinecolor=DARK_LINE, tickfont_color=DARK_INK, title_font_color=DARK_INK)
    out.for_each_annotation(
        lambda note: note.update(font={"color": _on_dark(note.font.color)}) if not note.bgcolor else None
    )
    for shape in out.layout.shapes or ():
        if shape.line.color in (INK, "black", "#000000"):
            shape.line.color = DARK_INK
        elif shape.line.color == LIMIT:
            shape.line.color = DARK_LIMIT
    for trace in out.data:
        if trace.type in ("bar", "scatter") and trace.marker.color == INK:
            trace.marker.color = DARK_INK
        elif trace.type == "scatter" and trace.marker.color == LIMIT:
            trace.marker.color = trace.marker.line.color = DARK_LIMIT
        if trace.type == "table":
            trace.header.fill.color, trace.cells.fill.color = "#26292f", "rgba(0,0,0,0)"
            trace.header.font.color = trace.cells.font.color = DARK_INK
    return out
