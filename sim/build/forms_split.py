"""Linear forms (`sim.build.forms`) of schedules that split the backward or run micro-batches both ways.

Counted from the orders themselves, all stages at once. In all of them the first step of a stage and its last backward
are of chunk 0, which came from and goes on to the stages before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.build.corners import corners
from sim.build.forms import FORMS_KEPT, Form, Ints, Layout, Peaks, peaks_of
from sim.build.order import boundary_of, chunks_on, passes_of, placement, target_of
from sim.build.schedule import check_schedule
from sim.build.split import CHUNK, KINDS, SPLIT, B, F, W, split_codes, steady_part

Bools = NDArray[np.bool_]
WALKS_KEPT = 256  # orders of all stages of a pipeline, up to some hundred kB each
MOMENTS_KEPT = 4096  # of single stages, or of several that hold the same: layouts of one depth share them
PERIOD = 2  # micro-batches that the steady part of every such schedule repeats by
NOTHING = 3  # kind of what fills up the shorter orders


def split_form(layout: Layout, schedule: str, num_micro_batches: int) -> Form | None:
    """The form of one pipeline; None where the schedule cannot be laid out."""
    m, pp = num_micro_batches, layout.pp
    try:
        check_schedule(schedule, pp=pp, vpp=layout.vpp, num_micro_batches=m)
    except UserError:
        return None
    short = _short(schedule, pp, m)
    if m <= short:
        return whole_form(layout, schedule, m)
    slots = (m - short) // PERIOD * passes_of(schedule, PERIOD)
    form, walks = whole_form(layout, schedule, short), _walks(schedule, pp, short)
    return Form(
        steps=form.steps + slots * layout.by_slot(walks.slot_steps), late=form.late,
        sends=form.sends + slots * walks.slot_sends, peaks=form.peaks,
    )  # fmt: skip


def _short(schedule: str, pp: int, m: int) -> int:
    """Micro-batches from which on every further pair adds the same steps to a stage and no new moment of memory.

    Warm-up and the longest delay of a weight gradient together are 4 (pp - 1) micro-batches in zb-h2, half of it in the
    others; pairs, since dualpipe sends micro-batches from both ends.
    """
    return (4 if schedule == "zb-h2" else 2) * pp + 4 + m % PERIOD


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walks:
    """The orders of the stages that are looked at, an entry a step: its kind, chunk, and whether it is split, each
    [stage, step]. Counts by chunk: steps and late as in `forms.Form`, of the whole order; slot_*: of one slot of the
    part that repeats, as far as there is one.
    """

    kind: NDArray[np.int8]
    chunk: NDArray[np.int8]
    split: Bools
    steps: Ints
    late: Ints
    sends: Ints
    slot_steps: Ints
    slot_sends: Ints


@lru_cache(maxsize=WALKS_KEPT)
def _walks(schedule: str, pp: int, m: int) -> _Walks:
    count = pp // 2 if schedule == "dualpipe" else pp
    orders = [split_codes(schedule, pp=pp, stage=stage, num_micro_batches=m) for stage in range(count)]
    codes = np.full((count, max(map(len, orders))), NOTHING, dtype=np.int8)
    slots = np.zeros(codes.shape, dtype=bool)
    for stage, order in enumerate(orders):
        codes[stage, : len(order)] = order
        part = steady_part(schedule, pp=pp, stage=stage, num_micro_batches=m)
        slots[stage, part.first : part.first + part.length] = True
    kind, chunk = codes % CHUNK, codes // CHUNK % 2
    chunks = chunks_on(schedule, 2 if placement(schedule) == "v" else 1)
    step = np.arange(codes.shape[1])
    last = np.where(kind == B, step, -1).max(axis=1, keepdims=True)
    everything = _of(codes, chunks, np.ones(codes.shape, dtype=bool))
    repeated = _of(codes, chunks, slots)
    return _Walks(
        kind=kind, chunk=chunk, split=codes & SPLIT > 0,
        steps=_steps(everything), late=_of(codes, chunks, step > last)[W].sum(axis=0),
        sends=_sends(_of(codes, chunks, step < last), schedule, pp),
        slot_steps=_steps(repeated), slot_sends=_sends(repeated, schedule, pp),
    )  # fmt: skip


def _of(codes: NDArray[np.int8], chunks: int, taken: Bools) -> Ints:
    """[kind, alone or paired, chunk, stage]: how many of the steps taken are of each sort."""
    plain = np.where(taken, codes % SPLIT, NOTHING) + SPLIT * np.arange(len(codes))[:, None]
    found = np.bincount(plain.ravel(), minlength=SPLIT * len(codes)).reshape(len(codes), 2, 2, CHUNK)
    return np.ascontiguousarray(found.transpose(3, 1, 2, 0)[:, :, :chunks])


def _steps(found: Ints) -> Ints:
    return np.stack([found[kind, paired] for paired in (0, 1) for kind in (F, B)])


def _sends(found: Ints, schedule: str, pp: int) -> Ints:
    """Sends of some steps to the stage behind and to the one before, [2, stage]."""
    placed, (chunks, stages) = placement(schedule), found.shape[2:]
    out = np.zeros((2, stages), dtype=np.int64)
    for kind in (F, B):
        for chunk in range(chunks):
            counts = found[kind, :, chunk].sum(axis=0)
            for stage in range(stages):
                target = target_of(KINDS[kind], stage, chunk, pp=pp, vpp=chunks, placed=placed)
                if target is not None and target[0] != stage:
                    up = boundary_of(KINDS[kind], stage, chunk, placed=placed) == stage - 1
                    out[int(up), stage] += counts[stage]
    return out


@lru_cache(maxsize=FORMS_KEPT)
def whole_form(layout: Layout, schedule: str, m: int) -> Form:
    """The form by walking through whole orders."""
    walks = _walks(schedule, layout.pp, m)
    return Form(
        steps=layout.by_slot(walks.steps), late=layout.by_slot(walks.late), sends=walks.sends,
        peaks=_peaks(layout, schedule, m),
    )  # fmt: skip


def _peaks(layout: Layout, schedule: str, m: int) -> Peaks:
    """The moments of the orders that hold the most, by stages that hold the same and by what runs."""
    found = [(np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int64))] * len(layout.kept)
    for group in layout.alike:
        # a stage may stand for the others: what runs, what it holds all step and what a moment costs are the same
        classes = tuple(layout.slots[:, group[0]].tolist())
        found[group[0]] = _moments(schedule, layout.pp, m, tuple(group.tolist()), classes)
    return peaks_of(layout, found, kinds=3)


@lru_cache(maxsize=MOMENTS_KEPT)
def _moments(
    schedule: str, pp: int, m: int, stages: tuple[int, ...], classes: tuple[int, ...]
) -> tuple[Ints, Ints]:  # fmt: skip
    """(running, held) as of `forms.peaks_of`, of stages whose chunks are of these classes."""
    walks, some = _walks(schedule, pp, m), list(stages)
    kind, split = walks.kind[some], walks.split[some]
    at = np.array(classes, dtype=np.int8)[walks.chunk[some]]
    counted = (kind == F, (kind == B) & ~split, (kind == B) & split, kind == W)
    held: list[NDArray[np.int32]] = []
    for slot in range(max(classes) + 1):
        here = at == slot
        forward, whole, cut, late = (each & here for each in counted)
        done = np.cumsum(forward.view(np.int8) - whole.view(np.int8) - cut.view(np.int8), axis=1, dtype=np.int32)
        owed = np.cumsum(cut.view(np.int8) - late.view(np.int8), axis=1, dtype=np.int32)
        # while a step runs its activations are there, those of a split backward as the larger of the two
        held += [done + whole, owed - cut, cut.astype(np.int32)]
    runs = (kind == F) | (kind == B)
    running, points = at[runs], np.stack([each[runs] for each in held[0::3] + held[1::3] + held[2::3]], axis=1)
    found = [(slot, corners(points[running == slot].astype(np.int64))) for slot in sorted(set(classes))]
    return np.concatenate([np.full(len(p), slot) for slot, p in found]), np.concatenate([p for _, p in found])
