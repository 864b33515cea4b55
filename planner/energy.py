"""The least energy over a whole table: a lower bound of every row, and event runs in its order.

A device draws full power while it computes, shares c and i of it while it communicates or waits (`planner.training`),
so that a step T takes i T + (1 - i) C + (c - i) X seconds at full power, C of computing and X of communication on the
stage that is busiest. T is at least the bound of screening. B = C + X + H is what keeps that stage busy, H where the
host holds it up, so that (1 - i) C + (c - i) X = (1 - c) C + (c - i) (B - H). C is what its parts compute, whatever the
schedule; B is no less than the parts of any stage take, micro-batches paired. Which stage is the busiest only the
event run says (links shared with others stretch it): the bound is the least over all of them. Where pairing hides more
than all-to-alls, what computes shrinks with the rest: it is charged at paired over unpaired time.

A whole run adds checkpoints and restarts at share i, k T of them for a step of T.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.ranks import Laying, Question
from planner.runs import BOUND_TOLERANCE, Runs
from planner.table import Table
from planner.training import COMMUNICATION, WAITING, Terms, assumed, conditions_of, power_share
from sim.build.context import Context
from sim.build.stages import StageContent, stage_contents
from sim.columns import Columns
from sim.cost.model import CostModel
from sim.cost.prices import distinct, setting_fields
from sim.cost.step import StepCost
from sim.cost.timing import BACKWARD, FORWARD, PartTime, pair_s
from sim.mesh import RankMap
from sim.plan import Plan
from sim.report import Report

Floats = NDArray[np.float64]
NO_COMPUTE = frozenset((*COMMUNICATION, *WAITING))


@dataclass(frozen=True, kw_only=True)
class EnergyAsk:
    """What is made least: energy of a run under `terms`, or (None) of a step; runs: event runs spent on it."""

    terms: Terms | None
    runs: int


@dataclass(frozen=True, kw_only=True)
class EnergyProof:
    """best, bound: of the plans simulated and of every row, in seconds at full power a step; gap: (best - bound) /
    best. runs: (report, bound of the step) of the further event runs that fit. void: what came out below its bound."""

    best_s: float
    bound_s: float
    gap: float
    runs: tuple[tuple[Report, float], ...]
    void: tuple[str, ...]


def waits_of(ask: EnergyAsk, question: Question, step_s: float) -> float | None:
    """k of the module's text: seconds at full power of checkpoints and restarts for each second of step; None where the
    run is shorter than the time between checkpoints, so that they are not in proportion, or never ends."""
    if ask.terms is None:
        return 0.0
    from planner.goodput import long_run

    q, rest = question, assumed()["idle_power_share"]
    found = conditions_of(ask.terms, q.model, q.cluster, q.workload)
    steps = max(1, math.ceil(ask.terms.tokens / (q.workload.global_batch_seqs * q.workload.seq_tokens)))
    work_s = steps * step_s * (1.0 + found.slow_share * (found.slow_factor - 1.0))
    run = long_run(
        work_s, cost_s=found.checkpoint_s, mtbf_s=found.mtbf_s, restart_s=found.restart_s, interval_s=found.interval_s
    )  # fmt: skip
    if not math.isfinite(run.total_s) or (run.interval_s >= work_s and run.checkpoint_s + run.restart_s > 0.0):
        return None
    return rest * (run.checkpoint_s + run.restart_s) / (run.work_s + run.rework_s)


def score_s(report: Report, waits: float) -> float:
    """Seconds at full power of a step: energy over power and devices."""
    return (power_share(report) + waits) * report.step_s.value


def least_energy(table: Table, run: Runs, layings: Mapping[RankMap, Laying], ask: EnergyAsk) -> EnergyProof | None:
    """Event runs in order of the bound until nothing left can take less energy, or `ask.runs`; None where energy is not
    in proportion to steps (`waits_of`) or someone else simulates."""
    first = next(iter(layings.values()))
    waits = waits_of(ask, first.question, min(float(b.min()) for b in table.bounds))
    if waits is None or first.given_simulate is not None:
        return None
    q = first.question
    costs = {ranks: CostModel(q.cluster, q.software, ranks=ranks) for ranks in dict.fromkeys(table.ranks)}
    blocks = zip(table.blocks, table.bounds, table.ranks, strict=True)
    every = np.concatenate([row_bounds(q, block, costs[ranks], step_s, waits) for block, step_s, ranks in blocks])
    block_of = np.concatenate([np.full(len(b), i) for i, b in enumerate(table.blocks)])
    row_of = np.concatenate([np.arange(len(b)) for b in table.blocks])
    least = min(run.done, key=lambda each: score_s(each[1], waits))
    best_s, found = score_s(least[1], waits), [least[1:]]
    known: set[tuple[Plan, RankMap]] = {(report.plan, report.ranks) for _, report, _ in run.done}
    known |= {(each.plan, each.ranks) for each in run.misfits}
    void, next_s, spent = list[str](), math.inf, 0
    for i in np.argsort(every, kind="stable").tolist():
        next_s = float(every[i])
        if next_s >= best_s:
            break
        block, ranks = block_of[i], table.ranks[block_of[i]]
        plan = table.blocks[block].plan(int(row_of[i]))
        if (plan, ranks) in known:
            continue
        if spent == ask.runs:
            break
        report, spent = layings[ranks].simulate(plan), spent + 1
        value = score_s(report, waits)
        if value < next_s * (1.0 - BOUND_TOLERANCE):
            void.append(f"{plan.label()}: simulated below the bound of its energy")
        if report.fits:
            best_s = min(best_s, value)
            found.append((report, float(table.bounds[block][row_of[i]])))
    else:
        next_s = math.inf
    bound_s = min(best_s, next_s)
    return EnergyProof(
        best_s=best_s, bound_s=bound_s, gap=(best_s - bound_s) / best_s, runs=tuple(found), void=tuple(void)
    )  # fmt: skip


def row_bounds(question: Question, rows: Columns, cost: CostModel, step_s: Floats, waits: float) -> Floats:
    """Seconds at full power [rows] that no event run of a row goes below; step_s: bounds of the step."""
    talks, rests = assumed()["communication_power_share"], assumed()["idle_power_share"]
    q = question
    first, which = distinct([getattr(rows, name) for name in setting_fields(3)])
    few = rows.take(first)
    step = StepCost(
        cost, Context(model=q.model, workload=q.workload, plan=few, software=q.software, routing=q.routing)
    )  # fmt: skip
    sums = _Sums(step)
    both = rows.schedule == "dualpipe"
    passes = q.workload.global_batch_seqs // np.maximum(1, rows.micro_batch_seqs * rows.dp) // (1 + both)
    out = np.empty(len(rows))
    pipes, pipe = distinct([rows.pp, rows.vpp])
    mtp = q.workload.with_mtp and q.model.mtp_layers > 0
    for number, row in enumerate(pipes.tolist()):
        mine = np.flatnonzero(pipe == number)
        contents = stage_contents(
            q.model, int(rows.pp[row]), int(rows.vpp[row]), account_ends=rows.account_ends, mtp=mtp,
            own=step.levels.own, schedule=rows.schedule,
        )  # fmt: skip
        stages = np.stack([sums.of_stage(stage)[:, which[mine]] for stage in dict.fromkeys(contents)])
        computing, ep, host, alone, paired = (passes[mine] * stages[:, part] for part in range(5))
        kept = np.minimum(1.0, paired / np.maximum(alone - ep, np.finfo(float).tiny))
        if step.offload.on and q.software.a2a_overlap:
            kept = np.zeros(kept.shape)  # copies to the host stretch what is paired
        busy = paired.max(axis=0)
        each = (1.0 - talks) * kept * computing + (talks - rests) * np.maximum(0.0, busy - host)
        out[mine] = (rests + waits) * step_s[mine] + each.min(axis=0)
    return out


class _Sums:
    """Seconds of parts and stages for one micro-batch, [5, settings]: computing, all-to-all shown, waiting, alone, and
    paired where that is shorter."""

    def __init__(self, step: StepCost) -> None:
        self.step, self.shape = step, np.shape(np.asarray(step.ctx.plan.tp))
        self._parts: dict[int, Floats] = {}
        self._contents: dict[StageContent, Floats] = {}

    def of_stage(self, stage: Sequence[StageContent]) -> Floats:
        """All virtual stages of a stage."""
        for content in stage:
            if content not in self._contents:
                parts = [np.asarray(n) * self.of_part(part) for n, part in self.step.parts_of(content)]
                self._contents[content] = sum(parts, np.zeros((5, *self.shape)))
        return sum((self._contents[content] for content in stage), np.zeros((5, *self.shape)))

    def of_part(self, part: PartTime) -> Floats:
        """One layer or end."""
        if id(part) not in self._parts:
            self._parts[id(part)] = np.stack([np.broadcast_to(row, self.shape) for row in self._rows(part)])
        return self._parts[id(part)]

    def _rows(self, part: PartTime) -> tuple[Any, ...]:
        computing = ep = host = alone = np.zeros(self.shape)
        for way in (FORWARD, BACKWARD):
            for name, seconds in (*part.classes[way].items(), *part.exposed[way].items()):
                computing = computing + (0.0 if name in NO_COMPUTE else seconds)
                ep = ep + (seconds if name == "ep" else 0.0)
                host = host + (seconds if name in WAITING else 0.0)
            host = host + part.duration_s(way) - part.device_s(way)
            alone = alone + part.duration_s(way)
        pair = alone
        if self.step.ctx.software.a2a_overlap:
            pair = np.maximum(pair_s(self.step.cost, part), part.host[FORWARD] + part.host[BACKWARD])
        longer = self.step.stragglers
        return computing, ep, host, longer * alone, longer * np.minimum(pair, alone)
