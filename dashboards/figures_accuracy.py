"""Predictions beside measurements as figures: parity, and errors by model, GPU, release or trainer.

The rows are those that ship as scores (`calibration.scored`): one case per key, the median of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import plotly.graph_objects as go

from calibration.score import by, cases_of, errors
from calibration.scored import Near, ScoredRun
from calibration.validate import Row
from dashboards.figures_base import axis, empty, layout
from dashboards.style import significant

TITLE_PARITY, TITLE_ERRORS = "Predicted against measured", "Error of the prediction"
BAND = 0.2  # the grey band of the parity plot, either way
NAMED = 40  # bars at most; the groups with most cases
FILTERS: Mapping[str, str] = {"model": "model", "gpu": "GPU", "release": "release", "trainer": "trainer"}
# Okabe-Ito: told apart by most eyes, and by their marks.
CLASSES: Mapping[str, tuple[str, str, str]] = {
    "moe": ("MoE", "#D55E00", "circle"),
    "dense": ("dense, 1B and more", "#0072B2", "diamond"),
    "dense below 1B": ("dense below 1B", "#7F7F7F", "square"),
    "": ("other", "#009E73", "x"),
}
_RATE = "tokens_per_s_gpu"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measured quantity: its name, unit and how many SI units make one."""

    name: str
    unit: str
    scale: float = 1.0

    def short(self, value: float | None) -> str:
        """The same with the unit cut short: 4,453 tok/s."""
        return self.text(value).replace("tokens/s per GPU", "tok/s")

    def text(self, value: float | None) -> str:
        """A value with its unit; a dash where there is none."""
        return "–" if value is None else f"{significant(value / self.scale)} {self.unit}"


MEASURES: Mapping[str, Measure] = {
    _RATE: Measure(name="throughput", unit="tokens/s per GPU"),
    "step_s": Measure(name="step time", unit="s"),
    "peak_bytes": Measure(name="peak memory", unit="GiB", scale=2.0**30),
}


def scored_cases(runs: Sequence[ScoredRun], measure: str = _RATE, **wanted: Collection[str]) -> list[Row]:
    """Cases of one measure, one per key; wanted: values kept of fields of `FILTERS` (empty: all)."""
    kept = []
    for each in runs:
        group = dict(each.row.group)
        if each.run is not None:
            group["trainer"] = each.run.trainer
            group.setdefault("class", "moe" if each.run.is_moe else "dense")
        if each.row.measure == measure and all(not v or group.get(k, "") in v for k, v in wanted.items()):
            kept.append(replace(each.row, group=group))
    return sorted(cases_of(kept), key=lambda c: (c.group.get("class", ""), c.id))


def choices(runs: Sequence[ScoredRun], measure: str = _RATE) -> dict[str, list[str]]:
    """Values of every filter that have a scored case of that measure."""
    cases = scored_cases(runs, measure)
    return {name: sorted({v for c in cases if (v := c.group.get(name, ""))}) for name in FILTERS}


# ---------------------------------------------------------------- parity


