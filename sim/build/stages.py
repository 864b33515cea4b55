"""Which layers stand on which virtual stage: counts per (stage, chunk), ends included.

Virtual stages are numbered in model order and lie on stages as `order.place_of` says; the first holds the embedding,
the last the final norm, head, loss and MTP blocks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import groupby

from hwprofiles.errors import UserError
from sim.build.order import place_of, placement
from sim.model import ModelSpec


@dataclass(frozen=True, kw_only=True)
class StageContent:
    """Content of one virtual stage: layers per kind (index into ModelSpec.layer_kinds), and ends.

    own_loads: numbers of its layers whose experts are not loaded as those of the mean layer; empty where all are alike.
    beside: the same of the other virtual stages of its pipeline stage, whose rows lie on the same ranks.
    """

    kind_counts: tuple[int, ...]
    embedding: bool
    head: bool
    own_loads: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()

    @property
    def num_layers(self) -> int:
        """Layers on the virtual stage."""
        return sum(self.kind_counts)


def layers_per_stage(num_layers: int, slots: int, *, account_ends: bool = False, mtp: bool = False) -> tuple[int, ...]:
    """Layers on each of `slots` virtual stages, in order.

    Even where it divides. Otherwise (or with account_ends) embedding and loss count as a layer each,
    an MTP block as one more, so the ends are lighter; what is left over goes to the front of the middle.
    """
    if slots == 1:
        return (num_layers,)
    if num_layers % slots == 0 and not account_ends and not mtp:
        return (num_layers // slots,) * slots
    ends = [1] + [0] * (slots - 2) + [2 if mtp else 1]
    total = num_layers + sum(ends)
    base, extra = divmod(total, slots)
    counts = [base - e for e in ends]
    order = [i for i in range(1, slots - 1)] + [0, slots - 1]
    for i in range(extra):
        counts[order[i % slots]] += 1
    while min(counts) < 0:
        low, high = counts.index(min(counts)), counts.index(max(counts))
        counts[low] += 1
        counts[high] -= 1
    return tuple(counts)


def stage_contents(
    model: ModelSpec, pp: int, vpp: int, *, stages: tuple[int, ...] | None = None, account_ends: bool = False,
    mtp: bool = False, own: Collection[int] = (), schedule: str = "1f1b",
) -> tuple[tuple[StageContent, ...], ...]:  # fmt: skip
    """contents[stage][chunk]. own: layers with a load of their own; schedule: how virtual stages lie on stages, with
    the mirrored stage as chunk 1 where the model is held twice. Raises UserError when `stages` do not add up."""
    slots = pp * vpp
    counts = stages or layers_per_stage(len(model.layers), slots, account_ends=account_ends, mtp=mtp)
    if len(counts) != slots or sum(counts) != len(model.layers) or min(counts) < 0:
        raise UserError(
            f"stages {list(counts)} do not fit: {slots} virtual stages (pp {pp} x vpp {vpp}) must hold "
            f"{len(model.layers)} layers; give {slots} counts that add up to {len(model.layers)}",
            where="plan.stages",
        )
    kinds, index = model.layer_kinds()
    placed = placement(schedule)
    table: list[list[StageContent | None]] = [[None] * vpp for _ in range(pp)]
    start = 0
    for slot, count in enumerate(counts):
        mine = index[start : start + count]
        apart = tuple(layer for layer in range(start, start + count) if layer in own)
        start += count
        content = StageContent(
            kind_counts=tuple(mine.count(i) for i in range(len(kinds))), embedding=slot == 0, head=slot == slots - 1,
            own_loads=apart,
        )  # fmt: skip
        stage, chunk = place_of(slot, pp=pp, placed=placed)
        table[stage][chunk] = content
    rows = [tuple(c for c in row if c is not None) for row in table]
    if placed == "both":
        rows = [(*row, *mirrored) for row, mirrored in zip(rows, rows[::-1], strict=True)]
    return tuple(_side_by_side(row) if own and len(row) > 1 else row for row in rows)


def _side_by_side(row: tuple[StageContent, ...]) -> tuple[StageContent, ...]:
    """The virtual stages of one pipeline stage, each with the layers of the others beside it."""
    return tuple(
        replace(here, beside=tuple(layer for at, each in enumerate(row) if at != chunk for layer in each.own_loads))
        for chunk, here in enumerate(row)
    )


def in_model_order(contents: tuple[tuple[StageContent, ...], ...], schedule: str = "1f1b") -> tuple[StageContent, ...]:
    """The virtual stages of a pipeline from the embedding to the head, each once."""
    pp, placed = len(contents), placement(schedule)
    chunks = 1 if placed == "both" else len(contents[0])
    places = (place_of(slot, pp=pp, placed=placed) for slot in range(pp * chunks))
    return tuple(contents[stage][chunk] for stage, chunk in places)


def layout_text(contents: tuple[tuple[StageContent, ...], ...], *, mtp_layers: int = 0, schedule: str = "1f1b") -> str:
    """The split as Megatron-LM's pipeline layout: E embedding, t layer, m MTP block, L loss, | between virtual stages.

    In model order, as `--pipeline-model-parallel-layout` takes it; runs of equal letters as t*4, of equal
    virtual stages as (t*4|)*14.
    """
    words = []
    for content in in_model_order(contents, schedule):
        count = content.num_layers
        layers = "t" * count if count < 3 else f"t*{count}"
        end = "m" * mtp_layers + "L" if content.head else ""
        words.append(("E" if content.embedding else "") + layers + end)
    text = ""
    for word, group in groupby(words):
        count = len(list(group))
        text += f"({word}|)*{count}" if count > 1 else f"{word}|"
    return text.removesuffix("|")
