"""Uneven experts as figures: load of every rank, and what it costs; each with the same in words for readers.

Everything is read from `Report.imbalance`; `has_rank_load` says whether there is a load to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dashboards.figures_base import INK, axis, empty, layout, least_gap, time_unit
from dashboards.style import gib_text, seconds_text, share_text
from sim.report import Imbalance, Report

LESS, MEAN, MORE = "#0072B2", "#F7F7F7", "#D55E00"  # Okabe-Ito blue and vermilion around a light middle
TITLE_LOAD = "Load per GPU, rows over the mean"
TITLE_COST = "What uneven experts cost"
QUANTILES = ("p10", "p50", "p90", "p99")
SMALL = 12  # layers x ranks up to this many on a side carry their numbers in the cells


def has_rank_load(report: Report) -> bool:
    """True where the load of every rank is known and there are ranks to compare."""
    found = report.imbalance
    return found is not None and bool(found.rank_load) and len(found.rank_load[0]) > 1


def hottest(found: Imbalance) -> tuple[int, int, float]:
    """(layer, rank, rows over the mean) of the most loaded rank of any layer; the first of equals."""
    return max(
        ((i, r, x) for i, row in enumerate(found.rank_load) for r, x in enumerate(row)),
        key=lambda at: (at[2], -at[0], -at[1]),
    )


def load_scale(found: Imbalance) -> tuple[float, float]:
    """(low, high) of the colours: the least and the most loaded rank, about the mean."""
    rows = [x for row in found.rank_load for x in row]
    return min(*rows, 1.0 - 1e-3), max(*rows, 1.0 + 1e-3)


def shades(low: float, high: float) -> list[list[Any]]:
    """Colours from `low` to `high`, light at 1: as far below the mean is as deep as so far above it."""
    far = max(high - 1.0, 1.0 - low)
    ends = [
        sample_colorscale([MEAN, end], [min(1.0, off / far)])[0] for end, off in ((LESS, 1.0 - low), (MORE, high - 1.0))
    ]
    return [[0.0, ends[0]], [(1.0 - low) / (high - low), MEAN], [1.0, ends[1]]]


def rank_load(report: Report) -> go.Figure:
    """Heat map layer x rank of rows over the mean rank, white at 1; the most loaded rank is marked."""
    found = report.imbalance
    if found is None or not has_rank_load(report):
        return empty(TITLE_LOAD, "The loads of the ranks are not known.")
    layers, ranks = len(found.rank_load), len(found.rank_load[0])
    layer, rank, most = hottest(found)
    low, high = load_scale(found)
    height = min(760, max(64, (36 if layers <= SMALL else 12) * layers))
    small = layers <= SMALL and ranks <= SMALL
    figure = go.Figure(
        go.Heatmap(
            z=[[round(x, 4) for x in row] for row in found.rank_load],
            zmin=low, zmax=high, colorscale=shades(low, high),
            xgap=1 if ranks <= 64 else 0, ygap=1 if layers <= 64 else 0,
            text=[[f"{x:.2f}" for x in row] for row in found.rank_load] if small else None,
            texttemplate="%{text}" if small else None,
            colorbar={"title": {"text": f"× mean<br>(up to {high:.2f})", "side": "top"}, "tickformat": ".2f",
                      "lenmode": "pixels", "len": max(170, height), "yanchor": "middle", "thickness": 14,
                      "tickvals": [low, 1.0, high]},
            hovertemplate="MoE layer %{y}, rank %{x}: %{z:.3f} × the mean<extra></extra>",
        )
    )  # fmt: skip
    figure.add_scatter(
        x=[rank], y=[layer], mode="markers", hoverinfo="skip", showlegend=False,
        marker={"symbol": "square-open", "size": 34 if small else 14, "color": INK, "line": {"width": 2.5}},
    )  # fmt: skip
    figure.update_layout(
        **layout(f"{TITLE_LOAD} (most loaded, marked: layer {layer}, rank {rank}, {most:.2f} ×)", height + 140)
    )
    plain = {"showgrid": False, "zeroline": False, "tick0": 0}
    gaps = least_gap(ranks, 1000, 34), least_gap(layers, height)
    figure.update_xaxes(**axis("expert-parallel rank", **plain, range=[-0.5, ranks - 0.5], dtick=gaps[0]))
    figure.update_yaxes(**axis("MoE layer", **plain, range=[layers - 0.5, -0.5], dtick=gaps[1]))
    return figure


def rank_load_words(report: Report) -> str:
    """What the heat map shows: extremes and how many ranks stand out."""
    found = report.imbalance
    if found is None or not has_rank_load(report):
        return ""
    layer, rank, most = hottest(found)
    rows = [x for row in found.rank_load for x in row]
    ranks = [sum(column) / len(column) for column in zip(*found.rank_load, strict=True)]
    busiest = max(range(len(ranks)), key=lambda r: (ranks[r], -r))
    layers = len(found.rank_load)
    words = (
        f"Expected rows of each of {len(ranks)} expert-parallel ranks over the mean rank, in {layers} MoE "
        f"layer{'s' if layers > 1 else ''}: from {min(rows):.2f} to {most:.2f} times the mean. The most loaded is rank "
        f"{rank} in layer {layer}"
    )
    if layers > 1:
        words += f"; over all layers it is rank {busiest} with {ranks[busiest]:.2f}"
    return words + ". A layer waits for its most loaded rank."


def cost_of_imbalance(report: Report) -> go.Figure:
    """Step with even experts, expected step, and the interval that chance spreads it over (p10, p50, p90, p99)."""
    found = report.imbalance
    if found is None:
        return empty(TITLE_COST, "Experts are even.")
    times = (found.balanced_step_s, report.step_s.value, found.step_p10_s, found.step_p50_s, found.step_p90_s,
             found.step_p99_s)  # fmt: skip
    scale, unit = time_unit(max(times))
    even, expected, p10, p50, p90, p99 = (x * scale for x in times)
    rows = ("even experts", "uneven, expected", "uneven, by chance")
    figure = go.Figure()
    figure.add_scatter(
        x=[even, expected], y=[rows[1], rows[1]], mode="lines", line={"color": MORE, "width": 6}, opacity=0.45,
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(x=[p10, p99], y=[rows[2]] * 2, mode="lines", line={"color": LESS, "width": 2}, hoverinfo="skip")
    figure.add_scatter(x=[p10, p90], y=[rows[2]] * 2, mode="lines", line={"color": LESS, "width": 10}, hoverinfo="skip")
    texts = (seconds_text(times[0]), f"{seconds_text(times[1])} ({signed(found.cost_share)})")
    figure.add_scatter(
        x=[even, expected], y=rows[:2], mode="markers+text", marker={"size": 12, "color": [LESS, MORE]}, text=texts,
        textposition="middle right", cliponaxis=False, hovertemplate="%{y}: %{text}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[p50, p99], y=[rows[2]] * 2, mode="markers+text", hoverinfo="skip", cliponaxis=False,
        marker={"size": [11, 9], "color": ["white", LESS], "line": {"color": LESS, "width": 2},
                "symbol": ["circle", "line-ns"]},
        text=["", _two_lines([f"{name} {x}" for name, x in zip(QUANTILES, apart(times[2:]), strict=True)])],
        textposition="middle right",
    )  # fmt: skip
    low, high = min(times) * scale, max(times) * scale
    room = max(high - low, 0.01 * high)
    # Texts stand to the right of their points: a third of the width is theirs.
    figure.update_layout(**layout(f"{TITLE_COST} ({signed(found.cost_share)})", 240, showlegend=False))
    figure.update_xaxes(**axis(f"step ({unit}), axis not from zero", range=[low - 0.08 * room, high + 0.85 * room]))
    figure.update_yaxes(**axis(autorange="reversed", categoryorder="array", categoryarray=rows))
    return figure


def _two_lines(parts: Sequence[str]) -> str:
    """Four texts in two lines, which a narrow page has room for."""
    return f" {parts[0]}, {parts[1]},<br> {parts[2]}, {parts[3]}"


def cost_words(report: Report) -> str:
    """The cost of imbalance, its noise and the chance of out-of-memory as sentences."""
    found = report.imbalance
    if found is None:
        return ""
    p10, _, p90, p99 = apart((found.step_p10_s, found.step_p50_s, found.step_p90_s, found.step_p99_s))
    return (
        f"Routing {found.source}: a step takes {seconds_text(report.step_s.value)} instead of "
        f"{seconds_text(found.balanced_step_s)} with even experts, {signed(found.cost_share)}. The most loaded rank "
        f"of a layer gets {found.max_over_mean:.2f} times the rows of the mean rank. By chance a step lies between "
        f"{p10} (p10) and {p90} (p90), one in a hundred above "
        f"{p99}. The fullest rank holds {gib_text(found.peak_p50_bytes)} (p50), "
        f"{gib_text(found.peak_p99_bytes)} (p99); the chance that some rank runs out of memory in a step is "
        f"{share_text(found.oom_probability)}."
    )


def apart(times_s: Sequence[float]) -> list[str]:
    """Times as text with as many digits as tell them apart, three to six."""
    for digits in range(3, 7):
        texts = [seconds_text(x, digits) for x in times_s]
        if len(set(texts)) == len(set(times_s)):
            break
    return texts


def signed(share: float) -> str:
    """A share as signed percent: +7.3 %."""
    return f"{100 * share:+.1f} %"
