"""Linear forms of a pipeline: how often each virtual stage's content enters the lower bound and the memory.

Everything a schedule says about (pp, vpp, micro-batches) is integers: forwards and backwards per content, how
many of them run paired, how many micro-batches a stage holds. They are worked out here once per pipeline;
screening multiplies them with the prices of the contents for every row at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.build.order import SPLIT_SCHEDULES
from sim.build.schedule import group_size, num_warmup
from sim.build.stages import StageContent, stage_contents
from sim.model import ModelSpec

Ints = NDArray[np.int64]
Stage = tuple[StageContent, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The virtual stages of one (pp, vpp): contents[stage][chunk].

    kept: the stages that are looked at, the first and the last of each distinct content. Between two
    equal stages fill and drain grow, and warm-up shrinks, in a straight line, and the earlier one holds more
    activations; so the others can set neither the bound nor the peak (to leave one out is safe anyway:
    the bound is a maximum over stages).
    """

    pp: int
    vpp: int
    contents: tuple[Stage, ...]
    kept: tuple[int, ...]

    def buckets(self, stage: int) -> int:
        """Pieces a virtual stage's parameters travel in: its layers (`sim.build.profile.StageTail`)."""
        return max(1, max(content.num_layers for content in self.contents[stage]))


def layout_of(
    model: ModelSpec, pp: int, vpp: int, *, account_ends: bool, mtp: bool, own: Collection[int] = (),
    schedule: str = "1f1b",
) -> Layout:  # fmt: skip
    """The layout of an even split (or one with lighter ends). Raises UserError where there is none."""
    contents = stage_contents(model, pp, vpp, account_ends=account_ends, mtp=mtp, own=own, schedule=schedule)
    if schedule in SPLIT_SCHEDULES:
        # held twice, the later half of the stages mirrors the earlier one
        kept = tuple(range(pp // 2 if schedule == "dualpipe" else pp))
        return Layout(pp=pp, vpp=len(contents[0]), contents=contents, kept=kept)
    first: dict[Stage, int] = {}
    last: dict[Stage, int] = {}
    for stage, content in enumerate(contents):
        first.setdefault(content, stage)
        last[content] = stage
    return Layout(pp=pp, vpp=vpp, contents=contents, kept=tuple(sorted({*first.values(), *last.values()})))


@dataclass(frozen=True, kw_only=True)
class Term:
    """One content in the time of one stage, in counts of its forward and backward.

    fill: forwards of this content before the stage's first; drain: backwards after its last. forward,
    backward: the stage's own steps that run alone; paired_forward, paired_backward: those that run paired.
    drain_wgrad: weight gradients to be added to all that: the backwards of a drain may be without theirs, those put
    off beyond the stage's last backward do not delay it, those of the first stage end the step.
    """

    content: StageContent
    fill: int
    drain: int
    forward: int
    backward: int
    paired_forward: int
    paired_backward: int
    drain_wgrad: int = 0


@dataclass(frozen=True, kw_only=True)
class Held:
    """A moment at which a stage may be at its peak: what runs, and activations held per content.

    deferred: of micro-batches whose weight gradient is put off; either: of one whose input gradient runs (the larger).
    """

    running: StageContent
    held: tuple[tuple[StageContent, int], ...]
    deferred: tuple[tuple[StageContent, int], ...] = ()
    either: tuple[tuple[StageContent, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageForm:
    """One kept stage. activations, gradients: how many it has sent before its last backward ends."""

    stage: int
    buckets: int
    activations: int
    gradients: int
    terms: tuple[Term, ...]
    peaks: tuple[Held, ...]


def stage_forms(layout: Layout, schedule: str, num_micro_batches: int, group: int = 0) -> tuple[StageForm, ...]:
    """The kept stages of one pipeline (of a schedule that splits the backward: `sim.build.forms_split`)."""
    m, pp, vpp = num_micro_batches, layout.pp, layout.vpp
    group = (group or group_size(pp, m)) if vpp > 1 else m
    forms = []
    for stage in layout.kept:
        warmup = num_warmup(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m, group=group)
        forms.append(
            StageForm(
                stage=stage,
                buckets=layout.buckets(stage),
                activations=m * (vpp - (stage == pp - 1)),
                gradients=m * (vpp - (stage == 0)) - (stage > 0),
                terms=_terms(layout, stage, m, group, warmup),
                peaks=_peaks(layout.contents[stage], m, group, warmup),
            )
        )
    return tuple(forms)


def _terms(layout: Layout, stage: int, m: int, group: int, warmup: int) -> tuple[Term, ...]:
    """Counts of every content that stands on the stage or before it."""
    vpp = layout.vpp
    pairs = max(0, m * vpp - warmup - 1)
    counts: dict[StageContent, list[int]] = {}
    for before in layout.contents[:stage]:
        # first forward and last backward pass through chunk 0 of every stage before
        counts.setdefault(before[0], [0] * 5)[0] += 1
    for chunk, content in enumerate(layout.contents[stage]):
        paired_f = m - in_first(m * vpp - pairs, chunk, vpp=vpp, num_micro_batches=m, group=group)
        paired_b = in_first(pairs, vpp - 1 - chunk, vpp=vpp, num_micro_batches=m, group=group)
        entry = counts.setdefault(content, [0] * 5)
        for i, count in enumerate((m - paired_f, m - paired_b, paired_f, paired_b), start=1):
            entry[i] += count
    return tuple(
        Term(content=c, fill=n[0], drain=n[0], forward=n[1], backward=n[2], paired_forward=n[3], paired_backward=n[4])
        for c, n in counts.items()
    )


def in_first(count: int, chunk: int, *, vpp: int, num_micro_batches: int, group: int) -> int:
    """Steps of one chunk among the first `count` of `schedule.chunk_order`."""
    whole = min(count // (group * vpp), num_micro_batches // group)
    members = group if whole < num_micro_batches // group else num_micro_batches % group
    rest = count - whole * group * vpp
    return whole * group + min(max(rest - chunk * members, 0), members)


def _peaks(contents: Stage, m: int, group: int, warmup: int) -> tuple[Held, ...]:
    """Moments one of which is the peak, whatever a content saves: corners of the walk through the order.

    Between two steps at which the chunk of the forwards or of the backwards changes, activations held
    per content move along a straight line, so a sum of them is largest at an end. What another
    moment with the same running content exceeds in every count is left out.
    """
    kinds = list(dict.fromkeys(contents))
    if len(kinds) == 1:
        held = min(m * len(contents), warmup + 1)
        return (Held(running=kinds[0], held=((kinds[0], held),)),)
    forward, backward = _walk([kinds.index(c) for c in contents], m, group, warmup)
    total = len(forward)
    warm = min(warmup, total)
    done_f, done_b = _tally(forward, len(kinds)), _tally(backward, len(kinds))
    steady = np.arange(total - warm)
    # while warming up, while alternating, while running out
    alternating = done_f[warm + 1 + steady] - done_b[steady]
    walked = np.concatenate([done_f[1 : warm + 1], alternating, done_f[total] - done_b[total - warm : total]])
    runs_f = np.concatenate([forward, np.full(warm, -1)])
    runs_b = np.concatenate([np.full(warm, -1), backward])
    code = runs_f * (len(kinds) + 1) + runs_b
    corner = np.ones(len(code), dtype=bool)
    corner[1:-1] = (code[1:-1] != code[:-2]) | (code[1:-1] != code[2:])
    seen: dict[int, set[tuple[int, ...]]] = {}
    for i in np.flatnonzero(corner):
        for running in {int(runs_f[i]), int(runs_b[i])} - {-1}:
            seen.setdefault(running, set()).add(tuple(walked[i].tolist()))
    out = []
    for running in sorted(seen):
        for counts in sorted(_undominated(seen[running])):
            pairs = tuple((kinds[i], n) for i, n in enumerate(counts) if n)
            out.append(Held(running=kinds[running], held=pairs))
    return tuple(out)


def _walk(classes: Sequence[int], m: int, group: int, warmup: int) -> tuple[Ints, Ints]:
    """Class of content of each forward and backward in order; of many equal groups only a few are kept."""
    vpp = len(classes)
    enough = (warmup + 1) // (group * vpp) + 4
    m = min(m, enough * group + m % group)
    sizes = [group] * (m // group) + ([m % group] if m % group else [])
    blocks = np.repeat(np.asarray(sizes, dtype=np.int64), vpp)
    row = np.asarray(classes, dtype=np.int64)
    return np.repeat(np.tile(row, len(sizes)), blocks), np.repeat(np.tile(row[::-1], len(sizes)), blocks)


def _tally(classes: Ints, num_classes: int) -> Ints:
    """Steps of each class among the first 0, 1, 2, ... steps."""
    out = np.zeros((len(classes) + 1, num_classes), dtype=np.int64)
    np.cumsum(classes[:, None] == np.arange(num_classes), axis=0, out=out[1:])
    return out


def _undominated(points: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [p for p in points if not any(q != p and all(a >= b for a, b in zip(q, p, strict=True)) for q in points)]
