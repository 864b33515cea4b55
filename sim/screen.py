"""Screening: memory and a true lower bound of the step for a block of 10^5 plans at once.

Op prices depend on few fields of a plan (tp, cp, ep, etp, micro-batch, and through group placement dp and
edp), so they are computed on the distinct rows and spread back; the pipeline formula then runs
on columns, one (pp, vpp) pair at a time. `StepCost` is the one the event run uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.build.context import Context
from sim.build.stages import StageContent, stage_contents
from sim.columns import Columns
from sim.cost.footprint import LocalParams, in_flight
from sim.cost.model import CostModel
from sim.cost.step import StageSums, StepCost
from sim.model import ModelSpec
from sim.routing import Routing
from sim.workload import Workload

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Screened:
    """Per row: bound_s <= simulated step (inf where it cannot be laid out), peak_bytes of the fullest
    stage, fits (peak within what a rank may allocate)."""

    bound_s: Floats
    peak_bytes: Floats
    fits: NDArray[np.bool_]


def screen(
    model: ModelSpec, cluster: ClusterSpec, software: SoftwareProfile, workload: Workload, columns: Columns, *,
    routing: Routing | None = None, cost: CostModel | None = None,
) -> Screened:  # fmt: skip
    """Bound and memory of every row of `columns`; rows must already satisfy the layout rules."""
    cost = cost or CostModel(cluster, software)
    rows = len(columns)
    bound, peak = np.full(rows, np.inf), np.full(rows, np.inf)
    key = columns.pp * 4096 + columns.vpp
    for value in np.unique(key):
        index = np.flatnonzero(key == value)
        part = columns.take(index)
        _screen_pipeline(model, software, workload, part, routing or Routing(), cost, index, bound, peak)
    f = cost.factors
    usable = (cost.device.mem_bytes - f.context_bytes - software.reserved_bytes) / (1.0 + f.fragmentation)
    return Screened(bound_s=bound, peak_bytes=peak, fits=peak <= usable)


def _screen_pipeline(
    model: ModelSpec, software: SoftwareProfile, workload: Workload, part: Columns, routing: Routing, cost: CostModel,
    index: NDArray[np.intp], bound: Floats, peak: Floats,
) -> None:  # fmt: skip
    """All rows of one (pp, vpp): same stage contents, so sums run over columns."""
    pp, vpp = int(part.pp[0]), int(part.vpp[0])
    if pp * vpp > len(model.layers):
        return
    mtp = workload.with_mtp and model.mtp_layers > 0
    contents = stage_contents(model, pp, vpp, account_ends=part.account_ends, mtp=mtp)
    step = StepCost(cost, Context(model=model, workload=workload, plan=part, software=software, routing=routing))
    sums = _Sums(step)
    m = workload.global_batch_seqs // np.maximum(1, part.micro_batch_seqs * part.dp)
    hop = step.p2p()
    hop_s = np.asarray(hop.latency_s + np.maximum(hop.up_s, hop.out_s))
    fill = np.zeros(len(part))
    drain = np.zeros(len(part))
    best = np.zeros(len(part))
    top = np.zeros(len(part))
    for stage in range(pp):
        chunks = [sums.of(c) for c in contents[stage]]
        work = m * sum(np.asarray(c.paired_s) for c in chunks)
        params = chunks[0].params
        for c in chunks[1:]:
            params = params + c.params
        finish = fill + work + _tail_s(step, software, params, part, contents[stage])
        best = np.maximum(best, np.maximum(finish, fill + work + drain))
        top = np.maximum(top, _peak(step, chunks, params, part, stage, m))
        fill = fill + chunks[0].forward_s + hop_s
        drain = drain + chunks[0].backward_s + hop_s
    bound[index] = best + cost.factors.step_fixed_s
    peak[index] = top


class _Sums:
    """Stage sums per distinct content (middle stages are alike)."""

    def __init__(self, step: StepCost) -> None:
        self.step = step
        self.cache: dict[StageContent, StageSums] = {}

    def of(self, content: StageContent) -> StageSums:
        if content not in self.cache:
            self.cache[content] = self.step.stage_sums(content)
        return self.cache[content]


def _tail_s(
    step: StepCost, software: SoftwareProfile, params: LocalParams, part: Columns, contents: tuple[StageContent, ...]
) -> Any:
    """What must follow a stage's last backward: the last gradient bucket (all of it if not overlapped), optimizer."""
    grad, _ = step.data_parallel(params)
    pieces = len(contents) * max(1, max(c.num_layers for c in contents)) if software.dp_overlap_grad else 1
    return grad.alone_s / pieces + step.optimizer_s(params)


def _peak(step: StepCost, chunks: list[StageSums], params: LocalParams, part: Columns, stage: int, m: Any) -> Any:
    """Static bytes, chunks in flight x their activations, and the largest transient."""
    static = sum(np.asarray(v) for v in step.static(params).values())
    pp, vpp = int(part.pp[0]), int(part.vpp[0])
    held = in_flight(part.schedule, pp, vpp, stage, m)
    saved = np.asarray(sum(np.asarray(c.saved_bytes) for c in chunks)) / len(chunks)
    working = np.zeros(len(part))
    for c in chunks:
        working = np.maximum(working, c.working_bytes)
    return static + held * saved + working


