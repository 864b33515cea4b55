"""What an order of a pipeline stage is made of, and how virtual stages lie on stages.

In "loop" placement virtual stage v lies on stage v mod pp. In "v" the model goes down the stages with chunk 0 and back
up with chunk 1. In "both" every stage holds two parts of the model: its own, for the micro-batches that enter at the
first stage (chunk 0), and the mirrored one, for those that enter at the last (chunk 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

V_SHAPED = ("zb-v", "dualpipe-v")
DUAL = ("dualpipe", "dualpipe-v")
SPLIT_SCHEDULES = ("zb-h1", "zb-h2", "zb-v", *DUAL)


class Step(NamedTuple):
    """One entry of a stage's order: kind "F", "B" or "W" of one micro-batch and virtual stage (chunk).

    paired: runs in the steady phase together with a step of the other kind and another micro-batch. joint: a paired
    "F" that starts and ends with the "B" behind it, as one pass. split: a "B" of the input gradient only, whose
    weight gradient is a "W" of its own later in the order.
    """

    kind: str
    micro_batch: int
    chunk: int
    paired: bool = False
    joint: bool = False
    split: bool = False


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Where the order of one stage repeats: slots `start` to `end` - 1, of `length` steps each, from step `first` on.

    place: slots by which a stage may be ahead of the first one: what slot i of this stage needs of a stage of place q
    lies in a slot up to i + q - place of it, or before.
    """

    first: int
    length: int
    start: int
    end: int
    place: int


def chunks_on(schedule: str, vpp: int) -> int:
    """Virtual stages on one stage: `vpp` of the plan, or two where the model is held twice."""
    return 2 if schedule == "dualpipe" else vpp


def placement(schedule: str) -> str:
    """How virtual stages lie on stages: "loop", "v" or "both"."""
    return "both" if schedule == "dualpipe" else "v" if schedule in V_SHAPED else "loop"


def passes_of(schedule: str, num_micro_batches: int) -> int:
    """Micro-batches that run through one chunk of a stage: half of them where they enter at both ends."""
    return num_micro_batches // 2 if schedule == "dualpipe" else num_micro_batches


def place_of(slot: int, *, pp: int, placed: str = "loop") -> tuple[int, int]:
    """(stage, chunk) of a virtual stage in model order; "both": of the copy that chunk 0 runs."""
    chunk, stage = divmod(slot, pp)
    return (pp - 1 - stage if placed == "v" and chunk % 2 else stage), chunk


def slot_of(stage: int, chunk: int, *, pp: int, placed: str = "loop") -> int:
    """Number of a virtual stage in model order; "both": in the copy its micro-batches run through."""
    if placed == "loop" or chunk == 0:
        return chunk * pp + stage
    return pp - 1 - stage + (pp if placed == "v" else 0)


def has_chunks(schedule: str, vpp: Any) -> Any:
    """Whether a schedule takes a plan of `vpp` virtual stages per stage; a number or a column."""
    if schedule == "interleaved":
        return vpp > 1
    return vpp == (2 if schedule in V_SHAPED else 1)


def source_of(kind: str, stage: int, chunk: int, *, pp: int, vpp: int, placed: str = "loop") -> tuple[int, int] | None:
    """(stage, chunk) whose output a step needs; None for the first forward, the loss, and weight gradients."""
    if kind == "W":
        return None
    if placed == "loop":
        if kind == "F":
            if stage > 0:
                return stage - 1, chunk
            return (pp - 1, chunk - 1) if chunk > 0 else None
        if stage < pp - 1:
            return stage + 1, chunk
        return (0, chunk + 1) if chunk < vpp - 1 else None
    if (kind == "F") == (chunk == 0):  # what goes down the stages
        return (stage - 1, chunk) if stage > 0 else None
    if stage < pp - 1:
        return stage + 1, chunk
    return (stage, 1 - chunk) if placed == "v" else None


def target_of(kind: str, stage: int, chunk: int, *, pp: int, vpp: int, placed: str = "loop") -> tuple[int, int] | None:
    """(stage, chunk) that needs a step's output next: the way back of `source_of`."""
    return None if kind == "W" else source_of("B" if kind == "F" else "F", stage, chunk, pp=pp, vpp=vpp, placed=placed)


def boundary_of(kind: str, stage: int, chunk: int, *, placed: str = "loop") -> int:
    """The boundary a step's output crosses: s lies between stage s and the next, -1 and the last one close the loop."""
    down = (kind == "F") == (placed == "loop" or chunk == 0)
    return stage if down else stage - 1
