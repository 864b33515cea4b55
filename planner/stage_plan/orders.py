"""What the order of a schedule says of each stage, whatever its virtual stages hold: moments of memory, and how often a
pass runs alone or paired. From the forms that screening uses, with every chunk a content of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.stage_plan.records import Floats, Moment
from sim.build.forms import Layout, StageForm, stage_forms
from sim.build.forms_split import split_forms
from sim.build.order import SPLIT_SCHEDULES, chunks_on
from sim.build.split import split_order
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
    marks, forms = _forms(schedule, pp, vpp, m, group)
    out = []
    for form in forms:
        found = []
        for peak in form.peaks:
            held, deferred, either = (dict(each) for each in (peak.held, peak.deferred, peak.either))
            found.append(
                Moment(
                    running=marks.index(peak.running), held=tuple(held.get(mark, 0) for mark in marks),
                    deferred=tuple(deferred.get(mark, 0) for mark in marks) if deferred else (),
                    either=tuple(either.get(mark, 0) for mark in marks) if either else (),
                )
            )  # fmt: skip
        out.append(tuple(found))
    return tuple(out)


@lru_cache(maxsize=KEPT)
def passes_on(schedule: str, pp: int, vpp: int, m: int) -> Passes:
    """How often the passes of each stage run, of a schedule that splits the backward."""
    marks, forms = _forms(schedule, pp, vpp, m, 0)
    names = ("forward", "backward", "paired_forward", "paired_backward")
    counts = {name: np.zeros((pp, len(marks))) for name in names}
    late = np.zeros((pp, len(marks)))
    for form in forms:
        for term in form.terms:
            for name in names:
                counts[name][form.stage, marks.index(term.content)] += getattr(term, name)
        order = split_order(schedule, pp=pp, stage=form.stage, num_micro_batches=m)
        last = max(at for at, step in enumerate(order) if step.kind == "B")
        for step in order[last:]:
            late[form.stage, step.chunk] += step.kind == "W"
    return Passes(**counts, late=late)


@lru_cache(maxsize=KEPT)
def held_at_most(schedule: str, pp: int, vpp: int, m: int) -> tuple[float, ...]:
    """Micro-batches [pp] of which each virtual stage of a stage holds the activations at least, at the moment at which
    that is most; of schedules that split the backward."""
    held = []
    for moments in _moments(schedule, pp, vpp, m, 0):
        counts = [np.array(moment.held) + np.array(moment.either or 0) for moment in moments]
        held.append(float(max(each.min() for each in counts)))
    return tuple(held)


def _forms(
    schedule: str, pp: int, vpp: int, m: int, group: int
) -> tuple[list[StageContent], tuple[StageForm, ...]]:  # fmt: skip
    """(the content that stands for each chunk, the forms of all stages)."""
    chunks = chunks_on(schedule, vpp)
    marks = [StageContent(kind_counts=(chunk + 1,), embedding=False, head=False) for chunk in range(chunks)]
    layout = Layout(pp=pp, vpp=chunks, contents=(tuple(marks),) * pp, kept=tuple(range(pp)))
    if schedule not in SPLIT_SCHEDULES:
        return marks, stage_forms(layout, schedule, m, group)
    forms = split_forms(layout, schedule, m)
    assert forms is not None, "a sound layout"
    return marks, forms
