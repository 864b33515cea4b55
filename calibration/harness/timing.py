"""Timing: seconds of one call on a device, as a median with its spread.

CUDA: device events around each repeat, the L2 cache overwritten before it (a training step finds
its operands in memory, not in cache), launches hidden behind a spinning kernel where asked. CPU:
perf_counter. Repeats adapt: until the wanted seconds are measured or the spread is small.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SUSTAINED_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call: median, 10th and 90th percentile over `repeats`."""

    median_s: float
    p10_s: float
    p90_s: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to measure. target_s: timed seconds wanted; spread: (p90 - p10) / median that is good
    enough; point_s: wall seconds after which a point stops; min_repeats: 3 will do for long calls."""

    target_s: float = 0.03
    spread: float = 0.02
    min_repeats: int = 5
    max_repeats: int = 200
    warmup: int = 3
    point_s: float = 2.0
    flush: bool = True


def percentile(values: list[float], q: float) -> float:
    """Linear-interpolated quantile q in [0, 1] of a non-empty list.

    >>> percentile([1.0, 2.0, 3.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(samples_s: list[float]) -> Timing:
    """Timing of a non-empty list of samples in seconds."""
    return Timing(
        median_s=percentile(samples_s, 0.5),
        p10_s=percentile(samples_s, 0.1),
        p90_s=percentile(samples_s, 0.9),
        repeats=len(samples_s),
    )


class Timer:
    """Times calls on one device. Holds the flush buffer and the rate of the spinning kernel."""

    def __init__(self, device: str, patience: Patience, sample: Callable[[], None] | None = None) -> None:
        """`sample` is called while the device is busy, once per point (clocks and power)."""
        self.device = device
        self.patience = patience
        self.cuda = device.startswith("cuda")
        self._sample = sample or (lambda: None)
        self._torch: Any = importlib.import_module("torch")
        self._flush: Any = None
        self._cycles_per_s = 0.0
        if self.cuda:
            self._torch.cuda.set_device(self._torch.device(device).index or 0)
            self._make_flush()
            self._rate_spin()

    def _make_flush(self) -> None:
        # Four times the cache, and never so small that writing it does not cover one kernel launch.
        props = self._torch.cuda.get_device_properties(self._torch.device(self.device))
        size = max(4 * int(getattr(props, "L2_cache_size", 0) or 0), 256 << 20)
        if self.patience.flush:
            self._flush = self._torch.empty(size, dtype=self._torch.int8, device=self.device)

    def _rate_spin(self) -> None:
        """Cycles per second of torch.cuda._sleep, measured; 0 where this torch has none."""
        spin = getattr(self._torch.cuda, "_sleep", None)
        if spin is None:
            return
        cycles = 2_000_000
        try:
            spin(cycles)
            begin, end = self._events()
            begin.record()
            spin(cycles)
            end.record()
            end.synchronize()
            self._cycles_per_s = cycles / max(begin.elapsed_time(end) * 1e-3, 1e-6)
        except RuntimeError:
            self._cycles_per_s = 0.0

    def _events(self) -> tuple[Any, Any]:
        event = self._torch.cuda.Event
        return event(enable_timing=True), event(enable_timing=True)

    def sync(self) -> None:
        """Wait until the device has finished all work."""
        if self.cuda:
            self._torch.cuda.synchronize(self.device)

    def hold(self, seconds: float) -> None:
        """Keep the device busy for about `seconds` (at most 20 ms), so that the host can queue ahead."""
        if self.cuda and self._cycles_per_s and seconds > 0:
            self._torch.cuda._sleep(int(min(seconds, 0.02) * self._cycles_per_s))

    def host_seconds(self, run: Callable[[], object]) -> float:
        """Host seconds of one call on an idle device, without waiting for the device."""
        self.sync()
        begin = time.perf_counter()
        run()
        host_s = time.perf_counter() - begin
        self.sync()
        return host_s

    def time(self, run: Callable[[], object], *, hide_launch: bool = True) -> Timing:
        """Seconds of `run` on the device; see Patience for how often it is called."""
        limit = time.perf_counter() + self.patience.point_s
        call_s = self._warm_up(run)
        batch = self._batch_cuda if self.cuda else self._batch_cpu
        # Twice the host time: its jitter must not open a gap in the queue.
        hold_s = 2 * self.host_seconds(run) if self.cuda and hide_launch else 0.0
        samples: list[float] = []
        # A call of many milliseconds varies little, and there are many such points.
        size = self.patience.min_repeats if call_s * self.patience.min_repeats < 2 * self.patience.target_s else 3
        sampled = False
        while True:
            samples += batch(run, size, hold_s, self._sample if not sampled else None)
            sampled = True
            timing = summary(samples)
            quiet = timing.p90_s - timing.p10_s <= self.patience.spread * timing.median_s
            enough = sum(samples) >= self.patience.target_s or len(samples) >= self.patience.max_repeats
            if quiet or enough or time.perf_counter() > limit:
                return timing
            size = max(1, min(32, self.patience.max_repeats - len(samples)))

    def _warm_up(self, run: Callable[[], object]) -> float:
        """Call `run` at least once, more often while that is cheap; wall seconds of the last call."""
        begin = time.perf_counter()
        call_s = 0.0
        for done in range(max(self.patience.warmup, 1)):
            start = time.perf_counter()
            run()
            self.sync()
            call_s = time.perf_counter() - start
            if done >= 1 and time.perf_counter() - begin > self.patience.target_s:
                break
        return call_s

    def sustained(self, run: Callable[[], object], seconds: float) -> Timing:
        """Seconds of `run` called without a pause for `seconds`; the second half counts.

        What a long step sees: the power cap, not the burst clock, sets the rate.
        """
        run()
        self.sync()
        samples: list[float] = []
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop or len(samples) < 2:
            if self.cuda:
                # Batches long enough that reading the clocks and the pause between two do not count.
                begin, end = self._events()
                begin.record()
                for _ in range(SUSTAINED_BATCH):
                    run()
                end.record()
                self._sample()
                self.sync()
                samples.append(begin.elapsed_time(end) * 1e-3 / SUSTAINED_BATCH)
            else:
                samples += self._batch_cpu(run, 1, 0.0, self._sample)
        return summary(samples[len(samples) // 2 :])

    def _batch_cuda(
        self, run: Callable[[], object], size: int, hold_s: float, sample: Callable[[], None] | None
    ) -> list[float]:
        events = [self._events() for _ in range(size)]
        for begin, end in events:
            if self._flush is not None:
                self._flush.zero_()
            self.hold(hold_s)
            begin.record()
            run()
            end.record()
        if sample is not None:
            sample()
        self.sync()
        return [begin.elapsed_time(end) * 1e-3 for begin, end in events]

    def _batch_cpu(
        self, run: Callable[[], object], size: int, hold_s: float, sample: Callable[[], None] | None
    ) -> list[float]:
        samples = []
        for _ in range(size):
            begin = time.perf_counter()
            run()
            samples.append(time.perf_counter() - begin)
        if sample is not None:
            sample()
        return samples
