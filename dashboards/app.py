"""The dashboard as a server: `streamlit run dashboards/app.py`, and what `moecast dashboard` starts.

Libraries are read and a first question is answered before the server opens, so that no visitor waits for them.
"""

from __future__ import annotations

from pathlib import Path

import streamlit
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from streamlit.starlette import App

from dashboards.page import VIEWS, path_of
from dashboards.ready import warm

_INDEX = (Path(streamlit.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
# A page of a view is one step below its server. Told so, the browser does not look for a server of that name first,
# which would fail twice and say so in its console.
_PATHS = "|".join(path_of(view) for view in VIEWS if path_of(view))
_BASE = (
    "<script>window.__streamlit = {...window.__streamlit, BACKEND_BASE_URL: location.origin + "
    f"location.pathname.replace(/({_PATHS})\\/*$/, '')}}</script>"
)
_PAGE = _INDEX.replace("<head>", f"<head>{_BASE}", 1)


def page(_: Request) -> HTMLResponse:
    """The page of every view; which one it shows, its address says."""
    return HTMLResponse(_PAGE, headers={"Cache-Control": "no-cache"})


warm()
app = App(Path(__file__).with_name("page.py"), routes=[Route(f"/{path_of(view)}", page) for view in VIEWS])
