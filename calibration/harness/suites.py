"""Families and suites: what is measured in which order, for how long, and with how much patience."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibration.harness import (
    attention,
    collectives,
    compute,
    copies,
    grouped,
    launch,
    memory_ops,
    moe_block,
    moe_block_ep,
    neighbours,
    sustained,
    train_step,
)
from calibration.harness.points import Point, Suite, torch_module
from calibration.harness.timing import Patience

Points = Callable[[Suite, str], list[Point]]
GroupPoints = Callable[[Suite, str, int], list[Point]]

# Safe families first: a kernel that takes the device down must not cost the rows of the others.
FAMILIES: dict[str, Points] = {
    module.FAMILY: module.points
    for module in (launch, compute, attention, memory_ops, copies, grouped, moe_block, train_step, sustained)
}
# Families of several ranks: (suite, device, ranks) -> points.
GROUP_FAMILIES: dict[str, GroupPoints] = {
    collectives.FAMILY: collectives.points,
    neighbours.FAMILY: neighbours.points,
    moe_block_ep.FAMILY: moe_block_ep.points,
    train_step.GROUP_FAMILY: train_step.group_points,
}
NAMES = (*FAMILIES, *GROUP_FAMILIES)

_TINY = dict.fromkeys(NAMES, 4.0) | {"gemm": 2.0, "sustained": 3.0, "train_step_ep": 8.0}
# Wall seconds per family (for each number of ranks, in the group families); what one leaves over goes to the
# next. Sums for one GPU: quick 220 s, full 505 s. On a CPU, all families: quick 268 s, full 528 s.
_QUICK = {"launch": 8.0, "gemm": 45.0, "attention": 28.0, "memory": 25.0, "copies": 12.0, "grouped_gemm": 30.0}
_QUICK |= {"moe_block": 20.0, "train_step": 20.0, "sustained": 32.0}
_QUICK |= {"collectives": 30.0, "neighbours": 5.0, "moe_block_ep": 20.0, "train_step_ep": 20.0}
_FULL = {"launch": 10.0, "gemm": 115.0, "attention": 75.0, "memory": 45.0, "copies": 20.0, "grouped_gemm": 70.0}
_FULL |= {"moe_block": 45.0, "train_step": 45.0, "sustained": 80.0}
_FULL |= {"collectives": 60.0, "neighbours": 8.0, "moe_block_ep": 40.0, "train_step_ep": 40.0}
_CPU_QUICK = {"launch": 3.0, "gemm": 50.0, "attention": 15.0, "memory": 28.0, "copies": 4.0, "grouped_gemm": 28.0}
_CPU_QUICK |= {"moe_block": 20.0, "train_step": 34.0, "sustained": 8.0}
_CPU_QUICK |= {"collectives": 30.0, "neighbours": 6.0, "moe_block_ep": 18.0, "train_step_ep": 32.0}
_CPU_FULL = {"launch": 3.0, "gemm": 95.0, "attention": 30.0, "memory": 40.0, "copies": 7.0, "grouped_gemm": 70.0}
_CPU_FULL |= {"moe_block": 45.0, "train_step": 80.0, "sustained": 25.0}
_CPU_FULL |= {"collectives": 35.0, "neighbours": 8.0, "moe_block_ep": 45.0, "train_step_ep": 45.0}

PATIENCE = {
    "tiny": Patience(target_s=0.0, min_repeats=3, max_repeats=3, warmup=1, point_s=0.5, flush=False),
    "quick": Patience(target_s=0.03, max_repeats=100, point_s=1.0),
    "full": Patience(),
}


def budget_s(suite: Suite, device: str, family: str) -> float:
    """Wall seconds that a family may take on a device of this kind."""
    if suite == "tiny":
        return _TINY[family]
    cpu = {"quick": _CPU_QUICK, "full": _CPU_FULL}
    return (cpu if device == "cpu" else {"quick": _QUICK, "full": _FULL})[suite][family]


def world_sizes(device: str, ranks: int | None) -> tuple[int, ...]:
    """Numbers of ranks to measure: the one asked for; else 2 on a CPU, and 2, 4, ... all devices on CUDA.

    Empty where only one rank is to be had.
    """
    if ranks is not None:
        return (ranks,) if ranks > 1 else ()
    if device == "cpu":
        return (2,)
    devices: Any = torch_module().cuda.device_count()
    sizes = [2**power for power in range(1, 16) if 2**power < devices]
    return (*sizes, int(devices)) if devices > 1 else ()
