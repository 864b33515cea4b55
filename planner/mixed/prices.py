"""Interval columns of many layouts on several types of devices: each content of a stage priced once for all layouts.

What a virtual stage takes and holds depends on its layers, its ends, the degrees and the type of its device. Degrees
stand in arrays (`sim.columns`), so that a content is priced on a type for a whole block of layouts at once; the columns
of one layout and one order of the types are then picked out of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from planner.mixed.rows import TypeQuestion
from planner.stage_plan.orders import moments_of
from planner.stage_plan.records import Floats, Intervals, Ints, Modules, Setting
from sim.build.context import Context
from sim.build.stages import StageContent
from sim.columns import Columns
from sim.cost.model import CostModel
from sim.cost.prices import distinct
from sim.cost.step import StepCost
from sim.scenario import Scenario


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """Every way to fill one virtual stage of a pipeline [spans]: slot, first and stop layer."""

    slot: Ints
    first: Ints
    stop: Ints


@lru_cache(maxsize=64)
def spans_of(*, pp: int, vpp: int, layers: int) -> Spans:
    """Virtual stages of a layer or more, but for the first and the last, which may hold their ends alone."""
    slots = pp * vpp
    slot, first, stop = np.meshgrid(np.arange(slots), np.arange(layers + 1), np.arange(layers + 1), indexing="ij")
    ends = (slot == 0) | (slot == slots - 1)
    ok = (stop >= first) & ((stop > first) | ends)
    ok &= np.where(slot == 0, first == 0, first >= np.maximum(0, slot - 1))
    ok &= np.where(slot == slots - 1, stop == layers, layers - stop >= np.maximum(0, slots - slot - 2))
    return Spans(slot=slot[ok], first=first[ok], stop=stop[ok])


class Prices:
    """Prices of a block of layouts under each recompute setting on each type."""

    def __init__(self, types: Sequence[TypeQuestion], rows: Columns, options: Sequence[Modules]) -> None:
        self.types, self.rows, self.options = types, rows, tuple(options)
        first = types[0].question
        self.kinds, self.index = first.model.layer_kinds()
        self.costs = [CostModel(t.cluster, t.question.software) for t in types]
        self._known: dict[tuple[int, int, StageContent, bool], Floats] = {}
        self._steps: dict[tuple[int, int], StepCost] = {}

    def _step(self, at: int, option: int) -> StepCost:
        if (at, option) not in self._steps:
            q = self.types[at].question
            plan = replace(self.rows, recompute=self.options[option])
            context = Context(model=q.model, workload=q.workload, plan=plan, software=q.software, routing=q.routing)
            self._steps[at, option] = StepCost(self.costs[at], context)
        return self._steps[at, option]

    @cached_property
    def _before(self) -> Ints:
        """[kind, layer] layers of each kind before it."""
        one = np.array(self.index)[None] == np.arange(len(self.kinds))[:, None]
        return np.concatenate([np.zeros((len(one), 1), dtype=np.int64), one.cumsum(axis=1)], axis=1)

    def _priced(self, at: int, option: int, content: StageContent, shared: bool) -> Floats:
        """[6, layouts]: seconds forward, alone, in the steady state; bytes static, saved, working; shared: what a stage
        holds once, whatever its virtual stages, is on another one."""
        key = (at, option, content, shared)
        if key not in self._known:
            step = self._step(at, option)
            sums = step.stage_sums(content)
            tags: Mapping[str, Any] = step.static(sums.params)
            static = sum(value for name, value in tags.items() if not (shared and name == "gathered"))
            lines = (
                sums.forward_s, sums.forward_s + sums.backward_s, sums.paired_s, static, sums.saved_bytes,
                sums.working_bytes,
            )  # fmt: skip
            self._known[key] = np.stack([np.broadcast_to(line, len(self.rows)) for line in lines]).astype(np.float64)
        return self._known[key]

    def columns(
        self, row: int, where: Sequence[int], scenario: Scenario, options: Ints, *, beat_s: float = np.inf
    ) -> tuple[Intervals, Floats]:
        """(the columns of one layout that fit by themselves and are not by themselves longer than `beat_s`, seconds
        forward of each); where: type of each stage; options: those of `Prices.options` that are allowed; scenario: the
        layout on any type."""
        plan, layers = scenario.plan, len(self.index)
        spans = spans_of(pp=plan.pp, vpp=plan.vpp, layers=layers)
        out = [self._on_spans(row, where, int(option), plan.pp, spans) for option in options]
        prices = np.concatenate(out, axis=1)
        count = len(spans.slot)
        forward, fill, steady, static, saved, working = prices
        zero, m = np.zeros(len(fill)), plan.num_micro_batches(scenario.workload.global_batch_seqs)
        made = Intervals(
            pp=plan.pp, vpp=plan.vpp, num_layers=layers,
            options=tuple(Setting(recompute=self.options[option]) for option in options),
            capacity_bytes=np.array([self.costs[at].usable_bytes for at in where]),
            host_capacity_bytes=np.full(plan.pp, np.inf),
            num_micro_batches=m, moments=moments_of(plan, m), slot=np.tile(spans.slot, len(options)),
            first=np.tile(spans.first, len(options)), stop=np.tile(spans.stop, len(options)),
            option=np.repeat(np.arange(len(options)), count), fill_s=fill, steady_s=steady, static_bytes=static,
            saved_bytes=saved, working_bytes=working, host_static_bytes=zero, host_saved_bytes=zero,
            deferred_bytes=zero, ramp_s=zero, late_s=zero, end_s=zero,
        )  # fmt: skip
        short = np.flatnonzero(steady * made.num_micro_batches < beat_s)
        made, forward = made.take(short), forward[short]
        fits = np.flatnonzero(_alone_bytes(made) <= made.capacity_bytes[made.slot % made.pp])
        return made.take(fits), forward[fits]

    def _on_spans(self, row: int, where: Sequence[int], option: int, pp: int, spans: Spans) -> Floats:
        """[6, spans] of one layout under one setting; spans of equal content are looked up once."""
        last = int(spans.slot[-1])
        own = self._step(where[0], option).levels.own
        homes = np.array(where)[spans.slot % pp]
        parts = [homes, spans.slot == 0, spans.slot == last, spans.slot >= pp]
        # layers with loads of their own are told apart by number, others by kind
        parts += [spans.first, spans.stop] if own else list(self._before[:, spans.stop] - self._before[:, spans.first])
        first, which = distinct([np.asarray(part, dtype=np.int64) for part in parts])
        met = []
        for i in first.tolist():
            slot, begin, stop = int(spans.slot[i]), int(spans.first[i]), int(spans.stop[i])
            content = StageContent(
                kind_counts=tuple((self._before[:, stop] - self._before[:, begin]).tolist()), embedding=slot == 0,
                head=slot == last, own_loads=tuple(layer for layer in range(begin, stop) if layer in own),
            )  # fmt: skip
            met.append(self._priced(int(homes[i]), option, content, slot >= pp)[:, row])
        return np.array(met).T[:, which]


def _alone_bytes(columns: Intervals) -> Floats:
    """Bytes of each column with nothing else on its stage: never more than its stage needs."""
    chunk, stage = np.divmod(columns.slot, columns.pp)
    need = np.zeros(len(columns))
    for at, moments in enumerate(columns.moments):
        mine = np.flatnonzero(stage == at)
        for moment in moments:
            held = np.array(moment.held)[chunk[mine]] * columns.saved_bytes[mine]
            running = (chunk[mine] == moment.running) * columns.working_bytes[mine]
            need[mine] = np.maximum(need[mine], held + running)
    out: Floats = columns.static_bytes + need
    return out