def parity(cases: Sequence[Row], measure: str = _RATE, *, near: Collection[str] = ()) -> go.Figure:
    """Predicted over measured, both logarithmic, with the 80 % interval of each; the line is exact, the band 20 %.

    near: ids of the cases to ring.
    """
    of = MEASURES[measure]
    known = [c for c in cases if c.measured and c.predicted]
    if not known:
        return empty(TITLE_PARITY, "No published case is left by these filters.")
    values = [v / of.scale for c in known for v in (c.measured, c.predicted, c.low, c.high) if v]
    low, high = 0.85 * min(values), 1.18 * max(values)
    figure = go.Figure()
    ends = [low, high]
    figure.add_scatter(
        x=[*ends, *reversed(ends)], y=[(1 - BAND) * x for x in ends] + [(1 + BAND) * x for x in reversed(ends)],
        fill="toself", fillcolor="rgba(128,128,128,0.16)", line={"width": 0}, mode="lines", hoverinfo="skip",
        name=f"within {BAND:.0%}",
    )  # fmt: skip
    figure.add_scatter(
        x=ends, y=ends, mode="lines", name="exact", line={"color": "#808080", "width": 1}, hoverinfo="skip"
    )
    for kind, (name, colour, symbol) in CLASSES.items():
        mine = [c for c in known if c.group.get("class", "") == kind or (not kind and _other(c))]
        if not mine:
            continue
        x, y = ([float(getattr(c, n) or 0.0) / of.scale for c in mine] for n in ("measured", "predicted"))
        figure.add_scatter(
            name=f"{name} ({len(mine)})", mode="markers", x=x, y=y,
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8},
            error_y={"type": "data", "symmetric": False, "thickness": 0.8, "width": 0, "color": _faint(colour),
                     "array": [max(0.0, (c.high or 0.0) / of.scale - at) for c, at in zip(mine, y, strict=True)],
                     "arrayminus": [max(0.0, at - (c.low or at * of.scale) / of.scale)
                                    for c, at in zip(mine, y, strict=True)]},
            customdata=[_hover(c, of) for c in mine], hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    ringed = [c for c in known if c.id in set(near)]
    if ringed:
        figure.add_scatter(
            name="nearest to the scenario shown", mode="markers", hoverinfo="skip",
            x=[(c.measured or 0.0) / of.scale for c in ringed], y=[(c.predicted or 0.0) / of.scale for c in ringed],
            marker={"symbol": "circle-open", "size": 15, "color": "#CC79A7", "line": {"width": 2.5}},
        )  # fmt: skip
    figure.update_layout(
        **layout(
            f"{TITLE_PARITY}: {of.name}, {len(known)} cases", 560,
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            title_y=1.0, title_yanchor="top", title_pad={"t": 12},
        )
    )  # fmt: skip
    figure.update_layout(margin_t=112)
    ticks, labels = log_ticks(low, high)
    limits = {"type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": ticks, "ticktext": labels}
    figure.update_xaxes(**axis(f"measured ({of.unit})", **limits))
    figure.update_yaxes(**axis(f"predicted ({of.unit})", **limits))
    return figure


def _other(case: Row) -> bool:
    return case.group.get("class", "") not in CLASSES


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Ticks at 1, 2, 5 of every decade (1 alone over three decades), as people write them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) <= 3 else (1,)
    ticks = [float(f"{s}e{d}") for d in decades for s in steps if low <= float(f"{s}e{d}") <= high]
    return ticks, [f"{t:,.0f}" if t >= 1 else f"{t:g}" for t in ticks]


def _hover(case: Row, of: Measure) -> str:
    group = {k: escape(v) for k, v in case.group.items()}
    bounds = "" if case.low is None or case.high is None else f" (80 % {of.text(case.low)} to {of.text(case.high)})"
    return "<br>".join((
        f"<b>{group.get('model', '')}</b> on {group.get('n_gpus', '')} × {group.get('gpu', '')}, "
        f"sequence {group.get('seq_len', '')}, {group.get('precision', '')}",
        f"{group.get('release', '')}, {escape(case.plan)}",
        f"measured {of.text(case.measured)}",
        f"predicted {of.text(case.predicted)}{bounds}",
        f"error {case.error or 0.0:+.1%}, {escape(case.id)}",
    ))  # fmt: skip


def parity_words(cases: Sequence[Row], measure: str = _RATE) -> str:
    """How many cases, their mean and median error, bias, and the share inside their interval."""
    known = [c for c in cases if c.measured and c.predicted]
    if not known:
        return "No published case is left by these filters."
    found = errors(known)
    inside = "" if math.isnan(found["coverage"]) else f", {found['coverage']:.0%} lie inside their 80 % interval"
    return (
        f"Predicted against measured {MEASURES[measure].name} of {len(known)} published cases: mean absolute error "
        f"{found['mape']:.1%}, median {found['median_ape']:.1%}, bias {found['bias']:+.1%}{inside}."
    )


# ---------------------------------------------------------------- errors by group


