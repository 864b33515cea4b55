"""What the order of a schedule says of each stage, whatever its virtual stages hold: moments of memory, and how often a
pass runs alone or paired. From the forms that screening uses, with every chunk a content of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.stage_plan.records import Floats, Moment
from sim.build.forms import Form, Layout, plain_form
from sim.build.forms_split import split_form
from sim.build.order import SPLIT_SCHEDULES, chunks_on
from sim.build.stages import StageContent
from sim.plan import Plan

KEPT = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Passes:
    """[stage, chunk] of a schedule that splits the backward: forwards and backwards that run alone and paired, and
    weight gradients after the last backward of the stage."""

    forward: Floats
    backward: Floats
    paired_forward: Floats
    paired_backward: Floats
    late: Floats


def moments_of(plan: Plan, num_micro_batches: int) -> tuple[tuple[Moment, ...], ...]:
    """Moments [stage] one of which is the peak; the plan's layout is sound (`sim.build.schedule.check_schedule`)."""
    return _moments(plan.schedule, plan.pp, plan.vpp, num_micro_batches, plan.micro_batch_group)


@lru_cache(maxsize=KEPT)
def _moments(schedule: str, pp: int, vpp: int, m: int, group: int) -> tuple[tuple[Moment, ...], ...]:
    peaks, chunks = _form(schedule, pp, vpp, m, group).peaks, chunks_on(schedule, vpp)
    found: list[list[Moment]] = [[] for _ in range(pp)]
    kinds = peaks.held.T.reshape(len(peaks.stage), -1, chunks).tolist()
    for stage, running, (held, *split) in zip(peaks.stage.tolist(), peaks.running.tolist(), kinds, strict=True):
        deferred, either = (tuple(each) if any(each) else () for each in split or ((), ()))
        found[stage].append(Moment(running=running, held=tuple(held), deferred=deferred, either=either))
    return tuple(map(tuple, found))


@lru_cache(maxsize=KEPT)
def passes_on(schedule: str, pp: int, vpp: int, m: int) -> Passes:
    """How often the passes of each stage run, of a schedule that splits the backward."""
    form = _form(schedule, pp, vpp, m, 0)
    forward, backward, paired_forward, paired_backward = np.swapaxes(form.steps, 1, 2).astype(float)
    return Passes(
        forward=forward, backward=backward, paired_forward=paired_forward, paired_backward=paired_backward,
        late=form.late.T.astype(float),
    )  # fmt: skip


@lru_cache(maxsize=KEPT)
def held_at_most(schedule: str, pp: int, vpp: int, m: int) -> tuple[float, ...]:
    """Micro-batches [pp] of which each virtual stage of a stage holds the activations at least, at the moment at which
    that is most; of schedules that split the backward."""
    held = []
    for moments in _moments(schedule, pp, vpp, m, 0):
        counts = [np.array(moment.held) + np.array(moment.either or 0) for moment in moments]
        held.append(float(max(each.min() for each in counts)))
    return tuple(held)


def _form(schedule: str, pp: int, vpp: int, m: int, group: int) -> Form:
    """The form of all stages, every chunk of which is a content of its own: slots are chunks."""
    chunks = chunks_on(schedule, vpp)
    marks = tuple(StageContent(kind_counts=(chunk + 1,), embedding=False, head=False) for chunk in range(chunks))
    layout = Layout(pp=pp, vpp=chunks, contents=(marks,) * pp, kept=tuple(range(pp)))
    if schedule not in SPLIT_SCHEDULES:
        return plain_form(layout, schedule, m, group)
    form = split_form(layout, schedule, m)
    assert form is not None, "a sound layout"
    return form
