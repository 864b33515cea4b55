"""Scaling curves as a figure and a page: what more devices gave, and the plan at each point."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from dashboards.figures_base import axis, empty, layout
from dashboards.html_report import figure_html, page
from dashboards.style import seconds_text, significant
from planner.scaling import Curve, ScalePoint

_COLOURS = {"strong": "#1d4ed8", "weak": "#b45309"}
_TITLE = "Tokens per second"


def scaling_curves(curves: Sequence[Curve]) -> go.Figure:
    """Tokens per second of all devices over their number, both axes logarithmic; dashed: every device as fast as at
    the first point. Bars are the 80 % intervals."""
    drawn = {curve.mode: [p for p in curve.points if p.tokens_per_s is not None] for curve in curves}
    if not any(drawn.values()):
        return empty(_TITLE, "no plan was found on any number of devices")
    figure = go.Figure(layout=layout(_TITLE, 460, legend={"orientation": "h", "y": -0.2}))
    for mode, points in drawn.items():
        if not points:
            continue
        rates = [p.tokens_per_s for p in points if p.tokens_per_s is not None]
        figure.add_scatter(
            x=[p.devices for p in points], y=[r.value for r in rates], name=f"{mode} scaling", mode="lines+markers",
            line={"color": _COLOURS[mode]}, customdata=[[_hover(p)] for p in points],
            hovertemplate="%{customdata[0]}<extra></extra>",
            error_y={
                "type": "data", "array": [r.high - r.value for r in rates],
                "arrayminus": [r.value - r.low for r in rates], "thickness": 1,
            },
        )  # fmt: skip
        ideal = [rates[0].value * p.devices / points[0].devices for p in points]
        figure.add_scatter(
            x=[p.devices for p in points], y=ideal, name=f"{mode}, ideal", mode="lines", hoverinfo="skip",
            line={"color": _COLOURS[mode], "dash": "dash", "width": 1},
        )  # fmt: skip
    counts = sorted({p.devices for points in drawn.values() for p in points})
    figure.update_xaxes(axis("GPUs", type="log", tickvals=counts, ticktext=[f"{n:,}" for n in counts]))
    figure.update_yaxes(axis("tokens/s, all GPUs", type="log", dtick="D2", tickformat="~s"))
    return figure


def efficiency_curves(curves: Sequence[Curve]) -> go.Figure:
    """Tokens per second and device over those of the first point: what two logarithmic axes hide."""
    figure = go.Figure(layout=layout("Efficiency", 300, legend={"orientation": "h", "y": -0.35}))
    counts = set[int]()
    for curve in curves:
        points = [p for p in curve.points if p.efficiency is not None]
        counts |= {p.devices for p in points}
        figure.add_scatter(
            x=[p.devices for p in points], y=[p.efficiency for p in points], name=f"{curve.mode} scaling",
            mode="lines+markers", line={"color": _COLOURS[curve.mode]}, customdata=[[_hover(p)] for p in points],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=1.0, line={"dash": "dash", "width": 1})
    ticks = sorted(counts)
    figure.update_xaxes(axis("GPUs", type="log", tickvals=ticks, ticktext=[f"{n:,}" for n in ticks]))
    figure.update_yaxes(axis("of the first point", tickformat=".0%"))
    return figure


def _hover(point: ScalePoint) -> str:
    assert point.step_s is not None and point.efficiency is not None
    return (
        f"{point.devices:,} GPUs, batch {point.global_batch_seqs:,}<br>{escape(point.label)}<br>"
        f"step {seconds_text(point.step_s.value)}, efficiency {point.efficiency:.1%}"
    )


def scaling_rows(curve: Curve) -> list[tuple[str, ...]]:
    """Rows of a table, texts; headers in `HEADERS`."""
    rows: list[tuple[str, ...]] = []
    for p in curve.points:
        head = (f"{p.devices:,}", f"{p.global_batch_seqs:,}")
        if p.step_s is None or p.tokens_per_s is None or p.peak_mem_bytes is None:
            rows.append((*head, "no plan", "", "", "", "", "", "", "", p.why))
            continue
        rows.append(
            (
                *head, p.label, seconds_text(p.step_s.value), significant(p.tokens_per_s.value), f"{p.speedup:.3g}",
                f"{p.efficiency:.1%}", f"{p.mfu:.1%}", f"{p.bubble_fraction:.1%}", f"{p.exposed_share:.1%}",
                "; ".join(filter(None, (f"gap {p.gap:.1%}" if p.certificate == "gap" else "", p.note))),
            )
        )  # fmt: skip
    return rows


HEADERS = ("# GPUs", "batch", "plan", "step", "tokens/s", "speedup", "efficiency", "MFU", "bubble", "exposed", "note")


def scaling_html(curves: Sequence[Curve], title: str) -> str:
    """The page: the figure, then a table per mode. Works offline, the same byte for byte."""
    words = "; ".join(
        f"{curve.mode}: " + ", ".join(f"{p.devices} GPUs {p.efficiency:.0%}" for p in curve.points if p.efficiency)
        for curve in curves
    )
    parts = [f"<h1>{escape(title)}</h1>", figure_html(scaling_curves(curves), "scaling", f"Efficiency, {words}.")]
    if words:
        parts.append(figure_html(efficiency_curves(curves), "efficiency", f"Efficiency, {words}."))
    for curve in curves:
        head = "".join(f"<th>{escape(name.lstrip('# '))}</th>" for name in HEADERS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in scaling_rows(curve)
        )
        parts.append(f"<h2>{curve.mode.capitalize()} scaling</h2><table><tr>{head}</tr>{rows}</table>")
    return page(title, parts)
