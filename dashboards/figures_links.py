"""Links as figures: who sends how much to whom in a dispatch, and how full every link is through the step."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures_base import FONT, INK, axis, empty, lane_text, layout, least_gap, time_unit
from dashboards.style import bytes_text, drawn_s, seconds_text, significant
from sim.report import Report

TITLE_TRAFFIC = "Traffic of one dispatch"
TITLE_USE = "Link use over time"
BINS = 480  # columns of the figure of link use; each shows its mean
SMALL = 10  # a matrix of so many a side carries its numbers in the cells
STAYS = "#D1D5DB"
SCALE = "Cividis"
# Light to dark, steep where use is low: an idle link must not look like one at 5 %.
USE_SCALE = [
    (0.0, "#F7F7F7"),
    (0.02, "#DCE9F3"),
    (0.1, "#9EC6E0"),
    (0.3, "#4A90C2"),
    (0.6, "#0B5A94"),
    (1.0, "#08264A"),
]
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Steps = Sequence[tuple[float, float]]


# ---------------------------------------------------------------- traffic


def has_traffic(report: Report) -> bool:
    """True where the traffic between ranks or nodes is known and there are at least two."""
    return report.imbalance is not None and len(report.imbalance.traffic_bytes) > 1


def _unit(value_bytes: float) -> tuple[float, str]:
    """(bytes per unit, unit) that keeps the value at three digits."""
    power = next((i for i in range(len(_UNITS)) if abs(value_bytes) < 1024 ** (i + 1)), len(_UNITS) - 1)
    return 1024.0**power, _UNITS[power]


def traffic_matrix(report: Report) -> go.Figure:
    """Bytes from every source (row) to every destination (column) of one forward dispatch; what stays is grey."""
    found = report.imbalance
    if found is None or not has_traffic(report):
        return empty(TITLE_TRAFFIC, "The traffic between ranks is not known.")
    matrix, of = found.traffic_bytes, found.traffic_of
    count = len(matrix)
    moved = [[None if i == j else x for j, x in enumerate(row)] for i, row in enumerate(matrix)]
    stays = [[x if i == j else None for j, x in enumerate(row)] for i, row in enumerate(matrix)]
    off = [x for row in moved for x in row if x is not None]
    factor, unit = _unit(max(off))
    side = min(560, max(340, 28 * count))
    small = count <= SMALL
    figure = go.Figure()
    for part, name in ((stays, "stays"), (moved, "moves")):
        figure.add_heatmap(
            z=[[None if x is None else float(f"{x / factor:.4g}") for x in row] for row in part],
            text=[["" if x is None else significant(x / factor) for x in row] for row in part] if small else None,
            texttemplate="%{text}" if small else None, xgap=1, ygap=1, hoverongaps=False,
            **(
                {"colorscale": [[0, STAYS], [1, STAYS]], "showscale": False}
                if name == "stays"
                else {"colorscale": SCALE, "zmin": min(min(off), 0.99 * max(off)) / factor, "zmax": max(off) / factor,
                      "colorbar": {"title": {"text": unit, "side": "top"}, "thickness": 14, "x": 1.01,
                                   "lenmode": "pixels", "len": side}}
            ),
            hovertemplate=f"{of} %{{y}} → {of} %{{x}}: %{{z:.4g}} {unit}"
            + (f" (stays on the {of})" if name == "stays" else "") + "<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[None], y=[None], mode="markers", name=f"stays on its {of}",
        marker={"symbol": "square", "size": 12, "color": STAYS},
    )  # fmt: skip
    figure.update_layout(
        **layout(
            f"{TITLE_TRAFFIC}, {unit} by source and destination {of}", side + 150, width=side + 230,
            legend={"x": 0.0, "y": 1.0, "yanchor": "bottom", "xanchor": "left"}, showlegend=True,
        )
    )  # fmt: skip
    figure.update_layout(margin={"l": 60, "r": 90, "t": 90, "b": 60}, autosize=False)
    ticks = {"showgrid": False, "zeroline": False, "tick0": 0, "dtick": least_gap(count, side, 26)}
    figure.update_xaxes(**axis(f"destination {of}", **ticks, range=[-0.5, count - 0.5], constrain="domain"))
    figure.update_yaxes(**axis(f"source {of}", **ticks, range=[count - 0.5, -0.5]))
    return figure


def traffic_words(report: Report) -> str:
    """Sum, what stays, and the destination that receives most."""
    found = report.imbalance
    if found is None or not has_traffic(report):
        return ""
    matrix, of = found.traffic_bytes, found.traffic_of
    total = sum(map(sum, matrix))
    stays = sum(row[i] for i, row in enumerate(matrix))
    to = [sum(column) for column in zip(*matrix, strict=True)]
    most, least = (pick(range(len(to)), key=to.__getitem__) for pick in (max, min))
    return (
        f"One forward dispatch of one micro-batch, mean over layers, one copy per expert, before copies to the same "
        f"{of} are merged: {bytes_text(total)} between {len(to)} {of}s, of which {100 * stays / total:.1f} % stays on "
        f"its own {of} (grey diagonal). Most goes to {of} {most} ({bytes_text(to[most])}), least to {of} {least} "
        f"({bytes_text(to[least])})."
    )


# ---------------------------------------------------------------- use over time


def has_use(report: Report) -> bool:
    """True where the trace holds the load of links over time."""
    return report.trace is not None and any(report.trace.link_rates.values())


def binned(steps: Steps, until_s: float, bins: int = BINS) -> list[float]:
    """Mean rate in each of `bins` equal parts of [0, until_s); steps are (time_s, rate from then on)."""
    width = until_s / bins
    out = [0.0] * bins
    ends = [*(at for at, _ in steps[1:]), until_s]
    for (start, rate), end in zip(steps, ends, strict=True):
        first, stop = max(0.0, start) / width, min(end, until_s) / width
        if rate <= 0.0 or stop <= first:
            continue
        at = int(first)
        while at < stop and at < bins:
            out[at] += rate * (min(stop, at + 1) - max(first, at))
            at += 1
    return out


def _rows(report: Report) -> dict[str, list[int]]:
    """Lanes by link name, both in order; a link is shown where any lane uses it."""
    assert report.trace is not None
    rows: dict[str, list[int]] = {}
    for (lane, link), steps in sorted(report.trace.link_rates.items()):
        if steps:
            rows.setdefault(link, []).append(lane)
    return dict(sorted(rows.items()))


def link_use(report: Report) -> go.Figure:
    """Share of each link's rate through the step, one row per stage, one panel per kind of link."""
    trace = report.trace
    if trace is None or not has_use(report):
        return empty(TITLE_USE, "This report carries no loads of links over time.")
    rows = _rows(report)
    until_s = drawn_s(trace)
    scale, unit = time_unit(until_s)
    heights = [min(300, max(34, (22 if len(lanes) <= 12 else 14) * len(lanes))) for lanes in rows.values()]
    between, total = 46, sum(heights) + 46 * (len(heights) - 1)
    figure = make_subplots(
        rows=len(rows), cols=1, shared_xaxes=True, row_heights=heights,
        vertical_spacing=between / total if len(rows) > 1 else 0.0,
        subplot_titles=[f"{link}, 100 % = {significant(trace.link_bytes_per_s[link] / 1e9)} GB/s" for link in rows],
    )  # fmt: skip
    columns = [(i + 0.5) * until_s * scale / BINS for i in range(BINS)]
    for i, (link, lanes) in enumerate(rows.items(), start=1):
        full = trace.link_bytes_per_s[link]
        use = [[round(x / full, 4) for x in binned(trace.link_rates[lane, link], until_s)] for lane in lanes]
        names = [lane_text(report, lane) for lane in lanes]
        figure.add_heatmap(
            row=i, col=1, x=columns, y=names, z=use, coloraxis="coloraxis", ygap=1,
            hovertemplate=f"{link}, %{{y}}, at %{{x:.4g}} {unit}: %{{z:.1%}} of its rate<extra></extra>",
        )  # fmt: skip
        gap = least_gap(len(lanes), heights[i - 1])
        figure.update_yaxes(
            **axis(
                autorange="reversed", showgrid=False, tickmode="array", tickvals=names[::gap], tickfont={"size": 11}
            ),
            row=i,
            col=1,
        )
        figure.update_xaxes(**axis(f"time ({unit})" if i == len(rows) else "", showgrid=False), row=i, col=1)
    skipped = trace.periods_skipped
    figure.update_layout(
        **layout(TITLE_USE + (f" ({skipped} micro-batches of the steady state not drawn)" if skipped else ""),
                 total + 150),
        coloraxis={"colorscale": USE_SCALE, "cmin": 0.0, "cmax": 1.0,
                   "colorbar": {"title": {"text": "of rate", "side": "top"}, "tickformat": ".0%", "thickness": 14,
                                "tickvals": [0.0, 0.3, 0.6, 1.0],
                                "lenmode": "pixels", "len": max(150, min(total, 320))}},
    )  # fmt: skip
    figure.update_layout(margin_t=88)
    figure.update_annotations(x=0.0, xanchor="left", font={"size": 13, "family": FONT, "color": INK})
    return figure


def link_use_words(report: Report) -> str:
    """Per link: mean and highest share, and where; says when parts were not drawn."""
    trace = report.trace
    if trace is None or not has_use(report):
        return ""
    until_s = drawn_s(trace)
    said = []
    over = False
    for link, lanes in _rows(report).items():
        full = trace.link_bytes_per_s[link]
        use = {lane: binned(trace.link_rates[lane, link], until_s) for lane in lanes}
        lane = max(lanes, key=lambda i: (sum(use[i]), -i))
        top = max(range(BINS), key=lambda b: use[lane][b])
        over |= max(max(row) for row in use.values()) > full * 1.0001
        mean = sum(use[lane]) / BINS
        said.append(
            f"{link} is busiest on {lane_text(report, lane)}: {100 * mean / full:.1f} % of its rate on average, "
            f"{100 * use[lane][top] / full:.0f} % at {seconds_text((top + 0.5) * until_s / BINS)}"
        )
    words = f"Mean load of every link in {BINS} slices of {seconds_text(until_s)}. " + "; ".join(said) + "."
    if over:
        words += " Above 100 %: traffic inside layers and around them meet on a link and are not made to wait."
    return words
