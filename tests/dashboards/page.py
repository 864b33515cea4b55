"""One view as a page of its own, with jobs that end at once: for `streamlit.testing`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboards import jobs
from hwprofiles.errors import UserError

SMALL = {"model": "Mixtral-8x7B", "cluster": "dgx-h100", "gpus": "16", "global_batch": "64", "pp": "2", "ep": "4",
         "dp": ""}  # fmt: skip


def _page(view: str) -> None:
    from importlib import import_module

    import streamlit as st

    from dashboards import frame

    st.session_state.setdefault("pages", {})
    with frame.guard():
        import_module(f"dashboards.views.{view}").show(frame.read_page())


def page_of(view: str, query: Mapping[str, Any]) -> AppTest:
    """The view at a URL, not yet run."""
    page = AppTest.from_function(_page, args=(view,), default_timeout=60)
    for key, value in query.items():
        if value:
            page.query_params[key] = value
    return page


def text_of(page: AppTest) -> str:
    """Everything the page says in words, tables and problems."""
    shown = [
        element.value for kind in ("markdown", "caption", "info", "subheader", "text") for element in page.get(kind)
    ]
    html = [element.proto.body for element in page.get("html")]
    return re.sub(r"\\([^\w\s])", r"\1", "\n".join([*map(str, shown), *html]))  # Markdown's escapes are not seen


def figures_of(page: AppTest) -> list[str]:
    """The plotly figures of the page, as JSON."""
    return [element.proto.spec for element in page.get("plotly_chart")]


class Done:
    """In place of `dashboards.jobs.start`: the work is done before it returns. asked: what was started."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []

    def __call__(self, name: str, payload: Mapping[str, Any]) -> jobs.Job:
        import json
        from importlib import import_module

        from dashboards.work import WORK

        self.asked.append((name, payload))
        job = jobs.Job(name=name, payload=payload)
        module, _, function = WORK[name].partition(":")
        try:
            plain = json.loads(json.dumps(payload))
            job.result = json.loads(json.dumps(getattr(import_module(module), function)(plain, _said), allow_nan=False))
            job.state = "done"
        except UserError as error:
            job.error, job.state = error, "failed"
        return job


def _said(what: str, done: int = 0, total: int | None = None) -> None:
    assert what and done >= 0 and (total is None or done <= total)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Done:
    """Jobs that end at once, none of them remembered."""
    done = Done()
    monkeypatch.setattr(jobs, "start", done)
    monkeypatch.setattr(jobs, "remembered", lambda name, payload: None)
    return done


def query_of(page: AppTest, key: str) -> list[str]:
    """The values of a key of the page's URL."""
    if key not in page.query_params:
        return []
    found = page.query_params[key]
    return [found] if isinstance(found, str) else list(found)
