"""Plans as figures: the trade of time, memory, money and GPUs, what the search ruled out, and the degrees side by side.

All of them read the JSON of `moecast plan`; names in it may be a stranger's and are escaped here.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from dashboards.figures_base import LIMIT, axis, empty, layout
from dashboards.plan_points import CHOICES, MEASURES, PlanPoint, varied
from dashboards.plan_rows import search_line
from dashboards.style import significant
from planner.explain import NOT_RULES
from planner.table import SAME_GROUPS
from sim.mesh import DEFAULT_ORDER

TITLE_TRADE = "Simulated plans"
TITLE_SEARCH = "From all candidates to the answer"
TITLE_CHOICES = "Choices of each plan"
FRONT, OTHER, BEST = "#0072B2", "#8A94A3", "#D55E00"
# Blue (fast) to vermilion (slow) through hues that stand out on light and on dark paper.
FAST_TO_SLOW = ["#2F8FD0", "#7C8BB5", "#B98A76", "#D55E00"]
EDGE = "#6B7280"
_COUNTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#A0522D", "#6A3D9A", "#94A3B8")
MAX_REASONS = 12
MAX_PLANS = 30
_MOST_TEXT = 34  # characters of a cell
_LETTERS = 5.5  # of a text to the width of a degree's column
_PALE_TO_DEEP = [[0.0, "#E9F1F8"], [0.55, "#A9CBE6"], [0.7, "#4A90C2"], [1.0, "#0B5A94"]]
_WRAP = 58
_REASON, _REASON_LINES = 28, 3  # characters of a line beside a bar, which a phone has room for, and lines


def _key(point: PlanPoint) -> list[Any]:
    """What a click hands over: the part of the JSON and the index in it."""
    return [point.part, point.index]


def _hover(point: PlanPoint) -> str:
    said = [MEASURES[name].text(point) for name in ("time", "memory", "usd", "gpus")]
    recompute = "" if point.recompute == "-" else f"<br>recompute {escape(point.recompute)}"
    order = "" if point.rank_order == DEFAULT_ORDER else f"<br>rank order {escape(point.rank_order)}"
    mark = "<br>the answer" if point.best else "<br>on the Pareto front" if point.front else ""
    return f"<b>{escape(point.label)}</b>{recompute}{order}<br>" + "<br>".join(said) + mark


# ---------------------------------------------------------------- trade


def trade(points: Sequence[PlanPoint], x: str = "time", y: str = "memory", usable_bytes: float = 0.0) -> go.Figure:
    """Every simulated plan by two of `MEASURES`; the Pareto front filled, the answer ringed.

    customdata of a point is [part, index] of its record in the JSON. usable_bytes: drawn as a line where memory is an
    axis (0: not).
    """
    across, up = MEASURES[x], MEASURES[y]
    drawn = [p for p in points if math.isfinite(across.value(p)) and math.isfinite(up.value(p))]
    if not drawn:
        why = "no plan was simulated" if not points else "the device has no price: give one to see costs"
        return empty(TITLE_TRADE, why)
    figure = go.Figure()
    counts = sorted({p.devices for p in drawn})
    several = len(counts) > 1 and "gpus" not in (x, y)
    for i, count in enumerate(counts if several else [0]):
        group = [p for p in drawn if not several or p.devices == count]
        colour = _COUNTS[i % len(_COUNTS)] if several else FRONT
        for front in (False, True):
            some = [p for p in group if p.front == front]
            if not some:
                continue
            what = "on the Pareto front" if front else "beaten in all respects"
            figure.add_scatter(
                x=[across.value(p) for p in some], y=[up.value(p) for p in some], mode="markers",
                name=(f"{count:,} GPUs, {what}" if several else what), customdata=[_key(p) for p in some],
                text=[_hover(p) for p in some], hovertemplate="%{text}<extra></extra>",
                marker={"size": 13 if front else 10, "symbol": "diamond" if front else "circle-open",
                        "color": colour if front or several else OTHER,
                        "line": {"width": 1 if front else 2, "color": EDGE if front else colour if several else OTHER}},
            )  # fmt: skip
    best = [p for p in drawn if p.best]
    if best:
        figure.add_scatter(
            x=[across.value(p) for p in best], y=[up.value(p) for p in best], mode="markers", name="the answer",
            hoverinfo="skip", marker={"size": 24, "symbol": "circle-open", "color": BEST, "line": {"width": 3}},
        )  # fmt: skip
    rows = -(-len(figure.data) // (2 if several else 3))
    above = 58 + 24 * rows
    figure.update_layout(
        **layout(
            f"{TITLE_TRADE}: {up.name} over {across.name}", 400 + above, clickmode="event+select", dragmode="zoom",
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"}, margin_t=above,
            title_y=1.0, title_yanchor="top", title_pad={"t": 12}, hovermode="closest",
        )
    )  # fmt: skip
    figure.update_xaxes(**axis(across.title, **_ticks(x, drawn)))
    figure.update_yaxes(**axis(up.title, **_ticks(y, drawn)))
    _limit_line(figure, drawn, x, y, usable_bytes)
    return figure


def _ticks(name: str, points: Sequence[PlanPoint]) -> dict[str, Any]:
    """Counts of GPUs are powers of two or nearly: a logarithmic axis with the counts themselves."""
    if name != "gpus":
        return {"rangemode": "normal"}
    counts = sorted({p.devices for p in points})
    pad = math.log10(1.3)
    ends = [math.log10(counts[0]) - pad, math.log10(counts[-1]) + pad]
    return {"type": "log", "tickvals": counts, "ticktext": [f"{n:,}" for n in counts], "range": ends}


def _limit_line(figure: go.Figure, points: Sequence[PlanPoint], x: str, y: str, usable_bytes: float) -> None:
    """What plans have to fit in, where some plan comes near it."""
    if usable_bytes <= 0.0 or max(p.peak_bytes for p in points) < 0.6 * usable_bytes or x == y:
        return
    at, text = usable_bytes / 2**30, f"usable {usable_bytes / 2**30:.1f} GiB"
    least, most = (pick(p.peak_bytes / 2**30 for p in points) for pick in (min, max))
    pad = 0.08 * (max(most, at) - least)
    room = [least - pad, max(most, at) + pad]
    line = {"line": {"color": LIMIT, "dash": "dash", "width": 1.5}}
    said = {"text": text, "font": {"color": LIMIT}}
    if y == "memory":
        figure.add_hline(y=at, **line, annotation=said, annotation_position="bottom right")
        figure.update_yaxes(range=room)
    elif x == "memory":
        figure.add_vline(x=at, **line, annotation=said, annotation_position="top left")
        figure.update_xaxes(range=room)


def trade_words(points: Sequence[PlanPoint]) -> str:
    """The answer and the ends of the front in words."""
    if not points:
        return "No plan was simulated."
    front = [p for p in points if p.front]
    best = next((p for p in points if p.best), points[0])
    leanest = min(front, key=lambda p: (p.peak_bytes, p.costs))
    priced = [p for p in front if p.usd is not None]
    words = (
        f"{len(points)} simulated plans, {len(front)} of them on the Pareto front of time, memory, cost and GPUs. The "
        f"answer {best.label} takes {MEASURES['time'].text(best)} with {MEASURES['memory'].text(best)}; the leanest, "
        f"{leanest.label}, {significant(leanest.step_s)} s with {MEASURES['memory'].text(leanest)}"
    )
    if priced:
        cheapest = min(priced, key=lambda p: (p.usd or 0.0, p.costs))
        words += f"; the cheapest, {cheapest.label} on {cheapest.devices:,} GPUs, {MEASURES['usd'].text(cheapest)}"
    return words + "."


# ---------------------------------------------------------------- what was ruled out


def reasons(data: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(what is broken, candidates lost, text of the rule with remedy, source and name), the most frequent first."""
    rules: Mapping[str, Any] = {**NOT_RULES, **(data.get("rules") or {})}
    rejected = (data.get("search") or {}).get("rejected") or {}
    found = []
    for name, count in rejected.items():
        rule = rules.get(name) or {}
        parts = [str(rule.get("text", "")), str(rule.get("remedy", "")), str(rule.get("source", ""))]
        text = "; ".join([*(part for part in parts if part), f"({str(name)[:80]})"])
        found.append((_broken(str(name), str(rule.get("text", ""))), int(count), text[:600]))
    return sorted((row for row in found if row[1] > 0), key=lambda row: (-row[1], row[0]))


