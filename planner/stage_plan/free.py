"""A lower bound of the step of a layout whatever layers its stages hold: what the best stages could still give.

The work of a micro-batch (every layer, embedding, head and loss, forward and backward) is split over p stages, w_s on
stage s, and W is its sum. A stage runs m micro-batches in an order that the schedule fixes, so T >= m w_s and T >= m
W / p. With virtual stages every one but the ends holds a layer, which the first micro-batch passes on its way down
and the last on its way up: with t the least time of a layer, T >= m w_s + max(s - 1, 0) t, and on average over s T >=
m W / p + t (p - 1) (p - 2) / (2 p). Plain 1F1B says more: the first micro-batch comes down through the stages before
and the last one goes up through them, T >= w_0 + ... + w_{s-1} + m w_s, which is least for W / (1 - (1 - 1/m)^p).
Where no micro-batches are paired, a stage has run min(m, p - s) forwards when its first backward ends, which has
passed every stage; the rest follows: T >= W + c_s w_s with c_s = m - 1 - (min(m, p - s) - 1) phi and phi the largest
share of the forward in any part, which is least for W (1 + 1 / sum(1 / c_s)). A stage ends with the host launches of
its update (without virtual stages with that update too), e_s: T >= m w_s + e_s, on average m W / p + e / p; with the
way up to the first stage follows e_0. Of memory only `planner.stage_plan.room` is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hwprofiles.specs import SoftwareProfile
from planner.ranks import Question
from planner.stage_plan import pairs
from planner.stage_plan.bounds import least_bottleneck_s
from planner.stage_plan.dynamic import Paths, sweep
from planner.stage_plan.records import Floats, Intervals, Ints, Modules
from planner.stage_plan.room import may_fit, parts_of
from sim.build.context import Context
from sim.build.order import SPLIT_SCHEDULES
from sim.build.stages import StageContent
from sim.columns import Columns
from sim.cost.model import CostModel
from sim.cost.prices import distinct, setting_fields
from sim.cost.step import StepCost
from sim.cost.timing import BACKWARD, FORWARD, pair_s
from sim.mesh import RankMap


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One micro-batch through all layers and ends, of a plan or of columns. alone_s: forward and backward; paired_s:
    with each part paired where that is shorter; layer_s: least of a layer, alone; share: the largest of the forward
    in a part; largest_s: the longest of what no stages can split, paired: a layer, or norm, head, loss and MTP blocks;
    least_s: least of a layer, paired; launch_s: host launches of the update of all, once a step.
    """

    alone_s: Any
    paired_s: Any
    layer_s: Any
    share: Any
    largest_s: Any = 0.0
    least_s: Any = 0.0
    launch_s: Any = 0.0

    def at(self, rows: Any) -> Work:
        """Some of the columns."""
        return Work(**{name: _of(value, rows) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class PartWork:
    """One layer or end of a plan or of columns, `count` of them; seconds of one micro-batch, paired where shorter."""

    count: Any
    forward_s: Any
    alone_s: Any
    paired_s: Any
    layer: bool


def part_works(step: StepCost) -> list[PartWork]:
    """Everything a micro-batch runs through.

    What virtual stages add to their parts (ends of two-batch overlap, waiting for copies to the host) is left out.
    """
    content = whole_of(step)
    layers, longer, found = len(step.layers_of(content)), step.stragglers, []
    for at, (count, part) in enumerate(step.parts_of(content)):
        alone = part.duration_s(FORWARD) + part.duration_s(BACKWARD)
        pair = alone
        if step.ctx.software.a2a_overlap:
            pair = np.maximum(pair_s(step.cost, part), part.host[FORWARD] + part.host[BACKWARD])
        found.append(
            PartWork(
                count=count, forward_s=longer * part.duration_s(FORWARD), alone_s=longer * alone,
                paired_s=longer * np.minimum(pair, alone), layer=at < layers,
            )
        )  # fmt: skip
    return found


def whole_of(step: StepCost) -> StageContent:
    """The whole model as one virtual stage."""
    kinds, index = step.ctx.model.layer_kinds()
    return StageContent(
        kind_counts=tuple(index.count(kind) for kind in range(len(kinds))), embedding=True, head=True,
        own_loads=tuple(sorted(step.levels.own)),
    )  # fmt: skip


def work_of(step: StepCost) -> Work:
    """The work of a plan's micro-batch."""
    zero = np.zeros(np.shape(np.asarray(step.ctx.plan.tp)))
    alone_s, paired_s, share, layer_s = zero, zero, zero, zero + np.inf
    parts = part_works(step)
    # behind the layers stand the embedding and then everything of the head
    heads = [part.count * part.paired_s for part in parts if not part.layer][1:]
    largest_s, least_s = sum(heads, zero), zero + np.inf
    for part in parts:
        least_s = np.minimum(least_s, part.paired_s) if part.layer else least_s
        largest_s = np.maximum(largest_s, part.paired_s) if part.layer else largest_s
        alone_s = alone_s + part.count * part.alone_s
        paired_s = paired_s + part.count * part.paired_s
        share = np.maximum(share, part.forward_s / np.maximum(part.alone_s, np.finfo(float).tiny))
        layer_s = np.minimum(layer_s, part.alone_s) if part.layer else layer_s
    return Work(
        alone_s=alone_s, paired_s=paired_s, layer_s=layer_s, share=share, largest_s=largest_s, least_s=least_s,
        launch_s=zero + step.end_launch_s(whole_of(step)),
    )  # fmt: skip


def late(stages: int, micro_batches: int, share: float) -> Floats:
    """c_s of each stage [stages]; share: phi (see the module)."""
    before = np.minimum(micro_batches, stages - np.arange(stages)) - 1
    out: Floats = micro_batches - 1 - before * share
    return out


def least_step_s(pp: Ints, m: Ints, work: Work, plain: Any, *, steady: bool = True) -> Floats:
    """The bound of each row from its work; plain: without virtual stages, in the order of 1F1B where steady, else of
    GPipe, which passes the stages before on its way down and up too. Arrays of equal length."""
    alone_s, paired_s, share = work.alone_s, work.paired_s, work.share
    mean_s = m * paired_s / pp
    bound = np.maximum(mean_s + work.layer_s * (pp - 1) * (pp - 2) / (2 * pp), mean_s + work.launch_s / pp)
    bound = np.maximum(bound, m * work.largest_s)
    prefix = paired_s / -np.expm1(pp * np.log1p(-np.minimum(1.0 / m, 1.0 - 1e-12)))
    bound = np.where(plain, np.maximum(bound, prefix), bound)
    unpaired = plain & (paired_s >= alone_s * (1.0 - 1e-12)) & steady
    for stages in np.unique(pp[unpaired]).tolist():
        rows = np.flatnonzero(unpaired & (pp == stages))
        before = np.minimum(m[rows, None], stages - np.arange(stages)[None]) - 1
        counts = np.maximum(m[rows, None] - 1 - before * share[rows, None], 0.0)
        with np.errstate(divide="ignore"):
            after = 1.0 / (1.0 / counts).sum(axis=1)  # zero where a stage has nothing left to do
        bound[rows] = np.maximum(bound[rows], alone_s[rows] * (1.0 + after))
    found: Floats = np.asarray(bound, dtype=np.float64)
    return found


def free_bounds(question: Question, ranks: RankMap, rows: Columns, options: Sequence[Modules]) -> Floats:
    """Seconds no event run of a row beats, whatever layers its stages hold and whichever of the recompute options it
    runs, inf where none fits; rows: on two stages or more, of 1f1b and interleaved alike, of gpipe, or of a schedule
    that splits the backward."""
    least: Floats = free_bounds_by_option(question, ranks, rows, options).min(axis=0)
    return least


def free_bounds_by_option(
    question: Question, ranks: RankMap, rows: Columns, options: Sequence[Modules], limit_s: float = np.inf
) -> Floats:  # fmt: skip
    """The same [option, row]; of rows beyond limit_s memory is not asked."""
    q = question
    cost = CostModel(q.cluster, q.software, ranks=ranks)
    # the state of a stage depends on data parallelism too, and not on the pipeline
    first, which = distinct([getattr(rows, name) for name in (*setting_fields(3), "pp")])
    m = np.maximum(1, q.workload.global_batch_seqs // (rows.micro_batch_seqs * rows.dp))
    found = np.full((len(options), len(rows)), np.inf)
    for at, modules in enumerate(options):
        few = replace(rows.take(first), recompute=modules)
        context = Context(model=q.model, workload=q.workload, plan=few, software=q.software, routing=q.routing)
        step = StepCost(cost, context)
        work, plain = work_of(step).at(which), rows.vpp == 1
        late_first = rows.schedule == "gpipe"  # its first backward waits for all forwards, not for a warm-up of few
        if rows.schedule in SPLIT_SCHEDULES:
            # a pass on its way waits for less than whole layers: weight gradients may follow later
            copies = 2.0 if rows.schedule == "dualpipe" else 1.0
            work = replace(work, layer_s=np.zeros(len(rows)), largest_s=work.largest_s / copies)
            plain = np.zeros(len(rows), dtype=bool)
        bound = least_step_s(rows.pp, m, work, plain, steady=not late_first)
        parts, asked = parts_of(step), np.flatnonzero(bound < limit_s)
        if parts is not None and len(asked):
            rows_parts = [(n, *(_of(x, which[asked]) for x in sizes)) for n, *sizes in parts]
            fits = may_fit(rows.take(asked), m[asked], rows_parts, cost.usable_bytes)
            bound[asked[~fits]] = np.inf
        found[at] = bound
    return found + step_end_s(cost, q.software)


def _of(value: Any, rows: Any) -> Any:
    """A number as it is, an array at these rows."""
    return value if np.ndim(value) == 0 else np.asarray(value)[rows]


def step_end_s(cost: CostModel, software: SoftwareProfile) -> float:
    """Host seconds at the end of every step that follow the last stage's work, whatever it holds."""
    return 0.0 if software.optimizer_post_validation else cost.factors.step_fixed_s


def least_priced_s(
    columns: Intervals, work: Work, *, paired: bool, split: bool = False, limit_s: float = np.inf
) -> float:  # fmt: skip
    """The same bound with whole layers that fit, of the columns of one layout; paired: its micro-batches are; split:
    its schedule splits the backward; limit_s: beyond it nothing is asked."""
    m = columns.num_micro_batches
    if not len(columns):
        return float("inf")
    if columns.placed != "loop":
        return pairs.least_step_s(columns, limit_s)
    ended = replace(columns, steady_s=columns.steady_s + columns.end_s / m)
    bound = m * min(least_bottleneck_s(ended, (option,)) for option in range(len(columns.options)))
    if columns.vpp > 1:
        return bound
    if split:
        price = pairs.ramp_prices(columns, columns.pp, m)
        weighed = replace(columns, fill_s=price, steady_s=price)
    elif not paired and m > 1:
        weights = late(columns.pp, m, float(work.share)) / (m - 1)
        first_s = np.where(columns.slot == 0, columns.end_s, 0.0)
        weighed = replace(
            columns, fill_s=columns.fill_s + first_s, steady_s=columns.fill_s * weights[columns.slot]
        )  # fmt: skip
        path = sweep(weighed, per_stage=False)
        return float("inf") if path is None else max(bound, weighed.objective_s(path))
    else:
        return bound
    shortest = [Paths(weighed, (option,)).shortest() for option in range(len(columns.options))]
    return max(bound, min((each[0] for each in shortest if each is not None), default=float("inf")))
