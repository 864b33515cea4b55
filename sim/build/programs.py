"""What each pipeline stage runs, written so that it recurs: a beginning, a loop, an end (`sim.engine.lanewise`).

The orders of long enough steps differ only in how often a part of them recurs, so that a step of any number of
micro-batches is laid out at the cost of a short one. The tasks are those of `sim.build.builder`, which a search does
not make: outputs pass from stage to stage in one order, checked here, so that they need no names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sim.build.builder import edges_of
from sim.build.order import Step, placement, source_of, target_of
from sim.build.profile import StageTail, StepProfile
from sim.build.repeats import Loop, loop_of
from sim.build.schedule import lane_order
from sim.build.work import WorkKind
from sim.engine.graph import Amounts
from sim.engine.lane_programs import ALL, NO_GATE, Op, Program

KEPT = 32  # shapes: a program has the ops of a short step

Order = tuple[Step, ...]


class NotInOrder(Exception):
    """A stage takes outputs in another order than they are made in: no program says that."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Programs:
    """The programs of a step's stages. kinds: of work, by number; channels: how many there are; width: see `Loop`.

    once, each: of every stage, how often its ops, sends and background tasks have each kind of work, outside of the
    loop and in it.
    """

    of_stage: tuple[Program, ...]
    kinds: tuple[WorkKind, ...]
    channels: int
    width: int
    once: tuple[Counter[int], ...]
    each: tuple[Counter[int], ...]


