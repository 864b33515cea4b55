"""Linear forms (`sim.build.forms`) of schedules that split the backward or run micro-batches both ways.

Counted from the orders themselves. In all of them the first step of a stage and its last backward are of chunk 0, which
came from and goes on to the stages before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.build.forms import Held, Layout, StageForm, Term
from sim.build.order import boundary_of, passes_of, placement, target_of
from sim.build.schedule import check_schedule
from sim.build.split import split_order, steady_part
from sim.build.stages import StageContent

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
KINDS = "FBW"
F, B, W = range(3)
FORMS_KEPT = 512  # short pipelines whose forms are kept: every number of micro-batches extends the same two
WALKS_KEPT = 4096  # orders of single stages, some kB each: layouts of one depth share them
PERIOD = 2  # micro-batches that the steady part of every such schedule repeats by


def split_forms(layout: Layout, schedule: str, num_micro_batches: int, group: int = 0) -> tuple[StageForm, ...] | None:
    """The kept stages of one pipeline; None where the schedule cannot be laid out."""
    m, pp = num_micro_batches, layout.pp
    try:
        check_schedule(schedule, pp=pp, vpp=layout.vpp, num_micro_batches=m)
    except UserError:
        return None
    short = _short(schedule, pp, m)
    if m <= short:
        return _forms(layout, schedule, m)
    slots = (m - short) // PERIOD * passes_of(schedule, PERIOD)
    return tuple(_extended(form, layout, schedule, short, slots) for form in _forms(layout, schedule, short))


def _short(schedule: str, pp: int, m: int) -> int:
    """Micro-batches from which on every further pair adds the same steps to a stage and no new moment of memory.

    Warm-up and the longest delay of a weight gradient together are 4 (pp - 1) micro-batches in zb-h2, half of it in the
    others; pairs, since dualpipe sends micro-batches from both ends.
    """
    return (4 if schedule == "zb-h2" else 2) * pp + 4 + m % PERIOD


def _extended(form: StageForm, layout: Layout, schedule: str, m: int, slots: int) -> StageForm:
    """The form of a stage with m micro-batches and `slots` more of the slots that its order repeats."""
    part = steady_part(schedule, pp=layout.pp, stage=form.stage, num_micro_batches=m)
    walk = _walk(schedule, layout.pp, form.stage, m)
    slot = slice(part.first, part.first + part.length)
    up, down = _sends(walk, slot, schedule, form.stage, layout)
    alone_f, alone_b, paired_f, paired_b = _steps(layout.contents[form.stage], walk, slot)
    terms = tuple(
        replace(
            t, forward=t.forward + slots * alone_f[t.content], backward=t.backward + slots * alone_b[t.content],
            paired_forward=t.paired_forward + slots * paired_f[t.content],
            paired_backward=t.paired_backward + slots * paired_b[t.content],
        )
        for t in form.terms
    )  # fmt: skip
    activations, gradients = form.activations + slots * down, form.gradients + slots * up
    return replace(form, activations=activations, gradients=gradients, terms=terms)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walk:
    """The order of one stage as arrays, an entry a step: place of its kind in KINDS, chunk, paired, split. last: the
    place of the last backward."""

    kind: Ints
    chunk: Ints
    paired: Bools
    split: Bools
    last: int


@lru_cache(maxsize=WALKS_KEPT)
def _walk(schedule: str, pp: int, stage: int, m: int) -> _Walk:
    order = split_order(schedule, pp=pp, stage=stage, num_micro_batches=m)
    rows = [(KINDS.index(s.kind), s.chunk, s.paired, s.split) for s in order]
    kind, chunk, paired, split = np.array(rows, dtype=np.int64).T
    last = int(np.flatnonzero(kind == B)[-1])
    return _Walk(kind=kind, chunk=chunk, paired=paired.astype(bool), split=split.astype(bool), last=last)


@lru_cache(maxsize=FORMS_KEPT)
def _forms(layout: Layout, schedule: str, m: int) -> tuple[StageForm, ...]:
    """Forms by walking the orders."""
    late_first = _late(layout.contents[0], _walk(schedule, layout.pp, 0, m))
    forms = []
    for stage in layout.kept:
        walk = _walk(schedule, layout.pp, stage, m)
        up, down = _sends(walk, slice(walk.last), schedule, stage, layout)
        forms.append(
            StageForm(
                stage=stage, buckets=layout.buckets(stage), activations=down, gradients=up,
                terms=_terms(layout, stage, walk, late_first),
                peaks=_peaks(layout.contents[stage], walk),
            )
        )  # fmt: skip
    return tuple(forms)


def _counts(contents: Sequence[StageContent], chunk: Ints) -> Counter[StageContent]:
    """Steps by content, in the order of chunks."""
    out = Counter[StageContent]()
    for content, count in zip(contents, np.bincount(chunk, minlength=len(contents)).tolist(), strict=True):
        out[content] += count
    return out


def _steps(contents: Sequence[StageContent], walk: _Walk, steps: slice) -> list[Counter[StageContent]]:
    """Forwards and backwards that run alone, then those that run paired, by content."""
    kind, chunk, paired = walk.kind[steps], walk.chunk[steps], walk.paired[steps]
    return [_counts(contents, chunk[(kind == each) & (paired == pairs)]) for pairs in (False, True) for each in (F, B)]


def _late(contents: Sequence[StageContent], walk: _Walk) -> Counter[StageContent]:
    """Weight gradients after the last backward; a content without any is left out."""
    return +_counts(contents, walk.chunk[walk.last :][walk.kind[walk.last :] == W])


def _sends(walk: _Walk, steps: slice, schedule: str, stage: int, layout: Layout) -> tuple[int, int]:
    """Sends of some steps to the stage before and to the one behind."""
    placed, count = placement(schedule), Counter[int]()
    found = np.bincount(walk.kind[steps] * layout.vpp + walk.chunk[steps], minlength=3 * layout.vpp)
    for number, many in enumerate(found.tolist()):
        kind, chunk = KINDS[number // layout.vpp], number % layout.vpp
        target = target_of(kind, stage, chunk, pp=layout.pp, vpp=layout.vpp, placed=placed)
        if target is not None and target[0] != stage:
            count[boundary_of(kind, stage, chunk, placed=placed)] += many
    return count[stage - 1], count[stage]


def _terms(layout: Layout, stage: int, walk: _Walk, late_first: Counter[StageContent]) -> tuple[Term, ...]:
    before = Counter(contents[0] for contents in layout.contents[:stage])
    mine = layout.contents[stage]
    alone_f, alone_b, paired_f, paired_b = _steps(mine, walk, slice(None))
    late = _late(mine, walk)
    every = dict.fromkeys((*before, *mine, *late_first))
    return tuple(
        Term(
            content=c, fill=before[c], drain=before[c], forward=alone_f[c], backward=alone_b[c],
            paired_forward=paired_f[c], paired_backward=paired_b[c], drain_wgrad=late_first[c] - late[c] - before[c],
        )
        for c in every
    )  # fmt: skip


def _peaks(contents: Sequence[StageContent], walk: _Walk) -> tuple[Held, ...]:
    """Every distinct moment of the order that holds the most, by content that runs."""
    kinds = list(dict.fromkeys(contents))
    at = np.array([kinds.index(c) for c in contents])[walk.chunk]
    step = at[:, None] == np.arange(len(kinds))  # [step, content]
    forward, backward, late = (step & (walk.kind == kind)[:, None] for kind in (F, B, W))
    split = walk.split[:, None] & step
    # while a step runs its activations are there, those of a split backward as `either`
    saved = np.cumsum(forward, axis=0) - np.cumsum(backward, axis=0) + (backward & ~split)
    deferred = np.cumsum(split, axis=0) - np.cumsum(late, axis=0) - split
    moments = np.concatenate([saved, deferred, split], axis=1)
    # of each, contents stand in the order in which the walk meets them
    orders = [_met(taken) for taken in (forward, split | late, step)]
    out = []
    for running in dict.fromkeys(at[walk.kind != W].tolist()):
        seen = np.unique(moments[(walk.kind != W) & (at == running)], axis=0)
        for row in _largest(seen):
            held, later, either = (
                tuple((kinds[i], int(row[n * len(kinds) + i])) for i in order if row[n * len(kinds) + i])
                for n, order in enumerate(orders)
            )
            out.append(Held(running=kinds[running], held=held, deferred=later, either=either))
    return tuple(out)


def _met(taken: Bools) -> list[int]:
    """Columns in the order of their first True."""
    first = np.where(taken.any(axis=0), taken.argmax(axis=0), len(taken))
    return [int(i) for i in np.argsort(first, kind="stable")]


def _largest(moments: Ints) -> Ints:
    """Rows that no other one exceeds or equals in every count; the rows are distinct and in rising order."""
    before = len(moments) + 1
    while len(moments) < before:  # a row often lies below the next one: those go first, in one look
        before = len(moments)
        below = (moments[1:] >= moments[:-1]).all(axis=1)
        moments = moments[np.append(~below, True)]
    covers = (moments[:, None, :] >= moments[None, :, :]).all(axis=2)
    kept: Ints = moments[covers.sum(axis=0) == 1]
    return kept
