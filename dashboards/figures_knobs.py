"""Knobs as figures: what a little more or less of each rate gives, two knobs at once, and the sweep of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures_base import axis, empty, layout
from dashboards.style import gib_text, seconds_text, significant
from planner.elastic import MORE as MORE_BY
from planner.elastic import Gain

TITLE_TORNADO = "What more of each rate gives"
TITLE_MAP = "Two knobs"
TITLE_SWEEP = "Sweep of a study"
MORE, LESS, SEARCHED = "#0072B2", "#D55E00", "#009E73"
EDGE, BEST, NOW = "#6B7280", "#D55E00", "#B5479B"
_AXES = {"same plan": "tokens/s of the same plan", "new search": "tokens/s of the best plan of a new search"}
# Pale (slow) to deep blue (fast): the numbers in the cells can be read on all of it.
_SCALE = [[0.0, "#E9F1F8"], [0.5, "#A9CBE6"], [0.75, "#5FA3D3"], [1.0, "#0B5A94"]]
_SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#A0522D", "#6A3D9A", "#94A3B8")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon")
MAX_SERIES = len(_SERIES)
MAX_MARKS = 2_000

# ---------------------------------------------------------------- tornado


def tornado(more: Sequence[Gain], less: Sequence[Gain] = ()) -> go.Figure:
    """Tokens per second gained by more of each rate (right) and lost by less (left), the most telling on top; below,
    on an axis of their own, what a new search gives on a larger machine.

    more, less: gains of the same things by a factor above and below 1 (less may be empty).
    """
    known = [gain for gain in more if gain.gain is not None]
    if not known:
        return empty(TITLE_TORNADO, "nothing was simulated")
    down = {gain.what: gain for gain in less if gain.gain is not None}
    ranked = sorted(known, key=lambda g: (-abs(_share(g)) - abs(_share(down.get(g.what))), g.what))
    groups = [g for of in ("same plan", "new search") if (g := [each for each in ranked if each.of == of])]
    figure = make_subplots(
        rows=len(groups), cols=1, row_heights=[len(group) for group in groups],
        vertical_spacing=0.0 if len(groups) == 1 else 76 / (32 * len(ranked) + 76),
    )  # fmt: skip
    for row, group in enumerate(groups, start=1):
        names = [_thing(gain) for gain in group]
        lower = [down.get(g.what) for g in group]
        colour = MORE if group[0].of == "same plan" else SEARCHED
        for gains, paint in ((lower, LESS), (group, colour)):
            figure.add_bar(
                row=row, col=1, orientation="h", y=names, x=[100 * _share(g) for g in gains], cliponaxis=False,
                text=["" if g is None else _signed(_share(g)) for g in gains], textposition="outside",
                marker={"color": paint}, customdata=["" if g is None else _gain_hover(g) for g in gains],
                hovertemplate="%{customdata}<extra></extra>",
            )  # fmt: skip
        shares = [_share(g) for g in (*group, *lower)]
        widest = max(*map(abs, shares), 1e-3)
        left = 1.45 * widest if min(shares) < 0 else 0.05 * widest
        title = _AXES[group[0].of] + (f" (right: × {MORE_BY:g}, left: ÷ {MORE_BY:g})" if any(lower) else "")
        figure.update_xaxes(**axis(title, range=[-100 * left, 145 * widest], ticksuffix=" %"), row=row, col=1)
        figure.update_yaxes(**axis(autorange="reversed", categoryorder="array", categoryarray=names), row=row, col=1)
    height = 130 + 32 * len(ranked) + 76 * (len(groups) - 1)
    figure.update_layout(**layout(TITLE_TORNADO, height, barmode="overlay", bargap=0.3, showlegend=False))
    return figure


def _share(gain: Gain | None) -> float:
    return 0.0 if gain is None or gain.gain is None else gain.gain


def _signed(share: float) -> str:
    return f"{100 * share:+.2f} %" if abs(share) < 0.0995 else f"{100 * share:+.1f} %"


def _thing(gain: Gain) -> str:
    """A row's name: the thing, and by how much where that is not one node more."""
    factor = "" if gain.what == "one more node" else f" {100 * (gain.factor - 1):+.0f} %"
    return escape(gain.what) + (factor if gain.of == "new search" else "")


