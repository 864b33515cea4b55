"""Interval columns priced by the cost model of the simulator: what a virtual stage of these layers takes and holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.stage_plan.records import Floats, Intervals, Moment, Setting
from sim.build.forms import Layout, stage_forms
from sim.build.stages import StageContent
from sim.cost.model import CostModel
from sim.cost.state import host_state_bytes
from sim.cost.step import StepCost
from sim.scenario import Scenario

SCHEDULES = ("1f1b", "interleaved")


def under(scenario: Scenario, setting: Setting, **changes: Any) -> Scenario:
    """The scenario under one option, its plan with these changes besides; what else is offloaded stays as asked."""
    plan = replace(scenario.plan, recompute=setting.recompute, **changes)
    if setting.offload is None:
        return replace(scenario, plan=plan)
    workload = replace(scenario.workload, offload=replace(scenario.workload.offload, modules=setting.offload))
    return replace(scenario, plan=plan, workload=workload)


def intervals(scenario: Scenario, options: Sequence[Setting], machines: Sequence[Scenario] = ()) -> Intervals:
    """All columns of a scenario whose plan says pp, vpp, schedule and micro-batches; its own stages do not matter.

    machines[stage]: the same plan on the cluster, with the software, that the stage runs on; () = all on the
    scenario's.

    Every virtual stage holds a layer at least, but for the first and the last, which may hold the embedding, or norm,
    head, loss and MTP blocks, alone. Columns that cannot fit by themselves are left out. Raises UserError for
    schedules whose step the closed form does not describe.
    """
    plan = scenario.plan
    if plan.schedule not in SCHEDULES or plan.pp < 2:
        raise UserError(
            f"stages are chosen for schedules {' and '.join(SCHEDULES)} on 2 stages or more; the plan has "
            f"{plan.schedule} on {plan.pp}; change --schedule or --pp",
            where="stages",
        )
    layers, slots = len(scenario.model.layers), plan.pp * plan.vpp
    if layers < slots - 2:
        raise UserError(
            f"{layers} layers on {slots} virtual stages leave more than the ends empty; lower --pp or --vpp",
            where="stages",
        )
    spans = [
        (slot, first, stop)
        for slot in range(slots)
        for first in ([0] if slot == 0 else range(max(0, slot - 1), layers + 1))
        for stop in ([layers] if slot == slots - 1 else range(first, layers + 1))
        if (stop > first or slot in (0, slots - 1)) and layers - stop >= max(0, slots - slot - 2)
    ]
    homes = list(machines) or [scenario] * plan.pp
    costs = {id(s): CostModel(s.cluster, s.software, ranks=s.ranks) for s in homes}
    keys = np.array(spans, dtype=np.int64).T
    rows = []
    for setting in options:
        prices = np.empty((7, len(spans)))
        for home in {id(s): s for s in homes}.values():
            mine = np.flatnonzero([homes[slot % plan.pp] is home for slot in keys[0]])
            prices[:, mine] = _prices(home, costs[id(home)], setting, [spans[i] for i in mine])
        rows.append(prices)
    slot, first, stop = (np.tile(line, len(options)) for line in keys)
    fill, steady, static, saved, working, host_static, host_saved = np.concatenate(rows, axis=1)
    made = Intervals(
        pp=plan.pp, vpp=plan.vpp, num_layers=layers, options=tuple(options),
        capacity_bytes=np.array([costs[id(s)].usable_bytes for s in homes]),
        host_capacity_bytes=np.array([s.cluster.host_mem_bytes / s.cluster.devices_per_node for s in homes]),
        num_micro_batches=plan.num_micro_batches(scenario.workload.global_batch_seqs),
        moments=moments_of(scenario), slot=slot, first=first, stop=stop,
        option=np.repeat(np.arange(len(options)), len(spans)), fill_s=fill, steady_s=steady, static_bytes=static,
        saved_bytes=saved, working_bytes=working, host_static_bytes=host_static, host_saved_bytes=host_saved,
    )  # fmt: skip
    fits = _alone_bytes(made) <= made.capacity_bytes[made.slot % made.pp]
    if made.on_host:
        fits &= _alone_on_host(made) <= made.host_capacity_bytes[made.slot % made.pp]
    return made.take(np.flatnonzero(fits))


def _prices(scenario: Scenario, cost: CostModel, setting: Setting, spans: Sequence[tuple[int, int, int]]) -> Floats:
    """fill_s, steady_s, static, saved and working bytes, static and saved bytes on the host [7, spans] of one option.

    Copies to the host are within: they stretch the seconds of their stage, and saved bytes are those that stay.
    """
    plan = scenario.plan
    step = StepCost(cost, under(scenario, setting, stages=None).context())
    kinds, index = scenario.model.layer_kinds()
    last = plan.pp * plan.vpp - 1
    met: dict[StageContent, tuple[float, ...]] = {}
    out = []
    for slot, first, stop in spans:
        mine = index[first:stop]
        content = StageContent(
            kind_counts=tuple(mine.count(kind) for kind in range(len(kinds))), embedding=slot == 0, head=slot == last,
            own_loads=tuple(layer for layer in range(first, stop) if layer in step.levels.own),
        )  # fmt: skip
        if content not in met:
            sums = step.stage_sums(content)
            tags = step.static(sums.params)
            if slot >= plan.pp:
                tags.pop("gathered", None)  # held once on a stage, whatever its virtual stages
            times = float(sums.forward_s + sums.backward_s), float(sums.paired_s)
            bytes_ = (sum(float(v) for v in tags.values()), float(sums.saved_bytes), float(sums.working_bytes))
            on_host = float(host_state_bytes(step.ctx, sums.params)), float(step.moved_bytes(content))
            met[content] = (*times, *bytes_, *on_host)
        out.append(met[content])
    return np.array(out, dtype=np.float64).T


def moments_of(scenario: Scenario) -> tuple[tuple[Moment, ...], ...]:
    """Moments of every stage, from the forms screening uses, with every chunk a content of its own."""
    plan = scenario.plan
    marks = [StageContent(kind_counts=(chunk + 1,), embedding=False, head=False) for chunk in range(plan.vpp)]
    layout = Layout(pp=plan.pp, vpp=plan.vpp, contents=(tuple(marks),) * plan.pp, kept=tuple(range(plan.pp)))
    m = plan.num_micro_batches(scenario.workload.global_batch_seqs)
    out = []
    for form in stage_forms(layout, plan.schedule, m, plan.micro_batch_group):
        held = [(marks.index(peak.running), dict(peak.held)) for peak in form.peaks]
        out.append(tuple(Moment(running=at, held=tuple(n.get(mark, 0) for mark in marks)) for at, n in held))
    return tuple(out)


def _alone_bytes(columns: Intervals) -> Floats:
    """Bytes of each column with nothing else on its stage: never more than its stage needs."""
    need = np.zeros(len(columns))
    for i, slot in enumerate(columns.slot.tolist()):
        chunk, stage = divmod(slot, columns.pp)
        activations = max(
            moment.held[chunk] * columns.saved_bytes[i] + (moment.running == chunk) * columns.working_bytes[i]
            for moment in columns.moments[stage]
        )
        need[i] = columns.static_bytes[i] + activations
    return need


def _alone_on_host(columns: Intervals) -> Floats:
    """Bytes of each column in host memory with nothing else on its stage."""
    chunk, stage = np.divmod(columns.slot, columns.pp)
    most = np.array([np.max([moment.held for moment in moments], axis=0) for moments in columns.moments])
    held: Floats = columns.host_static_bytes + most[stage, chunk] * columns.host_saved_bytes
    return held
