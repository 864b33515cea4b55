"""Records of the stage question: interval columns with their prices, and what a choice of them comes to."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.build.order import place_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Modules = tuple[str, ...]
PER_COLUMN = (
    "slot", "first", "stop", "option", "fill_s", "steady_s", "static_bytes", "saved_bytes", "working_bytes",
    "host_static_bytes", "host_saved_bytes", "deferred_bytes",
    "ramp_s", "late_s", "end_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """An option of a column: what its stage recomputes, and the modules whose activations it sends to host memory
    (None: what the workload says)."""

    recompute: Modules = ()
    offload: Modules | None = None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment at which a stage may be at its peak: chunk that runs, activations held of each chunk.

    deferred: of each chunk, micro-batches whose weight gradient is put off; either: those whose input gradient runs
    (the larger of the two); () = none.
    """

    running: int
    held: tuple[int, ...]
    deferred: tuple[int, ...] = ()
    either: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervals:
    """Every way to fill one virtual stage: column j holds layers first[j] <= layer < stop[j] on slot[j] under options
    [option[j]], one line per column in each array.

    fill_s: a forward and a backward alone; steady_s: the two of different micro-batches run together (the same unless
    all-to-alls are overlapped; of a schedule that splits the backward its passes, alone and paired as they come, per
    micro-batch). ramp_s: what passes the stage on the way to later ones and back; late_s: weight gradients after its
    last backward (both 0 of other schedules). end_s: seconds behind all that, once a step, of which only bounds know.
    Bytes of one rank: static for the whole step, saved per micro-batch held, deferred of one whose weight gradient is
    put off, working of what runs; capacity_bytes[stage]: what a rank of the stage may allocate. In host memory the
    same: host_static for the whole step, host_saved per micro-batch held, host_capacity_bytes[stage]: a rank's part of
    its node. Virtual stages are numbered in model order; placed: how they
    lie on stages (`sim.build.order`). moments[stage]: see `Moment`.
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
    deferred_bytes: Floats
    ramp_s: Floats
    late_s: Floats
    end_s: Floats
    placed: str = "loop"

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
        arrays = {name: getattr(self, name)[rows] for name in PER_COLUMN}
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return Intervals(**{**kept, **arrays})

    @cached_property
    def homes(self) -> tuple[Ints, Ints]:
        """(stage, chunk) of each column."""
        where = np.array([place_of(slot, pp=self.pp, placed=self.placed) for slot in range(self.slots)])
        return where[self.slot, 0], where[self.slot, 1]

    def mates(self, stage: int) -> list[int]:
        """Virtual stages of a stage, by chunk; "both": its own, then the mirrored one."""
        if self.placed == "loop":
            return list(range(stage, self.slots, self.pp))
        return [stage, self.slots - 1 - stage]

    @property
    def held_once(self) -> int:
        """Stages of which each lies on ranks of its own: half of them where the model is held twice."""
        return self.pp // 2 if self.placed == "both" else self.pp

    @cached_property
    def counts(self) -> tuple[Floats, ...]:
        """[4, moments, chunks] of each stage that lies on ranks of its own: held, deferred, either, running."""
        found = []
        for moments in self.moments[: self.held_once]:
            chunks = len(moments[0].held)
            none = (0,) * chunks
            rows = [
                (m.held, m.deferred or none, m.either or none, [chunk == m.running for chunk in range(chunks)])
                for m in moments
            ]
            found.append(np.array(rows, dtype=np.float64).transpose(1, 0, 2))
        return tuple(found)

    def need_bytes(self, stage: int, chunk: int, columns: Any, *, host: bool = False) -> Floats:
        """[moments, columns] of a stage: what each of these columns needs as this chunk, on device or host."""
        held, deferred, either, running = (each[:, chunk, None] for each in self.counts[stage])
        if host:
            found: Floats = self.host_static_bytes[columns] + held * self.host_saved_bytes[columns]
            return found
        saved, later = self.saved_bytes[columns], self.deferred_bytes[columns]
        need = self.static_bytes[columns] + held * saved + running * self.working_bytes[columns]
        if deferred.any() or either.any():
            need = need + deferred * later + either * np.maximum(saved, later)
        found = need
        return found

    def stage_bytes(self, columns: Ints) -> Floats:
        """Peak bytes [..., pp] of paths: columns[..., slot]."""
        return self._peaks(columns, host=False)

    @cached_property
    def on_host(self) -> bool:
        """Whether any column keeps something in host memory."""
        return bool(self.host_static_bytes.any() or self.host_saved_bytes.any())

    def host_bytes(self, columns: Ints) -> Floats:
        """Peak bytes [..., pp] of paths in a rank's part of its node's host memory."""
        return self._peaks(columns, host=True)

    def _peaks(self, columns: Ints, *, host: bool) -> Floats:
        saved = (self.host_saved_bytes if host else self.saved_bytes)[columns]
        static = (self.host_static_bytes if host else self.static_bytes)[columns]
        later, working = self.deferred_bytes[columns], self.working_bytes[columns]
        peaks = np.empty((*columns.shape[:-1], self.pp))
        for stage, (held, deferred, either, running) in enumerate(self.counts):
            mine = self.mates(stage)
            need = saved[..., mine] @ held.T
            if not host:
                need = need + working[..., mine] @ running.T + later[..., mine] @ deferred.T
                need = need + np.maximum(saved, later)[..., mine] @ either.T
            peaks[..., stage] = static[..., mine].sum(axis=-1) + need.max(axis=-1)
            if self.placed == "both":
                peaks[..., self.pp - 1 - stage] = peaks[..., stage]
        return peaks

    def bottlenecks_s(self, columns: Ints) -> Floats:
        """Steady seconds per micro-batch of paths [..., slot]: of each chunk its slowest stage, added up; of chunks
        that take turns as they come ("v", "both") the slowest stage."""
        seconds = self.steady_s[columns]
        if self.placed != "loop":
            found: Floats = (seconds + seconds[..., ::-1]).max(axis=-1)
            return found
        found = seconds.reshape(*columns.shape[:-1], self.vpp, self.pp).max(axis=-1).sum(axis=-1)
        return found

    def objectives_s(self, columns: Ints) -> Floats:
        """Closed form of the steps of paths [..., slot]: (sum of fill) / v + (m - 1 / v) x bottleneck; of chunks that
        take turns as they come m x bottleneck, of which half enter at each end where the model is held twice."""
        if self.placed != "loop":
            return self.num_micro_batches / (2 if self.placed == "both" else 1) * self.bottlenecks_s(columns)
        weight = self.num_micro_batches - 1.0 / self.vpp
        found: Floats = self.fill_s[columns].sum(axis=-1) / self.vpp + weight * self.bottlenecks_s(columns)
        return found

    def bottleneck_s(self, columns: Ints) -> float:
        """That of one path."""
        return float(self.bottlenecks_s(columns))

    def objective_s(self, columns: Ints) -> float:
        """That of one path."""
        return float(self.objectives_s(columns))

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