def _gain_hover(gain: Gain) -> str:
    step = "" if gain.step_s is None else f"<br>step {seconds_text(gain.step_s, 4)}"
    slope = "" if gain.elasticity is None else f"<br>elasticity of the step {gain.elasticity:+.3f}"
    plan = f"<br>{gain.of}: {escape(gain.label)}" if gain.label else ""
    note = f"<br>{escape(gain.note)}" if gain.note else ""
    times = f" × {gain.factor:.3g}"
    return f"<b>{escape(gain.what)}{times}</b><br>tokens/s {_signed(_share(gain))}{step}{slope}{plan}{note}"


def tornado_words(more: Sequence[Gain], less: Sequence[Gain] = ()) -> str:
    """What tells most, what gives nothing, and what could not be asked."""
    known = sorted((g for g in more if g.gain is not None), key=lambda g: -_share(g))
    if not known:
        return "Nothing was simulated."
    most = ", ".join(f"{g.what} {_signed(_share(g))}" for g in known[:3])
    nothing = [g.what for g in known if abs(_share(g)) < 5e-5]
    said = f"Tokens per second with more of each rate, all else alike: {most}."
    if less:
        worst = min((g for g in less if g.gain is not None), key=_share, default=None)
        said += "" if worst is None else f" Less {worst.what} costs most: {_signed(_share(worst))}."
    if nothing:
        said += f" No change by {', '.join(nothing)}."
    missing = [f"{g.what}: {g.note}" for g in more if g.gain is None]
    return said + (f" Not known: {'; '.join(missing)}." if missing else "")


# ---------------------------------------------------------------- two knobs


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of two knobs: its step, tokens/s per GPU and peak bytes; reason: why there are none, or that it
    does not fit (then they are known)."""

    x: str
    y: str
    step_s: float | None = None
    rate: float | None = None
    peak_bytes: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Two knobs at all combinations of some values. x_name, y_name: what a reader calls them; here: the combination
    asked from, where it is one of them."""

    x_name: str
    y_name: str
    xs: tuple[str, ...]
    ys: tuple[str, ...]
    cells: tuple[Cell, ...]
    here: tuple[str, str] | None = None

    def at(self, x: str, y: str) -> Cell | None:
        """The cell of two values."""
        return next((c for c in self.cells if (c.x, c.y) == (x, y)), None)

    def clicked(self, x: object, y: object) -> Cell | None:
        """The cell that a figure tells by the names it gave to its axes."""
        return next((c for c in self.cells if (escape(c.x), escape(c.y)) == (x, y)), None)

    @property
    def best(self) -> Cell | None:
        """The cell with most tokens per second and GPU that fits; the first of equals."""
        return max((c for c in self.cells if c.rate is not None and not c.reason), key=lambda c: c.rate or 0.0,
                   default=None)  # fmt: skip


