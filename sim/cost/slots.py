"""Slots: what runs beside what inside a virtual stage. One slot is an all-to-all and the compute beside it.

A pass of a layer alone, two passes of different micro-batches in turns (Megatron-LM's 1F1B overlap, the order of
`sim.cost.timing.pair_s`), or two halves of one micro-batch (`two_batch_part`) are lists of slots. A slot ends when both
its sides have ended; that is what data and the order of streams enforce, not a barrier of its own.

Differences from the closed forms, all where the order of events knows better: shared experts hide only the exchange
they stand beside (first GEMM: dispatch, second: combine); router and permute come before the dispatch and so count with
attention; in a pair, exposed tensor-parallel communication may run beside the all-to-all, and a layer without experts
hides the exchange of its partner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sim.cost.segments import PartSegments, Places, Segment
from sim.cost.timing import BACKWARD, FORWARD, hidden_s


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An all-to-all (or none) and what the compute stream does meanwhile.

    Owners: "F" or "B", the pass a side belongs to; work names it for each segment.
    """

    owner: str
    comm: Segment | None = None
    comm_owner: str = ""
    work: tuple[tuple[str, Segment], ...] = ()

    @property
    def seconds(self) -> float:
        """Length of the slot alone."""
        return max(self.comm.seconds if self.comm else 0.0, sum(s.seconds for _, s in self.work))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What of the release decides the order: shared experts beside the exchange, delayed weight gradients, SM share,
    and the share of a hidden all-to-all that stays exposed (`overlap_left`)."""

    shared_beside: bool
    delay_wgrad: bool
    steal: float
    left: float = 0.0


SHARED = ("shared 1", "shared 2")
FIRST = ("shards", "attention", "router")  # what comes before the dispatch


def forward_slots(part: PartSegments, rules: Rules, *, pass_: str = "forward") -> list[Slot]:
    """One part's forward pass (or its recompute, which has no launch of its own) alone."""
    owner = "F" if pass_ == "forward" else "B"
    beside = rules.shared_beside
    head, tail = part.at(pass_, *FIRST), part.at(pass_, "mlp", "ends")
    slots = [_slot(owner, head)]
    if "counts" in part.exchange[pass_]:
        slots.append(_slot(owner, [], part.exchange[pass_]["counts"]))
    slots.append(_slot(owner, part.at(pass_, "shared 1") if beside else [], part.exchange[pass_].get("dispatch")))
    slots.append(_slot(owner, part.at(pass_, "experts")))
    slots.append(_slot(owner, part.at(pass_, "shared 2") if beside else [], part.exchange[pass_].get("combine")))
    tail = part.at(pass_, "unpermute", *(() if beside else SHARED)) + tail
    slots.append(_slot(owner, tail + (_launch(part, FORWARD) if pass_ == "forward" else [])))
    return _filled(slots)


def backward_slots(part: PartSegments, rules: Rules) -> list[Slot]:
    """One part's backward pass alone: recompute first, weight gradients with their layer half or (delayed) last."""
    b = _Backward(part, rules)
    beside = rules.shared_beside
    slots = forward_slots(part, rules, pass_="recompute")
    slots.append(_slot("B", b.of("ends", "mlp") + b.of("unpermute", *(() if beside else SHARED[::-1]))))
    slots.append(_slot("B", b.of("shared 2") if beside else [], part.exchange["backward"].get("combine")))
    slots.append(_slot("B", b.of("experts")))
    slots.append(_slot("B", b.of("shared 1") if beside else [], part.exchange["backward"].get("dispatch")))
    late = [s for mine in part.passes["wgrad"].values() for s in mine] if rules.delay_wgrad else []
    slots.append(_slot("B", b.of("router", "attention", "shards") + late + _launch(part, BACKWARD)))
    return _filled(slots)


def wgrad_slots(part: PartSegments, times: int = 1) -> list[Slot]:
    """One part's weight gradients as a pass of their own, where the schedule splits the backward."""
    late = [segment for mine in part.passes["wgrad"].values() for segment in mine]
    return _filled([_slot("B", late * times)])


