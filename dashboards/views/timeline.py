"""Timeline: what every lane and stream does through one step, with its memory below on the same axis."""

from __future__ import annotations

import gzip

import streamlit as st

from dashboards import figures_gantt, frame
from dashboards.answers import layers_report, timeline_report
from dashboards.style import seconds_text
from dashboards.trace_export import trace_json
from sim.detail import LANES
from sim.report import Report

TITLE, ICON = "Timeline", "view_timeline"
DETAILS = {"pipeline": "passes of micro-batches", "layers": "single layers"}
# What the URL calls them.
DETAIL, RANKS = "detail", "lanes"


def show(page: frame.Page) -> None:
    """Draw the view."""
    left, middle, right = st.columns([3, 3, 2], vertical_alignment="bottom")
    with left:
        detail = frame.choice("Show", list(DETAILS), DETAIL, names=DETAILS)
    lanes = LANES[0]
    if detail == "layers":
        with middle:
            lanes = frame.choice(
                "Ranks of each stage", LANES, RANKS,
                tip="hottest: the most loaded rank; median: beside it one of median load; nodes: the hottest of each.",
            )  # fmt: skip
    report = timeline_report(page.knobs) if detail != "layers" else layers_report(page.knobs, lanes)
    with right:
        name = f"moecast-{detail}-trace.json.gz"
        frame.download("Perfetto trace", lambda: packed(report), name, "application/gzip", "trace")
    frame.misfit(report)
    frame.figure(figures_gantt.step_view(report), figures_gantt.step_words(report), "step", caption=True)
    _notes(report)


def packed(report: Report) -> bytes:
    """The trace as Perfetto and Chrome open it, compressed; the same bytes for the same report."""
    return gzip.compress(trace_json(report).encode(), mtime=0)


def _notes(report: Report) -> None:
    trace = report.trace
    assert trace is not None
    said = f"{len(trace.spans):,} tasks on {len(trace.memory)} lanes; step {seconds_text(report.step_s.value)}."
    if trace.lanes:
        said += f" The run of single layers ends after {seconds_text(trace.makespan_s)}."
    st.caption(
        f"{said} Drag to zoom both panels, double-click to return. Open the trace at ui.perfetto.dev or chrome://tracing."
    )
