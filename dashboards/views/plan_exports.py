"""What a visitor takes away of a plan: files of every target, the plan file, the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import frame
from dashboards.answers import Answer, answer, timeline_report
from dashboards.exports import BASES, Offer, offers
from dashboards.html_report import report_html
from dashboards.opened import open_record
from dashboards.state import Knobs
from planner.export import EXPORTS
from planner.planfile import plan_text

MAX_BASE = 200  # characters of a recipe's or image's name


def show(knobs: Knobs, data: Mapping[str, Any]) -> None:
    """Export of one of the plans listed, in every format."""
    st.markdown("##### Take it away")
    records = data["plans"]
    names = [f"{i}. {record['label']}" for i, record in enumerate(records, start=1)]
    left, right = st.columns([2, 1], vertical_alignment="bottom")
    at = left.selectbox("Plan to export", range(len(records)), format_func=names.__getitem__, key="export-plan") or 0
    with right:
        frame.download("Plan file (all plans)", plan_text(data), "plan.json", "application/json", "plan-file")
    st.caption("`moecast explain plan.json` and `moecast export plan.json --to ...` read the plan file.")
    layers = sum(records[at]["stages"])
    chosen = open_record(knobs, data, "plans", at, layers=layers)
    with frame.guard():
        found = answer(chosen)
        _targets(found)
        _report(chosen, data)


def _targets(found: Answer) -> None:
    said = {name: str(st.session_state.get(f"base-{name}") or "").strip()[:MAX_BASE] for name in BASES}
    chosen = {name: st.session_state.get(f"version-{name}") or known[0] for name, (known, _) in EXPORTS.items()}
    made = offers(found, said, chosen)
    columns = st.columns(3)
    for i, offer in enumerate(made):
        with columns[i % 3], st.container(border=True):
            _target(offer)


def _target(offer: Offer) -> None:
    st.markdown(f"**{offer.target}** {offer.version}")
    versions = EXPORTS[offer.target][0]
    if len(versions) > 1:
        st.selectbox("Release", versions, key=f"version-{offer.target}")
    if offer.target in BASES:
        st.text_input(BASES[offer.target], key=f"base-{offer.target}", max_chars=MAX_BASE)
    if not offer.data:
        st.caption("cannot run this plan")
        with st.popover("Why not", type="tertiary"):
            frame.table(("rules it breaks",), [(problem,) for problem in offer.problems])
        return
    files = "file" if len(offer.names) == 1 else f"{len(offer.names)} files"
    frame.download(f"Download ({files})", offer.data, offer.file_name, offer.mime, f"export-{offer.target}")
    if offer.missing:
        with st.popover(f"{len(offer.missing)} not expressed", type="tertiary"):
            frame.table(("what it has no word for",), [(line,) for line in offer.missing])
    else:
        st.caption("everything is expressed")


def _report(chosen: Knobs, data: Mapping[str, Any]) -> None:
    """The page with all pictures; its timeline takes a while, so it is made at the click."""

    def page() -> str:
        return report_html(timeline_report(chosen), records=data["plans"], search=data["search"])

    frame.download("HTML report with its timeline", page, "report.html", "text/html", "report")
    st.caption("The report simulates the whole step at the click; a large one takes some seconds.")
