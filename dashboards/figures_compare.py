"""Scenarios side by side as figures, and the difference of one from another: `planner.compare.Side` in, figures out.

The first side is the baseline. Sides may come from a stranger's file: names are escaped, numbers are checked.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures_base import LIMIT, axis, empty, few_ticks, layout, time_unit
from dashboards.side_numbers import change_text, devices_of, interval, number, percent
from dashboards.style import class_name, colour, gib_text, ordered, seconds_text, significant
from planner.compare import Side

TITLE_TIME = "Where the time goes, side by side"
TITLE_CHANGE = "What makes the difference"
TITLE_FIGURES = "Step time and tokens/s with 80 % intervals"
TITLE_MEMORY = "Peak memory and what is usable"
_SIDES = ("#6B7280", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#A0522D", "#6A3D9A")
MAX_SIDES = len(_SIDES)
MOST_CLASSES = 8
_REST = "all other"
_LEGEND_COLUMNS = 2  # at 700 px
# A legend under the axis: on a wide page, where it takes fewer lines, the bars get what it leaves.
_BELOW = {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"}
_NAME, _LINES = 17, 2  # characters of a line beside a bar, and lines


def names_of(sides: Sequence[Side]) -> list[str]:
    """A name per side, each once: the letter tells equal ones apart. Plain text."""
    letters = [chr(ord("A") + i) for i in range(len(sides))]
    return [f"{letter} · {side.where}" for letter, side in zip(letters, sides, strict=True)]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _labels(sides: Sequence[Side]) -> list[str]:
    """The names for a figure: in short lines, escaped."""
    out = []
    for name in names_of(sides):
        lines = textwrap.wrap(name, _NAME, break_long_words=True)
        if len(lines) > _LINES:
            lines = [*lines[: _LINES - 1], _cut(lines[_LINES - 1] + " and more", _NAME)]
        out.append("<br>".join(escape(line) for line in lines))
    return out


def _parts(side: Side) -> dict[str, float]:
    found = side.record.get("breakdown")
    if not isinstance(found, Mapping):
        return {}
    return {str(name)[:40]: value for name, raw in found.items() if (value := number(raw))}


def time_side_by_side(sides: Sequence[Side]) -> go.Figure:
    """Seconds of the slowest stage by class, stacked to the step, one bar a side."""
    parts = [_parts(side) for side in sides[:MAX_SIDES]]
    if not any(parts):
        return empty(TITLE_TIME, "no scenario has a breakdown")
    names, totals = _labels(sides[:MAX_SIDES]), [sum(part.values()) for part in parts]
    scale, unit = time_unit(max(totals))
    figure = go.Figure()
    classes = ordered({name for part in parts for name in part})
    for name in classes:
        seconds = [part.get(name, 0.0) for part in parts]
        figure.add_bar(
            name=escape(_class_short(name)), orientation="h", y=names, x=[s * scale for s in seconds],
            marker={"color": colour(name)}, hovertemplate="%{text}<extra></extra>", textposition="none",
            text=[f"{side}<br>{escape(class_name(name))}: {seconds_text(s)} · {percent(s / total if total else 0.0)}"
                  + ("" if i == 0 else f"<br>{change_text(s, seconds[0])} against A")
                  for i, (side, s, total) in enumerate(zip(names, seconds, totals, strict=True))],
        )  # fmt: skip
    for name, total in zip(names, totals, strict=True):
        against = "" if name == names[0] else f"<br>{change_text(total, totals[0])}"
        figure.add_annotation(x=total * scale, y=name, text=f"{seconds_text(total)}{against}", showarrow=False,
                              xanchor="left", xshift=6, align="left")  # fmt: skip
    below = 21 * -(-len(classes) // _LEGEND_COLUMNS)
    figure.update_layout(
        **layout(TITLE_TIME, 136 + below + 44 * len(names), barmode="stack", bargap=0.3, margin_t=58,
                 legend={**_BELOW, "traceorder": "normal", "font": {"size": 12}})
    )  # fmt: skip
    figure.update_xaxes(**axis(f"time ({unit})", range=[0, 1.25 * max(totals) * scale], nticks=6))
    figure.update_yaxes(**axis(autorange="reversed", categoryorder="array", categoryarray=names))
    return figure


def _class_short(name: str) -> str:
    """A class as a legend of many says it: `EP exposed`."""
    long = class_name(name)
    return long.removeprefix("exposed ").replace(" communication", " exposed") if long != name else name


def time_words(sides: Sequence[Side]) -> str:
    """Each side's step and its two largest classes."""
    said = []
    for name, side in zip(names_of(sides), sides, strict=True):
        part = _parts(side)
        most = sorted(part, key=lambda c: (-part[c], c))[:2]
        words = " and ".join(f"{class_name(c)} {seconds_text(part[c])}" for c in most)
        said.append(f"{name}: {seconds_text(sum(part.values()))}" + (f", most of it {words}" if words else ""))
    return "Step time by class. " + "; ".join(said) + "."


