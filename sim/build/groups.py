"""A chunk's passes as groups of slots, one per layer or end of the model: where memory comes and goes.

Layers of a pair keep and give back their activations in turn, so a stage holds one layer more in the steady phase than
the pipeline run says, which lets a backward end before the forward beside it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.cost.segments import PartSegments
from sim.cost.slots import (
    Backlog,
    Rules,
    Slot,
    backward_slots,
    forward_slots,
    pair_slots,
    two_batch_backward,
    two_batch_forward,
    wgrad_slots,
)


@dataclass(frozen=True, kw_only=True)
class PartWork:
    """One layer or end of the model; half: the same on half of a micro-batch, where two batches overlap."""

    whole: PartSegments
    half: PartSegments | None = None

    def without_wgrad(self) -> PartWork:
        """The part when its backward stops at the input gradient (a weight gradient that is put off)."""
        bare = [None if x is None else replace(x, passes={**x.passes, "wgrad": {}}) for x in (self.whole, self.half)]
        assert bare[0] is not None
        return PartWork(whole=bare[0], half=bare[1])


@dataclass(frozen=True, kw_only=True)
class Group:
    """Slots of one layer (or a pair of layers): the forward keeps `saved`, the backward gives back `freed`.

    A backward that puts off its weight gradient may hold more afterwards than before: `freed` is negative then.
    """

    slots: list[Slot]
    saved: float = 0.0
    freed: float = 0.0


def forward_groups(parts: Sequence[PartWork], keeps: Sequence[float], rules: Rules) -> list[Group]:
    """Forward of the parts of a chunk, one group each."""
    if any(part.half for part in parts):
        made = two_batch_forward([p.whole for p in parts], [p.half for p in parts], rules)
        return [Group(slots=slots, saved=kept) for slots, kept in zip(made, keeps, strict=False)]
    return [Group(slots=forward_slots(p.whole, rules), saved=kept) for p, kept in zip(parts, keeps, strict=False)]


def backward_groups(parts: Sequence[PartWork], gives: Sequence[float], rules: Rules) -> list[Group]:
    """Backward of parts from last to first, one group each."""
    if any(part.half for part in parts):
        made = two_batch_backward([p.whole for p in parts], [p.half for p in parts], rules)
        return [Group(slots=slots, freed=given) for slots, given in zip(made, gives, strict=False)]
    return [Group(slots=backward_slots(p.whole, rules), freed=given) for p, given in zip(parts, gives, strict=False)]


def wgrad_groups(parts: Sequence[PartWork], gives: Sequence[float]) -> list[Group]:
    """Weight gradients that were put off, of parts from last to first, one group each (some without any work)."""
    return [
        Group(slots=wgrad_slots(p.half or p.whole, 2 if p.half else 1), freed=given)
        for p, given in zip(parts, gives, strict=False)
    ]


def pair_groups(
    ahead: Sequence[PartWork], back: Sequence[PartWork], keeps: Sequence[float], gives: Sequence[float], rules: Rules
) -> list[Group]:
    """A forward and a backward (parts from last to first) in turns: layer by layer, the ends of the model alone."""
    forward, backward = list(zip(ahead, keeps, strict=False)), list(zip(back, gives, strict=False))
    out: list[Group] = []
    backlog = Backlog()
    while forward or backward:
        if backward and not (forward and _is_layer(backward[0][0])):
            part, given = backward.pop(0)
            out += backward_groups([part], [given], rules)
        elif forward and not (backward and _is_layer(forward[0][0])):
            part, kept = forward.pop(0)
            out += forward_groups([part], [kept], rules)
        else:
            (f, kept), (b, given) = forward.pop(0), backward.pop(0)
            slots = pair_slots(f.whole, b.whole, rules, backlog)
            if not all(any(_is_layer(part) for part, _ in left) for left in (forward, backward)):
                slots += backlog.rest()  # the last of the pairs
            out.append(Group(slots=slots, saved=kept, freed=given))
    return out


def _is_layer(part: PartWork) -> bool:
    return bool(part.whole.at("forward", "attention"))


def shares(parts: Sequence[PartWork], total_bytes: float) -> list[float]:
    """Bytes a chunk keeps, split over its parts."""
    kept = [part.whole.saved_bytes for part in parts]
    whole = sum(kept)
    return [total_bytes * k / whole if whole > 0.0 else total_bytes / len(parts) for k in kept]


def seconds_of(groups: Sequence[Group]) -> float:
    """Length of groups alone."""
    return sum(slot.seconds for group in groups for slot in group.slots)


def paced(lanes: Sequence[Sequence[Group]]) -> list[list[Group]]:
    """The same groups with launches that last only beyond the slowest lane: waiting for it, the host runs ahead."""
    out: list[list[Group]] = [[] for _ in lanes]
    for together in zip(*lanes, strict=True):
        bare = [_without_launches(group) for group in together]
        pace_s = max(seconds_of([group]) for group in bare)
        for mine, group, less in zip(out, together, bare, strict=True):
            launch_s, beyond_s = seconds_of([group]) - seconds_of([less]), seconds_of([group]) - pace_s
            if launch_s <= 0.0 or beyond_s >= launch_s:
                mine.append(group)
            else:
                mine.append(_scaled_launches(group, max(0.0, beyond_s) / launch_s))
    return out


def _without_launches(group: Group) -> Group:
    return _scaled_launches(group, 0.0)


def _scaled_launches(group: Group, factor: float) -> Group:
    slots = []
    for slot in group.slots:
        work = tuple(
            (owner, replace(s, seconds=s.seconds * factor) if s.name == "launch" else s) for owner, s in slot.work
        )
        slots.append(replace(slot, work=work))
    return replace(group, slots=slots)
