"""Ranks that measure together: who leads, how they agree, and which sample counts.

Every choice of a run (one more repeat? out of time?) is made by rank 0 and told to the others, and a
sample is the slowest rank's, because a collective is over when the last rank has left it. The talk goes
over a gloo group of its own: it must still work when the measured group is stuck.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
STUCK_S = 45.0  # a collective that takes longer will never end
CONTROL_S = 240.0  # rank 0 may draw its random data for longer than another rank


class RankTrouble(Exception):
    """Another rank could not do what this one could; the text is its status."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """This process among `ranks` of torch.distributed, on `nodes` machines; backend is nccl or gloo."""

    rank: int
    ranks: int
    nodes: int
    backend: str
    control: Any

    def agree(self, value: float) -> float:
        """Rank 0's value, on every rank."""
        box = _torch().tensor([value], dtype=_torch().float64)
        distributed().broadcast(box, 0, group=self.control)
        return float(box[0])

    def worst(self, values: list[float]) -> list[float]:
        """The largest of each value over the ranks."""
        box = _torch().tensor(values, dtype=_torch().float64)
        distributed().all_reduce(box, distributed().ReduceOp.MAX, group=self.control)
        return [float(value) for value in box]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        distributed().barrier(group=self.control)

    def texts(self, text: str) -> list[str]:
        """The text of every rank, by rank."""
        out: list[str] = [""] * self.ranks
        distributed().all_gather_object(out, text, group=self.control)
        return out

    def together(self, action: Callable[[], T], status: Callable[[Exception], str]) -> T:
        """`action` on every rank; what fails on one raises on all: its own error there, RankTrouble elsewhere."""
        error: Exception | None = None
        result: list[T] = []
        try:
            result.append(action())
        except Exception as caught:
            error = caught
        trouble = [text for text in self.texts("" if error is None else status(error)) if text]
        if error is not None:
            raise error
        if trouble:
            raise RankTrouble(trouble[0])
        return result[0]


def distributed() -> Any:
    """torch.distributed, imported late."""
    return importlib.import_module("torch.distributed")


def _torch() -> Any:
    return importlib.import_module("torch")


def open_group(device: str) -> Group:
    """Join the ranks that torchrun started. Raises RuntimeError where this torch cannot."""
    dist = distributed()
    if not dist.is_available():
        raise RuntimeError("this torch was built without torch.distributed")
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=STUCK_S))
    control = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=CONTROL_S))
    ranks = dist.get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return Group(rank=dist.get_rank(), ranks=ranks, nodes=-(-ranks // local), backend=backend, control=control)


def all_to_all(out: Any, rows: Any, out_rows: list[int] | None = None, in_rows: list[int] | None = None) -> Any:
    """rows (in_rows to each rank) into `out` (out_rows from each rank); even without the two lists."""
    distributed().all_to_all_single(out, rows, out_rows, in_rows)
    return out


@functools.cache
def exchange() -> Callable[[Any, list[int], list[int]], Any]:
    """Differentiable all-to-all of rows: exchange()(rows, out_rows, in_rows); its gradient goes the way back."""
    torch = _torch()

    class Exchange(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, rows: Any, out_rows: list[int], in_rows: list[int]) -> Any:
            ctx.splits = out_rows, in_rows
            return all_to_all(rows.new_empty(sum(out_rows), *rows.shape[1:]), rows.contiguous(), out_rows, in_rows)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            out_rows, in_rows = ctx.splits
            back = all_to_all(grad.new_empty(sum(in_rows), *grad.shape[1:]), grad.contiguous(), in_rows, out_rows)
            return back, None, None

    return Exchange.apply  # type: ignore[no-any-return]
