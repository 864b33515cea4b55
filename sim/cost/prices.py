"""Prices of virtual stages by the few plan fields they depend on, kept across blocks of candidates.

A layer's ops see tp, cp, ep, etp and the micro-batch (under FSDP also dp and edp), not the pipeline: a table of
10^5 plans holds a few hundred such settings. `PriceTable` prices each setting and content once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.build.order import SPLIT_SCHEDULES
from sim.build.stages import StageContent
from sim.columns import DEGREE_FIELDS, Columns
from sim.cost.state import more_fields
from sim.cost.step import StepCost

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

MAX_CODES = 1 << 62  # numbers that combinations of a few columns are told apart by
OP_FIELDS = ("tp", "cp", "ep", "etp", "micro_batch_seqs")
# Rows of a price table: seconds alone, seconds of each when paired, bytes, parameters, host seconds at the step's end.
FORWARD, BACKWARD, PAIRED_FORWARD, PAIRED_BACKWARD, SAVED, WORKING, DENSE, ROUTED, END = range(9)
# More of them where the schedule splits the backward: seconds of the weight gradient, bytes it needs when put off, the
# larger of those and the activations. Behind all of them `LocalParams.more` (`more_from`).
WGRAD, DEFERRED, LARGER = range(9, 12)


def more_from(schedule: str) -> int:
    """The first row of a price table that is of `LocalParams.more`."""
    return (LARGER if schedule in SPLIT_SCHEDULES else END) + 1


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


class PriceTable:
    """Prices under one recompute setting and ZeRO stage.

    step_of: the cost of a block of plans. met: a plan's degrees for each setting met so far, shared by the tables of
    one question, so that a new table prices in one go what the blocks to come will ask for.
    """

    def __init__(self, step_of: Callable[[Columns], StepCost], met: dict[Setting, Setting]) -> None:
        self._step_of = step_of
        self._met = met
        self._place: dict[Setting, int] = {}
        self._steps: list[StepCost] = []
        self._prices: dict[StageContent, list[Floats]] = {}
        self._alone: dict[tuple[int, StageContent], Floats] = {}

    def settings(self, block: Columns) -> tuple[Index, Index]:
        """(settings of this block, which of them each row has); prices settings not met before."""
        keys, which = meet(block, self._met)
        if any(key not in self._place for key in keys):
            fresh = [key for key in self._met if key not in self._place]
            degrees = np.array([self._met[key] for key in fresh], dtype=np.int64).T
            fields: dict[str, Any] = {**dict(zip(DEGREE_FIELDS, degrees, strict=True)), **block.discrete()}
            self._steps.append(self._step_of(Columns(**fields)))
            self._place.update({key: len(self._place) + i for i, key in enumerate(fresh)})
        return np.array([self._place[key] for key in keys], dtype=np.intp), which

    def table(self, contents: Sequence[StageContent], settings: Index) -> Floats:
        """prices[field, content, setting] of the given contents and settings."""
        first = self._steps[0]
        count = more_from(first.ctx.plan.schedule) + len(more_fields(first.ctx.workload))
        out = np.empty((count, len(contents), len(settings)))
        for i, content in enumerate(contents):
            done = self._prices.setdefault(content, [])
            done += [self._row(number, content) for number in range(len(done), len(self._steps))]
            out[:, i] = (done[0] if len(done) == 1 else np.concatenate(done, axis=1)).take(settings, axis=1)
        return out

    def _row(self, number: int, content: StageContent) -> Floats:
        """Prices of one content in the settings of one pass; what lies beside it changes its activations alone."""
        step = self._steps[number]
        if not content.beside:
            return _row(step, content)
        alone = replace(content, beside=())
        if (number, alone) not in self._alone:
            self._alone[number, alone] = _row(step, alone)
        row = self._alone[number, alone].copy()
        s = step.stage_sums(content)
        row[SAVED], row[WORKING] = s.saved_bytes, s.working_bytes
        if step.ctx.plan.schedule in SPLIT_SCHEDULES:
            row[LARGER] = np.maximum(s.saved_bytes, s.deferred_bytes)
        return row


def _tuples(block: Columns, rows: Index, fields: Sequence[str]) -> list[Setting]:
    return list(zip(*(getattr(block, name)[rows].tolist() for name in fields), strict=True))


def _row(step: StepCost, content: StageContent) -> Floats:
    """Prices of one content, one line per field."""
    s = step.stage_sums(content)
    alone = s.forward_s + s.backward_s
    end_s = np.broadcast_to(step.end_launch_s(content), np.shape(alone))
    share = np.where(alone > 0.0, s.paired_s / np.where(alone > 0.0, alone, 1.0), 1.0)
    rows = [
        s.forward_s, s.backward_s, s.forward_s * share, s.backward_s * share, s.saved_bytes,
        s.working_bytes, s.params.dense, s.params.routed, end_s,
    ]  # fmt: skip
    if step.ctx.plan.schedule in SPLIT_SCHEDULES:
        rows += [s.wgrad_s, s.deferred_bytes, np.maximum(s.saved_bytes, s.deferred_bytes)]
    rows += [np.broadcast_to(x, np.shape(alone)) for x in s.params.more]
    return np.stack(rows)
