"""Accuracy: predictions beside published measurements, and what the prediction shown rests on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial

import streamlit as st

from calibration.scored import Near, ScoredRun, nearest_runs, shipped_scores
from calibration.spread import Situation, shipped_spread, situation
from calibration.validate import Row
from dashboards import figures_accuracy as drawn
from dashboards import frame
from dashboards.answers import Answer, answer
from dashboards.style import seconds_text, significant
from hwprofiles.catalogue import device_of
from sim.interval import Novelty, novelty

TITLE, ICON = "Accuracy", "target"
MEASURE, GROUPED = "measure", "grouped"
NEAREST = 8
ALIKE = 0.5  # likeness from which a measured run tells more of the prediction than it leaves open
# What a class of distance says of the prediction (sim/interval.py).
DISTANCES = {
    "same": ("calibrated", "this model, GPU and trainer release were each calibrated on"),
    "new model": ("interpolated", "this GPU and release were calibrated on, the model was not"),
    "new release": ("extrapolated", "this trainer and GPU were calibrated on, the release or its switches were not"),
    "new device": ("extrapolated", "no run on this GPU was calibrated on"),
    "new model and device": ("extrapolated", "neither runs of this model nor on this GPU were calibrated on"),
    "new trainer": ("extrapolated", "no run of this trainer was calibrated on"),
    "new trainer and device": ("extrapolated", "neither runs of this trainer nor on this GPU were calibrated on"),
    "new vendor": ("extrapolated", "the kernels of this GPU are scaled from another vendor's"),
}


def show(page: frame.Page) -> None:
    """Draw the view."""
    runs = shipped_scores()
    near: list[Near] = []
    with frame.guard():  # the published cases are there whatever the scenario is
        found = answer(page.knobs)
        target, new = _situation(found)
        near = nearest_runs(runs, target, new, shipped_spread(), count=NEAREST)
        _this(found, new, near)
    st.subheader("Published runs", anchor=False)
    measure = frame.choice(
        "Measured", list(drawn.MEASURES), MEASURE, names={k: m.name for k, m in drawn.MEASURES.items()}
    )
    wanted = _filters(runs, measure)
    cases = drawn.scored_cases(runs, measure, **wanted)
    ringed = [n.scored.row.id for n in near]
    frame.figure(drawn.parity(cases, measure, near=ringed), drawn.parity_words(cases, measure), "parity", caption=True)
    by = frame.choice("Errors by", list(drawn.FILTERS), GROUPED, names=drawn.FILTERS)
    frame.figure(drawn.errors_by(cases, by), drawn.errors_words(cases, by), "errors")
    with st.expander(f"Table of errors by {drawn.FILTERS[by]}", icon=":material/table_rows:"):
        st.dataframe(drawn.group_rows(cases, by), hide_index=True)
    _cases(cases, measure)


def _situation(found: Answer) -> tuple[Situation, Novelty]:
    scenario = found.scenario
    target = situation(
        model=scenario.model.name, is_moe=scenario.model.is_moe, device=scenario.cluster.device,
        release=scenario.software.name, trainer=scenario.software.trainer, precision=scenario.workload.precision,
        seq_tokens=scenario.workload.seq_tokens, devices=scenario.cluster.num_devices, plan=scenario.plan,
    )  # fmt: skip
    return target, novelty(scenario.model.name, device_of(scenario.cluster), scenario.software)


# ---------------------------------------------------------------- this prediction


def verdict_of(distance: str, likeness: float) -> tuple[str, str]:
    """(word, why) for a prediction of a class of distance whose most alike measured run has this likeness."""
    verdict, why = DISTANCES[distance]
    if distance == "same" and likeness < ALIKE:
        return "calibrated in parts", f"{why}, but no measured run is much like this one"
    return verdict, why


def _this(found: Answer, new: Novelty, near: Sequence[Near]) -> None:
    """The class of the prediction, its interval, its evidence and its neighbours."""
    report = found.report
    step, rate = report.step_s, report.tokens_per_s_per_gpu
    wide = f"{step.low / step.value - 1:+.0%} to {step.high / step.value - 1:+.0%}"
    best = near[0] if near else None
    verdict, why = verdict_of(new.distance, 0.0 if best is None else best.likeness)
    apart = "" if best is None else ", ".join(best.differs) or "nothing"
    frame.tiles([
        frame.Tile(name="this prediction is", value=verdict, note=f"{new.distance}: {why}",
                   bad=verdict == "extrapolated"),
        frame.Tile(name="step time", value=seconds_text(step.value), 
                   note=f"80 %: {seconds_text(step.low)} to {seconds_text(step.high)} ({wide})"),
        frame.Tile(name="tokens/s per GPU", value=significant(rate.value),
                   note=f"80 %: {significant(rate.low)} to {significant(rate.high)}"),
        frame.Tile(
            name="most alike measured run", value="none" if best is None else best.scored.row.id,
            note="" if best is None else f"likeness {best.likeness:.2f}; differs in {apart}",
        ),
    ])  # fmt: skip
    st.markdown("**Measured runs nearest to the scenario shown**")
    rows = drawn.near_rows(near)
    if rows:
        frame.table(
            list(rows[0]), [[_cell(v) for v in row.values()] for row in rows],
            left=("model and setup", "release and plan", "differs in"),
        )  # fmt: skip
    st.caption(
        "Likeness is the correlation of the errors of two predictions, from what their runs share: model, GPU, "
        "release, then sequence, devices, precision, micro-batch and layout. 0: nothing is known of the other by it."
    )
    with st.expander("What this prediction rests on", icon=":material/verified:"):
        frame.table(("evidence, worst first",), [(line,) for line in report.provenance or ("not stated",)])
        if report.warnings:
            frame.table(("warning",), [(line,) for line in report.warnings])


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


# ---------------------------------------------------------------- published runs


def _filters(runs: Sequence[ScoredRun], measure: str) -> dict[str, list[str]]:
    """What the visitor wants to see of the published cases; the URL says it."""
    offered = drawn.choices(runs, measure)
    wanted = {}
    for column, (name, values) in zip(st.columns(len(offered)), offered.items(), strict=True):
        query, state = f"seen-{name}", f"filter-{name}"
        now = [v for v in st.query_params.get_all(query) if v in values]
        st.session_state[state] = now
        column.multiselect(
            drawn.FILTERS[name].capitalize() if name != "gpu" else "GPU", values, key=state, placeholder="all",
            on_change=partial(_turned, query, state),
        )  # fmt: skip
        wanted[name] = now
    return wanted


def _turned(query: str, state: str) -> None:
    chosen = st.session_state[state]
    if chosen:
        st.query_params[query] = chosen
    else:
        st.query_params.pop(query, None)


def _cases(cases: Sequence[Row], measure: str) -> None:
    of = drawn.MEASURES[measure]
    with st.expander(f"All {len(cases)} cases", icon=":material/list:"):
        rows = [
            {
                "run": c.id, **{n: c.group.get(k, "") for k, n in drawn.FILTERS.items()},
                "GPUs": c.group.get("n_gpus", ""), "sequence": c.group.get("seq_len", ""),
                "precision": c.group.get("precision", ""), "plan": c.plan,
                f"measured ({of.unit})": _round(c.measured, of.scale),
                f"predicted ({of.unit})": _round(c.predicted, of.scale),
                "error %": round(100 * (c.error or 0.0), 1), "source": c.group.get("source", ""),
            }
            for c in cases
        ]  # fmt: skip
        st.dataframe(rows, hide_index=True)
        if rows:
            frame.download("Cases as CSV", partial(_csv, rows), "moecast-accuracy.csv", "text/csv", "cases")
        st.caption(
            "Scored by `make accuracy` on the shipped runs and kept in `hwprofiles/fitted/scored_runs.csv`; sources "
            "stand in `calibration/published/source.toml`. Predictions are made from a run's configuration alone."
        )


def _round(value: float | None, scale: float) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value / scale:.4g}")


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
