"""Prices of the virtual stages of one pipeline layout at once: counts of parts times the prices of the parts.

What `StepCost.stage_sums` gives of one virtual stage, for all of a layout, several recompute settings and many rows of
a table: the loops are over kinds of layers, never over stages, layers or rows. Layers with loads of their own enter as
shares of the three loads their kind is priced at (`sim.cost.levels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.build.stages import StageContent
from sim.cost.footprint import placeholder_bytes
from sim.cost.prices import PLAIN_SUMS, SUMS, Floats, Index, PartPrices, Recompute
from sim.cost.step import StepCost

LEVELS = 3
COLD, MEAN, HOT = range(LEVELS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Priced:
    """Prices [content, recompute, row]: seconds of a pass alone and of each in a pair; bytes of the transient; bytes a
    micro-batch holds, content by content: activations, and where the backward is split then what a weight gradient
    needs that is put off, then the larger of the two. wgrad_s: of the weight gradient; none where it is not split."""

    forward_s: Floats
    backward_s: Floats
    paired_forward_s: Floats
    paired_backward_s: Floats
    working: Floats
    held: Floats
    wgrad_s: Floats | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Uneven:
    """The virtual stages (which) that have layers of one kind with loads of their own: how often each load [level,
    which, setting] enters, and which share of each their hottest layer has."""

    kind: int
    which: Index
    counts: Floats
    hottest: Floats


class StagePrices:
    """Prices of `contents` in the settings of one pass (number) of `parts`."""

    def __init__(self, contents: Sequence[StageContent], parts: PartPrices, number: int) -> None:
        self._contents, self._parts, self._number = tuple(contents), parts, number
        self._counts = np.array([content.kind_counts for content in self._contents], dtype=float)
        self._embedding = np.flatnonzero([content.embedding for content in self._contents])
        self._head = np.flatnonzero([content.head for content in self._contents])
        self._alike, self._in_mean = self._counts.copy(), self._counts > 0
        self._uneven: list[_Uneven] = []
        self._excess: list[tuple[list[tuple[int, Floats]], Floats]] = []
        step = parts.any_step(number)
        self._params = self._params_of(step)
        if not parts.by_content:
            self._placeholder = self._placeholders(step)
            self._know_loads(step)

    def at(self, recomputes: tuple[Recompute, ...], where: Index, *, gpipe: bool, split: bool) -> Priced:
        """Prices in the settings `where` of the rows."""
        if self._parts.by_content:
            *sums, working = self._one_by_one(recomputes, where, gpipe)
            saved = sums[SUMS.index("saved_bytes")]
        else:
            sums, saved, working = self._added_up(recomputes, where, gpipe, split)
        forward, backward, paired, *_ = sums
        alone = forward + backward
        paired = np.minimum(paired, alone)
        share = np.divide(paired, alone, out=np.ones_like(alone), where=alone > 0.0)
        held, wgrad = saved, None
        if split:
            wgrad, deferred = sums[PLAIN_SUMS:]
            held = np.concatenate([saved, deferred, np.maximum(saved, deferred)])
        return Priced(
            forward_s=forward, backward_s=backward, paired_forward_s=forward * share,
            paired_backward_s=backward * share, working=working, held=held, wgrad_s=wgrad,
        )  # fmt: skip

    def params(self, where: Index) -> Floats:
        """[field, content, row]: dense and routed parameters, host seconds at the step's end, `LocalParams.more`."""
        return self._params.take(where, axis=2)

    # -- sums over parts ---------------------------------------------------------------------------

    def _added_up(
        self, recomputes: tuple[Recompute, ...], where: Index, gpipe: bool, split: bool
    ) -> tuple[list[Floats], Floats, Floats]:
        """(sums, activations that stay, transient)."""
        own, kinds = self._parts.own_kinds, self._counts.shape[1]
        lines = self._parts.lines(self._number, recomputes, gpipe).take(where, axis=2)
        count = kinds + (LEVELS - 1) * len(own) + 2
        fields = len(SUMS) if split else PLAIN_SUMS
        parts = lines[: len(SUMS) * count].reshape(len(SUMS), count, *lines.shape[1:])[:fields]
        rest = lines[len(SUMS) * count :]
        transient, rest = rest[:kinds], rest[kinds:]
        at_levels, rest = rest[: LEVELS * len(own)], rest[LEVELS * len(own) :]
        slope, (head, table) = rest[:kinds], rest[kinds:]

        shape = len(self._contents), *lines.shape[1:]
        sums = np.zeros((fields, *shape))
        working = np.zeros(shape)
        for kind in range(kinds):
            alike = self._alike[:, kind]
            if not alike.any():
                continue
            here = np.flatnonzero(alike) if not alike.all() else slice(None)
            sums[:, here] += alike[here][None, :, None, None] * parts[:, kind, None]
        for kind in range(kinds):
            here = np.flatnonzero(self._in_mean[:, kind])
            if len(here):
                working[here] = np.maximum(working[here], transient[kind])
        for each in self._uneven:
            cold = kinds + (LEVELS - 1) * own.index(each.kind)
            counts, hottest = each.counts.take(where, axis=2), each.hottest.take(where, axis=2)
            found: Any = 0.0
            here = slice(None) if len(each.which) == len(self._contents) else each.which
            for level, part in enumerate((cold, each.kind, cold + 1)):
                sums[:, here] += counts[level][None, :, None] * parts[:, part, None]
                found = found + hottest[level][:, None] * at_levels[LEVELS * own.index(each.kind) + level]
            working[here] = np.maximum(working[here], found)
        for i, ends in ((count - 2, self._embedding), (count - 1, self._head)):
            sums[:, ends] += parts[:, i, None]
        saved = sums[SUMS.index("saved_bytes")]
        for widths, gap in self._excess:
            width = sum(w[:, None, None] * slope[kind] for kind, w in widths)
            saved = saved - width * gap.take(where, axis=1)[:, None]
        working[self._head] = np.maximum(working[self._head], head)
        placeholder = self._placeholder.take(where, axis=1)[:, None]
        working = working + placeholder
        at = self._embedding
        working[at] = np.maximum(working[at], table + placeholder[at] - saved[at])
        return list(sums), saved, working

    def _one_by_one(self, recomputes: tuple[Recompute, ...], where: Index, gpipe: bool) -> Floats:
        """[sum and transient, content, recompute, row] where a virtual stage is more than its parts."""
        rows = []
        for recompute in recomputes:
            step = self._parts.step(self._number, recompute, gpipe)
            of_content = [_sums(step, content).take(where, axis=1) for content in self._contents]
            rows.append(np.stack(of_content, axis=1))
        return np.stack(rows, axis=2)

    # -- what recompute does not change ------------------------------------------------------------

    def _know_loads(self, step: StepCost) -> None:
        """Counts of the loads where layers have their own, and what prices hold above the fullest rank."""

        def known(of: Callable[..., Floats], about: Any, *asked: Any) -> Floats:
            """What the loads of the pass say of these virtual stages; other costs of the same loads ask it again."""
            met, key = step.levels.known.stages, (of.__name__, about, self._contents)
            if key not in met:
                met[key] = of(step, about, *asked)
            found: Floats = met[key]
            return found

        for kind in self._parts.own_kinds:
            rows = [step.levels.rows(content, kind) for content in self._contents]
            which = np.flatnonzero([bool(mine) for mine in rows])
            if not len(which):
                continue
            self._alike[which, kind] -= [len(rows[i]) for i in which]
            self._in_mean[which, kind] = False
            counts, hottest = known(self._shares, kind, which, rows)
            self._uneven.append(_Uneven(kind=kind, which=which, counts=counts, hottest=hottest))
        groups: dict[Any, dict[int, list[int]]] = {}
        for i, content in enumerate(self._contents):
            for moe, kinds in step.held.kinds_of(content).items():
                groups.setdefault(moe, {})[i] = kinds
        for moe, members in groups.items():
            widths = np.zeros_like(self._counts)
            for i, kinds in members.items():
                widths[i, kinds] = self._counts[i, kinds] / self._counts[i, kinds].sum()
            of_kinds = [(kind, widths[:, kind]) for kind in range(widths.shape[1]) if widths[:, kind].any()]
            self._excess.append((of_kinds, known(self._gaps, moe, members)))

    def _shares(self, step: StepCost, kind: int, which: Index, rows: Sequence[Sequence[int]]) -> Floats:
        """`_Uneven.counts` and `hottest` [2, level, which, setting] in one pass."""
        by_layer, shares = step.levels.loads(kind)[0], step.levels.shares(kind)
        counts = np.stack([step.levels.counts(self._contents[i], kind) for i in which], axis=1)
        layer = np.stack([np.asarray(rows[i])[by_layer[..., rows[i]].argmax(axis=-1)] for i in which])
        hottest = shares[:, np.arange(shares.shape[1]), layer]
        return np.stack([counts, hottest])

    def _gaps(self, step: StepCost, moe: Any, members: dict[int, list[int]]) -> Floats:
        """[content, setting]: load by which prices exceed what the fullest rank holds (`sim.cost.held`)."""
        gap = np.zeros((len(self._contents), len(step.ctx.plan.tp)))
        for i, kinds in members.items():
            _, load, priced = step.held.rows_of(self._contents[i], moe, kinds)
            gap[i] = np.maximum(0.0, priced - load)
        return gap

    def _placeholders(self, step: StepCost) -> Floats:
        found: dict[tuple[bool, ...], Any] = {}
        for content in self._contents:
            present = tuple(n > 0 for n in content.kind_counts)
            if present not in found:
                here = [layer for n, layer in zip(present, step.kinds, strict=True) if n]
                found[present] = np.broadcast_to(placeholder_bytes(step.ctx, here), np.shape(step.ctx.plan.tp))
        return np.stack([found[tuple(n > 0 for n in content.kind_counts)] for content in self._contents])

    def _params_of(self, step: StepCost) -> Floats:
        """`params` in the settings of one pass."""
        found: dict[tuple[Any, ...], Floats] = {}
        keys = [(content.kind_counts, content.embedding, content.head) for content in self._contents]
        for key, content in zip(keys, self._contents, strict=True):
            if key not in found:
                of, shape = step.params_of(content), np.shape(step.ctx.plan.tp)
                fields = (of.dense, of.routed, step.end_launch_s(content), *of.more)
                found[key] = np.stack([np.broadcast_to(field, shape) for field in fields])
        return np.stack([found[key] for key in keys], axis=1)


def _sums(step: StepCost, content: StageContent) -> Floats:
    """Sums of one virtual stage, then its transient, [line, setting]."""
    sums, shape = step.stage_sums(content), np.shape(step.ctx.plan.tp)
    return np.stack([np.broadcast_to(getattr(sums, name), shape) for name in (*SUMS, "working_bytes")])
