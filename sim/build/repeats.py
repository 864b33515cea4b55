"""Where the orders of a pipeline repeat, for the jump over whole periods (`sim.engine.steady`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sim.build.order import SPLIT_SCHEDULES, Step
from sim.build.profile import StepProfile
from sim.build.schedule import num_warmup
from sim.build.split import steady_part
from sim.engine.steady import Window

# Pairs of steps compared at least (one is enough in theory).
WINDOW_PAIRS = 4

Order = tuple[Step, ...]
SlotIds = Callable[[int, Order], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Where the orders of all stages recur together: `count` times `length` steps, on a stage from step firsts[stage].

    No step of a recurrence needs one of a later recurrence of another stage, and behind the last of them every stage
    goes on as before for a while. width: recurrences that hold all that later steps depend on.
    """

    firsts: tuple[int, ...]
    length: int
    count: int
    width: int


def loop_of(schedule: str, *, pp: int, vpp: int, num_micro_batches: int, group: int) -> Loop | None:
    """The loop of a step's orders, as `windows` has it; None: too few micro-batches."""
    if schedule == "gpipe":
        return None
    n = num_micro_batches
    if schedule in SPLIT_SCHEDULES:
        parts = [steady_part(schedule, pp=pp, stage=s, num_micro_batches=n) for s in range(pp)]
        begin = max(part.start - part.place for part in parts)
        last = min(part.end - 2 - part.place for part in parts)
        firsts = [part.first + (begin + part.place - part.start) * part.length for part in parts]
        length, count, width = parts[0].length, last - begin + 1, WINDOW_PAIRS
    else:
        warmups = [
            num_warmup(schedule, pp=pp, vpp=vpp, stage=s, num_micro_batches=n, group=group) for s in range(pp)
        ]  # fmt: skip
        pairs = group * vpp
        firsts = [warmup + 2 * (1 + stage) for stage, warmup in enumerate(warmups)]
        length, width = 2 * pairs, -(-WINDOW_PAIRS // pairs)
        count = ((n - n % group) * vpp - warmups[0] - 2) // pairs
    return Loop(firsts=tuple(firsts), length=length, count=count, width=width) if count > 0 else None


def first_trial(profile: StepProfile, group: int) -> int:
    """Micro-batches of the shortest run with a full window, and a pipeline depth for the transient."""
    if profile.schedule in SPLIT_SCHEDULES:
        # in every order the last stage begins to repeat 3 pp slots after the first forward at most
        return group * (4 * profile.pp + 2 * WINDOW_PAIRS)
    warmup = (profile.pp - 1) * (2 if profile.vpp > 1 else 1) + (profile.vpp - 1) * group
    period = group * profile.vpp
    steps = warmup + 2 + period + _window_pairs(period)
    return -(-steps // profile.vpp) + profile.num_micro_batches % group + profile.pp // profile.vpp


def _window_pairs(period: int) -> int:
    return period * -(-WINDOW_PAIRS // period)


def windows(profile: StepProfile, n: int, group: int, orders: Sequence[Order], slot_ids: SlotIds) -> tuple[Window, ...]:
    """Per lane the repeating steps up to a cut across which no earlier step needs a later one (none: too few).

    n: micro-batches; slot_ids(stage, steps): the tasks of some steps with their sends.
    """
    if profile.schedule in SPLIT_SCHEDULES:
        return _split_windows(profile, n, orders, slot_ids)
    return _pair_windows(profile, n, group, orders, slot_ids)


def _split_windows(p: StepProfile, n: int, orders: Sequence[Order], slot_ids: SlotIds) -> tuple[Window, ...]:
    """Of schedules whose orders say where they repeat (`order.Steady`); cut at the same slot, places taken off."""
    parts = [steady_part(p.schedule, pp=p.pp, stage=s, num_micro_batches=n) for s in range(p.pp)]
    # sends of the last slot meet the steps behind it on their link, so those must still be of the steady kind
    last = min(part.end - 2 - part.place for part in parts)
    if any(last + part.place - part.start < WINDOW_PAIRS for part in parts):
        return ()
    out = []
    for stage, (order, part) in enumerate(zip(orders, parts, strict=True)):
        starts = [part.first + i * part.length for i in range(last + part.place - part.start + 1)]
        slots = tuple(slot_ids(stage, order[at : at + part.length]) for at in starts)
        out.append(Window(slots=slots, period=1, width=WINDOW_PAIRS))
    return tuple(out)


def _pair_windows(p: StepProfile, n: int, group: int, orders: Sequence[Order], slot_ids: SlotIds) -> tuple[Window, ...]:
    """Pair j of a lane is its j-th forward-backward of the steady phase. A forward needs the stage
    before at most two pairs earlier, a backward the stage behind at the same pair, so the cut
    "pair last + stage on each stage" is consistent. It leaves out a last group of fewer micro-batches
    and the first pair, by whose end all parameters are there.
    """
    period = group * p.vpp
    width = _window_pairs(period)
    whole = (n - n % group) * p.vpp
    warmups = [
        num_warmup(p.schedule, pp=p.pp, vpp=p.vpp, stage=s, num_micro_batches=n, group=group) for s in range(p.pp)
    ]
    last = whole - warmups[0] - 2
    if last < width + period:
        return ()
    out = []
    for stage, (order, warmup) in enumerate(zip(orders, warmups, strict=True)):
        starts = range(warmup + 2, warmup + 2 * (last + stage) + 1, 2)
        slots = tuple(slot_ids(stage, order[at : at + 2]) for at in starts)
        out.append(Window(slots=slots, period=period, width=width))
    return tuple(out)
