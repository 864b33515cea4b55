"""Serve the dashboard: `python -m dashboards.serve [options of streamlit run]`.

Libraries are read and a first question is answered before the server opens, so that no visitor waits for them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

APP = Path(__file__).parent / "app.py"


def warm() -> None:
    """Load what every view needs."""
    from dashboards.answers import answer
    from dashboards.app import VIEWS
    from dashboards.state import START, Knobs

    for name in ("knobs", *(f"views.{view}" for view in VIEWS)):
        import_module(f"dashboards.{name}")
    answer(Knobs.of(START))


def main() -> None:
    """Warm up and serve until the process is stopped."""
    warm()
    from streamlit.web import cli

    sys.argv = ["streamlit", "run", str(APP), *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
