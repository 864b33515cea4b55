"""Linear forms (`sim.build.forms`) of schedules that split the backward or run micro-batches both ways.

Counted from the orders themselves. In all of them the first step of a stage and its last backward are of chunk 0, which
came from and goes on to the stages before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from hwprofiles.errors import UserError
from sim.build.forms import Held, Layout, StageForm, Term
from sim.build.order import Step, boundary_of, placement, target_of
from sim.build.schedule import check_schedule
from sim.build.split import split_order
from sim.build.stages import StageContent

Counts = tuple[tuple[StageContent, int], ...]
Moment = tuple[Counts, Counts, Counts]
FORMS_KEPT = 512  # short pipelines whose forms are kept: every number of micro-batches extends the same two
PERIOD = 2  # micro-batches that the steady part of every such schedule repeats by


def split_forms(layout: Layout, schedule: str, num_micro_batches: int, group: int = 0) -> tuple[StageForm, ...] | None:
    """The kept stages of one pipeline; None where the schedule cannot be laid out."""
    m, pp = num_micro_batches, layout.pp
    try:
        check_schedule(schedule, pp=pp, vpp=layout.vpp, num_micro_batches=m)
    except UserError:
        return None
    short = _short(schedule, pp, m)
    if m <= short + PERIOD:
        return _forms(layout, schedule, m)
    more = (m - short) // PERIOD
    few, next_ = _forms(layout, schedule, short), _forms(layout, schedule, short + PERIOD, peaks=False)
    return tuple(_extended(one, other, more) for one, other in zip(few, next_, strict=True))


def _short(schedule: str, pp: int, m: int) -> int:
    """Micro-batches from which on every further pair adds the same steps to a stage and no new moment of memory.

    Warm-up and the longest delay of a weight gradient together are 4 (pp - 1) micro-batches in zb-h2, half of it in the
    others; pairs, since dualpipe sends micro-batches from both ends.
    """
    return (4 if schedule == "zb-h2" else 2) * pp + 4 + m % PERIOD


def _extended(one: StageForm, other: StageForm, times: int) -> StageForm:
    """The form of `one` with `times` what `other`, one period longer, has more of each step and send."""

    def on(a: int, b: int) -> int:
        return a + times * (b - a)

    terms = tuple(
        replace(
            a, forward=on(a.forward, b.forward), backward=on(a.backward, b.backward),
            paired_forward=on(a.paired_forward, b.paired_forward),
            paired_backward=on(a.paired_backward, b.paired_backward),
        )
        for a, b in zip(one.terms, other.terms, strict=True)
    )  # fmt: skip
    return replace(
        one, activations=on(one.activations, other.activations), gradients=on(one.gradients, other.gradients),
        terms=terms,
    )  # fmt: skip


@lru_cache(maxsize=FORMS_KEPT)
def _forms(layout: Layout, schedule: str, m: int, *, peaks: bool = True) -> tuple[StageForm, ...]:
    """Forms by walking the orders; peaks: with the moments of memory, which take most of the time."""
    pp = layout.pp
    first = split_order(schedule, pp=pp, stage=0, num_micro_batches=m)
    late_first = _late(layout.contents[0], first)
    forms = []
    for stage in layout.kept:
        order = split_order(schedule, pp=pp, stage=stage, num_micro_batches=m)
        up, down = _sends(order, schedule, stage, layout)
        forms.append(
            StageForm(
                stage=stage, buckets=layout.buckets(stage), activations=down, gradients=up,
                terms=_terms(layout, stage, order, late_first),
                peaks=_peaks(layout.contents[stage], order) if peaks else (),
            )
        )  # fmt: skip
    return tuple(forms)


def _late(contents: Sequence[StageContent], order: Sequence[Step]) -> Counter[StageContent]:
    """Weight gradients after the last backward."""
    last = max(i for i, step in enumerate(order) if step.kind == "B")
    return Counter(contents[step.chunk] for step in order[last:] if step.kind == "W")


def _sends(order: Sequence[Step], schedule: str, stage: int, layout: Layout) -> tuple[int, int]:
    """Sends before the last backward to the stage before and to the one behind."""
    placed, count = placement(schedule), Counter[int]()
    last = max(i for i, step in enumerate(order) if step.kind == "B")
    for step in order[:last]:
        target = target_of(step.kind, stage, step.chunk, pp=layout.pp, vpp=layout.vpp, placed=placed)
        if target is not None and target[0] != stage:
            count[boundary_of(step.kind, stage, step.chunk, placed=placed)] += 1
    return count[stage - 1], count[stage]


def _terms(layout: Layout, stage: int, order: Sequence[Step], late_first: Counter[StageContent]) -> tuple[Term, ...]:
    before = Counter(contents[0] for contents in layout.contents[:stage])
    mine = layout.contents[stage]
    count = Counter((mine[step.chunk], step.kind, step.paired) for step in order)
    late = _late(mine, order)
    every = dict.fromkeys((*before, *mine, *late_first))
    return tuple(
        Term(
            content=c, fill=before[c], drain=before[c], forward=count[c, "F", False], backward=count[c, "B", False],
            paired_forward=count[c, "F", True], paired_backward=count[c, "B", True],
            drain_wgrad=late_first[c] - late[c] - before[c],
        )
        for c in every
    )  # fmt: skip


def _peaks(contents: Sequence[StageContent], order: Sequence[Step]) -> tuple[Held, ...]:
    """Every distinct moment of the order that holds the most, by content that runs."""
    seen: dict[StageContent, set[Moment]] = {}
    saved, deferred = Counter[StageContent](), Counter[StageContent]()
    for step in order:
        content = contents[step.chunk]
        either = Counter[StageContent]()
        if step.kind == "F":
            saved[content] += 1
        elif step.kind == "W":
            deferred[content] -= 1
            continue
        if step.split:
            saved[content] -= 1
            either[content] += 1
        seen.setdefault(content, set()).add((_items(saved), _items(deferred), _items(either)))
        if step.split:
            deferred[content] += 1
        elif step.kind == "B":
            saved[content] -= 1
    return tuple(
        Held(running=running, held=held, deferred=later, either=either)
        for running, moments in seen.items() for held, later, either in _largest(moments)
    )  # fmt: skip


def _largest(moments: set[Moment]) -> list[Moment]:
    """Those that no other one exceeds or equals in every count.

    Largest sum first: what is larger in every count has come before, so each is held against the few kept ones.
    """
    kept: list[tuple[Moment, dict[tuple[int, StageContent], int]]] = []
    for moment in sorted(moments, key=lambda each: -sum(n for counts in each for _, n in counts)):
        table = {(i, content): n for i, counts in enumerate(moment) for content, n in counts}
        if not any(all(theirs.get(key, 0) >= n for key, n in table.items()) for _, theirs in kept):
            kept.append((moment, table))
    return sorted((moment for moment, _ in kept), key=repr)


def _items(counts: Counter[StageContent]) -> Counts:
    return tuple((content, count) for content, count in counts.items() if count)
