"""Starts a group of ranks on this machine with torchrun and watches it: a group that hangs or dies costs one row.

Each rank is a `group_worker`; rank 0 says which point it starts and which row it has written. A point
that was started and not written when the group ended gets a row with the reason, and a new group
goes on behind it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from calibration.harness.environment import Environment
from calibration.harness.group import STUCK_S
from calibration.harness.group_worker import DONE, START, plan
from calibration.harness.points import Suite
from calibration.harness.rows import RowWriter, point_row
from calibration.harness.suites import budget_s

LAUNCHES = 4
# The worker ends a stuck collective itself; it is silent for longer only when a process is gone or stopped.
SILENCE_S = 3 * STUCK_S
GRACE_S = 60.0  # start of Python and torch on every rank, and the last point of the last family
ROOT = Path(__file__).resolve().parents[2]


class _Watched:
    """What a group said: the point it started last (-1: none), and the one whose row it wrote last."""

    def __init__(self) -> None:
        self.started = self.written = -1


@dataclass(frozen=True, kw_only=True)
class GroupRun:
    """What the ranks are to measure: `out` is the folder given to `measure`, `path` its rows.csv."""

    device: str
    suite: Suite
    out: Path
    path: Path
    families: tuple[str, ...]
    ranks: int
    seed: int
    resume: bool
    env: Environment


def run_group(job: GroupRun, on_point: Callable[[str], None]) -> None:
    """Measure the group families over job.ranks ranks; rows are appended to job.path. Never hangs."""
    points = plan(job.suite, job.device, job.families, job.ranks)
    begin, first = time.monotonic(), 0
    limit = begin + sum(budget_s(job.suite, _kind(job), family) for family in job.families) + GRACE_S
    for _ in range(LAUNCHES):
        seen, why = _launch(job, first, time.monotonic() - begin, limit, on_point)
        if not why:
            return
        lost = max(seen.started, first)
        if lost >= len(points):
            return
        if seen.written < lost:
            row = point_row(points[lost], job.env.as_dict())
            with RowWriter(job.path) as writer:
                writer.write(row | {"status": f"failed: the group of {job.ranks} ranks ended: {why}"})
        first = lost + 1
        # A group that never started will not start the next time; one out of time has none left.
        if first >= len(points) or seen.started < 0 or time.monotonic() > limit - GRACE_S:
            return


def _kind(job: GroupRun) -> str:
    return job.device.split(":")[0]


def _command(job: GroupRun, first: int, late_s: float) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.ranks}"]
    command += ["-m", "calibration.harness.group_worker", "--device", _kind(job), "--suite", job.suite]
    command += [
        "--out",
        str(job.out.resolve()),
        "--seed",
        str(job.seed),
        "--first",
        str(first),
        "--late",
        f"{late_s:.1f}",
    ]
    for family in job.families:
        command += ["--family", family]
    command.append(f"--command={job.env.command or 'measure'}")  # one word: it may begin with a dash
    return command if job.resume else [*command, "--no-resume"]


def _environment(job: GroupRun) -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    env["OMP_NUM_THREADS"] = "1"
    if _kind(job) == "cpu" and sys.platform.startswith("linux"):
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: its name need not resolve
    return env


def _launch(
    job: GroupRun, first: int, late_s: float, limit: float, on_point: Callable[[str], None]
) -> tuple[_Watched, str]:
    """(what was said, why it ended too early or "")."""
    seen, said = _Watched(), queue.Queue[str]()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            _command(job, first, late_s),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(job),
            cwd=ROOT,
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, said), daemon=True)
        reader.start()
        why = ""
        try:
            why = _watch(process, reader, said, seen, limit, on_point)
        finally:
            _end(process)
            reader.join(timeout=5.0)
        if why == "exit":
            errors.seek(0)
            why = _reason(errors.read(), process.returncode)
    return seen, why


def _read(stream: IO[str], said: queue.Queue[str]) -> None:
    for line in stream:
        said.put(line.rstrip("\n"))


def _watch(
    process: subprocess.Popen[str],
    reader: threading.Thread,
    said: queue.Queue[str],
    seen: _Watched,
    limit: float,
    on_point: Callable[[str], None],
) -> str:
    """Follow the group's words until it ends: "" when all went well, "exit" for its exit code, or a reason."""
    heard = time.monotonic()
    while reader.is_alive() or not said.empty():
        try:
            line = said.get(timeout=0.2)
        except queue.Empty:
            now = time.monotonic()
            if now > limit:
                return "it ran past its time"
            if now - heard > SILENCE_S:
                return f"it said nothing for {SILENCE_S:g} s"
            continue
        heard = time.monotonic()
        word, _, rest = line.partition(" ")
        if word == START:
            index, _, label = rest.partition(" ")
            seen.started = int(index)
            on_point(label)
        elif word == DONE:
            seen.written = int(rest)
    return "exit" if process.wait(timeout=30.0) else ""


def _end(process: subprocess.Popen[str]) -> None:
    """Stop torchrun and the ranks it started: they share a session of their own."""
    if process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5.0)
                break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a rank may outlive torchrun
    if process.stdout is not None:
        process.stdout.close()


def _reason(errors: str, code: int) -> str:
    """The last line of an exception, or the exit code."""
    lines = [line.split("]:")[-1].strip() for line in errors.splitlines()]
    named = [line for line in lines if line.partition(":")[0].endswith("Error") and "ChildFailedError" not in line]
    return named[-1][:200] if named else f"exit code {code}"