def errors_by(cases: Sequence[Row], name: str) -> go.Figure:
    """Mean absolute error per value of a field as bars, the signed errors of its cases as dots; worst on top."""
    known = [c for c in cases if c.error is not None]
    if not known:
        return empty(TITLE_ERRORS, "No published case is left by these filters.")
    groups = by(known, name)
    most = sorted(groups, key=lambda g: (-groups[g]["cases"], g))[:NAMED]
    shown = sorted(most, key=lambda g: (groups[g]["mape"], g))
    label = {g: f"{g or 'not stated'} ({int(groups[g]['cases'])})" for g in shown}
    figure = go.Figure()
    figure.add_bar(
        name="mean absolute error", orientation="h", y=[label[g] for g in shown],
        x=[100 * groups[g]["mape"] for g in shown], marker={"color": "#56B4E9", "opacity": 0.6},
        customdata=[f"median {groups[g]['median_ape']:.1%}, bias {groups[g]['bias']:+.1%}" for g in shown],
        hovertemplate="%{y}: %{x:.1f} %, %{customdata}<extra></extra>",
    )  # fmt: skip
    dots = [(label[g], c) for g in shown for c in known if c.group.get(name, "") == g]
    figure.add_scatter(
        name="signed error of a case", mode="markers", y=[at for at, _ in dots],
        x=[100 * (c.error or 0.0) for _, c in dots],
        marker={"color": "#D55E00", "size": 8, "opacity": 0.8, "symbol": "line-ns",
                "line": {"width": 1.6, "color": "#D55E00"}},
        customdata=[c.id for _, c in dots], hovertemplate="%{customdata}: %{x:+.1f} %<extra></extra>",
    )  # fmt: skip
    left = f", the {NAMED} with most cases" if len(groups) > NAMED else ""
    figure.update_layout(
        **layout(
            f"{TITLE_ERRORS} by {FILTERS.get(name, name)}{left}", 150 + 24 * len(shown), bargap=0.25,
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            title_y=1.0, title_yanchor="top", title_pad={"t": 12},
        )
    )  # fmt: skip
    figure.update_layout(margin_t=84)
    figure.update_xaxes(**axis("predicted over measured less 1 (%); bars: its size, on average", ticksuffix=" %"))
    figure.update_yaxes(**axis(categoryorder="array", categoryarray=[label[g] for g in shown], dtick=1))
    return figure


def errors_words(cases: Sequence[Row], name: str) -> str:
    """The best and the worst group."""
    groups = by([c for c in cases if c.error is not None], name)
    if not groups:
        return "No published case is left by these filters."
    best, worst = (pick(groups, key=lambda g: (groups[g]["mape"], g)) for pick in (min, max))
    said = ", ".join(
        f"{verdict} {g or 'not stated'} with {groups[g]['mape']:.1%} over {int(groups[g]['cases'])}"
        for verdict, g in (("least", best), ("most", worst))
    )
    return f"Mean absolute error by {FILTERS.get(name, name)}, {len(groups)} of them: {said} cases."


# ---------------------------------------------------------------- tables

GROUP_HEADER = ("cases", "mean error %", "median error %", "bias %", "in 80 % interval")


def group_rows(cases: Sequence[Row], name: str) -> list[dict[str, str | float]]:
    """Errors per value of a field as rows of a table, most cases first."""
    groups = by([c for c in cases if c.error is not None], name)
    out: list[dict[str, str | float]] = []
    for g in sorted(groups, key=lambda g: (-groups[g]["cases"], g)):
        found = groups[g]
        values = (found["cases"], *(round(100 * found[k], 1) for k in ("mape", "median_ape", "bias")),
                  round(100 * found["coverage"], 1))  # fmt: skip
        out.append({FILTERS.get(name, name): g or "not stated", **dict(zip(GROUP_HEADER, values, strict=True))})
    return out


def near_rows(near: Sequence[Near]) -> list[dict[str, str | float]]:
    """The measured runs nearest to a scenario as rows of a table."""
    out: list[dict[str, str | float]] = []
    for each in near:
        row, group = each.scored.row, each.scored.row.group
        of = MEASURES[row.measure]
        setup = (f"{group.get('n_gpus', '')} × {group.get('gpu', '')}", group.get("seq_len", ""),
                 group.get("precision", ""))  # fmt: skip
        out.append({
            "run": row.id, "model and setup": ", ".join((group.get("model", ""), *setup)),
            "release and plan": f"{group.get('release', '')}: {row.plan}",
            "differs in": ", ".join(each.differs) or "nothing", "likeness": round(each.likeness, 2),
            "measured": of.short(row.measured), "predicted": of.short(row.predicted),
            "error %": round(100 * (row.error or 0.0), 1),
        })  # fmt: skip
    return out
