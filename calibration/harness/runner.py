"""One point from start to finish: build, check against the reference, time; every failure becomes a row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from calibration.harness.environment import Monitor
from calibration.harness.points import TOLERANCE, Bench, Point, Prepared, Skip, torch_module
from calibration.harness.rows import Row, number, point_row


class DeviceLost(Exception):
    """The device no longer answers in this process (a CUDA error that stays); a new process may go on."""


def run_point(point: Point, bench: Bench, monitor: Monitor, environment: Mapping[str, Any]) -> tuple[Row, bool]:
    """Measure one point: (row, whether the device is still usable). Never raises for what the point does."""
    row = point_row(point, environment)
    monitor.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains at length why a backend was not taken
            row |= _measure(point, point.prepare(bench), bench)
            row |= {
                "sm_clock_hz": number(monitor.sm_clock_hz),
                "mem_clock_hz": number(monitor.mem_clock_hz),
                "power_w": number(monitor.power_w),
            }
    except Skip as why:
        row["status"] = f"skipped: {why}"
    except Exception as error:  # a point must not end the run
        row["status"] = _status(error)
        error.__traceback__ = None  # its frames hold the tensors of the point
    if row["status"].startswith(("skipped: out of memory", "failed")):
        return row, _usable(bench)
    return row, _usable(bench) if row["status"].startswith("skipped: not supported") else True


def _measure(point: Point, prepared: Prepared, bench: Bench) -> Row:
    row: Row = {}
    if prepared.check is not None:
        error = _checked(prepared, bench)
        row["relative_error"] = number(error)
        if error is not None and not error <= TOLERANCE[point.dtype]:
            return row | {"status": f"failed: relative error {error:.3g} above {TOLERANCE[point.dtype]:g}"}
    if prepared.measure is not None:
        timing = prepared.measure(bench.timer)
    elif prepared.run is not None:
        timing = bench.timer.time(prepared.run, hide_launch=prepared.hide_launch)
        if prepared.peak and bench.cuda:
            row["peak_bytes"] = number(_peak_bytes(prepared, bench))
    else:
        raise Skip("nothing to run")
    row |= {"median_s": number(timing.median_s), "p10_s": number(timing.p10_s), "p90_s": number(timing.p90_s)}
    return row | {"repeats": str(timing.repeats), "status": "ok"}


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


def _peak_bytes(prepared: Prepared, bench: Bench) -> float:
    """Bytes allocated at the peak of one run, above what stood before it."""
    assert prepared.run is not None
    cuda = torch_module().cuda
    bench.timer.sync()
    before = cuda.memory_allocated(bench.device)
    cuda.reset_peak_memory_stats(bench.device)
    prepared.run()
    bench.timer.sync()
    return float(cuda.max_memory_allocated(bench.device) - before)


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _status(error: Exception) -> str:
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