def time_changes(sides: Sequence[Side]) -> go.Figure:
    """Seconds each class takes more (right) or less (left) than at the baseline; they sum to the change of the step."""
    if len(sides) < 2:
        return empty(TITLE_CHANGE, "one scenario alone: add another to compare")
    sides = sides[:MAX_SIDES]
    base, names = _parts(sides[0]), _labels(sides)
    others = [_parts(side) for side in sides[1:]]
    moved = {c for part in others for c in {*base, *part} if abs(part.get(c, 0.0) - base.get(c, 0.0)) > _least(base)}
    if not moved:
        return empty(TITLE_CHANGE, "no class of time differs")
    size = {c: max(abs(part.get(c, 0.0) - base.get(c, 0.0)) for part in others) for c in moved}
    classes = sorted(moved, key=lambda c: (-size[c], c))[:MOST_CLASSES]
    rows = [*(escape(class_name(c)) for c in classes), _REST, "step"]
    figure = go.Figure()
    widest, ends = 0.0, [0.0]
    scale, unit = time_unit(max(size.values()))
    for i, part in enumerate(others, start=1):
        changes = [part.get(c, 0.0) - base.get(c, 0.0) for c in classes]
        whole = sum(part.values()) - sum(base.values())
        changes += [whole - sum(changes), whole]
        widest, ends = max(widest, *(abs(x) for x in changes)), [*ends, *changes]
        figure.add_bar(
            name=escape(_cut(names_of(sides)[i], 2 * _NAME)), orientation="h", y=rows, x=[x * scale for x in changes],
            marker={"color": _SIDES[i]},
            text=[_signed_seconds(x, widest) for x in changes], cliponaxis=False,
            textposition="outside", hovertemplate=f"{names[i]}<br>%{{y}}: %{{text}}<extra></extra>",
        )  # fmt: skip
    above = 62 + 24 * -(-len(others) // 2)
    figure.update_layout(
        **layout(f"{TITLE_CHANGE} from A", above + 70 + (14 + 18 * len(others)) * len(rows), margin_t=above,
                 title_y=1.0, title_yanchor="top", title_pad={"t": 12}, barmode="group", bargap=0.25,
                 legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"})
    )  # fmt: skip
    # Texts stand outside their bars, so even an end without bars needs room.
    left, right = (max(0.3 * widest, 1.45 * end) for end in (-min(ends), max(ends)))
    figure.update_xaxes(**axis(f"more or less time ({unit})", range=[-left * scale, right * scale]))
    figure.update_yaxes(**axis(autorange="reversed", categoryorder="array", categoryarray=rows))
    return figure


def _signed_seconds(value_s: float, of_s: float) -> str:
    """+12 ms, with a minus sign; nothing where it is rounding."""
    if abs(value_s) <= 1e-6 * of_s:
        return ""
    return ("+" if value_s > 0 else "−") + seconds_text(abs(value_s))


def _least(base: Mapping[str, float]) -> float:
    """A change of a class below this is nothing to draw: a thousandth of the step."""
    return 1e-3 * sum(base.values())


def changes_words(sides: Sequence[Side]) -> str:
    """Per side: the step's change and the class that moved most."""
    if len(sides) < 2:
        return "One scenario alone."
    base, names, said = _parts(sides[0]), names_of(sides), []
    for name, side in zip(names[1:], sides[1:], strict=True):
        part = _parts(side)
        moved = {c: part.get(c, 0.0) - base.get(c, 0.0) for c in {*base, *part}}
        most = max(moved, key=lambda c: (abs(moved[c]), c), default="")
        text = change_text(sum(part.values()), sum(base.values()))
        said.append(f"{name}: step {text}" + (
            f", most by {class_name(most)} ({'+' if moved[most] > 0 else '−'}{seconds_text(abs(moved[most]))})"
            if most and moved[most] else ""))  # fmt: skip
    return f"Change of each class of time against {names[0]}. " + "; ".join(said) + "."


def intervals(sides: Sequence[Side]) -> go.Figure:
    """Step time and tokens/s of all GPUs of each side, with their 80 % intervals as whiskers; two panels."""
    sides = sides[:MAX_SIDES]
    known = [side for side in sides if number(side.record.get("step_s")) is not None]
    if not known:
        return empty(TITLE_FIGURES, "no scenario has a step time")
    names = _labels(sides)
    steps = [number(side.record.get("step_s")) or 0.0 for side in sides]
    scale, unit = time_unit(max(steps))
    gpus = [devices_of(side) or 1 for side in sides]
    panels: tuple[tuple[str, list[Any], list[float]], ...] = (
        (f"step time ({unit})", [s.record.get("step_s") for s in sides], [scale] * len(sides)),
        ("tokens/s, all GPUs", [s.record.get("tokens_per_s_per_gpu") for s in sides], [float(n) for n in gpus]),
    )
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    for column, (title, cells, factors) in enumerate(panels, start=1):
        values = [(number(cell) or 0.0) * f for cell, f in zip(cells, factors, strict=True)]
        spread = [tuple(x * f for x in interval(cell)) for cell, f in zip(cells, factors, strict=True)]
        figure.add_scatter(
            row=1, col=column, x=values, y=names, mode="markers", showlegend=False,
            marker={"size": 11, "color": list(_SIDES[: len(sides)])},
            error_x={"type": "data", "array": [high for _, high in spread], "arrayminus": [low for low, _ in spread],
                     "thickness": 2, "width": 7, "color": "#6B7280"},
            text=[f"{title}: {significant(v, 4)} ({significant(v - low, 4)} to {significant(v + high, 4)})"
                  for v, (low, high) in zip(values, spread, strict=True)],
            hovertemplate="%{y}<br>%{text}<extra></extra>",
        )  # fmt: skip
        ends = [v + s * d for v, (low, high) in zip(values, spread, strict=True) for s, d in ((-1, low), (1, high))]
        pad = 0.08 * (max(ends) - min(ends) or max(ends) or 1.0)
        span = [min(ends) - pad, max(ends) + pad]
        figure.update_xaxes(**axis(title, range=span, tick0=0, dtick=few_ticks(*span), tickangle=0), row=1, col=column)
    figure.update_layout(**layout(TITLE_FIGURES, 140 + 40 * len(sides)))
    figure.update_yaxes(**axis(range=[len(sides) - 0.5, -0.5], categoryorder="array", categoryarray=names))
    return figure


def intervals_words(sides: Sequence[Side]) -> str:
    """Each side's step with its interval, and whether the intervals of first and others overlap."""
    said = []
    for name, side in zip(names_of(sides), sides, strict=True):
        cell, value = side.record.get("step_s"), number(side.record.get("step_s"))
        if value is not None:
            low, high = interval(cell)
            said.append(f"{name} {seconds_text(value)} ({seconds_text(value - low)} to {seconds_text(value + high)})")
    return "Step time with its 80 % interval: " + "; ".join(said) + "." if said else "No step time is known."


def memory(sides: Sequence[Side]) -> go.Figure:
    """Peak memory of the fullest GPU of each side with its interval, and a line at what plans have to fit in."""
    sides = sides[:MAX_SIDES]
    peaks = [number(side.record.get("peak_mem_bytes")) for side in sides]
    if not any(peaks):
        return empty(TITLE_MEMORY, "no scenario has a peak")
    names = _labels(sides)
    gib = [(peak or 0.0) / 2**30 for peak in peaks]
    room = [(number(side.record.get("usable_mem_bytes")) or 0.0) / 2**30 for side in sides]
    spread = [_peak_interval(side, at) for side, at in zip(sides, gib, strict=True)]
    figure = go.Figure()
    figure.add_bar(
        orientation="h", y=names, x=gib, marker={"color": [LIMIT if _misfit(side) else _SIDES[i] for i, side in
                                                           enumerate(sides)]},
        error_x={"type": "data", "array": [h for _, h in spread], "arrayminus": [low for low, _ in spread],
                 "thickness": 1.5, "width": 6, "color": "#64748B"},
        text=[f"{x:.1f} of {of:.1f} GiB{' · does not fit' if _misfit(side) else ''}"
              for x, of, side in zip(gib, room, sides, strict=True)],
        textposition="none", hovertemplate="%{y}: %{text}<extra></extra>", width=0.55, showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=room, y=names, mode="markers", name="usable", hoverinfo="skip",
        marker={"symbol": "line-ns", "size": 30, "color": LIMIT, "line": {"width": 3, "color": LIMIT}},
    )  # fmt: skip
    right = max([*room, *(x + h for x, (_, h) in zip(gib, spread, strict=True))])
    for i, (name, x, of) in enumerate(zip(names, gib, room, strict=True)):
        figure.add_annotation(
            x=right * 1.03, y=name, showarrow=False, xanchor="left",
            text=f"{x:.1f} of {of:.1f} GiB" + ("<br>does not fit" if _misfit(sides[i]) else ""),
        )  # fmt: skip
    figure.update_layout(
        **layout(TITLE_MEMORY, 150 + 46 * len(sides), bargap=0.3, margin_t=84, showlegend=True, title_y=1.0,
                 title_yanchor="top", title_pad={"t": 12},
                 legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"})
    )  # fmt: skip
    figure.update_xaxes(**axis("GiB on the fullest GPU", range=[0, right * 1.42]))
    figure.update_yaxes(**axis(range=[len(sides) - 0.5, -0.5], categoryorder="array", categoryarray=names))
    return figure


def _misfit(side: Side) -> bool:
    return side.record.get("fits") is False


def _peak_interval(side: Side, at_gib: float) -> tuple[float, float]:
    found = side.record.get("peak_mem_interval_bytes")
    if not isinstance(found, list | tuple) or len(found) != 2:
        return 0.0, 0.0
    low, high = number(found[0]), number(found[1])
    if low is None or high is None:
        return 0.0, 0.0
    return max(0.0, at_gib - low / 2**30), max(0.0, high / 2**30 - at_gib)


def memory_words(sides: Sequence[Side]) -> str:
    """Peak of what is usable, per side."""
    said = []
    for name, side in zip(names_of(sides), sides, strict=True):
        peak, room = (number(side.record.get(k)) for k in ("peak_mem_bytes", "usable_mem_bytes"))
        if peak is not None:
            of = "" if room is None else f" of {gib_text(room)} usable"
            said.append(f"{name} {gib_text(peak)}{of}{', does not fit' if _misfit(side) else ''}")
    return "Peak memory of the fullest GPU: " + "; ".join(said) + "." if said else "No peak is known."
