"""Serve the dashboard: `python -m dashboards.serve [options of streamlit run]`."""

from __future__ import annotations

import sys
from pathlib import Path

APP = Path(__file__).parent / "app.py"


def main() -> None:
    """Serve until the process is stopped."""
    from streamlit.web import cli

    sys.argv = ["streamlit", "run", str(APP), *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    main()
