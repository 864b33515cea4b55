"""One run on one device: its environment, its bench, the files it leaves; for one process or a rank of a group."""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.harness.environment import Environment, Monitor, environment
from calibration.harness.group import Group
from calibration.harness.points import Bench, Suite, torch_module
from calibration.harness.suites import PATIENCE
from calibration.harness.timing import Timer

# glibc's names for: never give memory back, never take a block straight from the kernel.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Session:
    """What every point of a run shares."""

    bench: Bench
    monitor: Monitor
    env: Environment

    @property
    def described(self) -> dict[str, Any]:
        """The environment as the columns of a row want it."""
        return self.env.as_dict()


def open_session(device: str, suite: Suite, seed: int, group: Group | None = None) -> Session:
    """Reach the device. Raises RuntimeError or AssertionError (torch's own) where that fails."""
    monitor = Monitor(device)
    env = environment(device, monitor)
    timer = Timer(device, PATIENCE[suite], monitor.sample, group)
    return Session(
        bench=Bench(device=device, timer=timer, seed=seed, group=group, monitor=monitor), monitor=monitor, env=env
    )


@contextlib.contextmanager
def one_rank(device: str) -> Iterator[None]:
    """Make a CPU behave as one rank of a group does: one thread, and freed memory kept for the next tensor.

    A GPU's allocator keeps what is freed; without that a CPU pays a page fault for each new page of every
    large activation. The thread count is put back at the end; the C library offers no way to do so
    for the allocator, which only costs memory.
    """
    if device != "cpu":
        yield
        return
    torch = torch_module()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):  # a C library without mallopt keeps its ways
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_environment(path: Path, env: Environment, suite: str, families: tuple[str, ...], seed: int) -> None:
    """The latest environment, and one line per run that wrote to the folder."""
    runs: list[dict[str, Any]] = []
    if path.exists():
        try:
            runs = list(json.loads(path.read_text(encoding="utf-8"))["runs"])
        except (ValueError, KeyError, TypeError):
            runs = []
    this = {"date": env.date, "suite": suite, "families": list(families), "seed": seed, "command": env.command}
    this |= {"driver": env.driver, "torch": env.torch, "cuda": env.cuda}
    text = json.dumps({**env.as_dict(), "runs": [*runs, this]}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
