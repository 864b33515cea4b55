"""Interval columns priced by the cost model of the simulator: what a virtual stage of these layers takes and holds.

A content (layers of each kind, ends) is priced once, for one plan or for many layouts at once (`StagePrices` takes the
arrays of a block of plans); the columns of a layout are looked up from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.stage_plan.orders import moments_of, passes_on
from planner.stage_plan.records import Floats, Intervals, Ints, Setting
from sim.build.order import SPLIT_SCHEDULES, chunks_on, passes_of, place_of, placement
from sim.build.schedule import check_schedule
from sim.build.stages import StageContent
from sim.cost.model import CostModel
from sim.cost.prices import distinct
from sim.cost.state import host_state_bytes
from sim.cost.step import StepCost
from sim.model import ModelSpec
from sim.plan import Plan
from sim.scenario import Scenario

SCHEDULES = ("1f1b", "interleaved")
STATED = (*SCHEDULES, *SPLIT_SCHEDULES)  # those whose stages are chosen
# Weight gradients that fill what 1F1B leaves idle in the ramps, of each stage behind the first: Qi et al., "Zero Bubble
# Pipeline Parallelism" (2023), table 2: (p - 1)(F + B - W) and (p - 1)(F + B - 2 W) of input gradients B.
FILLED = {"zb-h1": 2, "zb-h2": 3}
# Rows of a price table: seconds of a forward, of forward and backward, of them paired, of the weight gradient; bytes.
FORWARD, ALONE, PAIRED, WGRAD, STATIC, GATHERED, SAVED, WORKING, DEFERRED, HOST_STATIC, HOST_SAVED = range(11)
LAUNCH, UPDATE = 11, 12  # seconds at the step's end: host launches of a virtual stage, the update of its parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """Ways to fill the virtual stages of a pipeline: layers first <= layer < stop on slot, each with its content."""

    slot: Ints
    first: Ints
    stop: Ints
    content: Any
    contents: tuple[StageContent, ...]


class StagePrices:
    """Prices of contents under one setting, of a plan or of a block of plans."""

    def __init__(self, step: StepCost) -> None:
        self.step = step
        self._state = step.of_state()
        self._met: dict[StageContent, Floats] = {}

    def table(self, contents: Sequence[StageContent]) -> Floats:
        """[row of a price table, content, *plans]."""
        for content in contents:
            if content not in self._met:
                self._met[content] = self._row(content)
        return np.stack([self._met[content] for content in contents], axis=1)

    def _row(self, content: StageContent) -> Floats:
        """Copies to the host are within: they stretch the seconds of their stage, and saved bytes are those that
        stay."""
        sums = self.step.stage_sums(content)
        tags = self._state.static(sums.params)
        gathered = tags.pop("gathered", 0.0)
        rows = (
            sums.forward_s, sums.forward_s + sums.backward_s, sums.paired_s, sums.wgrad_s, sum(tags.values()), gathered,
            sums.saved_bytes, sums.working_bytes, sums.deferred_bytes,
            host_state_bytes(self._state.ctx, sums.params), self.step.moved_bytes(content),
            self.step.end_launch_s(content), self._state.optimizer_s(sums.params),
        )  # fmt: skip
        shape = np.shape(np.asarray(self.step.ctx.plan.tp))
        return np.stack([np.broadcast_to(np.asarray(row, dtype=np.float64), shape) for row in rows])


def under(scenario: Scenario, setting: Setting, **changes: Any) -> Scenario:
    """The scenario under one option, its plan with these changes besides; what else is offloaded stays as asked."""
    plan = replace(scenario.plan, recompute=setting.recompute, **changes)
    if setting.offload is None:
        return replace(scenario, plan=plan)
    workload = replace(scenario.workload, offload=replace(scenario.workload.offload, modules=setting.offload))
    return replace(scenario, plan=plan, workload=workload)


def refuse_unlaid(plan: Plan, layers: int, num_micro_batches: int) -> None:
    """Raises UserError for plans whose stages cannot be chosen."""
    if plan.schedule not in STATED or plan.pp < 2:
        raise UserError(
            f"stages are chosen for schedules {', '.join(STATED)} on 2 stages or more; the plan has "
            f"{plan.schedule} on {plan.pp}; change --schedule or --pp",
            where="stages",
        )
    chunks = chunks_on(plan.schedule, plan.vpp)
    check_schedule(
        plan.schedule, pp=plan.pp, vpp=chunks, num_micro_batches=num_micro_batches, group=plan.micro_batch_group
    )
    slots = plan.pp * plan.vpp
    if layers < slots - 2:
        raise UserError(
            f"{layers} layers on {slots} virtual stages leave more than the ends empty; lower --pp or --vpp",
            where="stages",
        )


def intervals(scenario: Scenario, options: Sequence[Setting], machines: Sequence[Scenario] = ()) -> Intervals:
    """All columns of a scenario whose plan says pp, vpp, schedule and micro-batches; its own stages do not matter.

    machines[stage]: the same plan on the cluster, with the software, that the stage runs on; () = all on the
    scenario's.

    Every virtual stage holds a layer at least, but for the first and the last, which may hold the embedding, or norm,
    head, loss and MTP blocks, alone. Columns that cannot fit by themselves are left out. Raises UserError for
    schedules whose step no closed form describes.
    """
    plan = scenario.plan
    homes = list(machines) or [scenario] * plan.pp
    unlike = {id(s): s for s in homes}
    costs = {at: CostModel(s.cluster, s.software, ranks=s.ranks) for at, s in unlike.items()}
    steps = [
        {at: StepCost(costs[at], under(s, setting, stages=None).context()) for at, s in unlike.items()}
        for setting in options
    ]  # fmt: skip
    layers = len(scenario.model.layers)
    m = plan.num_micro_batches(scenario.workload.global_batch_seqs)
    refuse_unlaid(plan, layers, m)
    spans = spans_of(scenario.model, plan, layers, own=next(iter(steps[0].values())).levels.own)
    places = [id(homes[slot % plan.pp]) for slot in range(plan.pp * plan.vpp)]
    prices = []
    for each in steps:
        tables = {at: StagePrices(step).table(spans.contents)[:, spans.content] for at, step in each.items()}
        first = next(iter(tables.values()))
        if len(tables) > 1:
            first = np.empty_like(first)
            for at, table in tables.items():
                mine = np.isin(spans.slot, [slot for slot, place in enumerate(places) if place == at])
                first[:, mine] = table[:, mine]
        prices.append(first)
    return columns_of(
        spans, prices, plan=plan, options=options, layers=layers, num_micro_batches=m,
        capacity_bytes=np.array([costs[id(s)].usable_bytes for s in homes]),
        host_capacity_bytes=np.array([s.cluster.host_mem_bytes / s.cluster.devices_per_node for s in homes]),
    )  # fmt: skip


def spans_of(model: ModelSpec, plan: Plan, longest: int, *, own: Any = ()) -> Spans:
    """Every way to fill the virtual stages of a plan with at most `longest` layers; own: layers with loads of their
    own, whose contents are all unlike."""
    layers, slots = len(model.layers), plan.pp * plan.vpp
    grid = np.ix_(np.arange(slots), np.arange(layers + 1), np.arange(min(longest, layers) + 1))
    slot, first, length = (np.broadcast_to(axis, [len(a.ravel()) for a in grid]).ravel() for axis in grid)
    stop = first + length
    last = slots - 1
    good = (stop <= layers) & ((length > 0) | (slot == 0) | (slot == last))
    good &= np.where(slot == 0, first == 0, first >= slot - 1)
    good &= np.where(slot == last, stop == layers, layers - stop >= np.maximum(0, slots - slot - 2))
    slot, first, stop = slot[good], first[good], stop[good]
    kinds, index = model.layer_kinds()
    before = np.zeros((len(kinds), layers + 1), dtype=np.int64)
    for kind in range(len(kinds)):
        before[kind, 1:] = np.cumsum(np.array(index) == kind)
    keys = [*(row[stop] - row[first] for row in before), slot == 0, slot == last]
    keys += [first, stop] if own else []
    some, which = distinct([np.asarray(key, dtype=np.int64) for key in keys])
    contents = tuple(
        StageContent(
            kind_counts=tuple(int(row[stop[i]] - row[first[i]]) for row in before), embedding=bool(slot[i] == 0),
            head=bool(slot[i] == last), own_loads=tuple(n for n in range(first[i], stop[i]) if n in own),
        )
        for i in some.tolist()
    )  # fmt: skip
    return Spans(slot=slot, first=first, stop=stop, content=which, contents=contents)


def columns_of(
    spans: Spans, prices: Sequence[Floats], *, plan: Plan, options: Sequence[Setting], layers: int,
    num_micro_batches: int, capacity_bytes: Floats, host_capacity_bytes: Floats,
    useful: Callable[[Intervals], Any] | None = None,
) -> Intervals:  # fmt: skip
    """The columns of a layout; prices[option][row of a price table, span]. useful: which are looked at at all."""
    placed = placement(plan.schedule)
    slot, first, stop = (np.tile(line, len(options)) for line in (spans.slot, spans.first, spans.stop))
    p = np.concatenate(prices, axis=1)
    later = slot >= plan.pp if placed != "both" else slot >= plan.pp // 2
    alone, ramp, late = p[ALONE], np.zeros(len(slot)), np.zeros(len(slot))
    steady = p[PAIRED]
    if plan.schedule in SPLIT_SCHEDULES:
        steady, ramp, late = _split_seconds(plan, slot, p, num_micro_batches)
    filled = FILLED.get(plan.schedule, 0) * (1.0 - 1.0 / plan.pp)
    made = Intervals(
        pp=plan.pp, vpp=plan.vpp, num_layers=layers, options=tuple(options), placed=placed,
        capacity_bytes=capacity_bytes, host_capacity_bytes=host_capacity_bytes, num_micro_batches=num_micro_batches,
        moments=moments_of(plan, num_micro_batches), slot=slot, first=first, stop=stop,
        option=np.repeat(np.arange(len(options)), len(spans.slot)),
        # the update of two virtual stages may take less than those of each
        end_s=p[LAUNCH] + (p[UPDATE] if plan.vpp == 1 and placed == "loop" else 0.0),
        fill_s=np.maximum(alone - filled * p[WGRAD], alone / plan.pp), steady_s=steady, ramp_s=ramp, late_s=late,
        # gathered layers are held once on a stage, whatever its virtual stages
        static_bytes=p[STATIC] + np.where(later, 0.0, p[GATHERED]), saved_bytes=p[SAVED], working_bytes=p[WORKING],
        host_static_bytes=p[HOST_STATIC], host_saved_bytes=p[HOST_SAVED], deferred_bytes=p[DEFERRED],
    )  # fmt: skip
    if useful is not None:
        made = made.take(np.flatnonzero(useful(made)))
    return made.take(np.flatnonzero(_fit_alone(made)))


def _split_seconds(plan: Plan, slot: Ints, p: Floats, m: int) -> tuple[Floats, Floats, Floats]:
    """steady_s, ramp_s and late_s of columns under a schedule that splits the backward."""
    passes, placed = passes_on(plan.schedule, plan.pp, plan.vpp, m), placement(plan.schedule)
    where = np.array([place_of(each, pp=plan.pp, placed=placed) for each in range(plan.pp * plan.vpp)])
    if placed == "both":  # the later half runs as the mirrored chunk of the earlier one
        where = np.array([(min(s, plan.pp - 1 - s), int(s >= plan.pp // 2)) for s in range(plan.pp)])
    stage, chunk = where[slot].T
    forward, backward, pair_f, pair_b, late = (
        getattr(passes, name)[stage, chunk]
        for name in ("forward", "backward", "paired_forward", "paired_backward", "late")
    )
    behind = p[ALONE] - p[FORWARD]
    share = np.divide(p[PAIRED], p[ALONE], out=np.ones(len(slot)), where=p[ALONE] > 0.0)
    whole = (forward + share * pair_f) * p[FORWARD] + (backward + share * pair_b) * behind
    ramp = np.where(chunk == 0, p[ALONE] - p[WGRAD], 0.0)
    return whole / passes_of(plan.schedule, m), ramp, late * p[WGRAD]


def _fit_alone(columns: Intervals) -> Any:
    """Columns that fit with nothing else on their stage: it never needs less."""
    fits = np.ones(len(columns), dtype=bool)
    for stage in range(columns.held_once):
        for chunk, slot in enumerate(columns.mates(stage)):
            mine = np.flatnonzero(columns.slot == slot)
            need = columns.need_bytes(stage, chunk, mine).max(axis=0)
            fits[mine] = need <= columns.capacity_bytes[stage]
            if columns.on_host:
                need = columns.need_bytes(stage, chunk, mine, host=True).max(axis=0)
                fits[mine] &= need <= columns.host_capacity_bytes[stage]
    return fits
