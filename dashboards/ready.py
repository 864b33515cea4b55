"""What a server does for its visitors: everything is read before it opens, and few pages are drawn at once."""

from __future__ import annotations

import sys
from importlib import import_module
from threading import Semaphore

# Pages drawn at once; more would only hold one another up at the interpreter's lock, and all come later.
DRAWN_AT_ONCE = Semaphore(2)
# Read by plotly and Streamlit when they are first met; half read, they break the page of whoever comes second.
_LIBRARIES = ("pandas", "pyarrow", "plotly.graph_objects", "plotly.subplots", "plotly.io", "networkx")
_SWITCH_S = 1e-3  # between threads: the one that serves the sockets waits for those that compute


def warm() -> None:
    """Load what every view needs, and answer the first question."""
    sys.setswitchinterval(_SWITCH_S)
    for name in _LIBRARIES:
        import_module(name)
    from dashboards.answers import answer
    from dashboards.page import VIEWS
    from dashboards.state import START, Knobs

    for name in ("knobs", *(f"views.{view}" for view in VIEWS)):
        import_module(f"dashboards.{name}")
    answer(Knobs.of(START))
