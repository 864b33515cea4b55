"""Linear forms of a pipeline: how often each virtual stage's content enters the lower bound and the memory.

Everything a schedule says about (pp, vpp, micro-batches) is integers: forwards and backwards per content, how
many of them run paired, how many micro-batches a stage holds. They are worked out here once per pipeline;
screening multiplies them with the prices of the contents for every row at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.build.corners import corners
from sim.build.order import SPLIT_SCHEDULES
from sim.build.schedule import group_size, num_warmup
from sim.build.stages import StageContent, stage_contents
from sim.model import ModelSpec

Ints = NDArray[np.int64]
Stage = tuple[StageContent, ...]

FORMS_KEPT = 512  # moments of whole layouts: every number of micro-batches from some on has the same
WALKS_KEPT = 4096  # corners of walks through interleaved orders, some kB each: layouts share them


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The virtual stages of one (pp, vpp): contents[stage][chunk]. Known by identity: what is counted is remembered.

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

    @cached_property
    def distinct(self) -> dict[StageContent, int]:
        """The number of each content on a kept stage, or in chunk 0 of one before it."""
        firsts = (stage[0] for stage in self.contents[: self.kept[-1]])
        return {c: i for i, c in enumerate(dict.fromkeys((*(c for s in self.kept for c in self.contents[s]), *firsts)))}

    @cached_property
    def slots(self) -> Ints:
        """[chunk, kept stage]: which of the stage's distinct contents, in order of appearance, a chunk is."""
        return np.array([_classes(self.contents[stage]) for stage in self.kept]).T

    @cached_property
    def own(self) -> Ints:
        """[slot, kept stage]: numbers in `distinct` of the stage's distinct contents; the first one's beyond them."""
        rows = [list(dict.fromkeys(self.distinct[c] for c in self.contents[stage])) for stage in self.kept]
        width = max(map(len, rows))
        return np.array([row + row[:1] * (width - len(row)) for row in rows]).T

    @cached_property
    def often(self) -> Ints:
        """[slot, kept stage]: virtual stages of a content on the stage."""
        return self.by_slot(np.ones_like(self.slots))

    @cached_property
    def before(self) -> tuple[Ints, Ints]:
        """(content, count), each [entry, kept stage]: chunk 0 of the stages from the last kept one on to this one.

        A first forward and a last backward pass through chunk 0 of every stage before.
        """
        rows: list[dict[int, int]] = []
        for start, stop in zip((0, *self.kept), self.kept, strict=False):
            here: dict[int, int] = {}
            for stage in self.contents[start:stop]:
                here[self.distinct[stage[0]]] = here.get(self.distinct[stage[0]], 0) + 1
            rows.append(here)
        width = max(1, max(map(len, rows)))
        content, count = np.zeros((2, width, len(rows)), dtype=np.int64)
        for k, here in enumerate(rows):
            content[: len(here), k], count[: len(here), k] = list(here), list(here.values())
        return content, count

    @cached_property
    def alike(self) -> list[Ints]:
        """Positions in `kept` of the stages that hold the same, content by content."""
        groups: dict[Stage, list[int]] = {}
        for k, stage in enumerate(self.kept):
            groups.setdefault(self.contents[stage], []).append(k)
        return [np.array(group) for group in groups.values()]

    def by_slot(self, counts: Ints) -> Ints:
        """Counts [..., chunk, kept stage] added up by slot [..., slot, kept stage]."""
        if len(self.own) == len(self.slots) == 1:
            return counts
        out = np.zeros((*counts.shape[:-2], *self.own.shape), dtype=np.int64)
        stages = np.arange(len(self.kept))
        for chunk, slot in enumerate(self.slots):
            out[..., slot, stages] += counts[..., chunk, :]
        return out


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Peaks:
    """Moments at which a kept stage may be at its peak.

    stage: position in `Layout.kept`; running: slot of what runs; held [entry, moment]: micro-batches that hold, slot by
    slot, their activations; where the backward is split, then those whose weight gradient is put off, then those whose
    input gradient runs (the larger of the two).
    """

    stage: Ints
    running: Ints
    held: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Form:
    """One pipeline.

    steps [4, slot, kept stage]: forwards and backwards that run alone, then those that run paired; late [slot, kept
    stage]: weight gradients after the stage's last backward; sends [2, kept stage]: activations and gradients it has
    sent before its last backward ends.
    """

    steps: Ints
    late: Ints
    sends: Ints
    peaks: Peaks


