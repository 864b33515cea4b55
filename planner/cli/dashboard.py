"""`moecast dashboard`: the what-if page in a browser."""

from __future__ import annotations

import os
import sys
from importlib import resources
from typing import Annotated

import typer

from hwprofiles.errors import UserError
from planner.question.read import Problems

HIGHEST_PORT = 65_535


def dashboard(
    port: Annotated[str, typer.Option("--port", metavar="N", help="Port to serve on.")] = "8501",
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to serve on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
) -> None:
    """Serve the what-if page until Ctrl-C, to this machine only unless --host says otherwise.

    Example: [bold]moecast dashboard --port 8501[/bold]
    """
    problems = Problems()
    number = problems.whole(port, "--port", highest=HIGHEST_PORT)
    problems.stop()
    app = resources.files("dashboards") / "app.py"
    if not app.is_file():  # a zipped package: streamlit runs files only
        raise UserError("the package is not unpacked; install it with pip", where="dashboard")
    command = [
        sys.executable, "-m", "dashboards.serve", "--server.port", str(number), "--server.address", host,
    ]  # fmt: skip
    # The page's process takes this one's place, so that Ctrl-C and signals reach it alone.
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
