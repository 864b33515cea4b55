"""What the tasks of a step take: seconds, bytes on links and memory of each by what it is, equal ones worked out once.

A long pipeline has tens of thousands of tasks of a few hundred kinds: `sim.build.builder` says of every task which kind
it is, so that another plan of the same shape needs new work alone.
"""

from __future__ import annotations

from typing import Any

from sim.build.order import Step
from sim.build.profile import ChunkProfile, StepProfile
from sim.engine.graph import Amounts, Work

WorkKind = tuple[Any, ...]  # name of a method of `StepWork` and its arguments


class StepWork:
    """The work of a profile's tasks, by their kind."""

    def __init__(self, profile: StepProfile) -> None:
        self.profile = profile
        self._known: dict[WorkKind, Work] = {}
        self._alike: dict[tuple[Any, ...], Work] = {}  # by what is taken, which equal stages share

    def of(self, kind: WorkKind) -> Work:
        """What a task of a kind takes."""
        found = self._known.get(kind)
        if found is None:
            found = self._known[kind] = getattr(self, kind[0])(*kind[1:])
        return found

    def step(
        self, stage: int, kind: str, chunk: int, paired: bool, split: bool, factor: float, parts: int, part: int
    ) -> Work:
        """Part `part` of `parts` of a forward, backward or weight gradient; factor: of its duration alone."""
        cost = self.profile.chunks[stage][chunk]
        same = id(cost), kind, paired, split, factor, parts, part
        found = self._alike.get(same)
        if found is None:
            found = self._alike[same] = self._step(cost, kind, chunk, paired, split, factor, parts, part)
        return found

    def _step(
        self, cost: ChunkProfile, kind: str, chunk: int, paired: bool, split: bool, factor: float, parts: int, part: int
    ) -> Work:
        like = Step(kind=kind, micro_batch=0, chunk=chunk, paired=paired, split=split)
        busy_s = cost.step_s(like) * factor
        flows = cost.forward_flows if kind == "F" else cost.backward_flows if kind == "B" else ()
        work: Amounts = (("workspace", cost.working_bytes),) if cost.working_bytes and kind != "W" else ()
        takes, gives = _kept(like, cost)
        if parts > 1:
            busy_s /= parts
            flows = tuple((link, size / parts) for link, size in flows)
        return Work(
            busy_s=busy_s, flows=flows, alloc=takes + work if part == 0 else work,
            free=gives + work if part == parts - 1 else work,
        )  # fmt: skip

    def send(self, kind: str, stage: int, chunk: int) -> Work:
        """The output of a step on its way to another stage."""
        send = self.profile.send_of(kind, stage, chunk)
        found = self._alike.get((id(send),))
        if found is None:
            found = Work(busy_s=send.wire_s, latency_s=send.latency_s, flows=send.flows)
            self._alike[id(send),] = found
        return found

    def params(self, stage: int, pieces: int) -> Work:
        """One of the pieces in which a stage's parameters are gathered."""
        tail = self.profile.tails[stage]
        return _piece(tail.param_flows, tail.param_latency_s, tail.param_wire_s, pieces)

    def grads(self, stage: int, pieces: int) -> Work:
        """One of the pieces in which a stage's gradients are reduced."""
        tail = self.profile.tails[stage]
        return _piece(tail.grad_flows, tail.grad_latency_s, tail.grad_wire_s, pieces)

    def optimizer(self, stage: int) -> Work:
        """The optimizer step of a stage."""
        return Work(busy_s=self.profile.tails[stage].optimizer_s)

    def overhead(self, stage: int) -> Work:
        """What else is at the end of the step."""
        tail = self.profile.tails[stage]
        return Work(busy_s=tail.fixed_s + tail.taken_s)


def _piece(flows: Amounts, latency_s: float, wire_s: float, pieces: int) -> Work:
    shares = tuple((link, size / pieces) for link, size in flows)
    return Work(busy_s=wire_s / pieces, latency_s=latency_s / pieces, flows=shares)


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
