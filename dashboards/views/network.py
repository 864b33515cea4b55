"""Network: the cluster as a drawing, how full its links are in the step, and what faster ones would buy."""

from __future__ import annotations

import streamlit as st

from dashboards import figures_links, figures_network, frame
from dashboards.answers import answer, timeline_report
from dashboards.frame_jobs import result_of
from planner.elastic import Gain

TITLE, ICON = "Network", "lan"


def show(page: frame.Page) -> None:
    """Draw the view."""
    found = answer(page.knobs)
    cluster, report = found.scenario.cluster, found.report
    use = {name: row.get("utilisation", 0.0) for name, row in report.link_use.items()}
    words = figures_network.network_words(cluster, use)
    frame.figure(figures_network.network(cluster, use), words, "network", caption=True)
    rows = figures_network.link_table(cluster, report.link_use)
    headers = list(rows[0])
    frame.table(headers, [[_cell(row[name]) for name in headers] for row in rows], left=("figures",))
    st.caption(
        "Busy: mean share of the step on the worst lane. Latency: of one small message whose highest link this is."
    )
    _through_the_step(page)
    st.subheader("What faster links buy", anchor=False)
    gains = result_of("links", "gains", {"case": page.knobs.case()}, start=True)
    if gains is not None:
        links = [gain for each in gains["more"] if is_link((gain := Gain(**each)).what)]
        frame.figure(figures_network.gains_bar(links), figures_network.gains_words(links), "gains", caption=True)
    if report.imbalance is not None and figures_links.has_traffic(report):
        st.subheader("Who sends to whom", anchor=False)
        frame.figure(figures_links.traffic_matrix(report), figures_links.traffic_words(report), "traffic", caption=True)


def is_link(rate: str) -> bool:
    """Whether a rate of `planner.elastic` is that of a link."""
    return rate.endswith(" bandwidth") and rate != "memory bandwidth"


def _through_the_step(page: frame.Page) -> None:
    if not st.toggle("Links through the step", key="links-through", help="One heat map per kind of link and stage."):
        return
    traced = timeline_report(page.knobs)
    frame.figure(figures_links.link_use(traced), figures_links.link_use_words(traced), "link-use", caption=True)


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
