"""Records of the stage question: interval columns with their prices, and what a choice of them comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Modules = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """An option of a column: what its stage recomputes, and the modules whose activations it sends to host memory
    (None: what the workload says)."""

    recompute: Modules = ()
    offload: Modules | None = None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment at which a stage may be at its peak: chunk that runs, activations held of each chunk."""

    running: int
    held: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervals:
    """Every way to fill one virtual stage: column j holds layers first[j] <= layer < stop[j] on slot[j] under options
    [option[j]], one line per column in each array.

    fill_s: a forward and a backward alone; steady_s: the two of different micro-batches run together (the same unless
    all-to-alls are overlapped). Bytes of one rank: static for the whole step, saved per micro-batch held, working of
    what runs; capacity_bytes[stage]: what a rank of the stage may allocate. In host memory the same: host_static for
    the whole step, host_saved per micro-batch held, host_capacity_bytes[stage]: a rank's part of its node. Virtual
    stages are numbered in model order: slot = chunk * pp + stage. moments[stage]: see `Moment`.
    """

    pp: int
    vpp: int
    num_layers: int
    num_micro_batches: int
    options: tuple[Setting, ...]
    capacity_bytes: Floats
    host_capacity_bytes: Floats
    moments: tuple[tuple[Moment, ...], ...]
    slot: Ints
    first: Ints
    stop: Ints
    option: Ints
    fill_s: Floats
    steady_s: Floats
    static_bytes: Floats
    saved_bytes: Floats
    working_bytes: Floats
    host_static_bytes: Floats
    host_saved_bytes: Floats

    def __len__(self) -> int:
        return len(self.slot)

    @property
    def slots(self) -> int:
        """Virtual stages of the pipeline."""
        return self.pp * self.vpp

    @cached_property
    def place(self) -> dict[tuple[int, int, int, int], int]:
        """Column of (slot, first, stop, option)."""
        keys = zip(*(a.tolist() for a in (self.slot, self.first, self.stop, self.option)), strict=True)
        return {key: i for i, key in enumerate(keys)}

    def take(self, rows: Any) -> Intervals:
        """Some of the columns."""
        names: tuple[str, ...] = (
            "slot",
            "first",
            "stop",
            "option",
            "fill_s",
            "steady_s",
            "static_bytes",
            "saved_bytes",
        )
        names += ("working_bytes", "host_static_bytes", "host_saved_bytes")
        arrays = {name: getattr(self, name)[rows] for name in names}
        return Intervals(**{**{k: v for k, v in vars(self).items() if k not in ("place", "on_host")}, **arrays})

    def stage_bytes(self, columns: Ints) -> Floats:
        """Peak bytes [pp] of a path: columns[slot]."""
        peaks = np.zeros(self.pp)
        for stage, moments in enumerate(self.moments):
            mine = columns[stage :: self.pp]
            held = (np.dot(m.held, self.saved_bytes[mine]) + self.working_bytes[mine[m.running]] for m in moments)
            peaks[stage] = self.static_bytes[mine].sum() + max(held)
        return peaks

    @cached_property
    def on_host(self) -> bool:
        """Whether any column keeps something in host memory."""
        return bool(self.host_static_bytes.any() or self.host_saved_bytes.any())

    def host_bytes(self, columns: Ints) -> Floats:
        """Peak bytes [pp] of a path in a rank's part of its node's host memory."""
        peaks = np.zeros(self.pp)
        for stage, moments in enumerate(self.moments):
            mine = columns[stage :: self.pp]
            held = (float(np.dot(m.held, self.host_saved_bytes[mine])) for m in moments)
            peaks[stage] = self.host_static_bytes[mine].sum() + max(held)
        return peaks

    def bottleneck_s(self, columns: Ints) -> float:
        """Steady seconds per micro-batch of a path: of each chunk its slowest stage, added up."""
        return float(self.steady_s[columns].reshape(self.vpp, self.pp).max(axis=1).sum())

    def objective_s(self, columns: Ints) -> float:
        """Closed form of a path's step: (sum of fill) / v + (m - 1 / v) x bottleneck."""
        weight = self.num_micro_batches - 1.0 / self.vpp
        return float(self.fill_s[columns].sum()) / self.vpp + weight * self.bottleneck_s(columns)

    def fits(self, columns: Ints) -> bool:
        """Whether every stage of a path fits, on its device and on its host."""
        if not np.all(self.stage_bytes(columns) <= self.capacity_bytes):
            return False
        return not self.on_host or bool(np.all(self.host_bytes(columns) <= self.host_capacity_bytes))


@dataclass(frozen=True, kw_only=True)
class StageChoice:
    """A choice of columns. counts: layers per virtual stage; settings: option of each virtual stage.

    bottleneck_s: steady seconds per micro-batch, of each chunk its slowest stage, added up; stage_bytes: peak of each
    pipeline stage.
    """

    counts: tuple[int, ...]
    settings: tuple[Setting, ...]
    objective_s: float
    bottleneck_s: float
    stage_bytes: tuple[float, ...]

    @property
    def recompute(self) -> tuple[Modules, ...]:
        """What each virtual stage recomputes."""
        return tuple(each.recompute for each in self.settings)

    @property
    def offloads(self) -> bool:
        """Whether an option of it says what goes to the host, and it is not nothing."""
        return any(each.offload for each in self.settings)


@dataclass(frozen=True, kw_only=True)
class StageSolution:
    """What the integer programme says. status: optimal, limit, infeasible. gap: (objective - bound) / objective.

    programme_s: objective of the programme's own path (the choice may be a simpler one of the same time); None where
    it was stopped without one, or not run. dynamic_s: that of the dynamic programme, exact without virtual stages; None
    with them. per_stage: whether stages may have different settings. columns: in the programme, of `priced`.
    """

    status: str
    choice: StageChoice | None
    bound_s: float | None
    gap: float | None
    programme_s: float | None
    dynamic_s: float | None
    per_stage: bool
    priced: int
    columns: int
    nodes: int
    solver: str
    seconds: float = field(default=0.0, compare=False)


def choice_of(columns: Intervals, path: Ints) -> StageChoice:
    """The record of a path: path[slot] = column."""
    return StageChoice(
        counts=tuple(int(n) for n in columns.stop[path] - columns.first[path]),
        settings=tuple(columns.options[o] for o in columns.option[path]),
        objective_s=columns.objective_s(path), bottleneck_s=columns.bottleneck_s(path),
        stage_bytes=tuple(float(b) for b in columns.stage_bytes(path)),
    )  # fmt: skip
