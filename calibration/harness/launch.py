"""Launch floor: what a kernel costs before it does any work, and what a read-back costs.

host_launch: host seconds per eager launch. kernel_back_to_back: seconds per kernel of a queue of
tiny kernels (the larger of host and device rate). graph_kernel: the same inside a captured graph
(device only). graph_launch: host seconds to replay a one-kernel graph. host_sync: read one number
back from an idle device. autograd_node: one tiny multiply, forward and backward, per call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from calibration.harness.points import Bench, Point, Prepared, Skip, Suite, torch_module
from calibration.harness.timing import Timer, Timing, summary

FAMILY = "launch"
QUEUE = {"tiny": 20, "quick": 500, "full": 500}
Repeat = Callable[[], float]


def points(suite: Suite, device: str) -> list[Point]:
    """Points of the launch family."""
    queue = QUEUE[suite]
    builders: dict[str, Callable[[Bench, int], Prepared]] = {
        "host_launch": _host_launch,
        "kernel_back_to_back": _back_to_back,
        "graph_kernel": _graph_kernel,
        "graph_launch": _graph_launch,
        "host_sync": _host_sync,
        "autograd_node": _autograd_node,
    }

    def point(op: str, build: Callable[[Bench, int], Prepared]) -> Point:
        return Point(
            family=FAMILY,
            op=op,
            dtype="fp32",
            pass_="forward",
            sizes={"queue": queue},
            prepare=lambda bench: build(bench, queue),
        )

    return [point(op, build) for op, build in builders.items()]


def _repeated(one: Repeat) -> Callable[[Timer], Timing]:
    """Timing from a function that measures itself once: a few warm-ups, then at least ten samples."""

    def measure(timer: Timer) -> Timing:
        for _ in range(timer.patience.warmup):
            one()
        return summary([one() for _ in range(max(10, timer.patience.min_repeats))])

    return measure


def _tiny_kernel(bench: Bench) -> Callable[[], object]:
    torch = torch_module()
    x = torch.zeros(1, device=bench.device)
    return lambda: x.add_(1.0)


def _host_launch(bench: Bench, queue: int) -> Prepared:
    kernel = _tiny_kernel(bench)

    def one() -> float:
        bench.timer.sync()
        begin = time.perf_counter()
        for _ in range(queue):
            kernel()
        host_s = time.perf_counter() - begin
        bench.timer.sync()
        return host_s / queue

    return Prepared(measure=_repeated(one))


def _device_seconds(bench: Bench, run: Callable[[], object]) -> float:
    """Seconds of `run` by device events (host clock on a CPU)."""
    if not bench.cuda:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    torch = torch_module()
    begin_event = torch.cuda.Event(enable_timing=True)
    end_event = torch.cuda.Event(enable_timing=True)
    begin_event.record()
    run()
    end_event.record()
    end_event.synchronize()
    return float(begin_event.elapsed_time(end_event)) * 1e-3


def _back_to_back(bench: Bench, queue: int) -> Prepared:
    kernel = _tiny_kernel(bench)

    def run() -> None:
        for _ in range(queue):
            kernel()

    return Prepared(measure=_repeated(lambda: _device_seconds(bench, run) / queue))


def _captured(bench: Bench, kernels: int) -> Any:
    """A graph of `kernels` tiny kernels. Raises Skip off CUDA."""
    if not bench.cuda:
        raise Skip("graphs are captured on CUDA only")
    torch = torch_module()
    kernel = _tiny_kernel(bench)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            kernel()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(kernels):
            kernel()
    torch.cuda.synchronize()
    return graph, kernel  # the kernel's tensor must outlive the graph


def _graph_kernel(bench: Bench, queue: int) -> Prepared:
    graph, kernel = _captured(bench, queue)

    def one() -> float:
        seconds = _device_seconds(bench, graph.replay) / queue
        kernel()
        return seconds

    return Prepared(measure=_repeated(one))


def _graph_launch(bench: Bench, queue: int) -> Prepared:
    graph, kernel = _captured(bench, 1)

    def one() -> float:
        bench.timer.sync()
        begin = time.perf_counter()
        for _ in range(queue):
            graph.replay()
        host_s = time.perf_counter() - begin
        bench.timer.sync()
        kernel()
        return host_s / queue

    return Prepared(measure=_repeated(one))


def _host_sync(bench: Bench, queue: int) -> Prepared:
    torch = torch_module()
    x = torch.zeros(1, device=bench.device)

    def one() -> float:
        bench.timer.sync()
        begin = time.perf_counter()
        x.item()
        return time.perf_counter() - begin

    return Prepared(measure=_repeated(one))


def _autograd_node(bench: Bench, queue: int) -> Prepared:
    torch = torch_module()
    x = torch.ones(1, device=bench.device, requires_grad=True)

    def one() -> float:
        bench.timer.sync()
        begin = time.perf_counter()
        y = x
        for _ in range(queue):
            y = y * 1.0
        torch.autograd.grad(y, x)
        host_s = time.perf_counter() - begin
        bench.timer.sync()
        return host_s / queue

    return Prepared(measure=_repeated(one))
