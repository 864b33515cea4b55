"""Which tasks a step has: forwards, backwards and sends of every stage in its order, and the step's ends.

One lane per pipeline stage; data-parallel ranks are alike and never repeated. Forwards and
backwards run on stream "compute" in the schedule's order, sends on "pp" (or on "compute" where the
software blocks on them), parameter and gradient collectives on "dp".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from sim.build.order import SPLIT_SCHEDULES, Step, source_of, target_of
from sim.build.profile import StepProfile
from sim.build.repeats import windows
from sim.build.schedule import lane_order
from sim.build.work import StepWork, WorkKind
from sim.engine.graph import COMPUTE_STREAM, Amounts, Task
from sim.engine.steady import Window

PIPELINE_STREAM = "pp"
DATA_STREAM = "dp"
# Gradients and parameters get of a link what exchanges and sends leave, as on streams of lower priority. Nothing waits
# for one of them before its own end, while a chunk is waited for by the whole pipeline: a faster link that let them
# take more from a chunk would make the step longer.
BACKGROUND = 1

TASK_KINDS = {"F": "forward", "B": "backward", "W": "wgrad"}


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
    kinds: list[WorkKind] = field(default_factory=list)
    orders: list[tuple[Step, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        p = self.profile
        self.block = p.pp * p.vpp * self.n
        self.blocks = 5 if p.schedule in SPLIT_SCHEDULES else 4
        self.next_id = self.blocks * self.block * self.lanes
        self.sends, self.placed = p.sends, p.placed
        self.works: dict[int, StepWork] = {}
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
        after = self._awaited(stage, step)
        backward = self.joint[stage, chunk, micro_batch] if step.joint else None
        if backward is not None:
            after += self._awaited(stage, backward)
        own = self.id_of(kind, stage, chunk, micro_batch)
        name = step_name(step, p.vpp)
        factor = 1.0
        if p.stretch is not None:
            way = 2 if step.paired and p.chunks[stage][chunk].paired_s is not None else 0 if kind == "F" else 1
            factor = float(p.stretch[stage, chunk, micro_batch, way])
        cut_grads = ends and tail.overlap_grad and _any(tail.grad_flows)
        parts = tail.buckets if cut_grads else max(1, len(pieces))
        for part in range(parts):
            ident = own if part == parts - 1 else self.fresh_id()
            waits = after if part == 0 else ()
            if pieces:
                waits = (*waits, pieces[part])
            what = ("step", stage, kind, chunk, step.paired, step.split, factor, parts, part)
            self._add(what, ident, name, TASK_KINDS[kind], stage, COMPUTE_STREAM, waits, micro_batch, chunk)
            if cut_grads:
                grads.append(self._grad(stage, chunk, (ident,), p.vpp * parts))

    def _add(
        self, what: WorkKind, ident: int, name: str, kind: str, stage: int, stream: str,
        after: tuple[int, ...] = (), micro_batch: int = -1, chunk: int = 0, priority: int = 0,
    ) -> None:  # fmt: skip
        """One more task on the present lane of a stage; what: the kind of its work."""
        at = self.at
        if at not in self.works:
            self.works[at] = StepWork(self.profile)
        busy_s, latency_s, flows, alloc, free = self.works[at].of(what)
        lane = stage * self.lanes + at
        self.kinds.append(what)
        self.out.append(
            Task(
                ident, name, kind, lane, stream, busy_s, latency_s, priority, flows, after, micro_batch, chunk, alloc,
                free,
            )
        )  # fmt: skip

    def _send(self, stage: int, step: Step, name: str) -> None:
        """The output of a step to the stage that needs it next."""
        p = self.profile
        if not self.sends or not self.source[step.kind, stage, step.chunk][1]:
            return
        self._add(
            ("send", step.kind, stage, step.chunk),
            self.id_of(step.kind, stage, step.chunk, step.micro_batch, send=True),
            "send " + name, "p2p", stage, PIPELINE_STREAM if p.p2p_overlap else COMPUTE_STREAM,
            (self._ended(step.kind, stage, step.chunk, step.micro_batch),), step.micro_batch, step.chunk,
        )  # fmt: skip

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
            self._add(
                ("params", stage, pieces), ident, "gather parameters", "param", stage, DATA_STREAM,
                chunk=piece * vpp // pieces, priority=BACKGROUND,
            )  # fmt: skip
        return gathered

    def _grad(self, stage: int, chunk: int, after: tuple[int, ...], pieces: int) -> int:
        ident = self.fresh_id()
        self._add(
            ("grads", stage, pieces), ident, "reduce gradients", "grad", stage, DATA_STREAM, after, chunk=chunk,
            priority=BACKGROUND,
        )  # fmt: skip
        return ident

    def _finish(self, stage: int, grads: list[int]) -> None:
        """What is left after the last backward: gradients, optimizer, fixed time."""
        tail = self.profile.tails[stage]
        last = self.orders[stage][-1]
        if not grads and (_any(tail.grad_flows) or tail.grad_latency_s > 0.0):
            end = self.id_of(last.kind, stage, last.chunk, last.micro_batch)
            grads = [self._grad(stage, last.chunk, (end,), 1)]
        for kind, busy_s in (("optimizer", tail.optimizer_s), ("overhead", tail.fixed_s + tail.taken_s)):
            if busy_s > 0.0:
                self._add((kind, stage), self.fresh_id(), kind, kind, stage, COMPUTE_STREAM, tuple(grads))

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


def step_name(step: Step, vpp: int) -> str:
    """F3 (of virtual stage 1: F3.1), B3."""
    return f"{step.kind}{step.micro_batch}" if vpp == 1 else f"{step.kind}{step.micro_batch}.{step.chunk}"


def _any(flows: Amounts) -> bool:
    return any(size > 0.0 for _, size in flows)
