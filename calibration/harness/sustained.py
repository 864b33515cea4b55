"""Burst against sustained: the same kernel with pauses, and without one for as long as the power cap takes to bite.

Ops: "gemm_burst" and "gemm_sustained" (large GEMM, bf16, on CUDA also fp8), "copy_burst" and
"copy_sustained" (device memory). A sustained row's median is that of its second half; `observed` holds the
whole run in buckets of equal time: seconds since the start, seconds per call, clocks, power, temperature.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from calibration.harness.compute import corner_error, fp8_kernel
from calibration.harness.environment import Monitor
from calibration.harness.points import ELEMENT_BYTES, Bench, Point, Prepared, Suite, is_fp8, torch_module
from calibration.harness.timing import Timer, Timing, percentile, summary

FAMILY = "sustained"
SECONDS = {"tiny": 0.3, "quick": 8.0, "full": 30.0}
BUCKETS = 8
CALLS = {True: 32, False: 1}  # per sample; on CUDA enough that reading the clocks does not count
BURSTS = 12
PAUSE = 4.0  # a burst is followed by this many times its own length of rest
# Edge of the GEMM and elements of the copy: CPU, CUDA. Large enough to draw full power.
EDGE = {True: 8192, False: 1024}
ELEMENTS = {True: 1 << 29, False: 1 << 25}


def points(suite: Suite, device: str) -> list[Point]:
    """Bursts first, while the device is cool."""
    cuda = device != "cpu"
    edge = 256 if suite == "tiny" else EDGE[cuda]
    elements = 1 << 20 if suite == "tiny" else ELEMENTS[cuda]
    seconds = SECONDS[suite] / (1 if cuda or suite == "tiny" else 2)
    found = []
    for dtype in ("bf16", "fp8") if cuda else ("bf16",):
        found += [_gemm(dtype, edge, 0.0), _gemm(dtype, edge, seconds)]
    return [*found, _copy(elements, 0.0), _copy(elements, seconds / 2)]


def _gemm(dtype: str, edge: int, seconds: float) -> Point:
    return Point(
        family=FAMILY,
        op="gemm_sustained" if seconds else "gemm_burst",
        dtype=dtype,
        pass_="forward",
        sizes={"m": edge, "n": edge, "k": edge, "seconds": seconds},
        flop=2.0 * edge**3,
        bytes=float((2 * ELEMENT_BYTES[dtype] + 2) * edge**2),
        prepare=lambda bench: _prepared(bench, *_gemm_run(bench, dtype, edge), seconds),
    )


def _copy(elements: int, seconds: float) -> Point:
    def prepare(bench: Bench) -> Prepared:
        source = bench.randn(elements)
        target = source.clone().zero_()

        def check() -> float:
            return 0.0 if torch_module().equal(target.copy_(source)[-4096:], source[-4096:]) else 1.0

        return _prepared(bench, lambda: target.copy_(source), check, seconds)

    return Point(
        family=FAMILY,
        op="copy_sustained" if seconds else "copy_burst",
        pass_="forward",
        sizes={"elements": elements, "seconds": seconds},
        bytes=4.0 * elements,
        prepare=prepare,
    )


def _gemm_run(bench: Bench, dtype: str, edge: int) -> tuple[Callable[[], Any], Callable[[], float]]:
    torch = torch_module()
    a, b = bench.randn(edge, edge, dtype=dtype), bench.randn(edge, edge, dtype=dtype, seed=1).t()
    if not is_fp8(dtype):
        return lambda: torch.mm(a, b), lambda: corner_error(torch.mm(a, b), a, b)
    kernel, one = fp8_kernel(bench, "_scaled_mm"), torch.ones((), device=bench.device)

    def run() -> Any:
        return kernel(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    return run, lambda: corner_error(run(), a, b)


def _prepared(bench: Bench, run: Callable[[], Any], check: Callable[[], float], seconds: float) -> Prepared:
    seen: list[dict[str, float]] = []

    def measure(timer: Timer) -> Timing:
        samples = trace(timer, run, bench.monitor, seconds)
        seen[:] = buckets(samples)
        return summary([sample["call_s"] for sample in samples[len(samples) // 2 if seconds else 0 :]])

    return Prepared(measure=measure, check=check, observed=lambda: {"buckets": seen})


def trace(timer: Timer, run: Callable[[], Any], monitor: Monitor | None, seconds: float) -> list[dict[str, float]]:
    """Samples of `run`, each with its time and the readings then: `seconds` without a pause, or (0) in bursts."""
    run()
    timer.sync()
    calls, begin, out = CALLS[timer.cuda], time.perf_counter(), list[dict[str, float]]()
    while (time.perf_counter() - begin < seconds or len(out) < 2) if seconds else len(out) < BURSTS:
        call_s = timer.rapid(run, calls if seconds else 1)
        readings = {} if monitor is None else monitor.reading()
        out.append({"time_s": time.perf_counter() - begin, "call_s": call_s, **readings})
        if not seconds:
            time.sleep(min(PAUSE * call_s, 0.2))
    return out


def buckets(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Medians of each quantity in at most BUCKETS spans of equal time, in order; samples must not be empty."""
    end = samples[-1]["time_s"]
    out = []
    for place in range(BUCKETS):
        low, high = place * end / BUCKETS, (place + 1) * end / BUCKETS
        inside = [s for s in samples if low < s["time_s"] <= high]
        if inside:
            names = sorted({name for sample in inside for name in sample})
            out.append({n: float(f"{percentile([s[n] for s in inside if n in s], 0.5):.5g}") for n in names})
    return out
