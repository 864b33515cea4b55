"""Orders of pipeline schedules that split the backward, or in which micro-batches flow both ways.

The backward is cut into the input gradient (B), which the stage before waits for, and the weight gradient (W), which
nobody waits for and which fills idle time. ZB-H1, ZB-H2, ZB-V: Qi et al., "Zero Bubble Pipeline Parallelism" (2023);
DualPipe: DeepSeek-AI, "DeepSeek-V3 Technical Report" (2024), figure 5 and table 2; DualPipeV is its half in V shape.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.build.order import Steady, Step, passes_of

Codes = NDArray[np.int64]

# By how much warm-up forwards shrink, and weight gradients held back grow, from one stage to the next.
DEPTH = {"zb-h1": 1, "zb-h2": 2}
# A step as a number: its kind, and what is added for chunk 1, for a paired step, for a split one.
KINDS = "FBW"
F, B, W = range(3)
CHUNK, PAIRED, SPLIT = 4, 8, 16


def split_order(schedule: str, *, pp: int, stage: int, num_micro_batches: int) -> tuple[Step, ...]:
    """The steps of one stage; the layout is sound (`schedule.check_schedule`)."""
    second = passes_of(schedule, num_micro_batches) if schedule == "dualpipe" else 0  # first number of the second way
    met, split = Counter[int](), [list[int](), list[int]()]
    steps = []
    for code in split_codes(schedule, pp=pp, stage=stage, num_micro_batches=num_micro_batches).tolist():
        kind, chunk, paired, late = code % CHUNK, code // CHUNK % 2, bool(code & PAIRED), bool(code & SPLIT)
        number = met[code % PAIRED]
        met[code % PAIRED] += 1
        if kind == W:  # of the input gradients that were split from it, the next one
            number = split[chunk][number]
        elif late:
            split[chunk].append(number)
        steps.append(
            Step(
                kind=KINDS[kind], micro_batch=number + second * chunk, chunk=chunk, paired=paired,
                joint=paired and kind == F, split=late,
            )
        )  # fmt: skip
    return tuple(steps)


def split_codes(schedule: str, *, pp: int, stage: int, num_micro_batches: int) -> Codes:
    """`split_order` as numbers; which micro-batch a step is of follows from the order of each kind and chunk."""
    m = num_micro_batches
    if schedule in DEPTH:
        return _one_way(DEPTH[schedule], pp, stage, m)
    if schedule == "zb-v":
        return _zero_bubble_v(pp, stage, m)
    depth, place = _half(schedule, pp, stage)
    return _two_ways(depth, place, _Order(n=passes_of(schedule, m), swap=stage > place))


def split_in_flight(schedule: str, *, pp: int, num_micro_batches: int) -> int:
    """Chunk activations every stage holds at its peak until their weight gradient is done, with enough micro-batches.

    zb-h1: pp (as 1f1b's first stage); zb-h2: 2 pp - 1; zb-v: 2 pp halves; dualpipe: pp + 1; dualpipe-v: 2 pp + 1
    halves. Papers as in the module's head.
    """
    most = {"zb-h1": pp, "zb-h2": 2 * pp - 1, "zb-v": 2 * pp, "dualpipe": pp + 1, "dualpipe-v": 2 * pp + 1}[schedule]
    return min(most, num_micro_batches * (1 if schedule in (*DEPTH, "dualpipe") else 2))


def steady_part(schedule: str, *, pp: int, stage: int, num_micro_batches: int) -> Steady:
    """Where the order of a stage repeats (`end` not above `start`: nowhere, too few micro-batches)."""
    m = num_micro_batches
    if schedule in DEPTH:
        warm, lag = DEPTH[schedule] * (pp - 1 - stage), DEPTH[schedule] * stage
        # slots before the first weight gradient have two steps
        return Steady(first=warm + 2 * lag, length=3, start=lag, end=m - warm, place=stage)
    if schedule == "zb-v":
        warm = 2 * (pp - stage) - 1 + 2 * stage + 3 * (pp - stage)
        return Steady(first=warm, length=6, start=0, end=m - (2 * pp - stage - 1), place=stage)
    depth, place = _half(schedule, pp, stage)
    warm = 2 * (depth - place - 1) + 2 * (place + 1) + 3 * (depth - place - 1)
    # in the middle the first slot is not like the others
    end = passes_of(schedule, m) - 2 * depth + place + 1
    return Steady(first=warm + 4, length=4, start=1, end=end, place=place)


def _half(schedule: str, pp: int, stage: int) -> tuple[int, int]:
    """(stages one way, distance of the stage from the end it is nearer to)."""
    if schedule == "dualpipe":
        return pp // 2, min(stage, pp - 1 - stage)
    return pp, stage


@dataclass
class _Order:
    """Codes of the steps issued so far; each takes the next micro-batch of its kind and way.

    n: micro-batches per way; swap: the ways change places, as the stage is nearer to the last one. owed: chunks of the
    weight gradients that were put off, in order.
    """

    n: int
    swap: bool = False
    codes: list[int] = field(default_factory=list)
    count: dict[tuple[int, int], int] = field(default_factory=dict)
    owed: list[int] = field(default_factory=list)

    def done(self, kind: int, way: int) -> int:
        """Steps of a kind and way issued so far."""
        return self.count.get((kind, way), 0)

    def add(self, kind: int, way: int, *, paired: bool = False, split: bool = False) -> None:
        """The next step of a kind and way; none where the micro-batches have run out."""
        number = self.count.get((kind, way), 0)
        self.count[kind, way] = number + 1
        if number >= self.n:
            return
        chunk = way ^ self.swap
        self.codes.append(kind + CHUNK * chunk + PAIRED * paired + SPLIT * split)
        if split:
            self.owed.append(chunk)

    def pay(self) -> None:
        """The weight gradient that was put off first."""
        self.codes.append(W + CHUNK * self.owed.pop(0))

    def pay_of(self, chunk: int, times: int = 1) -> None:
        """Weight gradients of one chunk, out of turn, as far as any are put off."""
        for _ in range(min(times, self.owed.count(chunk))):
            self.owed.remove(chunk)
            self.codes.append(W + CHUNK * chunk)


def _one_way(depth: int, pp: int, stage: int, m: int) -> Codes:
    """1F1B with `depth` times its warm-up forwards, and weight gradients put off by depth x stage micro-batches."""
    warm, lag = min(m, depth * (pp - 1 - stage)), depth * stage
    slots = np.tile(np.array([F, B + SPLIT, W]), (m, 1))
    runs, k = np.ones(slots.shape, dtype=bool), np.arange(m)
    runs[:, 0], runs[:, 2] = k < m - warm, k >= lag
    return np.concatenate([np.full(warm, F), slots[runs], np.full(min(lag, m), W)])


def _zero_bubble_v(pp: int, stage: int, m: int) -> Codes:
    """ZB-V; with fewer than 2 pp - 1 micro-batches the steps of the missing ones are left out."""
    order, n = _Order(n=m), max(2 * pp - 1, m)
    for _ in range(2 * (pp - stage) - 1):
        order.add(F, 0)
    for _ in range(stage):
        order.add(F, 1)
        order.add(F, 0)
    for _ in range(pp - stage):
        order.add(F, 1)
        _input_then_weight(order, 1)
    while order.done(F, 1) < n:
        order.add(F, 0)
        _input_then_weight(order, 0)
        order.add(F, 1)
        _input_then_weight(order, 1)
    for _ in range(stage):
        order.add(B, 0, split=True)
        order.add(B, 1, split=True)
    for _ in range(pp - stage):
        order.add(B, 0, split=True)
        order.pay_of(0)
    order.pay_of(1, order.owed.count(1))
    while order.owed:
        order.pay()
    return np.array(order.codes)


def _input_then_weight(order: _Order, way: int) -> None:
    before = len(order.owed)
    order.add(B, way, split=True)
    order.pay_of(way, len(order.owed) - before)


def _two_ways(depth: int, place: int, order: _Order) -> Codes:
    """DualPipe of a stage `place` away from its end, of `depth` stages from there to the middle (or the turn of the V).

    Forwards; forwards of both ways; input and weight gradients of the other way with its forwards; pairs of a forward
    of one way and a backward of the other; backwards, the last half of them with their weight gradients put off.
    """
    rest = depth - place - 1
    for _ in range(2 * rest):
        order.add(F, 0)
    for _ in range(place + 1):
        order.add(F, 0)
        order.add(F, 1)
    for _ in range(rest):
        order.add(B, 1, split=True)
        order.pay()
        order.add(F, 1)
    for k in range(order.n - 2 * depth + place + 1):
        # in the middle the first pair is not run together: the turn would wait for it
        together = k > 0 or place < depth - 1
        order.add(F, 0, paired=together)
        order.add(B, 1, paired=together)
        _pair(order, 1, 0)
    for _ in range(rest):
        order.add(B, 1)
        _pair(order, 1, 0)
    for k in range(place + 1):
        # from the middle of these backwards on
        late = 2 * k >= place + 1
        order.add(B, 1, split=late)
        order.add(B, 0, split=late or 2 * k + 1 >= place + 1)
    for _ in range(rest):
        order.pay()
        order.add(B, 0, split=True)
    while order.owed:
        order.pay()
    return np.array(order.codes)


def _pair(order: _Order, forward: int, backward: int) -> None:
    order.add(F, forward, paired=True)
    order.add(B, backward, paired=True)
