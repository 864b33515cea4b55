"""Long work in a process of its own: it reports progress, can be cancelled, and never holds up the page.

A job is a name of `dashboards.work` and a JSON payload. Results are remembered by name and payload, so that a question
asked again is answered at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Semaphore, Thread
from typing import Any, Literal

from hwprofiles.errors import UserError

AT_ONCE = 2  # more searches at once would each take longer than one after the other
RESULTS_KEPT = 32
PATIENCE_S = 20.0  # between asking a job to stop with what it has, and stopping it

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_slots = Semaphore(AT_ONCE)
_lock = Lock()
_results: OrderedDict[str, Any] = OrderedDict()


@dataclass
class Job:
    """One piece of work under way. progress: what it does, how far it is and of how many (None: not known)."""

    name: str
    payload: Mapping[str, Any]
    state: State = "waiting"
    progress: tuple[str, int, int | None] = ("waiting for its turn", 0, None)
    result: Any = None
    error: UserError | None = None
    started_s: float = field(default_factory=time.monotonic)
    listens: bool = False  # the process has started and takes an interrupt as a wish to stop
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """Ask it to stop; what a search has found so far may still become its result."""
        with _lock:
            process = self._process
            if process is None and not self.over:
                self.state = "cancelled"
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT if self.listens else signal.SIGTERM)  # nothing to keep while it starts
            Thread(target=_stop_later, args=(self, process), daemon=True).start()


def key_of(name: str, payload: Mapping[str, Any]) -> str:
    """What a result is remembered by."""
    return json.dumps([name, payload], sort_keys=True)


def remembered(name: str, payload: Mapping[str, Any]) -> Any | None:
    """The result of such a job that has ended well, or None."""
    with _lock:
        return _results.get(key_of(name, payload))


def start(name: str, payload: Mapping[str, Any]) -> Job:
    """Start a job; it is done at once when its result is remembered."""
    job = Job(name=name, payload=dict(payload))
    known = remembered(name, payload)
    if known is not None:
        job.result, job.state = known, "done"
        return job
    Thread(target=_run, args=(job,), daemon=True).start()
    return job


def _run(job: Job) -> None:
    with _slots:
        with _lock:
            if job.state == "cancelled":
                return
            root = str(Path(__file__).resolve().parents[1])
            path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
            job._process = subprocess.Popen(
                [sys.executable, "-m", "dashboards.work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
            job.state, job.progress = "running", ("starting", 0, None)
        _listen(job, job._process)


def _listen(job: Job, process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps({"name": job.name, "payload": job.payload}))
        process.stdin.close()
    said: dict[str, Any] = {}
    for line in process.stdout:
        said = json.loads(line)
        job.listens = True
        if "progress" in said:
            what, done, total = said["progress"]
            job.progress = (str(what), int(done), None if total is None else int(total))
    process.stdout.close()
    process.wait()
    with _lock:
        if "result" in said:
            job.result, job.state = said["result"], "done"
            if not said.get("partial"):
                _results[key_of(job.name, job.payload)] = said["result"]
                while len(_results) > RESULTS_KEPT:
                    _results.popitem(last=False)
        elif "problems" in said:
            job.error, job.state = UserError(said["problems"], where=said["where"]), "failed"
        else:
            job.state = "cancelled"


def _stop_later(job: Job, process: subprocess.Popen[str]) -> None:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
