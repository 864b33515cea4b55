"""The what-if dashboard as one visitor sees it; `dashboards.app` serves it.

The URL is the state: a copied link shows the same scenario, baseline and view.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import partial
from importlib import import_module

import streamlit as st

# In the order of the bar on top; each is a module of `dashboards.views` with TITLE, ICON and show(page).
VIEWS = ("what_if", "plan", "timeline", "experts", "network", "sensitivity", "accuracy", "compare")

# Inside the page: an icon by name would be fetched from elsewhere, which holds the page up where nothing answers.
FAVICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cg stroke='%230072B2' "
    "stroke-width='1.4'%3E%3Cpath d='M8 8 3 3M8 8l5-5M8 8l-5 5M8 8l5 5'/%3E%3C/g%3E%3Cg fill='%230072B2'%3E%3Ccircle "
    "cx='8' cy='8' r='3'/%3E%3Ccircle cx='3' cy='3' r='2'/%3E%3Ccircle cx='13' cy='3' r='2'/%3E%3Ccircle cx='3' "
    "cy='13' r='2'/%3E%3Ccircle cx='13' cy='13' r='2'/%3E%3C/g%3E%3C/svg%3E"
)


def path_of(view: str) -> str:
    """Path of a view in the address; the first view is the page itself."""
    return "" if view == VIEWS[0] else view.replace("_", "-")


def main() -> None:
    """Draw the page of one visitor."""
    st.set_page_config(page_title="Moecast", page_icon=FAVICON, layout="wide")
    from dashboards import frame, knobs, ready

    st.html(frame.STYLE)
    modules = {name: import_module(f"dashboards.views.{name}") for name in VIEWS}
    pages = {
        name: st.Page(
            partial(_show, name), title=module.TITLE, icon=f":material/{module.ICON}:",
            url_path=path_of(name) or None, default=name == VIEWS[0],
        )
        for name, module in modules.items()
    }  # fmt: skip
    chosen = st.navigation(list(pages.values()), position="hidden")
    st.session_state["pages"] = pages
    st.session_state[frame.TOLD] = set()
    with st.container(horizontal=True, gap="small"):
        for page in pages.values():
            label = f"**{page.title}**" if page == chosen else page.title
            st.page_link(page, label=label, query_params=frame.query_here())
    with ready.DRAWN_AT_ONCE:
        _guarded(lambda: knobs.sidebar(frame.read_page()))
        chosen.run()


def _show(name: str) -> None:
    from dashboards import frame

    page = frame.read_page()
    _guarded(lambda: import_module(f"dashboards.views.{name}").show(page))


def _guarded(draw: Callable[[], None]) -> None:
    """Draw; a user error is shown in its words, a defect as a number that the log explains."""
    from dashboards import frame

    try:
        with frame.guard():
            draw()
    except Exception:
        number = secrets.token_hex(4)
        logging.getLogger("moecast").exception("defect %s", number)
        st.error(f"This went wrong on our side (number {number}); the server's log says where. Your settings are kept.")


if __name__ == "__main__":
    main()
