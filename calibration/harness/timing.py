"""Timing: seconds of one call on a device, as a median with its spread.

CUDA: device events around each repeat, the L2 cache overwritten before it (a training step finds
its operands in memory, not in cache), launches hidden behind a spinning kernel where asked. CPU: perf_counter, the
last-level cache read and written before each repeat. Repeats adapt: until the wanted seconds are measured or
the spread is small. In a group of ranks each sample is the slowest rank's, and rank 0 says when it is enough.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.harness.group import Group

STREAM_CALLS = 50
STREAM_TARGETS = 6  # spread over samples of about one target each
BETWEEN_CALLS = 15
SHORTEST_S = 1e-7  # a difference of two clocks is not less
MOST_FLUSHED = 25  # repeats of a call on a CPU, whose cache is flushed before each
TYPICAL_CACHE_BYTES = 32 << 20  # last-level cache of a server core complex, where the system does not say


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


def last_level_cache_bytes() -> int:
    """Size of the largest cache of this machine's first core; TYPICAL_CACHE_BYTES where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
    return max(sizes, default=TYPICAL_CACHE_BYTES)


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

    def __init__(
        self,
        device: str,
        patience: Patience,
        sample: Callable[[], None] | None = None,
        group: Group | None = None,
    ) -> None:
        """`sample` is called while the device is busy, once per point (clocks and power)."""
        self.group = group
        self.device = device
        self.patience = patience
        self.cuda = device.startswith("cuda")
        self._sample = sample or (lambda: None)
        self._torch: Any = importlib.import_module("torch")
        self.cpu_s: list[float] = []  # CPU seconds of the calls timed since the last `forget`
        self._flush: Any = None
        self._cycles_per_s = 0.0
        if self.cuda:
            self._torch.cuda.set_device(self._torch.device(device).index or 0)
            self._make_flush()
            self._rate_spin()
        elif patience.flush:
            self._flush = self._torch.zeros(last_level_cache_bytes() // 4, dtype=self._torch.float32)

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

    def forget(self) -> None:
        """Start anew with the CPU seconds."""
        self.cpu_s = []

    def busy_s(self) -> float | None:
        """Median CPU seconds of a call on a CPU, of the busiest rank; None on CUDA or where nothing was timed.

        Less than the wall seconds of the row: the ranks waited, or other programs held the core.
        """
        mine = percentile(self.cpu_s, 0.5) if self.cpu_s else 0.0
        worst = mine if self.cuda else self.worst([mine])[0]
        return None if self.cuda or not worst else worst

    def release(self) -> None:
        """Give the flush buffer back to the device."""
        self._flush = None
        if self.cuda:
            self._torch.cuda.empty_cache()

    def align(self) -> None:
        """Let the ranks of a group start together."""
        if self.group is not None:
            self.sync()
            self.group.barrier()

    def agree(self, value: float) -> float:
        """The value that counts: rank 0's."""
        return value if self.group is None else self.group.agree(value)

    def worst(self, samples: list[float]) -> list[float]:
        """The samples that count: each the slowest rank's."""
        return samples if self.group is None else self.group.worst(samples)

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
        call_s = self.agree(self._warm_up(run))
        batch = self._batch_cuda if self.cuda else self._batch_cpu
        # Twice the host time: its jitter must not open a gap in the queue.
        hold_s = 2 * self.host_seconds(run) if self.cuda and hide_launch else 0.0
        samples: list[float] = []
        # Flushing a CPU's cache takes milliseconds, so a short call is repeated less often there.
        most = self.patience.max_repeats if self.cuda else min(self.patience.max_repeats, MOST_FLUSHED)
        # A call of many milliseconds varies little on a device that is ours alone, and there are many such points.
        long = self.cuda and call_s * self.patience.min_repeats >= 2 * self.patience.target_s
        size = 3 if long else self.patience.min_repeats
        sampled = False
        while True:
            samples += self.worst(batch(run, size, hold_s, self._sample if not sampled else None))
            sampled = True
            timing = summary(samples)
            quiet = timing.p90_s - timing.p10_s <= self.patience.spread * timing.median_s
            enough = sum(samples) >= self.patience.target_s or len(samples) >= most
            if self.agree(quiet or enough or time.perf_counter() > limit):
                return timing
            size = max(1, min(32, most - len(samples)))

    def _warm_up(self, run: Callable[[], object]) -> float:
        """Call `run` at least once, more often while that is cheap; wall seconds of the last call."""
        begin = time.perf_counter()
        call_s = 0.0
        for done in range(max(self.patience.warmup, 1)):
            start = time.perf_counter()
            run()
            self.sync()
            call_s = time.perf_counter() - start
            if self.agree(done >= 1 and time.perf_counter() - begin > self.patience.target_s):
                break
        return call_s

    def rapid(self, run: Callable[[], object], calls: int) -> float:
        """Seconds per call of `calls` calls in a row, caches as they are; clocks are read under way."""
        if not self.cuda:
            busy_s, begin_s = time.thread_time(), time.perf_counter()
            for _ in range(calls):
                run()
            end_s = time.perf_counter()
            self.cpu_s.append((time.thread_time() - busy_s) / calls)
            self._sample()
            return (end_s - begin_s) / calls
        begin, end = self._events()
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        self._sample()
        self.sync()
        return float(begin.elapsed_time(end)) * 1e-3 / calls

    def stream(self, run: Callable[[], object], *, trips: int = 1, work: Callable[[], object] | None = None) -> Timing:
        """Seconds of one call among many in a row, over `trips`: how collectives are measured everywhere.

        Calls in a row bring the ranks into step; a single one would show how unevenly they started.
        With `work` every call stands behind some compute, whose own seconds are taken off: what a call costs
        where the cores that move its bytes are also the ones that compute.
        """
        patience = self.patience
        call_s = self.agree(max(self._warm_up(run), 1e-6))
        calls = max(1, min(STREAM_CALLS if work is None else BETWEEN_CALLS, int(patience.target_s / call_s)))
        limit = time.perf_counter() + patience.point_s
        samples: list[float] = []
        while True:
            self.align()
            if work is None:
                samples += self.worst([self.rapid(run, calls) / trips])
            else:
                (both,) = self.worst([self.rapid(lambda: (work(), run()), calls)])
                self.align()
                (alone,) = self.worst([self.rapid(work, calls)])
                samples.append(max(both - alone, SHORTEST_S) / trips)
            timed_s = sum(samples) * calls * trips
            done = len(samples) >= patience.max_repeats or timed_s >= STREAM_TARGETS * patience.target_s
            if self.agree(len(samples) >= patience.min_repeats and (done or time.perf_counter() > limit)):
                self.forget()  # a backend works in threads of its own: these seconds say nothing
                return summary(samples)

    def parts(self, run: Callable[[Callable[[], None]], object], steps: int, limit_s: float) -> list[list[float]]:
        """Per repeat: seconds up to each mark that `run(mark)` sets, from the last one on, and of all.

        Between the repeats that patience asks for and `steps`, as `limit_s` wall seconds allow. The first calls
        warm up: an allocator settles in a few steps. As launched: nothing hides the host.
        """
        rows: list[list[float]] = []
        for _ in range(max(self.patience.warmup, 1)):
            self._marked(run)
        self.forget()
        stop = time.perf_counter() + limit_s
        while True:
            rows.append(self.worst(self._marked(run)))
            if self.agree(
                len(rows) >= self.patience.min_repeats and (len(rows) >= steps or time.perf_counter() > stop)
            ):
                return rows

    def _marked(self, run: Callable[[Callable[[], None]], object]) -> list[float]:
        marks: list[Any] = []

        def mark() -> None:
            if self.cuda:
                event = self._torch.cuda.Event(enable_timing=True)
                event.record()
                marks.append(event)
            else:
                marks.append(time.perf_counter())

        self.align()
        self.sync()
        busy = time.thread_time()
        mark()
        run(mark)
        mark()
        self.cpu_s.append(time.thread_time() - busy)
        self._sample()
        self.sync()
        spans = [*itertools.pairwise(marks), (marks[0], marks[-1])]
        return [a.elapsed_time(b) * 1e-3 if self.cuda else b - a for a, b in spans]

    def _batch_cuda(
        self, run: Callable[[], object], size: int, hold_s: float, sample: Callable[[], None] | None
    ) -> list[float]:
        events = [self._events() for _ in range(size)]
        for begin, end in events:
            if self._flush is not None:
                self._flush.zero_()
            self.align()
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
            if self._flush is not None:
                self._flush.add_(1.0)  # read and write: writing alone may go around the cache
            self.align()
            busy, begin = time.thread_time(), time.perf_counter()
            run()
            samples.append(time.perf_counter() - begin)
            self.cpu_s.append(time.thread_time() - busy)
        if sample is not None:
            sample()
        return samples