@dataclass
class Backlog:
    """Weight gradients put off, in seconds on an idle device."""

    late_s: float = 0.0

    def fill(self, slot: Slot, steal: float) -> Slot:
        """The slot with as much put off work as its gap holds."""
        if slot.comm is None or self.late_s <= 0.0:
            return slot
        gap_s = slot.comm.seconds - sum(s.seconds for _, s in slot.work)
        taken_s = min(self.late_s, max(0.0, gap_s) * (1.0 - steal))
        if taken_s <= 0.0:
            return slot
        self.late_s -= taken_s
        late = Segment(name="wgrad", kind="wgrad", seconds=taken_s / (1.0 - steal))
        return replace(slot, work=(*slot.work, ("B", late)))

    def rest(self) -> list[Slot]:
        """What no gap held."""
        left, self.late_s = self.late_s, 0.0
        return [_slot("B", [Segment(name="wgrad", kind="wgrad", seconds=left)])] if left > 0.0 else []


def pair_slots(forward: PartSegments, backward: PartSegments, rules: Rules, backlog: Backlog) -> list[Slot]:
    """A forward of one micro-batch and a backward of another in turns, half by half (see `pair_s`)."""
    f, b = forward, _Backward(backward, rules)
    apart = not f.routed and not backward.routed
    if apart:
        return forward_slots(f, rules) + backward_slots(backward, rules)
    slots: list[Slot] = []
    again_ffn, again_attn = b.again("experts", "unpermute", *SHARED, "mlp"), b.again(*FIRST)
    if backward.exchange["recompute"]:  # the whole layer runs again, exchanges and all, before its backward
        slots += forward_slots(backward, rules, pass_="recompute")
        again_ffn, again_attn = [], []
    attn_f, ffn_f = f.at("forward", *FIRST), f.at("forward", "experts", *SHARED, "mlp", "ends")
    ffn_b = again_ffn + b.of("ends", "mlp", *SHARED[::-1], "experts")
    attn_b = again_attn + b.of("router", "attention", "shards")
    slots.append(_slot("B", b.of("unpermute")))
    if "counts" in f.exchange["forward"]:
        slots.append(_slot("F", [], f.exchange["forward"]["counts"]))
    mirrored = backward.exchange["backward"]
    late = {place: sum(s.seconds for s in mine) for place, mine in backward.passes["wgrad"].items()}
    late_attn_s = sum(seconds for place, seconds in late.items() if place in ("attention", "router", "shards"))
    turns = (
        (_beside("F", attn_f, mirrored.get("combine"), "B", rules), 0.0),
        (_beside("B", ffn_b, f.exchange["forward"].get("dispatch"), "F", rules), sum(late.values()) - late_attn_s),
        (_beside("F", ffn_f, mirrored.get("dispatch"), "B", rules), 0.0),
        (_beside("B", attn_b, f.exchange["forward"].get("combine"), "F", rules), late_attn_s),
    )
    for (slot, *exposed), late_s in turns:
        slots += [backlog.fill(slot, rules.steal), *exposed]
        backlog.late_s += late_s if rules.delay_wgrad else 0.0
    slots.append(_slot("F", f.at("forward", "unpermute")))
    host_s = forward.host_s[FORWARD] + backward.host_s[BACKWARD] - sum(s.seconds for s in slots)
    host_s -= backlog.late_s
    if host_s > 0.0:
        slots.append(_slot("B", [Segment(name="launch", kind="host", seconds=host_s)]))
    return _filled(slots)


def two_batch_forward(
    parts: Sequence[PartSegments], halves: Sequence[PartSegments | None], rules: Rules
) -> list[list[Slot]]:
    """Forward of a virtual stage in two halves A and B: the slots of each part. halves: None where one is not cut."""
    out: list[list[Slot]] = []
    held: PartSegments | None = None  # the layer whose half B is still to be combined
    for at, (part, half) in enumerate(zip(parts, halves, strict=True)):
        if half is None:
            out.append(_filled([*_drain(held), *forward_slots(part, rules)]))
            held = None
            continue
        before = [] if held is None else held.at("forward", "unpermute")
        first = half.at("forward", *FIRST)
        inner = half.at("forward", "experts", *SHARED, "mlp")
        comm = half.exchange["forward"]
        slots = [
            *_beside("F", first, None if held is None else held.exchange["forward"].get("combine"), "F", rules),
            _slot("F", before),
            *(_slot("F", [], comm.get("counts")) for _ in "AB"),
            *_beside("F", first, comm.get("dispatch"), "F", rules),
            *_beside("F", inner, comm.get("dispatch"), "F", rules),
            *_beside("F", inner, comm.get("combine"), "F", rules),
            _slot("F", half.at("forward", "unpermute") + _launch(part, FORWARD)),
        ]
        held = half
        if at + 1 == len(parts):
            slots += _drain(held)
        out.append(_filled(slots))
    return out