def knob_map(grid: Grid) -> go.Figure:
    """Heat map of tokens/s per GPU over two knobs; what breaks a rule or does not fit is crossed, the best framed."""
    if not grid.cells:
        return empty(TITLE_MAP, "no combination was simulated")
    rates = [[_rate(grid.at(x, y)) for x in grid.xs] for y in grid.ys]
    known = [r for row in rates for r in row if r is not None]
    title = f"Tokens/s per GPU by {escape(grid.x_name)} and {escape(grid.y_name)}"
    if not known:
        return empty(title, "no combination fits: hover is of no use here, see the reasons below")
    xs, ys = [escape(x) for x in grid.xs], [escape(y) for y in grid.ys]
    hover = [[_cell_hover(grid, x, y) for x in grid.xs] for y in grid.ys]
    figure = go.Figure(
        go.Heatmap(
            x=xs, y=ys, z=rates, text=[["" if r is None else significant(r) for r in row] for row in rates],
            texttemplate="%{text}" if len(xs) <= 10 else None, customdata=hover, xgap=2, ygap=2, hoverongaps=False,
            hovertemplate="%{customdata}<extra></extra>", colorscale=_SCALE, zmin=min(known),
            zmax=max(known) if max(known) > min(known) else min(known) * 1.01,
            colorbar={"title": {"text": "tokens/s<br>per GPU", "side": "top"}, "thickness": 14, "tickformat": ",.4~s"},
        )
    )  # fmt: skip
    lost = [(i, j) for j, y in enumerate(grid.ys) for i, x in enumerate(grid.xs) if rates[j][i] is None]
    if lost:
        figure.add_scatter(
            x=[xs[i] for i, _ in lost], y=[ys[j] for _, j in lost], mode="markers", name="not possible",
            marker={"symbol": "x-thin", "size": 12, "color": EDGE, "line": {"width": 2, "color": EDGE}},
            text=[hover[j][i] for i, j in lost], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    best = grid.best
    for cell, name, colour, inset in (
        ((best.x, best.y) if best else None, "fastest", BEST, 0.46), (grid.here, "now", NOW, 0.40),
    ):  # fmt: skip
        if cell is None or cell[0] not in grid.xs or cell[1] not in grid.ys:
            continue
        i, j = grid.xs.index(cell[0]), grid.ys.index(cell[1])
        figure.add_shape(type="rect", x0=i - inset, x1=i + inset, y0=j - inset, y1=j + inset,
                         line={"color": colour, "width": 3.5})  # fmt: skip
        mark = {"symbol": "square-open", "size": 13, "color": colour, "line": {"width": 3}}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=mark)
    height = 190 + max(46, min(64, 420 // len(ys))) * len(ys)
    figure.update_layout(
        **layout(title, height, clickmode="event+select", hovermode="closest",
                 legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
                 margin_t=92, title_y=1.0, title_yanchor="top", title_pad={"t": 12}, showlegend=True)
    )  # fmt: skip
    plain = {"showgrid": False, "zeroline": False, "type": "category"}
    figure.update_xaxes(**axis(escape(grid.x_name), **plain, categoryorder="array", categoryarray=xs))
    figure.update_yaxes(**axis(escape(grid.y_name), **plain, categoryorder="array", categoryarray=ys))
    return figure


def _rate(cell: Cell | None) -> float | None:
    return None if cell is None or cell.reason else cell.rate


def _cell_hover(grid: Grid, x: str, y: str) -> str:
    head = f"<b>{escape(grid.x_name)} {escape(x)}, {escape(grid.y_name)} {escape(y)}</b>"
    cell = grid.at(x, y)
    if cell is None:
        return head + "<br>not simulated"
    said = []
    if cell.step_s is not None:
        said.append(f"step {seconds_text(cell.step_s, 4)}")
    if cell.rate is not None:
        said.append(f"{significant(cell.rate)} tokens/s per GPU")
    if cell.peak_bytes is not None:
        said.append(f"{gib_text(cell.peak_bytes)} at the peak")
    if cell.reason:
        text = cell.reason if len(cell.reason) <= 160 else cell.reason[:159] + "…"
        words, line = [], ""
        for word in text.split():
            if len(line) + len(word) > 56:
                words.append(line)
                line = ""
            line = f"{line} {word}".strip()
        said.append("not possible: " + "<br>".join(escape(part) for part in [*words, line]))
    return "<br>".join([head, *said])


def knob_map_words(grid: Grid) -> str:
    """Best, now, and how many combinations are not possible."""
    if not grid.cells:
        return "No combination was simulated."
    best = grid.best
    lost = sum(1 for c in grid.cells if c.reason)
    said = f"{len(grid.cells)} combinations of {grid.x_name} and {grid.y_name}, {lost} of them not possible"
    if best is None or best.rate is None:
        return said + "."
    said += f"; the fastest is {grid.x_name} {best.x}, {grid.y_name} {best.y} with {significant(best.rate)} tokens/s"
    said += " per GPU"
    now = None if grid.here is None else grid.at(*grid.here)
    if now is not None and now.rate and not now.reason:
        said += f", {_signed(best.rate / now.rate - 1.0)} against now"
    return said + "."


# ---------------------------------------------------------------- study


def sweep(rows: Sequence[Mapping[str, Any]], x: str, y: str, by: str = "") -> go.Figure:
    """Cases of a study: figure `y` over the question's `x`, one line per value of `by`; cases without it are left out.

    rows: as of `planner.study.uploaded.study_rows`. Numbers make a numeric axis, texts a categorical one.
    """
    drawn = [r for r in rows if isinstance(r.get(y), int | float) and not isinstance(r.get(y), bool) and x in r]
    drawn = [r for r in drawn if math.isfinite(float(r[y]))][:MAX_MARKS]
    if not drawn:
        return empty(TITLE_SWEEP, f"no case has both {escape(column_words(x))} and {escape(column_words(y))}")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in drawn:
        groups.setdefault("" if not by else str(row.get(by, "-")), []).append(row)
    scale, unit = _unit_of(y, [float(r[y]) for r in drawn])
    names = sorted(groups, key=_number_first)
    numeric = all(_number(r[x]) is not None for r in drawn)
    figure = go.Figure()
    for i, name in enumerate(names[:MAX_SERIES]):
        some = sorted(groups[name], key=lambda r: _number_first(str(r[x])))
        figure.add_scatter(
            x=[_number(r[x]) if numeric else escape(str(r[x])[:40]) for r in some],
            y=[float(r[y]) * scale for r in some],
            name=escape(f"{column_words(by)} {name}"[:40]) if by else "cases",
            mode="markers+lines" if by else "markers",
            marker={"size": 9, "color": _SERIES[i], "symbol": _SYMBOLS[i]}, line={"color": _SERIES[i], "width": 1.5},
            text=[_case_hover(r) for r in some], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    more = f", the first {MAX_SERIES} of {len(names)} values" if len(names) > MAX_SERIES else ""
    shown = min(len(names), MAX_SERIES)
    above = 64 + 24 * -(-shown // 3)
    figure.update_layout(
        **layout(f"{escape(column_words(y).capitalize())} over {escape(column_words(x))}{more}", 380 + above,
                 hovermode="closest",
                 legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
                 showlegend=bool(by), margin_t=above, title_y=1.0, title_yanchor="top", title_pad={"t": 12})
    )  # fmt: skip
    figure.update_xaxes(**axis(escape(column_words(x)), type="linear" if numeric else "category"))
    figure.update_yaxes(**axis(escape(column_words(y)) + (f" ({unit})" if unit else ""), rangemode="tozero"))
    return figure


def column_words(column: str) -> str:
    """A column as a reader calls it: `ask.global_batch` -> global batch."""
    text = column.removeprefix("ask.")
    for ending in ("_s", "_bytes"):
        if text.endswith(ending) and "per_s" not in text:
            text = text.removesuffix(ending)
    return text.replace("_", " ")


def _unit_of(column: str, values: Sequence[float]) -> tuple[float, str]:
    """(factor, unit) of a column by its name."""
    if column.endswith("_bytes"):
        return 2.0**-30, "GiB"
    if column.endswith("_s") and not column.endswith("per_s"):
        return (1.0, "s") if max(values) >= 2 else (1e3, "ms")
    return (100.0, "%") if column in ("mfu", "bubble_fraction") else (1.0, "")


def _number(value: Any) -> float | None:
    try:
        found = float(str(value).replace("_", ""))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _number_first(text: str) -> tuple[bool, float, str]:
    value = _number(text)
    return value is None, value or 0.0, text


def _case_hover(row: Mapping[str, Any]) -> str:
    asked = [f"{column_words(k)} {v}" for k, v in row.items() if k.startswith("ask.") and v is not None]
    lines = [", ".join(asked[i : i + 3]) for i in range(0, min(len(asked), 12), 3)]
    said = [str(row.get("label") or ""), str(row.get("status") or ""), *lines]
    return "<br>".join(escape(text[:90]) for text in said if text)


def sweep_words(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> str:
    """How many cases answer, and between which values."""
    statuses: dict[str, int] = {}
    for row in rows:
        statuses[str(row.get("status"))] = statuses.get(str(row.get("status")), 0) + 1
    counted = ", ".join(f"{count:,} {name}" for name, count in sorted(statuses.items(), key=lambda i: (-i[1], i[0])))
    found = [float(v) for row in rows if isinstance(v := row.get(y), int | float) and not isinstance(v, bool)]
    if not found:
        return f"{len(rows):,} cases ({counted}); none has {column_words(y)}."
    scale, unit = _unit_of(y, found)
    ends = " to ".join(significant(v * scale) for v in (min(found), max(found)))
    unit = f" {unit}" if unit else ""
    return f"{len(rows):,} cases ({counted}); {column_words(y)} over {column_words(x)}: {ends}{unit}."


def columns(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """(knobs a study varied, figures that are numbers) of its rows, in order of first appearance."""
    asked: dict[str, set[str]] = {}
    figures: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("ask."):
                asked.setdefault(name, set()).add(str(value))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                figures[name] = None
    several = [name for name, values in asked.items() if len(values) > 1]
    return several or list(asked), list(figures)
