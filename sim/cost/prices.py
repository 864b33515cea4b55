"""Prices of the parts of a model by the few plan fields they depend on, kept across blocks of candidates.

A layer's ops see tp, cp, ep, etp and the micro-batch (under FSDP also dp and edp), not the pipeline: a table of
10^5 plans holds a few hundred such settings. `PartPrices` prices each of them once; virtual stages are added up of
that in `sim.cost.stage_prices`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.columns import DEGREE_FIELDS, Columns
from sim.cost.comm import CommTime
from sim.cost.footprint import head_working_bytes, layer_working_bytes
from sim.cost.model import CostModel
from sim.cost.step import SUMMED, StepCost
from sim.ops import Op, exchange_phase
from sim.plan import Degrees

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

MAX_CODES = 1 << 62  # numbers that combinations of a few columns are told apart by
OP_FIELDS = ("tp", "cp", "ep", "etp", "micro_batch_seqs")
# What adds up over the parts of a virtual stage; the last two where the backward is split.
SUMS = ("forward_s", "backward_s", "paired_s", "saved_bytes", "wgrad_s", "deferred_bytes")
PLAIN_SUMS = 4
# Layers cost the same under every schedule; under one that splits the backward all there is to know of them is priced.
ANY_SCHEDULE = "zb-h1"


def setting_fields(zero_stage: int) -> tuple[str, ...]:
    """Fields the price of a virtual stage depends on; sharded parameters travel inside the layers."""
    return (*OP_FIELDS, "dp", "edp") if zero_stage == 3 else OP_FIELDS


def distinct(columns: Sequence[NDArray[Any]]) -> tuple[Index, Index]:
    """(first, which): positions of one row of each distinct combination, and the combination of each row."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    codes = 1  # so many may there be
    for column in columns:
        low, high = int(column.min()), int(column.max())
        if low != high:
            size, place = high - low + 1, column - low
            if codes * size > MAX_CODES:
                values, place = np.unique(column, return_inverse=True)
                size = len(values)
            code, codes = code * size + place, codes * size
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    return first, which


Setting = tuple[int, ...]


def meet(block: Columns, met: dict[Setting, Setting]) -> tuple[list[Setting], Index]:
    """(settings of a block, which of them each row has); `met` has a plan's degrees for each of them from then on."""
    fields = setting_fields(block.zero_stage)
    first, which = distinct([getattr(block, name) for name in fields])
    keys = _tuples(block, first, fields)
    for key, degrees in zip(keys, _tuples(block, first, DEGREE_FIELDS), strict=True):
        met.setdefault(key, degrees)
    return keys, which


StepOf = Callable[[CostModel, Columns], StepCost]
Recompute = tuple[str, ...]


