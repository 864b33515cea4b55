"""What a rank's kernels lose while the other ranks of its node compute too: shared caches, memory, power.

The same product and the same copy run on one rank alone while the others wait ("..._alone") and on all of them at once
("..._together"); seconds of the slowest rank, caches cold. Ranks that share nothing show the same time twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from calibration.harness.group import Group
from calibration.harness.points import Bench, Point, Prepared, Skip, Suite, torch_dtype, torch_module
from calibration.harness.timing import Timer, Timing

FAMILY = "neighbours"
# Rows and columns of the product, elements of the copy: as a layer's, and beyond any cache. CPU, then GPU.
SIZES = {"gemm": (512, 4096), "copy": (1 << 24, 1 << 29)}
TINY = {"gemm": 64, "copy": 1 << 12}


def points(suite: Suite, device: str, ranks: int) -> list[Point]:
    """Both kernels, alone and together."""
    sizes = TINY if suite == "tiny" else {name: both[device != "cpu"] for name, both in SIZES.items()}
    return [_point(name, how, size, ranks) for name, size in sizes.items() for how in ("alone", "together")]


def _point(name: str, how: str, size: int, ranks: int) -> Point:
    return Point(
        family=FAMILY,
        op=f"{name}_{how}",
        pass_="forward",
        sizes={"size": size, "ranks": ranks},
        flop=2.0 * size**3 if name == "gemm" else 0.0,
        bytes=float(6 * size**2 if name == "gemm" else 4 * size),
        prepare=lambda bench: _prepare(bench, name, how, size),
    )


def _prepare(bench: Bench, name: str, how: str, size: int) -> Prepared:
    group, torch = bench.group, torch_module()
    if group is None:
        raise Skip("a group of one rank has no neighbours")
    if name == "gemm":
        a, b = bench.randn(size, size), bench.randn(size, size, seed=1)
    else:
        a, b = torch.empty(size, device=bench.device, dtype=torch_dtype("bf16")), bench.randn(size)

    def run() -> Any:
        return torch.mm(a, b) if name == "gemm" else a.copy_(b)

    return Prepared(run=run) if how == "together" else Prepared(measure=lambda timer: _alone(timer, group, run))


def _alone(timer: Timer, group: Group, run: Callable[[], Any]) -> Timing:
    """Rank 0's timing; the others wait for it, idle."""
    mine = copy.copy(timer)
    mine.group = None
    timing = mine.time(run) if group.rank == 0 else Timing(median_s=0.0, p10_s=0.0, p90_s=0.0, repeats=0)
    median_s, p10_s, p90_s, repeats = group.worst([timing.median_s, timing.p10_s, timing.p90_s, float(timing.repeats)])
    return Timing(median_s=median_s, p10_s=p10_s, p90_s=p90_s, repeats=int(repeats))
