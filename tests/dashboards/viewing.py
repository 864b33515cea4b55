"""One view run without a browser, on a small scenario."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

SMALL = {
    "model": "Mixtral-8x7B", "cluster": "dgx-h100", "gpus": "16", "global_batch": "32", "pp": "2", "ep": "8",
    "routing": "zipf:0.6",
}  # fmt: skip
_SCRIPT = """
from dashboards import frame
from dashboards.views import {name}

with frame.guard():
    {name}.show(frame.read_page())
"""


def view(name: str, **query: str) -> AppTest:
    """The view after its first run; query: what its URL says beside (or in place of) the small scenario."""
    app = AppTest.from_string(_SCRIPT.format(name=name), default_timeout=120)
    for key, text in {**SMALL, **query}.items():
        app.query_params[key] = text
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app: AppTest) -> str:
    """All words of a page, tables and errors among them."""
    kinds = ("html", "markdown", "caption", "subheader", "error", "warning", "info")
    return "\n".join(str(each.proto) for kind in kinds for each in app.get(kind))


def charts(app: AppTest) -> list[str]:
    """What the figures say to those who cannot see them."""
    return [each.proto.alt for each in app.get("plotly_chart")]