def programs_of(profile: StepProfile, group: int) -> tuple[Programs, int]:
    """The programs of a profile's step, and how often their loops are run. Raises NotInOrder where there are none.

    group: see `schedule.repeats_after`.
    """
    p, m = profile, profile.num_micro_batches
    loop = loop_of(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=m, group=group)
    n = m if loop is None else _shortest(p.schedule, p.pp, p.vpp, m, group)
    ends = {id(tail): ends_shape(tail) for tail in p.tails}
    shape = (p.schedule, p.pp, p.vpp, p.sends, p.p2p_overlap, tuple(ends[id(tail)] for tail in p.tails))
    return _made(_Asked(shape=shape, n=n, group=group, profile=p)), 0 if loop is None else loop.count


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A shape, and one profile that has it."""

    shape: Hashable
    n: int
    group: int
    profile: StepProfile = field(compare=False)


def ends_shape(tail: StageTail) -> tuple[Hashable, ...]:
    """What of a stage's ends decides which tasks there are."""
    gathered, reduced = (_any(flows) for flows in (tail.param_flows, tail.grad_flows))
    return (
        gathered, tail.param_latency_s > 0.0, reduced, tail.grad_latency_s > 0.0, tail.overlap_param, tail.overlap_grad,
        tail.buckets, tail.optimizer_s > 0.0, tail.fixed_s + tail.taken_s > 0.0,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _shortest(schedule: str, pp: int, vpp: int, m: int, group: int) -> int:
    """Micro-batches of the shortest step whose orders have a loop and are otherwise those of m."""
    for n in range(m % group + group, m, group):
        if loop_of(schedule, pp=pp, vpp=vpp, num_micro_batches=n, group=group) is not None:
            return n
    return m


@lru_cache(maxsize=KEPT)
def _made(asked: _Asked) -> Programs:
    p, made = asked.profile, _Maker(asked.profile)
    loop = loop_of(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=asked.n, group=asked.group)
    orders = [
        lane_order(p.schedule, pp=p.pp, vpp=p.vpp, stage=s, num_micro_batches=asked.n, group=asked.group)
        for s in range(p.pp)
    ]
    made.check_channels(orders)
    programs = [made.program(stage, order, loop) for stage, order in enumerate(orders)]
    return Programs(
        of_stage=tuple(programs), kinds=tuple(made.kinds), channels=2 * p.pp * p.vpp,
        width=0 if loop is None else loop.width,
        once=tuple(_works((*each.first, *each.last), each.background) for each in programs),
        each=tuple(_works(each.loop) for each in programs),
    )  # fmt: skip


class _Maker:
    """Makes the programs of a shape."""

    def __init__(self, profile: StepProfile) -> None:
        self.p, self.placed = profile, placement(profile.schedule)
        self.kinds: dict[WorkKind, int] = {}

    def program(self, stage: int, order: Order, loop: Loop | None) -> Program:
        """Of one stage."""
        gathered = self._params(stage)
        edges = edges_of(order)
        begin, end = (len(order), len(order)) if loop is None else _bounds(loop, stage)
        parts: tuple[list[Op], list[Op], list[Op]] = ([], [], [])
        plain: dict[Hashable, list[Op]] = {}
        before: Step | None = None
        for i, step in enumerate(order):
            joined = before if before is not None and before.joint else None
            if step in edges:
                ops = self._edge(stage, step, joined, order[i + 1 : i + 2], gathered)  # the last step is one
            else:
                key = step.kind, step[2:], joined is None or joined.chunk
                if key not in plain:
                    plain[key] = self._ops(stage, step, joined, order[i + 1 : i + 2], [NO_GATE], False)
                ops = plain[key]
            parts[(i >= begin) + (i >= end)].extend(ops)
            before = step
        if loop is not None:
            once = parts[1][: len(parts[1]) // loop.count]
            assert parts[1] == once * loop.count, "a loop that does not recur"
            parts[1][:] = once
        parts[0 if loop is None else 2].extend(self._finish(stage))
        pieces = [self._kind("params", stage, sum(map(len, gathered))) for piece in gathered for _ in piece]
        return Program(first=parts[0], loop=parts[1], last=parts[2], background=pieces)

    def _kind(self, *kind: Hashable) -> int:
        return self.kinds.setdefault(kind, len(self.kinds))

    def _channel(self, kind: str, stage: int, chunk: int) -> int:
        """The channel a step takes its input off."""
        return ((kind == "B") * self.p.pp + stage) * self.p.vpp + chunk

    def _waits(self, stage: int, step: Step) -> tuple[int, ...]:
        p = self.p
        source = source_of(step.kind, stage, step.chunk, pp=p.pp, vpp=p.vpp, placed=self.placed)
        return () if source is None else (self._channel(step.kind, stage, step.chunk),)

    def _target(self, stage: int, step: Step) -> tuple[int, int] | None:
        return target_of(step.kind, stage, step.chunk, pp=self.p.pp, vpp=self.p.vpp, placed=self.placed)

    def _ops(
        self, stage: int, step: Step, joined: Step | None, behind: Order, gates: Sequence[int], grads: bool
    ) -> list[Op]:
        """A step, a part for each gate, and behind it what sends its output where that holds the stage up. joined: the
        forward run jointly with it, whose output goes out with its own; behind: the step behind it."""
        p = self.p
        waits = () if joined is not None else self._waits(stage, step)
        if step.joint:
            waits += self._waits(stage, behind[0])
        hands: list[int] = []
        sends: list[tuple[int, int]] = []
        for out in () if step.joint else (step,) if joined is None else (joined, step):
            target = self._target(stage, out)
            if target is not None:
                channel = self._channel(out.kind, *target)
                if p.sends and (self.placed == "loop" or target[0] != stage):
                    sends.append((self._kind("send", out.kind, stage, out.chunk), channel))
                else:
                    hands.append(channel)
        count, ops = len(gates), []
        cut = p.tails[stage].overlap_grad and _any(p.tails[stage].grad_flows)
        reduced = self._kind("grads", stage, p.vpp * count if cut else 1) if grads else -1
        for part, gate in enumerate(gates):
            kind = ("step", stage, step.kind, step.chunk, step.paired, step.split, 1.0, count, part)
            last = part == count - 1
            ops.append(
                Op(
                    work=self._kind(*kind), waits=() if part else waits, gate=gate, hands=tuple(hands) if last else (),
                    sends=tuple(sends) if last and p.p2p_overlap else (), grad=reduced,
                )
            )  # fmt: skip
        if not p.p2p_overlap:
            ops += [Op(work=work, hands=(channel,)) for work, channel in sends]
        return ops

    def _edge(
        self, stage: int, step: Step, joined: Step | None, behind: Order, gathered: Sequence[Sequence[int]]
    ) -> list[Op]:
        """The first forward of a chunk or the step that completes its gradients (`StepBuilder`)."""
        tail = self.p.tails[stage]
        if step.kind == "F":
            return self._ops(stage, step, joined, behind, list(gathered[step.chunk]) or [NO_GATE], False)
        if tail.overlap_grad and _any(tail.grad_flows):
            return self._ops(stage, step, joined, behind, [NO_GATE] * tail.buckets, True)
        at_once = not behind and (_any(tail.grad_flows) or tail.grad_latency_s > 0.0)
        return self._ops(stage, step, joined, behind, [NO_GATE], at_once)

    def _params(self, stage: int) -> list[list[int]]:
        """Of each chunk, the pieces of parameters its first forward waits for."""
        tail, vpp = self.p.tails[stage], self.p.vpp
        gathered: list[list[int]] = [[] for _ in range(vpp)]
        if _any(tail.param_flows) or tail.param_latency_s > 0.0:
            pieces = vpp * tail.buckets if tail.overlap_param else 1
            for piece in range(pieces):
                gathered[piece * vpp // pieces].append(piece)
        return gathered

    def _finish(self, stage: int) -> list[Op]:
        """What is left after the last step, when the gradients are reduced: optimizer, fixed time."""
        tail = self.p.tails[stage]
        left = (("optimizer", tail.optimizer_s), ("overhead", tail.fixed_s + tail.taken_s))
        return [Op(work=self._kind(kind, stage), gate=ALL) for kind, busy_s in left if busy_s > 0.0]

    def check_channels(self, orders: Sequence[Order]) -> None:
        """Raise NotInOrder where a stage takes micro-batches off a channel in another order than they are given."""
        given: dict[int, list[int]] = {}
        taken: dict[int, list[int]] = {}
        for stage, order in enumerate(orders):
            passed: dict[tuple[str, int], list[int]] = {}
            for kind, micro_batch, chunk, *_ in order:
                passed.setdefault((kind, chunk), []).append(micro_batch)
            for (kind, chunk), numbers in passed.items():
                step = Step(kind=kind, micro_batch=0, chunk=chunk)
                taken |= dict.fromkeys(self._waits(stage, step), numbers)
                target = self._target(stage, step)
                if target is not None:
                    given[self._channel(kind, *target)] = numbers
        if given != taken:
            raise NotInOrder("micro-batches overtake each other")


def _bounds(loop: Loop, stage: int) -> tuple[int, int]:
    first = loop.firsts[stage]
    return first, first + loop.length * loop.count


def _works(ops: Sequence[Op], background: Iterable[int] = ()) -> Counter[int]:
    """How often ops, their sends and background tasks have each kind of work."""
    out = Counter(background)
    # most ops are one object that recurs
    distinct = {id(op): op for op in ops}
    for key, times in Counter(map(id, ops)).items():
        op = distinct[key]
        for work in (op.work, *(work for work, _ in op.sends), *((op.grad,) if op.grad >= 0 else ())):
            out[work] += times
    return out


def _any(flows: Amounts) -> bool:
    return any(size > 0.0 for _, size in flows)
