"""Long work on a page: started once, its progress shown and cancelled here, its result drawn by the view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import frame, jobs

EVERY_S = 0.5  # between looks at a job


def result_of(
    slot: str, name: str, payload: Mapping[str, Any], *, start: bool = False, unasked: bool = False
) -> Any | None:
    """The result of a job, or None while there is none: then its progress, its error or nothing is drawn.

    slot: names the place on the page; a question that has changed there cancels the job of the old one. start: the
    visitor asks for it now; unasked: start it once for each question, and again only at a click.
    """
    known = jobs.remembered(name, payload)
    if known is not None:
        return known
    key, spot = jobs.key_of(name, payload), f"job-{slot}"
    held: tuple[str, jobs.Job] | None = st.session_state.get(spot)
    if held is not None and held[0] != key:
        held[1].cancel()
        held = None
    if (start and (held is None or held[1].over)) or (unasked and held is None):
        held = (key, jobs.start(name, payload))
    st.session_state[spot] = held
    if held is None:
        return None
    job = held[1]
    if job.state == "done":
        return job.result
    if job.error is not None:
        frame.problem(job.error)
    elif job.over:
        st.caption("Stopped before there was a result.")
    else:
        _progress(spot)
        return None
    if unasked:
        st.button("Start again", key=f"again-{slot}", icon=":material/refresh:", on_click=_forget, args=(spot,))
    return None


def _forget(spot: str) -> None:
    st.session_state[spot] = None


def worked(name: str, payload: Mapping[str, Any], key: str, *, label: str, auto: bool = False) -> Any | None:
    """The result of a job that a button named `label` starts, or that starts by itself with `auto` (short work)."""
    held: tuple[str, jobs.Job] | None = st.session_state.get(f"job-{key}")
    under_way = held is not None and held[0] == jobs.key_of(name, payload) and not held[1].over
    start = auto and held is None
    if not under_way and jobs.remembered(name, payload) is None and not start:
        start = st.button(label, key=f"start-{key}", type="primary", icon=":material/play_arrow:")
    return result_of(key, name, payload, start=start)


@st.fragment(run_every=EVERY_S)
def _progress(spot: str) -> None:
    """Where the job is; when it is over, the page is drawn again."""
    held = st.session_state.get(spot)
    if held is None or held[1].over:
        st.rerun()
    job: jobs.Job = held[1]
    what, done, total = job.progress
    count = "" if total is None else f", {done:,} of {total:,}"
    share = 0.0 if not total else min(1.0, done / total)
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    left.progress(share, text=f"{what}{count}")
    if right.button("Cancel", key=f"cancel-{spot}", icon=":material/stop_circle:", width="stretch"):
        job.cancel()
