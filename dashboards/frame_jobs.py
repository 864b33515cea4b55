"""Background work on a page: a button that starts it, how far it is, a button that stops it, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboards import frame, jobs

EVERY_S = 0.5  # between two looks at a job


def worked(name: str, payload: Mapping[str, Any], key: str, *, label: str, auto: bool = False) -> Any | None:
    """The result of a job of `dashboards.work`, or None while there is none; draws what there is to press and to read.

    auto: start without being asked (short work). A job of other settings than the page's goes on unseen, no further.
    """
    state = f"job-{key}"
    asked = jobs.key_of(name, payload)
    job: jobs.Job | None = st.session_state.get(state)
    if job is not None and jobs.key_of(job.name, job.payload) != asked:
        job.cancel()
        job = st.session_state[state] = None
    known = jobs.remembered(name, payload)
    if job is None and known is not None:
        return known
    if job is None and (auto or st.button(label, key=f"start-{key}", type="primary", icon=":material/play_arrow:")):
        job = st.session_state[state] = jobs.start(name, payload)
    if job is None:
        return None
    if not job.over:
        _under_way(job, key)
        return None
    if job.error is not None:
        frame.problem(job.error)
    elif job.result is None:
        st.info("Stopped.", icon=":material/stop_circle:")
    if job.result is None and st.button("Try again", key=f"again-{key}", icon=":material/replay:"):
        st.session_state[state] = jobs.start(name, payload)
        st.rerun()
    return job.result


def _under_way(job: jobs.Job, key: str) -> None:
    @st.fragment(run_every=EVERY_S)
    def look() -> None:
        if job.over:
            st.rerun(scope="app")
        what, done, total = job.progress
        share = min(1.0, done / total) if total else 0.0
        st.progress(share, text=f"{what}" + (f", {done:,} of {total:,}" if total else ""))
        if st.button("Stop", key=f"stop-{key}", icon=":material/stop:"):
            job.cancel()

    look()
