"""The candidate table: many plans at once, one numpy array per degree.

A `Columns` block satisfies `sim.plan.Degrees`, so `layer_ops` and the rules take it as they take a
single `Plan`. What is discrete (recompute, ZeRO stage, schedule, ends) is the same for all its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.plan import Plan

IntColumn = NDArray[np.int64]
DEGREE_FIELDS = ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch_seqs")
BLOCK_FIELDS = ("recompute", "zero_stage", "schedule", "fsdp_shard", "account_ends", "micro_batch_group")


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Rows of plans that share their discrete fields; every array is int64 and of equal length."""

    tp: IntColumn
    cp: IntColumn
    dp: IntColumn
    pp: IntColumn
    vpp: IntColumn
    ep: IntColumn
    etp: IntColumn
    edp: IntColumn
    micro_batch_seqs: IntColumn
    recompute: tuple[str, ...] = ()
    zero_stage: int = 1
    schedule: str = "1f1b"
    fsdp_shard: int = 0
    account_ends: bool = False
    micro_batch_group: int = 0

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.tp)

    def discrete(self) -> dict[str, Any]:
        """The fields all rows share."""
        return {name: getattr(self, name) for name in BLOCK_FIELDS}

    def take(self, rows: NDArray[Any]) -> Columns:
        """The rows of a boolean mask or of an array of positions, in that order."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        picked: dict[str, Any] = {name: getattr(self, name).take(index) for name in DEGREE_FIELDS}
        return Columns(**picked, **self.discrete())

    def plan(self, row: int) -> Plan:
        """One row as a plan."""
        degrees: dict[str, Any] = {name: int(getattr(self, name)[row]) for name in DEGREE_FIELDS}
        return Plan(**degrees, **self.discrete())


def columns_of(plans: Sequence[Plan]) -> tuple[Columns, ...]:
    """Plans as blocks: one block per combination of discrete fields, in order of appearance.

    Explicit `stages` are not carried: a column is an even split (or one with lighter ends).
    """
    groups: dict[tuple[Any, ...], list[Plan]] = {}
    for plan in plans:
        groups.setdefault(tuple(getattr(plan, name) for name in BLOCK_FIELDS), []).append(plan)
    blocks = []
    for key, group in groups.items():
        fields: dict[str, Any] = dict(zip(BLOCK_FIELDS, key, strict=True))
        for name in DEGREE_FIELDS:
            fields[name] = np.array([getattr(p, name) for p in group], dtype=np.int64)
        blocks.append(Columns(**fields))
    return tuple(blocks)
