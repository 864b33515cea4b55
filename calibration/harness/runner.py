"""One point from start to finish: build, check against the reference, time; every failure becomes a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from calibration.harness.environment import Monitor
from calibration.harness.group import RankTrouble
from calibration.harness.peak import peak_bytes
from calibration.harness.points import TOLERANCE, Bench, Point, Prepared, Skip, torch_module
from calibration.harness.rows import Row, number, point_row, sizes_text
from calibration.harness.timing import Timing

T = TypeVar("T")


class DeviceLost(Exception):
    """The device no longer answers in this process (a CUDA error that stays); a new process may go on."""


def run_point(point: Point, bench: Bench, monitor: Monitor, environment: Mapping[str, Any]) -> tuple[Row, bool]:
    """Measure one point: (row, whether the device is still usable). Never raises for what the point does."""
    row = point_row(point, environment)
    monitor.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains at length why a backend was not taken
            row |= _measure(point, _together(bench, lambda: point.prepare(bench)), bench)
            row |= {
                "sm_clock_hz": number(monitor.sm_clock_hz),
                "mem_clock_hz": number(monitor.mem_clock_hz),
                "power_w": number(monitor.power_w),
            }
    except Skip as why:
        row["status"] = _status(why)
    except Exception as error:  # a point must not end the run
        row["status"] = _status(error)
        error.__traceback__ = None  # its frames hold the tensors of the point
        if bench.group is not None:
            return row, False  # the others may still wait inside a collective: only a new group is safe
    if row["status"].startswith(("skipped: out of memory", "failed")):
        return row, _usable(bench)
    return row, _usable(bench) if row["status"].startswith("skipped: not supported") else True


def _together(bench: Bench, action: Callable[[], T]) -> T:
    """What `action` gives; in a group it fails on all ranks where it fails on one."""
    return action() if bench.group is None else bench.group.together(action, _status)


def _measure(point: Point, prepared: Prepared, bench: Bench) -> Row:
    row: Row = {}
    if prepared.check is not None:
        error = _together(bench, lambda: _checked(prepared, bench))
        if bench.group is not None:
            error = bench.group.worst([float("inf") if error is None else error])[0]
        row["relative_error"] = number(error)
        if error is not None and not error <= TOLERANCE[point.dtype]:
            return row | {"status": f"failed: relative error {error:.3g} above {TOLERANCE[point.dtype]:g}"}
    bench.timer.forget()
    timing = _together(bench, lambda: _timed(prepared, bench))
    busy_s = bench.timer.busy_s()
    observed: dict[str, Any] = {} if busy_s is None else {"cpu_s": float(number(busy_s))}
    if prepared.peak is not None:
        peak = prepared.peak
        seen = _together(bench, lambda: peak_bytes(peak, bench.device))
        row["peak_bytes"] = number(bench.timer.worst([seen])[0])
    if prepared.observed is not None:
        observed |= prepared.observed()
    row["observed"] = sizes_text(observed) if observed else ""
    row |= {"median_s": number(timing.median_s), "p10_s": number(timing.p10_s), "p90_s": number(timing.p90_s)}
    return row | {"repeats": str(timing.repeats), "status": "ok"}


def _timed(prepared: Prepared, bench: Bench) -> Timing:
    if prepared.measure is not None:
        return prepared.measure(bench.timer)
    if prepared.run is not None:
        return bench.timer.time(prepared.run, hide_launch=prepared.hide_launch)
    raise Skip("nothing to run")


def _checked(prepared: Prepared, bench: Bench) -> float | None:
    """Relative error; None where only the reference did not fit into memory (the point itself may)."""
    assert prepared.check is not None
    try:
        return float(prepared.check())
    except Exception as error:
        if not _out_of_memory(error):
            raise
        error.__traceback__ = None
    _free(bench)
    return None


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _status(error: Exception) -> str:
    if isinstance(error, Skip):
        return f"skipped: {error}"
    if isinstance(error, RankTrouble):
        return str(error)
    if _out_of_memory(error):
        return "skipped: out of memory"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(lines[0].split())[:200]
    # torch says "unsupported" with a RuntimeError; anything else is a mistake of ours and must be seen.
    if isinstance(error, RuntimeError):
        return f"skipped: not supported here: {line}"
    return f"failed: {type(error).__name__}: {line}"


def _free(bench: Bench) -> None:
    if bench.cuda:
        torch_module().cuda.empty_cache()


def _usable(bench: Bench) -> bool:
    """False when the device fails at even the smallest work: its context is gone for this process."""
    if not bench.cuda:
        return True
    torch = torch_module()
    try:
        _free(bench)
        torch.cuda.synchronize(bench.device)
        return float(torch.ones(2, device=bench.device).sum()) == 2.0
    except RuntimeError:
        return False