def two_batch_backward(
    parts: Sequence[PartSegments], halves: Sequence[PartSegments | None], rules: Rules
) -> list[list[Slot]]:
    """Backward of a virtual stage in two halves, parts from last to first: the slots of each."""
    out: list[list[Slot]] = []
    held: list[Segment] = []  # attention of half B of the layer before
    for at, (part, half) in enumerate(zip(parts, halves, strict=True)):
        if half is None:
            out.append(_filled([_slot("B", held), *backward_slots(part, rules)]))
            held = []
            continue
        b = _Backward(half, replace(rules, delay_wgrad=False))
        comm = half.exchange["backward"]
        slots: list[Slot] = []
        again_ffn, again_attn = b.again("experts", "unpermute", *SHARED, "mlp"), b.again(*FIRST)
        if half.exchange["recompute"]:
            slots += [s for _ in "AB" for s in forward_slots(half, rules, pass_="recompute")]
            again_ffn, again_attn = [], []
        inner = again_ffn + b.of("mlp", *SHARED[::-1], "experts")
        last = again_attn + b.of("router", "attention", "shards")
        slots.append(_slot("B", b.of("unpermute") * 2))
        slots += _beside("B", held, comm.get("combine"), "B", rules)
        slots += _beside("B", inner, comm.get("combine"), "B", rules)
        slots += _beside("B", inner, comm.get("dispatch"), "B", rules)
        slots += _beside("B", last, comm.get("dispatch"), "B", rules)
        held = last
        tail = _launch(part, BACKWARD)
        if at + 1 == len(parts):
            tail, held = [*held, *tail], []
        out.append(_filled([*slots, _slot("B", tail)]))
    return out


def _drain(held: PartSegments | None) -> list[Slot]:
    if held is None:
        return []
    after = held.at("forward", "unpermute")
    return [_slot("F", [], held.exchange["forward"].get("combine")), _slot("F", after)]


@dataclass(frozen=True)
class _Backward:
    """Places of a backward pass with their weight gradients behind them, unless those are delayed."""

    part: PartSegments
    rules: Rules
    empty: Places = field(default_factory=dict)

    def of(self, *places: str) -> list[Segment]:
        late = self.empty if self.rules.delay_wgrad else self.part.passes["wgrad"]
        return [s for place in places for s in (*self.part.at("backward", place), *late.get(place, ()))]

    def again(self, *places: str) -> list[Segment]:
        return self.part.at("recompute", *places)


def _launch(part: PartSegments, way: str) -> list[Segment]:
    seconds = part.launch_s[way]
    return [Segment(name="launch", kind="host", seconds=seconds)] if seconds > 0.0 else []


def _slot(owner: str, work: Sequence[Segment], comm: Segment | None = None) -> Slot:
    return Slot(owner=owner, comm=comm, comm_owner=owner, work=tuple((owner, s) for s in work))


def _beside(
    owner: str, work: Sequence[Segment], comm: Segment | None, comm_owner: str, rules: Rules
) -> tuple[Slot, ...]:
    """Compute slowed by the SMs the communication kernel beside it takes; after it what stays exposed all the same."""
    compute_s = sum(s.seconds for s in work if s.is_compute)
    if comm is None or compute_s <= 0.0:
        return (_slot_of(owner, work, comm, comm_owner),)
    hidden = float(hidden_s(comm.seconds, compute_s, rules.steal))
    slower = (compute_s + rules.steal * hidden) / compute_s
    slowed = [replace(s, seconds=s.seconds * slower) if s.is_compute else s for s in work]
    both = _slot_of(owner, slowed, comm, comm_owner)
    if rules.left * hidden <= 0.0:
        return (both,)
    return both, _slot(comm_owner, [Segment(name="exposed", kind="ep", seconds=rules.left * hidden)])


def _slot_of(owner: str, work: Sequence[Segment], comm: Segment | None, comm_owner: str) -> Slot:
    return Slot(owner=owner, comm=comm, comm_owner=comm_owner, work=tuple((owner, s) for s in work))


def _filled(slots: Sequence[Slot]) -> list[Slot]:
    """Without empty slots; neighbours that only compute for the same pass joined."""
    out: list[Slot] = []
    for slot in slots:
        if slot.comm is not None and slot.comm.seconds <= 0.0:
            slot = replace(slot, comm=None)
        if slot.comm is None and not slot.work:
            continue
        if out and slot.comm is None and out[-1].comm is None and out[-1].owner == slot.owner:
            out[-1] = replace(out[-1], work=out[-1].work + slot.work)
        else:
            out.append(slot)
    return out