def plain_form(layout: Layout, schedule: str, num_micro_batches: int, group: int = 0) -> Form:
    """The form of one pipeline (of a schedule that splits the backward: `sim.build.forms_split`)."""
    m, pp, vpp = num_micro_batches, layout.pp, layout.vpp
    group = (group or group_size(pp, m)) if vpp > 1 else m
    stages, chunk = np.array(layout.kept), np.arange(vpp)[:, None]
    warmup = np.array(
        [num_warmup(schedule, pp=pp, vpp=vpp, stage=s, num_micro_batches=m, group=group) for s in layout.kept]
    )
    pairs = np.maximum(0, m * vpp - warmup - 1)
    paired_f = m - in_first(m * vpp - pairs, chunk, vpp=vpp, num_micro_batches=m, group=group)
    paired_b = in_first(pairs, vpp - 1 - chunk, vpp=vpp, num_micro_batches=m, group=group)
    steps = layout.by_slot(np.stack([m - paired_f, m - paired_b, paired_f, paired_b]))
    sends = np.stack([m * (vpp - (stages == pp - 1)), m * (vpp - (stages == 0)) - (stages > 0)])
    peaks = _peaks(layout, m, group, warmup)
    return Form(steps=steps, late=np.zeros_like(steps[0]), sends=sends, peaks=peaks)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A moment at which a stage may be at its peak: what runs, and activations held per content."""

    running: StageContent
    held: tuple[tuple[StageContent, int], ...]


@dataclass(frozen=True, kw_only=True)
class StageForm:
    """One kept stage and the moments one of which is its peak."""

    stage: int
    peaks: tuple[Held, ...]


def stage_forms(layout: Layout, schedule: str, num_micro_batches: int, group: int = 0) -> tuple[StageForm, ...]:
    """The moments of `plain_form`, stage by stage and content by content."""
    peaks, contents = plain_form(layout, schedule, num_micro_batches, group).peaks, list(layout.distinct)
    found: list[list[Held]] = [[] for _ in layout.kept]
    for stage, running, held in zip(peaks.stage.tolist(), peaks.running.tolist(), peaks.held.T.tolist(), strict=True):
        own = [contents[c] for c in layout.own[:, stage]]
        pairs = tuple((content, n) for content, n in zip(own, held, strict=True) if n)
        found[stage].append(Held(running=own[running], held=pairs))
    return tuple(StageForm(stage=s, peaks=tuple(each)) for s, each in zip(layout.kept, found, strict=True))


def in_first(count: Any, chunk: Any, *, vpp: int, num_micro_batches: int, group: int) -> Any:
    """Steps of one chunk among the first `count` of `schedule.chunk_order`; numbers or arrays."""
    groups = num_micro_batches // group
    whole = np.minimum(count // (group * vpp), groups)
    members = np.where(whole < groups, group, num_micro_batches % group)
    return whole * group + np.clip(count - whole * group * vpp - chunk * members, 0, members)


def _peaks(layout: Layout, m: int, group: int, warmup: Ints) -> Peaks:
    """Moments one of which is the peak, whatever a content saves: corners of the walk through the order."""
    if len(layout.own) == 1:
        return _most(layout, tuple(np.minimum(m * layout.vpp, warmup + 1).tolist()))
    # of many equal groups only a few are kept
    enough = ((warmup + 1) // (group * layout.vpp) + 4) * group + m % group
    return _walked(layout, group, tuple(zip(np.minimum(m, enough).tolist(), warmup.tolist(), strict=True)))


@lru_cache(maxsize=FORMS_KEPT)
def _most(layout: Layout, held: tuple[int, ...]) -> Peaks:
    """Stages whose chunks are all alike, at their most activations."""
    stages = np.arange(len(held))
    return Peaks(stage=stages, running=np.zeros_like(stages), held=np.array([held]))


@lru_cache(maxsize=FORMS_KEPT)
def _walked(layout: Layout, group: int, walks: tuple[tuple[int, int], ...]) -> Peaks:
    """walks: (micro-batches, warm-up) of each kept stage."""
    classes = map(tuple, layout.slots.T.tolist())
    return peaks_of(layout, [_corners(each, m, group, warm) for each, (m, warm) in zip(classes, walks, strict=True)])


def peaks_of(layout: Layout, found: Sequence[tuple[Ints, Ints]], kinds: int = 1) -> Peaks:
    """Moments (running, held [moment, entry]) of each kept stage as one record; kinds: of what is held."""
    width = len(layout.own)
    held = np.zeros((kinds, width, sum(len(running) for running, _ in found)), dtype=np.int64)
    at = 0
    for running, counts in found:
        mine = counts.reshape(len(running), kinds, counts.shape[1] // kinds)
        held[:, : mine.shape[2], at : at + len(running)] = np.moveaxis(mine, 0, 2)
        at += len(running)
    return Peaks(
        stage=np.repeat(np.arange(len(found)), [len(running) for running, _ in found]),
        running=np.concatenate([running for running, _ in found]), held=held.reshape(-1, held.shape[2]),
    )  # fmt: skip


@lru_cache(maxsize=WALKS_KEPT)
def _corners(classes: tuple[int, ...], m: int, group: int, warmup: int) -> tuple[Ints, Ints]:
    """(running, held [moment, class]) of one stage whose chunks are of these classes.

    Between two steps at which the chunk of the forwards or of the backwards changes, activations held
    per content move along a straight line, so a sum of them is largest at an end.
    """
    kinds = max(classes) + 1
    if kinds == 1:
        return np.zeros(1, dtype=np.int64), np.array([[min(m * len(classes), warmup + 1)]])
    forward, backward = _walk(classes, m, group)
    total = len(forward)
    warm = min(warmup, total)
    done_f, done_b = _tally(forward, kinds), _tally(backward, kinds)
    steady = np.arange(total - warm)
    # while warming up, while alternating, while running out
    alternating = done_f[warm + 1 + steady] - done_b[steady]
    walked = np.concatenate([done_f[1 : warm + 1], alternating, done_f[total] - done_b[total - warm : total]])
    runs_f = np.concatenate([forward, np.full(warm, -1)])
    runs_b = np.concatenate([np.full(warm, -1), backward])
    code = runs_f * (kinds + 1) + runs_b
    corner = np.ones(len(code), dtype=bool)
    corner[1:-1] = (code[1:-1] != code[:-2]) | (code[1:-1] != code[2:])
    found = []
    for running in range(kinds):
        held = corners(walked[corner & ((runs_f == running) | (runs_b == running))])
        found.append((np.full(len(held), running), held))
    return np.concatenate([running for running, _ in found]), np.concatenate([held for _, held in found])


def _walk(classes: Sequence[int], m: int, group: int) -> tuple[Ints, Ints]:
    """Class of content of each forward and backward in order."""
    vpp = len(classes)
    sizes = [group] * (m // group) + ([m % group] if m % group else [])
    blocks = np.repeat(np.asarray(sizes, dtype=np.int64), vpp)
    row = np.asarray(classes, dtype=np.int64)
    return np.repeat(np.tile(row, len(sizes)), blocks), np.repeat(np.tile(row[::-1], len(sizes)), blocks)


def _tally(classes: Ints, num_classes: int) -> Ints:
    """Steps of each class among the first 0, 1, 2, ... steps."""
    out = np.zeros((len(classes) + 1, num_classes), dtype=np.int64)
    np.cumsum(classes[:, None] == np.arange(num_classes), axis=0, out=out[1:])
    return out


def _classes(contents: Stage) -> list[int]:
    kinds = list(dict.fromkeys(contents))
    return [kinds.index(content) for content in contents]