class PartPrices:
    """Prices of the parts of a model under one ZeRO stage, in every setting met.

    cost, step_of: what a block of plans is priced with, and how. met: a plan's degrees for each setting met so far,
    which the blocks to come may ask for: what is priced at all is priced for all of them in one go, a pass.
    lines [line, ..., setting]: sums of every part (`SUMS`, part), bytes of the transient of each kind of layer, of
    those with loads of their own at each of the three loads, activation bytes of each kind per unit of load, bytes of
    head and table.
    """

    def __init__(self, cost: CostModel, step_of: StepOf, met: dict[Setting, Setting]) -> None:
        self._cost, self._step_of, self._met = cost, step_of, met
        self._place: dict[Setting, tuple[int, int]] = {}
        self._passes: list[tuple[Columns, OneBlock]] = []
        self._steps: dict[tuple[int, Recompute, bool], StepCost] = {}
        self._lines: dict[tuple[int, Recompute, bool], Floats] = {}
        self._stacks: dict[tuple[int, tuple[Recompute, ...], bool], Floats] = {}

    @property
    def passes(self) -> int:
        """How often something was priced that had not been met before."""
        return len(self._passes)

    def settings(self, block: Columns) -> tuple[Index, Index]:
        """(pass, place in it) of each row's setting."""
        keys, which = meet(block, self._met)
        if any(key not in self._place for key in keys):
            fresh = [key for key in self._met if key not in self._place]
            degrees = np.array([self._met[key] for key in fresh], dtype=np.int64).T
            fields: dict[str, Any] = {**dict(zip(DEGREE_FIELDS, degrees, strict=True)), **block.discrete()}
            self._passes.append((Columns(**fields), OneBlock(self._cost)))
            self._place.update({key: (self.passes - 1, i) for i, key in enumerate(fresh)})
        number, place = np.array([self._place[key] for key in keys], dtype=np.intp).T
        return number[which], place[which]

    def step(self, number: int, recompute: Recompute, gpipe: bool = False) -> StepCost:
        """The cost of the settings of one pass. gpipe: its head, which keeps the logits of all micro-batches."""
        key = (number, recompute, gpipe)
        if key not in self._steps:
            block, cost = self._passes[number]
            block = replace(block, recompute=recompute, schedule="gpipe" if gpipe else ANY_SCHEDULE)
            self._steps[key] = self._step_of(cost, block)
            if gpipe:
                self._steps[key].layer_parts = self.step(number, recompute).layer_parts
        return self._steps[key]

    def any_step(self, number: int) -> StepCost:
        """A cost of one pass, for what does not depend on recompute."""
        return self.step(number, next((key[1] for key in self._steps if key[0] == number), ()))

    @cached_property
    def own_kinds(self) -> tuple[int, ...]:
        """Kinds of layers some of which have a load of their own."""
        levels = self.any_step(0).levels
        return tuple(sorted({levels.index[layer] for layer in levels.own}))

    @cached_property
    def by_content(self) -> bool:
        """Whether a virtual stage is more than the sum of its parts: it waits for copies, or halves overlap."""
        step = self.any_step(0)
        return step.offload.on or step.ctx.software.two_batch_overlap

    def lines(self, number: int, recomputes: tuple[Recompute, ...], gpipe: bool) -> Floats:
        """[line, recompute, setting] of one pass."""
        key = (number, recomputes, gpipe)
        if key not in self._stacks:
            self._stacks[key] = np.stack([self._of(number, recompute, gpipe) for recompute in recomputes], axis=1)
        return self._stacks[key]

    def _of(self, number: int, recompute: Recompute, gpipe: bool) -> Floats:
        key = (number, recompute, gpipe)
        if key not in self._lines:
            step = self.step(number, recompute)
            self._lines[key] = _lines(step, self.step(number, recompute, gpipe), self.own_kinds)
        return self._lines[key]


class OneBlock(CostModel):
    """The cost of collectives of one block of plans, under any recompute: each is worked out once, as the groups of the
    plans do not change."""

    def __init__(self, cost: CostModel) -> None:
        vars(self).update(vars(cost))
        self._known: dict[tuple[Any, ...], CommTime] = {}

    def comm_time(self, op: Op, plan: Degrees, **options: Any) -> CommTime:
        """See `CostModel.comm_time`; options: always the same routing."""
        sizes = (op.bytes, op.n, op.groups)
        known = (np.asarray(x).tobytes() if np.shape(x) else x for x in sizes)
        said = (options.get("top_k"), options.get("group_limit"), options.get("groups"))
        key = (op.collective, op.axis, op.dtype, exchange_phase(op), *known, *said)
        if key not in self._known:
            self._known[key] = super().comm_time(op, plan, **options)
        return self._known[key]


def _lines(step: StepCost, ending: StepCost, own: Sequence[int]) -> Floats:
    """`PartPrices.lines` of one pass."""
    shape = np.shape(np.asarray(step.ctx.plan.tp))
    levels, parts = step.levels, list(step.layer_parts)
    at = {kind: levels.parts(kind, parts[kind]) for kind in own}
    sums = [step.prices(part) for part in (*parts, *(p for k in own for p in at[k][::2]), step.embedding)]
    sums.append(sum(ending.prices(part) for part in ending.head))
    order = [SUMMED.index(name) for name in SUMS]
    rows = [each[i] for i in order for each in sums]
    rows += [p.remat + layer_working_bytes(step.ctx, layer) for p, layer in zip(parts, step.kinds, strict=True)]
    for kind in own:
        where = zip(at[kind], levels.contexts(kind), strict=True)
        rows += [part.remat + layer_working_bytes(ctx, step.kinds[kind]) for part, ctx in where]
    uneven = bool(step.ctx.routing.loads)
    rows += [step.held.slope(k) if uneven and x.moe is not None else 0.0 for k, x in enumerate(step.kinds)]
    rows += [head_working_bytes(ending.ctx), step.table_bytes()]
    return np.stack([np.broadcast_to(row, shape) for row in rows])


def _tuples(block: Columns, rows: Index, fields: Sequence[str]) -> list[Setting]:
    return list(zip(*(getattr(block, name)[rows].tolist() for name in fields), strict=True))