def _broken(name: str, text: str) -> str:
    """A reason as a reader knows it: the text of a rule, or what is no rule by its name."""
    plain = name in NOT_RULES and name != SAME_GROUPS
    return (text if text and not plain else name)[:160]


def _lines(reason: str) -> str:
    """A reason beside its bar, in short lines, escaped; all of it is on hover."""
    lines = textwrap.wrap(f"lost: {reason}", _REASON, max_lines=_REASON_LINES, placeholder=" …")
    return "<br>".join(escape(line) for line in lines)


def ruled_out(data: Mapping[str, Any]) -> go.Figure:
    """Candidates, those lost for each reason, and what is left, on a logarithmic axis; the rule on hover."""
    search = data.get("search") or {}
    raw, legal, fits, simulated = (int(search.get(name) or 0) for name in ("raw", "legal", "fits", "simulated"))
    if raw < 1:
        return empty(TITLE_SEARCH, "no search stands behind this")
    lost = reasons(data)
    shown, rest = lost[:MAX_REASONS], lost[MAX_REASONS:]
    if rest:
        shown = [*shown, (f"{len(rest)} more reasons", sum(n for _, n, _ in rest), ", ".join(r for r, _, _ in rest))]
    rows = [
        ("all candidates", raw, "every combination of degrees, micro-batch, recompute and schedule", OTHER),
        *((_lines(name), count, text, "#E69F00") for name, count, text in shown),
        ("legal", legal, "keep every rule of the layout and of the target", "#56B4E9"),
        ("fit in memory", fits, "legal, and their peak stays within what a GPU can give", "#0072B2"),
        ("simulated", simulated, "run event by event, in order of their lower bound", "#009E73"),
    ]
    bars = [row for row in rows if row[1] > 0]
    figure = go.Figure(
        go.Bar(
            orientation="h", y=[name for name, *_ in bars], x=[count for _, count, *_ in bars],
            marker={"color": [colour for *_, colour in bars]}, cliponaxis=False,
            text=[f"{count:,} · {_percent(count / raw)}" for _, count, *_ in bars], textposition="outside",
            customdata=["<br>".join(textwrap.wrap(escape(text), _WRAP)) for _, _, text, _ in bars],
            hovertemplate="<b>%{y}</b>: %{x:,}<br>%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    most = max(name.count("<br>") + 1 for name, *_ in bars)
    figure.update_layout(**layout(TITLE_SEARCH, 110 + (10 + 16 * most) * len(bars), showlegend=False, bargap=0.25))
    top = math.log10(raw)
    # Texts stand right of their bars: a third of the width is theirs.
    figure.update_xaxes(**axis("candidates, logarithmic", type="log", range=[-0.05, max(top, 0.5) * 1.42], dtick=1))
    figure.update_yaxes(**axis(autorange="reversed", categoryorder="array", categoryarray=[b[0] for b in bars]))
    return figure


def _percent(share: float) -> str:
    return "below 0.1 %" if 0 < share < 5e-4 else f"{100 * share:.1f} %"


def ruled_out_words(data: Mapping[str, Any]) -> str:
    """The counts, the proof, and the three reasons that took most."""
    lost = reasons(data)[:3]
    most = "; most were lost to " + ", ".join(f"“{name}” ({count:,})" for name, count, _ in lost) if lost else ""
    return search_line(data.get("search") or {}).rstrip(".") + most + "."


# ---------------------------------------------------------------- choices


def choices(points: Sequence[PlanPoint]) -> go.Figure:
    """Matrix plan x choice of everything the plans choose differently, the fastest on top, with their step times.

    customdata of a bar as in `trade`. What all plans share stands in the words beside the figure (`choices_words`).
    """
    if len(points) < 2:
        return empty(TITLE_CHOICES, "one plan alone: nothing to lay beside it")
    shown = points[:MAX_PLANS]
    differ, _ = varied(shown)
    names = list(differ)
    rows = [f"{i}{' ◆' if p.front else ''}" for i, p in enumerate(shown, start=1)]
    wide = [max(1.0, *(len(_short(value)) / _LETTERS for value in differ[name])) for name in names]
    edges = [sum(wide[:i]) for i in range(len(wide) + 1)]
    share = max(0.26, 1.0 - 0.07 * max(2.0, edges[-1]))
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, column_widths=[1.0 - share, share],
                           horizontal_spacing=0.015)  # fmt: skip
    figure.add_heatmap(
        x=edges, y=rows, z=[[_height(differ[n], CHOICES[n](p)) for n in names] for p in shown],
        text=[[escape(_short(CHOICES[n](p))) for n in names] for p in shown], texttemplate="%{text}", textfont_size=12,
        customdata=[[_hover(p)] * len(names) for p in shown], hovertemplate="%{customdata}<extra></extra>",
        colorscale=_PALE_TO_DEEP, zmin=0.0, zmax=1.0, showscale=False, xgap=1, ygap=1, row=1, col=1,
    )  # fmt: skip
    times = [p.step_s for p in shown]
    spread = max(max(times) - min(times), 0.1 * min(times), 1e-12)  # a few percent are no red and blue
    figure.add_bar(
        orientation="h", y=rows, x=times, customdata=[_key(p) for p in shown], hovertext=[_hover(p) for p in shown],
        hovertemplate="%{hovertext}<extra></extra>", text=[f"{significant(x, 4)} s" for x in times], row=1, col=2,
        textposition="outside", cliponaxis=False, width=0.8, showlegend=False,
        marker={"color": [_colour((x - min(times)) / spread) for x in times],
                "line": {"width": [2.5 if p.best else 0 for p in shown], "color": EDGE}},
    )  # fmt: skip
    more = "" if len(shown) == len(points) else f", the fastest {len(shown)} of {len(points)}"
    figure.update_layout(
        **layout(f"{TITLE_CHOICES}{more} (◆ on the Pareto front)", 110 + 24 * len(shown), clickmode="event+select",
                 hovermode="closest")
    )  # fmt: skip
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    plain: dict[str, Any] = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(**axis(**plain, tickmode="array", tickvals=middles, ticktext=names, side="top", tickangle=0,
                               tickfont={"size": 11}), row=1, col=1)  # fmt: skip
    figure.update_xaxes(**axis("step time (s)", range=[0, max(times) * 1.45], nticks=5), row=1, col=2)
    figure.update_yaxes(**axis(**plain, autorange="reversed", type="category", tickfont={"size": 11}, dtick=1))
    figure.update_layout(margin_t=84)
    return figure


def _height(values: Sequence[Any], value: Any) -> float:
    """Place of a choice among those of its column, 0 to 1, equally far apart."""
    return values.index(value) / (len(values) - 1)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"


def _colour(share: float) -> str:
    return str(sample_colorscale(FAST_TO_SLOW, [min(1.0, max(0.0, share))])[0])


def choices_words(points: Sequence[PlanPoint]) -> str:
    """What the plans agree on and where they differ."""
    if len(points) < 2:
        return "One plan alone."
    differ, shared = varied(points[:MAX_PLANS])
    said = ", ".join(
        f"{name} ({', '.join(map(str, v)) if len(v) < 4 else f'{v[0]} to {v[-1]}'})" for name, v in differ.items()
    )
    same = ", ".join(f"{name} {value}" for name, value in shared.items())
    return f"{len(points)} plans, the fastest first. They differ in {said or 'nothing'}" + (
        f"; all have {same}." if same else "."
    )
