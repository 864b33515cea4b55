"""Pipeline schedules: the order in which one stage runs its forwards and backwards.

Pure functions of (schedule, pp, vpp, stage, micro-batches). 1F1B: Narayanan et al., "PipeDream-2BW" /
Megatron-LM; interleaved 1F1B: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU
Clusters Using Megatron-LM", with Megatron-Core's micro-batch groups; GPipe: Huang et al., "GPipe".
Those that split the backward or run micro-batches both ways are in `sim.build.split`.
"""

from __future__ import annotations

from typing import Any

from hwprofiles.errors import UserError
from sim.build.order import DUAL, SPLIT_SCHEDULES, V_SHAPED, Step, passes_of
from sim.build.split import split_in_flight, split_order

CLASSIC_SCHEDULES = ("1f1b", "interleaved", "gpipe")
SCHEDULES = (*CLASSIC_SCHEDULES, *SPLIT_SCHEDULES)


def check_schedule(schedule: str, *, pp: int, vpp: int, num_micro_batches: int, group: int = 0) -> None:
    """Raise UserError with every broken rule of a pipeline layout."""
    problems = []
    if schedule not in SCHEDULES:
        problems.append(f"schedule {schedule!r} is not known; use one of {', '.join(SCHEDULES)}")
    if pp < 1 or vpp < 1:
        problems.append(f"pp {pp} and vpp {vpp} must be at least 1; set both to whole numbers from 1 up")
    if num_micro_batches < 1:
        problems.append(f"{num_micro_batches} micro-batches; raise the global batch or lower dp or the micro-batch")
    if vpp > 1 and schedule in ("1f1b", "gpipe", "zb-h1", "zb-h2"):
        problems.append(f"schedule {schedule!r} has no virtual stages, vpp is {vpp}; set vpp to 1 or use interleaved")
    if schedule in (*V_SHAPED, "dualpipe") and vpp != 2 and vpp >= 1:
        problems.append(f"schedule {schedule!r} has two chunks on every stage, not {vpp}; set vpp to 2")
    if schedule in SPLIT_SCHEDULES and pp == 1:
        problems.append(f"schedule {schedule!r} on a single stage has nothing to fill; raise pp or use 1f1b")
    if schedule in DUAL and num_micro_batches < 2 * pp:
        problems.append(
            f"schedule {schedule!r} needs at least 2 pp = {2 * pp} micro-batches, has {num_micro_batches}; raise the "
            "global batch or lower pp, dp or the micro-batch"
        )
    if schedule == "dualpipe" and (pp % 2 or num_micro_batches % 2):
        problems.append(
            f"schedule 'dualpipe' runs half of the micro-batches each way over an even number of stages; pp is {pp}, "
            f"micro-batches are {num_micro_batches}: make both even"
        )
    if group and not group_runs(group, schedule=schedule, pp=pp, num_micro_batches=num_micro_batches):
        problems.append(
            f"groups of {group} of {num_micro_batches} micro-batches stall schedule {schedule!r} on {pp} stages; use "
            "'interleaved' and a size of pp or more whose last group has pp or more too, or leave it out"
        )
    if problems:
        raise UserError(problems, where="pipeline schedule")


def group_runs(group: Any, *, schedule: str, pp: Any, num_micro_batches: Any) -> Any:
    """Whether the interleaved schedule runs in groups of this many micro-batches (0: as `group_size` says); numbers
    or columns. A group of fewer than pp, the last one too, waits for itself (Megatron-Core refuses it)."""
    size = max(group, 1)
    rest = num_micro_batches % size
    fits = (size >= pp) & (size <= num_micro_batches) & ((rest == 0) | (rest >= pp))
    return (group == 0) | (fits & (schedule == "interleaved"))


def group_size(pp: int, num_micro_batches: int) -> int:
    """Micro-batches a stage runs of one virtual stage before it turns to the next one (interleaved).

    Megatron-Core's microbatch_group_size_per_vp_stage: pp where it divides the micro-batches; else the
    smallest size above pp whose remainder is 0 or at least pp (a smaller one stalls the pipeline,
    Megatron-Core refuses it). With fewer micro-batches than stages: one group of all.
    """
    for size in range(pp, num_micro_batches):
        rest = num_micro_batches % size
        if rest == 0 or rest >= pp:
            return size
    return num_micro_batches


def repeats_after(schedule: str, *, pp: int, vpp: int, num_micro_batches: int, group: int = 0) -> int:
    """Micro-batches after which the order of a stage repeats: a group of the interleaved schedule, one of each way."""
    if schedule in SPLIT_SCHEDULES:
        return num_micro_batches // passes_of(schedule, num_micro_batches)
    return (group or group_size(pp, num_micro_batches)) if vpp > 1 else 1


