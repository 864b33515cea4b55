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
    for stage in range(_walked(schedule, pp), pp):
        found[stage] = [_mirrored(moment) for moment in found[pp - 1 - stage]]
    return tuple(map(tuple, found))


def _mirrored(moment: Moment) -> Moment:
    """The moment of the stage that holds the same two parts the other way round."""
    held, deferred, either = (each[::-1] for each in (moment.held, moment.deferred, moment.either))
    return Moment(running=1 - moment.running, held=held, deferred=deferred, either=either)


@lru_cache(maxsize=KEPT)
def passes_on(schedule: str, pp: int, vpp: int, m: int) -> Passes:
    """How often the passes of each stage run, of a schedule that splits the backward."""
    form, twice = _form(schedule, pp, vpp, m, 0), _walked(schedule, pp) < pp
    counts = (np.swapaxes(each, 0, 1).astype(float) for each in (*form.steps, form.late))
    names = ("forward", "backward", "paired_forward", "paired_backward", "late")
    every = (np.concatenate([each, each[::-1, ::-1]]) if twice else each for each in counts)
    return Passes(**dict(zip(names, every, strict=True)))


@lru_cache(maxsize=KEPT)
def held_at_most(schedule: str, pp: int, vpp: int, m: int) -> tuple[float, ...]:
    """Micro-batches [pp] of which each virtual stage of a stage holds the activations at least, at the moment at which
    that is most; of schedules that split the backward."""
    held = []
    for moments in _moments(schedule, pp, vpp, m, 0):
        counts = [np.array(moment.held) + np.array(moment.either or 0) for moment in moments]
        held.append(float(max(each.min() for each in counts)))
    return tuple(held)


def _walked(schedule: str, pp: int) -> int:
    """Stages whose orders are walked: held twice, the later half mirrors the earlier one."""
    return pp // 2 if schedule == "dualpipe" else pp


def _form(schedule: str, pp: int, vpp: int, m: int, group: int) -> Form:
    """The form of all stages that are walked, where every virtual stage is a content of its own: slots are chunks."""
    chunks, stages = chunks_on(schedule, vpp), _walked(schedule, pp)
    contents = tuple(
        tuple(StageContent(kind_counts=(chunk + 1, stage + 1), embedding=False, head=False) for chunk in range(chunks))
        for stage in range(pp)
    )
    layout = Layout(pp=pp, vpp=chunks, contents=contents, kept=tuple(range(stages)))
    if schedule not in SPLIT_SCHEDULES:
        return plain_form(layout, schedule, m, group)
    form = split_form(layout, schedule, m)
    assert form is not None, "a sound layout"
    return form
