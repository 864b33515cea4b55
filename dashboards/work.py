"""What runs behind the page in a process of its own (`python -m dashboards.work`): JSON in, lines of JSON out.

Lines are {"progress": [what, done, total]}, and last {"result": ...} (with "partial" when it was stopped early) or
{"problems": [...], "where": ...}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from hwprofiles.errors import UserError

Progress = Callable[[str, int, int | None], None]
NICE = 10  # steps behind the page
EVERY_S = 0.2  # progress that comes faster is not read
# Name of a job: the function that does it, (payload, progress) -> what JSON holds.
WORK: Mapping[str, str] = {
    "plan": "dashboards.work_plan:plan",
    "gains": "dashboards.work_knobs:gains",
    "sizes": "dashboards.work_knobs:sizes",
    "grid": "dashboards.work_knobs:grid",
    "place": "dashboards.work_place:place",
}


def main() -> int:
    """Do the one job that stands on standard input; the page that waits for no job goes first."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICE)
    asked = json.loads(sys.stdin.read())
    module, _, name = WORK[asked["name"]].partition(":")
    said_s = 0.0

    def progress(what: str, done: int = 0, total: int | None = None) -> None:
        nonlocal said_s
        now = time.monotonic()
        if now - said_s >= EVERY_S:
            said_s = now
            _say({"progress": [what, int(done), None if total is None else int(total)]})

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        if not stopped:  # a second one would end what the first let stand
            stopped = True
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    _say({"listens": True})
    try:
        result = getattr(import_module(module), name)(asked["payload"], progress)
        _say({"result": result, "partial": stopped})
    except UserError as error:
        _say({"problems": list(error.problems), "where": error.where})
    except KeyboardInterrupt:
        return 130
    return 0


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line, allow_nan=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