def num_warmup(schedule: str, *, pp: int, vpp: int, stage: int, num_micro_batches: int, group: int = 0) -> int:
    """Forwards a stage runs before its first backward-forward alternation.

    1f1b: pp - stage - 1. Interleaved: 2 (pp - stage - 1) + (vpp - 1) group. GPipe: all. group: see
    `group_size` (0 = its choice).
    """
    total = num_micro_batches * vpp
    if schedule == "gpipe":
        return total
    if schedule == "interleaved" and vpp > 1:
        group = group or group_size(pp, num_micro_batches)
        return min(total, 2 * (pp - stage - 1) + (vpp - 1) * group)
    return min(total, pp - stage - 1)


def in_flight(schedule: str, *, pp: int, vpp: int, stage: int, num_micro_batches: int, group: int = 0) -> int:
    """Chunk activations a stage holds at its peak: min(m vpp, warm-up forwards + 1); see `split_in_flight`."""
    if schedule in SPLIT_SCHEDULES:
        return split_in_flight(schedule, pp=pp, num_micro_batches=num_micro_batches)
    warmup = num_warmup(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=num_micro_batches, group=group)
    return min(num_micro_batches * vpp, warmup + 1)


def chunk_order(*, vpp: int, num_micro_batches: int, group: int) -> list[tuple[int, int]]:
    """(micro-batch, chunk) of the forwards: group by group, within a group chunk by chunk.

    Backwards run in the same order with chunk vpp - 1 - c in place of c. A remainder forms the last group.
    """
    order = []
    for first in range(0, num_micro_batches, group):
        members = range(first, min(first + group, num_micro_batches))
        order += [(micro_batch, chunk) for chunk in range(vpp) for micro_batch in members]
    return order


def lane_order(
    schedule: str, *, pp: int, vpp: int, stage: int, num_micro_batches: int, group: int = 0
) -> tuple[Step, ...]:
    """The forwards and backwards of one stage, in the order it runs them.

    group: micro-batches per group of the interleaved schedule (0 = `group_size`). The first forward and
    the last backward of the steady phase have no partner: on the last stage the forward of a micro-batch
    would meet its own backward (Megatron-Core runs one more warm-up forward then, which pairs as many).
    Raises UserError on an unknown schedule or impossible counts.
    """
    check_schedule(schedule, pp=pp, vpp=vpp, num_micro_batches=num_micro_batches)
    if schedule in SPLIT_SCHEDULES:
        return split_order(schedule, pp=pp, stage=stage, num_micro_batches=num_micro_batches)
    group = (group or group_size(pp, num_micro_batches)) if vpp > 1 else num_micro_batches
    order = chunk_order(vpp=vpp, num_micro_batches=num_micro_batches, group=group)
    warmup = num_warmup(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=num_micro_batches, group=group)
    total = len(order)

    def forward(k: int, paired: bool) -> Step:
        micro_batch, chunk = order[k]
        return Step(kind="F", micro_batch=micro_batch, chunk=chunk, paired=paired)

    def backward(k: int, paired: bool) -> Step:
        micro_batch, chunk = order[k]
        return Step(kind="B", micro_batch=micro_batch, chunk=vpp - 1 - chunk, paired=paired)

    steps = [forward(k, False) for k in range(warmup)]
    for k in range(total - warmup):
        steps += [forward(warmup + k, k > 0), backward(k, k < total - warmup - 1)]
    steps += [backward(k, False) for k in range(total - warmup, total)]
    return tuple(steps)


def check_order(steps: tuple[Step, ...], *, schedule: str = "1f1b", vpp: int, num_micro_batches: int) -> list[str]:
    """What is wrong with an order: every (micro-batch, chunk) once forward, then once backward, and a split backward
    followed by its weight gradient. Empty = sound."""
    place: dict[tuple[str, int, int], int] = {}
    problems = []
    for i, step in enumerate(steps):
        key = (step.kind, step.micro_batch, step.chunk)
        if key in place:
            problems.append(f"{step.kind} of micro-batch {step.micro_batch} chunk {step.chunk} stands twice")
        place[key] = i
    passes = passes_of(schedule, num_micro_batches)
    wanted = 0
    for chunk in range(vpp):
        first = chunk * passes if passes < num_micro_batches else 0
        for micro_batch in range(first, first + passes):
            f, b, w = (place.get((kind, micro_batch, chunk)) for kind in "FBW")
            wanted += 2
            if f is None or b is None or f > b:
                problems.append(f"micro-batch {micro_batch} chunk {chunk}: forward at {f}, backward at {b}")
            elif steps[b].split != (w is not None) or (w is not None and w < b):
                problems.append(f"micro-batch {micro_batch} chunk {chunk}: backward at {b}, weight gradient at {w}")
            wanted += w is not None
    if len(steps) != wanted:
        problems.append(f"{len(steps)} steps instead of {wanted}")
    return problems
