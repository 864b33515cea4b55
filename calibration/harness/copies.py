"""Copies between host and device: what offloading and loading cost, with pinned and with pageable memory.

`bytes` are those of the buffer. Pageable copies go through the driver's own pinned buffer and
hold the host; pinned ones do not (non_blocking). On a CPU only host to host exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibration.harness.points import Bench, Point, Prepared, Skip, Suite, torch_module

FAMILY = "copies"
SMALLEST = 1 << 16
LARGEST = {"tiny": 1 << 20, "quick": 1 << 28, "full": 1 << 30}
STEP = {"tiny": 16, "quick": 16, "full": 4}


def points(suite: Suite, device: str) -> list[Point]:
    """Copies in each direction, 64 KiB to 1 GiB, pageable and pinned."""
    sizes = [SMALLEST]  # multiples of 256
    while sizes[-1] * STEP[suite] <= LARGEST[suite]:
        sizes.append(sizes[-1] * STEP[suite])
    if sizes[-1] < LARGEST[suite]:
        sizes.append(LARGEST[suite])
    if device == "cpu":
        return [_point("copy_h2h", size, False) for size in sizes] + [_point("copy_h2h", sizes[0], True)]
    host = [_point(op, size, pinned) for size in sizes for op in ("copy_h2d", "copy_d2h") for pinned in (True, False)]
    return host + [_point("copy_d2d", size, False) for size in sizes]


def _point(op: str, size: int, pinned: bool) -> Point:
    return Point(
        family=FAMILY,
        op=op,
        pass_="forward",
        sizes={"bytes": size, "pinned": pinned, "non_blocking": pinned},
        bytes=float(size),
        prepare=lambda bench: _prepare(bench, op, size, pinned),
    )


def _prepare(bench: Bench, op: str, size: int, pinned: bool) -> Prepared:
    torch = torch_module()
    if pinned and not bench.cuda:
        raise Skip("pinned memory needs a device to be copied to; this is a CPU")
    pattern = torch.arange(256).to(torch.uint8).repeat(size // 256)

    def place(where: str, data: Any) -> Any:
        if where == "d":
            return data.to(bench.device)
        return data.pin_memory() if pinned else data.clone()

    source, target = place(op[-3], pattern), place(op[-1], torch.zeros(size, dtype=torch.uint8))
    return Prepared(run=_copier(source, target, pinned), check=lambda: _error(bench, source, target, pattern))


def _copier(source: Any, target: Any, non_blocking: bool) -> Callable[[], Any]:
    return lambda: target.copy_(source, non_blocking=non_blocking)


def _error(bench: Bench, source: Any, target: Any, pattern: Any) -> float:
    target.zero_()
    _copier(source, target, False)()
    bench.timer.sync()
    return 0.0 if torch_module().equal(target.cpu(), pattern) else 1.0
