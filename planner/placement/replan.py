"""From a placement in use to a better one by few moves: after drift, most of the gain comes from few experts.

Counts of replicas stay as they are. Every layer says how full its fullest GPU is after how many exchanges; across
layers a dynamic programme spends the budget where it lowers fullest GPUs most. A move is an expert on a
GPU that did not hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from hwprofiles.errors import UserError
from planner.placement.bounds import load_bound
from planner.placement.pack import Packing, relieve
from planner.placement.records import MOST_SHOWN, Floats, Instance, Ints, Placement, gpu_time
from planner.placement.replan_bound import LEVELS, Floor, floors, least_within
from planner.placement.turn_programme import fewest_turns

STEPS_OF_LAYER = 200
GREEDY_STEPS = 40
ROUNDS = (0.0, 0.0, 0.0, 1.0, -1.0, 0.0)  # moves of a layer beyond the budget that are tried for
TIGHT = 0.2  # experts that all GPUs together have room for below a load that the programme is not asked for
BLOCKED = 4  # further levels that are given up with each target that was not reached
TARGETS = 12  # loads of the fullest GPU that are tried, from the bound up
CLOSE = 5e-4

Step = tuple[int, float, Ints]  # of one layer: moves, fullest GPU, experts [G, S]


@dataclass(frozen=True, kw_only=True, eq=False)
class Replanned:
    """placement: after the moves; moved: experts moved; before, after [L]: fullest GPU under the new loads; stopped: by
    Ctrl-C, with what had been found."""

    placement: Placement
    moved: int
    before: Floats
    after: Floats
    stopped: bool = False


def moved_experts(old: Ints, new: Ints) -> int:
    """Experts on a GPU that did not hold them, of experts [..., G, S]."""
    old, new = np.sort(old.reshape(-1, old.shape[-1])), np.sort(new.reshape(-1, new.shape[-1]))
    return int(sum((np.setdiff1d(b, a) >= 0).sum() for a, b in zip(old, new, strict=True)))


def matched(previous: Placement, placement: Placement) -> Placement:
    """The same placement with the GPUs of every layer renamed so that as few experts as can be move; loads stay.

    For GPUs that are all alike, and where it does not matter which node a GPU is on.
    """
    experts, share = placement.experts.copy(), placement.share.copy()
    gpus = experts.shape[1]
    for i in range(len(experts)):
        size = int(max(previous.experts[i].max(), experts[i].max())) + 1
        old, new = np.zeros((gpus, size)), np.zeros((gpus, size))
        np.put_along_axis(old, previous.experts[i], 1.0, axis=1)
        np.put_along_axis(new, experts[i], 1.0, axis=1)
        _, source = linear_sum_assignment(old @ new.T, maximize=True)
        experts[i], share[i] = experts[i][source], share[i][source]
    return Placement(experts=experts, share=share)


def check_previous(instance: Instance, previous: Placement, max_moves: int | None) -> None:
    """Raise UserError unless a previous placement is one of this question."""
    wanted = (instance.num_layers, instance.gpus, instance.slots_per_gpu)
    problems = []
    if previous.experts.shape != wanted:
        problems.append(
            f"the previous placement is [layer, GPU, slot] {previous.experts.shape}, the question {wanted}; --gpus and "
            "--slots-per-gpu set these"
        )
    else:
        rising = np.sort(previous.experts, axis=2)
        twice = np.any((rising[:, :, 1:] == rising[:, :, :-1]) & (rising[:, :, 1:] >= 0), axis=(1, 2))
        for i, hosts in enumerate(previous.experts):
            layer = instance.layers[i]
            held, every = np.unique(hosts[hosts >= 0]), np.arange(instance.num_experts)
            if not np.array_equal(held, every):
                problems.append(f"layer {layer} of it does not hold the {len(every)} experts of the loads")
            elif twice[i]:
                problems.append(f"layer {layer} of it has an expert twice on a GPU")
        more = len(problems) - MOST_SHOWN
        problems = [*problems[:MOST_SHOWN], *([f"and {more} more layers"] if more > 0 else [])]
    if max_moves is not None and instance.slots:
        problems.append("moves are counted on GPUs with as many slots each; leave --max-moves out")
    if max_moves is not None and max_moves < 0:
        problems.append(f"{max_moves} moves; give a number >= 0")
    if problems:
        raise UserError([p + "; give the placement of the same model and GPUs" for p in problems], where="--previous")


def replan(
    instance: Instance, previous: Placement, *, max_moves: int,
    progress: Callable[[str, float, float | None], None] | None = None,
) -> Replanned:  # fmt: skip
    """The best placement found within `max_moves` moves over all layers. Ctrl-C ends the search with what was found.

    Raises UserError where sizes differ.
    """
    check_previous(instance, previous, max_moves)
    budget, said = min(max_moves, previous.experts.size), progress or (lambda what, done, of: None)
    before = gpu_time(instance, previous).max(axis=1)
    found: list[list[Step]] = [
        [(0, now, old.copy())] for now, old in zip(before.tolist(), previous.experts, strict=True)
    ]
    replicated = any(len(np.unique(hosts)) < hosts.size for hosts in previous.experts)
    stopped = False
    try:
        for i in range(instance.num_layers):
            said("exchanging experts", i, instance.num_layers)
            found[i] += _exchanged(instance, previous, i)
        if budget and not replicated and instance.speeds.min() == instance.speeds.max():
            _turned(instance, previous, found, budget, said)
    except KeyboardInterrupt:
        stopped = True
    steps = [_improving(layer) for layer in found]
    at = _spent(steps, budget)
    experts = np.stack([steps[i][k][2] for i, k in enumerate(at)])
    placement = Placement.even(experts, instance.num_experts)
    return Replanned(
        placement=placement, moved=moved_experts(previous.experts, experts), before=before,
        after=gpu_time(instance, placement).max(axis=1), stopped=stopped,
    )  # fmt: skip


def _turned(
    instance: Instance, previous: Placement, found: list[list[Step]], max_moves: int,
    progress: Callable[[str, float, float | None], None],
) -> None:  # fmt: skip
    """Add what the programme of `turn_programme` finds near the loads that are worth their moves.

    Which those are is read off the least moves that every load can take; a layer that took more is asked for that
    many more in the next round.
    """
    speed, never = float(instance.speeds[0]), previous.experts.size + 1
    tight = instance.loads.mean(axis=1) * (instance.slots_per_gpu + TIGHT / instance.gpus) / speed
    layers = [
        replace(floor, moves=np.where(floor.level < least, never, floor.moves))
        for floor, least in zip(floors(instance, previous), tight.tolist(), strict=True)
    ]
    known: list[dict[float, float]] = [{} for _ in layers]  # moves beyond the least, by fullest GPU
    asked: list[set[float]] = [set() for _ in layers]
    failed = [0] * len(layers)
    for number, more in enumerate(ROUNDS):
        budget = min(previous.experts.size, max(0, max_moves + round(more * len(layers))))
        tops = least_within([_expected(f, k) for f, k in zip(layers, known, strict=True)], budget)[1]
        for i, (floor, top) in enumerate(zip(layers, tops.tolist(), strict=True)):
            step = (floor.most - float(floor.level[0])) / LEVELS
            target = top + step
            if top >= floor.most or target in asked[i]:
                continue
            asked[i].add(target)
            progress("spending moves", number * len(layers) + i, len(ROUNDS) * len(layers))
            old, load = previous.experts[i], instance.loads[i]
            turned = fewest_turns(old, load, target * speed)
            if turned is None:
                failed[i] += 1
                below = floor.level <= top + (1 + BLOCKED * (failed[i] - 1)) * step
                layers[i] = replace(floor, moves=np.where(below, never, floor.moves))
                continue
            moves, full = moved_experts(old, turned), float(load[turned].sum(axis=1).max()) / speed
            found[i].append((moves, full, turned))
            at = max(0, int(np.searchsorted(floor.level, full, side="right")) - 1)
            known[i][full] = max(0, moves - int(floor.moves[at]))


def _expected(floor: Floor, known: dict[float, float]) -> Floor:
    """The least moves with what was needed beyond them at the loads that were tried, in straight lines between."""
    if not known:
        return replace(floor, moves=floor.moves + 1)
    at = sorted(known)
    beyond = np.ceil(np.interp(floor.level, at, [known[t] for t in at]) - 1e-9).astype(np.int64)
    return replace(floor, moves=floor.moves + beyond)


def _exchanged(instance: Instance, previous: Placement, i: int) -> list[Step]:
    """What exchanges find in one layer, for a row of targets."""
    load, old = instance.loads[i], previous.experts[i]
    counts = np.bincount(old.ravel(), minlength=instance.num_experts)
    start = Packing(old, load, counts, instance.speeds)
    now, least = float(start.time.max()), load_bound(load, instance.slots_per_gpu, instance.speeds)
    found: list[Step] = []
    for _ in range(GREEDY_STEPS):
        relieve(start, least, steps=1)
        if found and np.array_equal(start.expert, found[-1][2]):
            break
        found.append((moved_experts(old, start.expert), float(start.time.max()), start.expert.copy()))
    for target in np.linspace(least * (1.0 + CLOSE), now, TARGETS, endpoint=False).tolist():
        packing = Packing(old, load, counts, instance.speeds)
        for _ in range(STEPS_OF_LAYER):
            if packing.time.max() <= target or not _relieve_to(packing, target):
                break
        found.append((moved_experts(old, packing.expert), float(packing.time.max()), packing.expert.copy()))
        relieve(packing, target)
        found.append((moved_experts(old, packing.expert), float(packing.time.max()), packing.expert.copy()))
    return found


def _improving(found: list[Step]) -> list[Step]:
    """Those that more moves leave less full."""
    found = sorted(found, key=lambda step: step[:2])
    out = [found[0]]
    for step in found[1:]:
        if step[1] < out[-1][1] * (1.0 - 1e-9) and step[0] > out[-1][0]:
            out.append(step)
    return out


def _relieve_to(packing: Packing, target: float) -> bool:
    """One exchange that brings the fullest GPU to `target` and fills the other up to it as nearly as can be.

    Where none does, the exchange with the lowest maximum of the two; whether there was one that helps.
    """
    time = packing.time
    full = int(time.argmax())
    less = packing.value[full][None, :, None] - packing.value[:, None, :]  # [GPU, slot of full, slot]
    ours = (packing.load[full] - less) / packing.speeds[full]
    theirs = (packing.load[:, None, None] + less) / packing.speeds[:, None, None]
    top = np.maximum(ours, theirs)
    if packing.replicated:
        held = packing.held[packing.expert[full], :].T[:, :, None] | packing.held[packing.expert, full][:, None, :]
        top = np.where(held, np.inf, top)
    top[full] = np.inf
    fits = np.where(top <= target, theirs, -np.inf)
    best = int(fits.argmax()) if np.isfinite(fits).any() else int(top.argmin())
    g, i, j = (int(x) for x in np.unravel_index(best, top.shape))
    if not top[g, i, j] < time[full] * (1.0 - 1e-12):
        return False
    mine, other = packing.expert[full].copy(), packing.expert[g].copy()
    mine[i], other[j] = other[j], mine[i]
    packing.put(full, mine)
    packing.put(g, other)
    return True


def _spent(steps: list[list[Step]], most: int) -> list[int]:
    """The step of every layer that leaves the least summed load of fullest GPUs within `most` moves, by dynamic
    programme over layers and moves spent so far."""
    most = min(most, sum(max(s[0] for s in layer) for layer in steps))
    best, chosen = np.zeros(most + 1), []
    for layer in steps:
        after, choice = np.full(most + 1, np.inf), np.zeros(most + 1, dtype=np.int64)
        for k, (cost, time, _) in enumerate(layer):
            if cost > most:
                continue
            tried = best[: most + 1 - cost] + time
            better = tried < after[cost:] * (1.0 - 1e-15)
            after[cost:][better], choice[cost:][better] = tried[better], k
        best = after
        chosen.append(choice)
    left, at = int(best.argmin()), []
    for layer, choice in zip(reversed(steps), reversed(chosen), strict=True):
        at.append(int(choice[left]))
        left -= layer[at[-1]][0]
    return at[::-1]


@dataclass(frozen=True, kw_only=True)
class Migration:
    """Bytes that move in all and into the GPU that receives most, the seconds that takes, and when it pays back."""

    moved_bytes: float
    most_bytes: float
    move_s: float
    pays_back_after_steps: float | None


def migration(
    old: Placement, new: Placement, *, expert_bytes: float, bytes_per_s: float, saved_s_per_step: float = 0.0,
    near_bytes_per_s: float | None = None, gpus_per_node: int = 1,
) -> Migration:  # fmt: skip
    """Time to move weights: every GPU receives its new experts over its own links, all at once.

    From a GPU of its node at near_bytes_per_s where one held the expert (None: as from afar), else at bytes_per_s.
    expert_bytes: of one expert (with what of the optimizer moves along). None steps: nothing is saved.
    """
    gpus = old.experts.shape[1]
    near, far = np.zeros(gpus), np.zeros(gpus)
    for was, now in zip(old.experts, new.experts, strict=True):
        for g in range(gpus):
            first = g // gpus_per_node * gpus_per_node
            taken = np.setdiff1d(now[g][now[g] >= 0], was[g])
            beside = np.isin(taken, was[first : first + gpus_per_node]) & (near_bytes_per_s is not None)
            near[g] += beside.sum() * expert_bytes
            far[g] += (~beside).sum() * expert_bytes
    move_s = float(np.maximum(far / bytes_per_s, near / (near_bytes_per_s or bytes_per_s)).max())
    back = move_s / saved_s_per_step if saved_s_per_step > 0.0 else None
    return Migration(
        moved_bytes=float((near + far).sum()), most_bytes=float((near + far).max()), move_s=move_s,
        pays_back_after_steps=back,
    )  # fmt: skip
