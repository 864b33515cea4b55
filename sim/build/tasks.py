"""From a step profile to tasks: chunks x micro-batches over lanes, sends, and the step's ends.

One lane per pipeline stage; data-parallel ranks are alike and never repeated. Forwards and
backwards run on stream "compute" in the schedule's order, sends on "pp" (or on "compute" where the
software blocks on them), parameter and gradient collectives on "dp".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from sim.build.order import SPLIT_SCHEDULES, Step, source_of, target_of
from sim.build.profile import ChunkProfile, StepProfile
from sim.build.repeats import first_trial, windows
from sim.build.schedule import check_schedule, lane_order, repeats_after
from sim.engine.core import COMPUTE_STREAM, Engine, Task
from sim.engine.steady import Pipeline, Window, run_steady
from sim.report import Trace

PIPELINE_STREAM = "pp"
DATA_STREAM = "dp"
# Gradients and parameters get of a link what exchanges and sends leave, as on streams of lower priority. Nothing waits
# for one of them before its own end, while a chunk is waited for by the whole pipeline: a faster link that let them
# take more from a chunk would make the step longer.
BACKGROUND = 1

TASK_KINDS = {"F": "forward", "B": "backward", "W": "wgrad"}

Amounts = tuple[tuple[str, float], ...]


def simulate_step(profile: StepProfile, *, steady: bool = True, link_series: bool = False) -> Trace:
    """Run one training step of a profile: makespan and spans in seconds, memory and link use in bytes.

    steady: jump over whole periods where the pipeline has become periodic (checked on all lanes; the
    totals are those of the whole step, the spans those of the part that was run; never where micro-batches
    differ). link_series: record the load of links over time. Raises UserError on an impossible pipeline layout,
    ValueError where the profile contradicts itself.
    """
    check_profile(profile)
    m, pp, vpp = profile.num_micro_batches, profile.pp, profile.vpp
    group = repeats_after(profile.schedule, pp=pp, vpp=vpp, num_micro_batches=m, group=profile.group)
    if not steady or profile.schedule == "gpipe" or profile.stretch is not None:
        tasks = step_tasks(profile, num_micro_batches=m, group=group)
        return Engine(tasks, profile.links, profile.static_bytes, link_series=link_series).run()

    def build(n: int) -> Pipeline:
        builder = StepBuilder(profile, n, group)
        return Pipeline(tasks=builder.tasks(), windows=builder.windows())

    return run_steady(
        build,
        num_micro_batches=m,
        period=group,
        first=first_trial(profile, group),
        links=profile.links,
        static_bytes=profile.static_bytes,
        link_series=link_series,
    )


def step_tasks(profile: StepProfile, *, num_micro_batches: int, group: int = 0) -> list[Task]:
    """All tasks of one step, lane by lane, each stream in its order. group: see `schedule.group_size`."""
    p = profile
    group = group or repeats_after(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=num_micro_batches, group=p.group)
    return StepBuilder(profile, num_micro_batches, group).tasks()


@dataclass
class StepBuilder:
    """Makes the tasks of n micro-batches. Ids: blocks of F, B, the send of each and, where the schedule splits
    backwards, W; then the rest.

    lanes: lanes per stage, each with blocks of its own; at: the one whose tasks are being made (`sim.build.detail`).
    """

    profile: StepProfile
    n: int
    group: int
    lanes: int = 1
    at: int = 0
    out: list[Task] = field(default_factory=list)
    orders: list[tuple[Step, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        p = self.profile
        self.block = p.pp * p.vpp * self.n
        self.blocks = 5 if p.schedule in SPLIT_SCHEDULES else 4
        self.next_id = self.blocks * self.block * self.lanes
        self.sends, self.placed = p.sends, p.placed
        self.joint: dict[tuple[int, int, int], Step] = {}  # by stage, chunk and micro-batch of the forward
        self.source = {(k, *at): self._source(k, *at) for at in product(range(p.pp), range(p.vpp)) for k in "FBW"}

    def id_of(self, kind: str, stage: int, chunk: int, micro_batch: int, *, send: bool = False) -> int:
        """The number of a step's last task, or of its send, on the present lane."""
        block = (0 if kind == "F" else 1 if kind == "B" else 4) + (2 if send else 0)
        block += self.blocks * self.at
        return block * self.block + (stage * self.profile.vpp + chunk) * self.n + micro_batch

    def lane_of(self, stage: int) -> int:
        """The present lane of a stage in the numbering of the whole run."""
        return stage * self.lanes + self.at

    def fresh_id(self) -> int:
        """A number for a task nobody on another stage waits for."""
        self.next_id += 1
        return self.next_id - 1

    def tasks(self) -> list[Task]:
        """All tasks, lane by lane, each stream in its order."""
        p = self.profile
        self._lay_out()
        for stage, order in enumerate(self.orders):
            gathered = self._params(stage)
            grads: list[int] = []
            edges = edges_of(order)
            for i, step in enumerate(order):
                edge, forward = step in edges, step.kind == "F"
                pieces = gathered[step.chunk] if edge and forward else []
                self._step(stage, step, pieces, grads, ends=edge and not forward)
                if step.joint:
                    continue  # sent with the end of its backward
                for sent in order[i - 1 : i + 1] if i and order[i - 1].joint else (step,):
                    self._send(stage, sent, step_name(sent, p.vpp))
            self._finish(stage, grads)
        return self.out

    def _lay_out(self) -> None:
        """The order of every stage, and which forwards run jointly with a backward."""
        p = self.profile
        for stage in range(p.pp):
            order = lane_order(p.schedule, pp=p.pp, vpp=p.vpp, stage=stage, num_micro_batches=self.n, group=self.group)
            self.orders.append(order)
            self.joint |= {
                (stage, step.chunk, step.micro_batch): order[i + 1] for i, step in enumerate(order) if step.joint
            }

    # -- forwards, backwards, sends --------------------------------------------------------------

    def _source(self, kind: str, stage: int, chunk: int) -> tuple[tuple[int, int] | None, bool]:
        """(stage, chunk) whose output a step needs, and whether another stage waits for its own (the turn of a V stays
        on its stage)."""
        at: dict[str, Any] = {"pp": self.profile.pp, "vpp": self.profile.vpp, "placed": self.placed}
        target = target_of(kind, stage, chunk, **at)
        return source_of(kind, stage, chunk, **at), target is not None and (self.placed == "loop" or target[0] != stage)

    def _awaited(self, stage: int, step: Step) -> tuple[int, ...]:
        """What brings a step its input."""
        source, _ = self.source[step.kind, stage, step.chunk]
        if source is None:
            return ()
        if self.sends and self.source[step.kind, *source][1]:
            return (self.id_of(step.kind, *source, step.micro_batch, send=True),)
        return (self._ended(step.kind, *source, step.micro_batch),)

    def _ended(self, kind: str, stage: int, chunk: int, micro_batch: int) -> int:
        """The task with whose end the output of a step is there: the backward, of a forward run jointly with one."""
        if kind == "F" and self.joint:
            backward = self.joint.get((stage, chunk, micro_batch))
            if backward is not None:
                return self.id_of("B", stage, backward.chunk, backward.micro_batch)
        return self.id_of(kind, stage, chunk, micro_batch)

    def _step(self, stage: int, step: Step, pieces: list[int], grads: list[int], *, ends: bool) -> None:
        """A step, cut where a collective piece hangs on it.

        pieces: parameters it waits for; ends: its chunk's gradients are complete with it.
        """
        p = self.profile
        kind, micro_batch, chunk = step.kind, step.micro_batch, step.chunk
        tail = p.tails[stage]
        cost = p.chunks[stage][chunk]
        forward = kind == "F"
        after = self._awaited(stage, step)
        backward = self.joint[stage, chunk, micro_batch] if step.joint else None
        if backward is not None:
            after += self._awaited(stage, backward)
        own = self.id_of(kind, stage, chunk, micro_batch)
        name = step_name(step, p.vpp)
        busy_s = cost.step_s(step)
        if p.stretch is not None:
            way = 2 if step.paired and cost.paired_s is not None else 0 if forward else 1
            busy_s *= float(p.stretch[stage, chunk, micro_batch, way])
        flows = cost.forward_flows if forward else cost.backward_flows if kind == "B" else ()
        cut_grads = ends and tail.overlap_grad and _any(tail.grad_flows)
        parts = tail.buckets if cut_grads else max(1, len(pieces))
        work: Amounts = (("workspace", cost.working_bytes),) if cost.working_bytes and kind != "W" else ()
        takes, gives = _kept(step, cost)
        if parts > 1:
            busy_s /= parts
            flows = tuple((link, size / parts) for link, size in flows)
        for part in range(parts):
            last = part == parts - 1
            ident = own if last else self.fresh_id()
            waits = after if part == 0 else ()
            if pieces:
                waits = (*waits, pieces[part])
            self.out.append(
                Task(
                    id=ident,
                    name=name,
                    kind=TASK_KINDS[kind],
                    lane=self.lane_of(stage),
                    stream=COMPUTE_STREAM,
                    busy_s=busy_s,
                    flows=flows,
                    after=waits,
                    micro_batch=micro_batch,
                    chunk=chunk,
                    alloc=takes + work if part == 0 else work,
                    free=gives + work if last else work,
                )
            )
            if cut_grads:
                grads.append(self._grad(stage, chunk, (ident,), p.vpp * parts))

    def _send(self, stage: int, step: Step, name: str) -> None:
        """The output of a step to the stage that needs it next."""
        p = self.profile
        if not self.sends or not self.source[step.kind, stage, step.chunk][1]:
            return
        send = p.send_of(step.kind, stage, step.chunk)
        self.out.append(
            Task(
                id=self.id_of(step.kind, stage, step.chunk, step.micro_batch, send=True),
                name="send " + name,
                kind="p2p",
                lane=self.lane_of(stage),
                stream=PIPELINE_STREAM if p.p2p_overlap else COMPUTE_STREAM,
                latency_s=send.latency_s,
                busy_s=send.wire_s,
                flows=send.flows,
                after=(self._ended(step.kind, stage, step.chunk, step.micro_batch),),
                micro_batch=step.micro_batch,
                chunk=step.chunk,
            )
        )

    # -- the ends of the step --------------------------------------------------------------------

    def _params(self, stage: int) -> list[list[int]]:
        """Parameter all-gathers from t = 0; per chunk the pieces its first forward waits for."""
        tail, vpp = self.profile.tails[stage], self.profile.vpp
        gathered: list[list[int]] = [[] for _ in range(vpp)]
        if not _any(tail.param_flows) and tail.param_latency_s <= 0.0:
            return gathered
        pieces = vpp * tail.buckets if tail.overlap_param else 1
        for piece in range(pieces):
            ident = self.fresh_id()
            gathered[piece * vpp // pieces].append(ident)
            self.out.append(
                Task(
                    id=ident,
                    name="gather parameters",
                    kind="param",
                    lane=self.lane_of(stage),
                    stream=DATA_STREAM,
                    priority=BACKGROUND,
                    latency_s=tail.param_latency_s / pieces,
                    busy_s=tail.param_wire_s / pieces,
                    flows=tuple((link, size / pieces) for link, size in tail.param_flows),
                    chunk=piece * vpp // pieces,
                )
            )
        return gathered

    def _grad(self, stage: int, chunk: int, after: tuple[int, ...], pieces: int) -> int:
        tail = self.profile.tails[stage]
        ident = self.fresh_id()
        self.out.append(
            Task(
                id=ident,
                name="reduce gradients",
                kind="grad",
                lane=self.lane_of(stage),
                stream=DATA_STREAM,
                priority=BACKGROUND,
                latency_s=tail.grad_latency_s / pieces,
                busy_s=tail.grad_wire_s / pieces,
                flows=tuple((link, size / pieces) for link, size in tail.grad_flows),
                after=after,
                chunk=chunk,
            )
        )
        return ident

    def _finish(self, stage: int, grads: list[int]) -> None:
        """What is left after the last backward: gradients, optimizer, fixed time."""
        tail = self.profile.tails[stage]
        last = self.orders[stage][-1]
        if not grads and (_any(tail.grad_flows) or tail.grad_latency_s > 0.0):
            end = self.id_of(last.kind, stage, last.chunk, last.micro_batch)
            grads = [self._grad(stage, last.chunk, (end,), 1)]
        waits = tuple(grads)
        for kind, busy_s in (("optimizer", tail.optimizer_s), ("overhead", tail.fixed_s + tail.taken_s)):
            if busy_s > 0.0:
                self.out.append(
                    Task(
                        id=self.fresh_id(),
                        name=kind,
                        kind=kind,
                        lane=self.lane_of(stage),
                        stream=COMPUTE_STREAM,
                        busy_s=busy_s,
                        after=waits,
                    )
                )

    # -- where it repeats ------------------------------------------------------------------------

    def windows(self) -> tuple[Window, ...]:
        """Per lane the repeating steps up to a cut across which no earlier step needs a later one."""
        return windows(self.profile, self.n, self.group, self.orders, self._slot)

    def _slot(self, stage: int, steps: tuple[Step, ...]) -> tuple[int, ...]:
        """The tasks of some steps with their sends."""
        ids: list[int] = []
        for step in steps:
            ids.append(self.id_of(step.kind, stage, step.chunk, step.micro_batch))
            if self.sends and self.source[step.kind, stage, step.chunk][1]:
                ids.append(self.id_of(step.kind, stage, step.chunk, step.micro_batch, send=True))
        return tuple(ids)


def edges_of(order: tuple[Step, ...]) -> frozenset[Step]:
    """Of each chunk the first forward, which waits for parameters, and the step that completes its gradients."""
    first = {step.chunk: step for step in reversed(order) if step.kind == "F"}
    last = {step.chunk: step for step in order if step.kind == "W" or (step.kind == "B" and not step.split)}
    return frozenset((*first.values(), *last.values()))


def _kept(step: Step, cost: ChunkProfile) -> tuple[Amounts, Amounts]:
    """Activations (taken at a step's start, given back at its end).

    A split backward leaves behind what its weight gradient needs, and holds the larger of that and the activations.
    """
    saved, deferred = cost.saved_bytes, cost.deferred_bytes
    if step.kind == "F":
        return _amount(saved), ()
    if step.kind == "W":
        return (), _amount(deferred)
    if step.split:
        return _amount(max(0.0, deferred - saved)), _amount(max(0.0, saved - deferred))
    return (), _amount(saved)


def _amount(size: float) -> Amounts:
    return (("activations", size),) if size else ()


def step_name(step: Step, vpp: int) -> str:
    """F3 (of virtual stage 1: F3.1), B3."""
    return f"{step.kind}{step.micro_batch}" if vpp == 1 else f"{step.kind}{step.micro_batch}.{step.chunk}"


def _any(flows: Amounts) -> bool:
    return any(size > 0.0 for _, size in flows)


def check_profile(profile: StepProfile) -> None:
    """Raise UserError on an impossible pipeline layout, ValueError where the profile contradicts itself."""
    p = profile
    check_schedule(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=p.num_micro_batches, group=p.group)
    if len(p.chunks) != p.pp or any(len(stage) != p.vpp for stage in p.chunks) or len(p.tails) != p.pp:
        raise ValueError(f"profile of pp {p.pp} vpp {p.vpp}: {len(p.chunks)} stages, {len(p.tails)} tails")
    if p.p2p and len(p.p2p) != p.pp:
        raise ValueError(f"profile of pp {p.pp}: {len(p.p2p)} boundaries between stages")
    if any(tail.buckets < 1 for tail in p.tails):
        raise ValueError("a stage tail needs at least one bucket")
