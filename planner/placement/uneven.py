"""One layer on GPUs with different numbers of slots: packing, exchanges, and an exact programme for small layers.

As `load.plan_layer`, with GPU g holding exactly S_g experts. Slots that a GPU lacks stand as expert -1 with no share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.placement.bounds import fairest_counts, mean_bound
from planner.placement.counts import count_candidates
from planner.placement.load import CLOSE, COMBINATORIAL, EXACT_BINARIES, LayerPlan
from planner.placement.records import Floats, Ints
from planner.placement.solver import solve
from planner.placement.split import best_shares

NONE = -1
MOST_STEPS = 400
MOST_NODES = 400


def plan_uneven_layer(
    load: Floats, *, slots: Ints, speeds: Floats, split: str = "even", seed: int = 0, quick: bool = False
) -> LayerPlan:
    """The best placement found for load [E] on GPUs with `slots` [G] and `speeds` [G]; experts [G, max slots]."""
    total, gpus = int(slots.sum()), len(slots)
    replicas = total > len(load)
    bound = mean_bound(load, speeds) if split == "free" else uneven_bound(load, slots, speeds)
    kind, limits = COMBINATORIAL, tuple[str, ...]()
    best: tuple[float, Ints, Ints] | None = None
    every = count_candidates(load, total, gpus) if replicas else iter([np.ones(len(load), dtype=np.int64)])
    for counts in every:
        experts = _packed(load, counts, slots, speeds)
        if experts is None:
            continue
        if not quick:
            _exchanged(experts, load / counts, speeds, bound * (1.0 + CLOSE))
        time = float(_times(experts, load / counts, speeds).max())
        if best is None or time < best[0]:
            best = time, experts, counts
        if quick or time <= bound * (1.0 + CLOSE):
            break
    if best is None:  # no candidate fits the slots: counts as even as can be always do
        counts = _even_counts(load, total)
        dealt = _dealt(counts, slots)
        assert dealt is not None, "a GPU has more slots than there are experts"
        if not quick:
            _exchanged(dealt, load / counts, speeds, bound * (1.0 + CLOSE))
        best = float(_times(dealt, load / counts, speeds).max()), dealt, counts
    time, experts, counts = best
    if not quick and not replicas and len(load) * gpus <= EXACT_BINARIES and time > bound * (1.0 + CLOSE):
        experts, time, bound, kind, limits = _solved(load, slots, speeds, experts, bound, seed)
    share = np.where(experts >= 0, (1.0 / counts)[experts], 0.0)
    if split == "free" and replicas:
        share, time = _freed(load, experts, share, speeds, time)
    return LayerPlan(
        experts=experts, share=share, time=time, bound=min(bound, time), bound_kind=kind, limits=limits
    )  # fmt: skip


def uneven_bound(load: Floats, slots: Ints, speeds: Floats) -> float:
    """No placement has a smaller max over GPUs of load over speed.

    Without replicas the i heaviest lie on some j GPUs, whose other slots hold at least the lightest; any j GPUs have at
    least the j smallest numbers of slots, at most the j largest speeds.
    """
    best = mean_bound(load, speeds)
    if slots.sum() > len(load):
        counts = fairest_counts(load, int(slots.sum()), len(slots))
        return max(best, float((load / counts).max()) / float(speeds.max()))
    rising = np.sort(load)
    light, heavy = np.r_[0.0, np.cumsum(rising)], np.r_[0.0, np.cumsum(rising[::-1])]
    fewest, most = np.r_[0, np.cumsum(np.sort(slots))], np.r_[0, np.cumsum(np.sort(slots)[::-1])]
    fastest = np.r_[0.0, np.cumsum(np.sort(speeds)[::-1])]
    i, j = np.arange(1, len(load) + 1)[:, None], np.arange(1, len(slots) + 1)[None, :]
    held = heavy[i] + light[np.clip(fewest[j] - i, 0, len(load) - i)]
    per = np.where((j <= i) & (most[j] >= i), held / fastest[j], np.inf).min(axis=1)
    return max(best, float(per[np.isfinite(per)].max(initial=0.0)))


def _packed(load: Floats, counts: Ints, slots: Ints, speeds: Floats) -> Ints | None:
    """Heaviest replica first, to the GPU that would be done first, has room and lacks the expert.

    Where that is stuck, replicas are dealt by count; None where no placement has these counts.
    """
    gpus, per = len(slots), load / counts
    out = np.full((gpus, int(slots.max())), NONE, dtype=np.int64)
    filled, time = np.zeros(gpus, dtype=np.int64), np.zeros(gpus)
    for e in sorted(range(len(load)), key=lambda e: (-per[e], e)):
        for _ in range(int(counts[e])):
            free = (filled < slots) & ~(out == e).any(axis=1)
            if not free.any():
                if not _made_room(out, filled, slots, e):
                    return _dealt(counts, slots)
                time = _times(out, per, speeds)
                continue
            g = int(np.where(free, time + per[e] / speeds, np.inf).argmin())
            out[g, filled[g]] = e
            filled[g] += 1
            time[g] += per[e] / speeds[g]
    return out


def _dealt(counts: Ints, slots: Ints) -> Ints | None:
    """Most replicated expert first, to the GPUs with most room; None where no placement on distinct GPUs exists.

    This finds a table of zeros and ones with given sums of rows and columns wherever there is one (Gale, 1957; Ryser,
    1957).
    """
    out = np.full((len(slots), int(slots.max())), NONE, dtype=np.int64)
    filled = np.zeros(len(slots), dtype=np.int64)
    for e in np.argsort(-counts, kind="stable").tolist():
        gpus = np.argsort(filled - slots, kind="stable")[: int(counts[e])]
        if len(gpus) < counts[e] or (filled[gpus] >= slots[gpus]).any():
            return None
        out[gpus, filled[gpus]] = e
        filled[gpus] += 1
    return out


def _even_counts(load: Floats, total: int) -> Ints:
    """Counts [E] that differ by one at most, more for the heaviest."""
    counts = np.full(len(load), total // len(load), dtype=np.int64)
    counts[np.argsort(-load, kind="stable")[: total % len(load)]] += 1
    return counts


def _made_room(out: Ints, filled: Ints, slots: Ints, expert: int) -> bool:
    """Put `expert` on a full GPU that lacks it, whose own replica goes to a GPU with room."""
    for g in np.flatnonzero(filled < slots).tolist():
        for other in range(len(slots)):
            if other == g or expert in out[other]:
                continue
            movable = [s for s in range(int(filled[other])) if out[other, s] not in out[g]]
            if movable:
                out[g, filled[g]] = out[other, movable[-1]]
                out[other, movable[-1]] = expert
                filled[g] += 1
                return True
    return False


def _times(experts: Ints, per: Floats, speeds: Floats) -> Floats:
    out: Floats = np.where(experts >= 0, per[experts], 0.0).sum(axis=1) / speeds
    return out


def _exchanged(experts: Ints, per: Floats, speeds: Floats, target: float) -> None:
    """Exchange a replica of the fullest GPU for the lowest maximum of the two, in place, while that helps."""
    held = np.zeros((len(per), len(speeds)), dtype=bool)
    for _ in range(MOST_STEPS):
        time = _times(experts, per, speeds)
        full = int(time.argmax())
        if time[full] <= target:
            return
        held[:] = False
        g, s = np.nonzero(experts >= 0)
        held[experts[g, s], g] = True
        mine, value = experts[full], np.where(experts >= 0, per[experts], 0.0)
        less = value[full][None, :, None] - value[:, None, :]  # [GPU, slot of full, slot]
        after = np.maximum(time[full] - less / speeds[full], time[:, None, None] + less / speeds[:, None, None])
        barred = (mine < 0)[None, :, None] | (experts < 0)[:, None, :]
        barred = barred | held[mine].T[:, :, None] | held[experts, full][:, None, :]
        after = np.where(barred, np.inf, after)
        after[full] = np.inf
        other, a, b = (int(x) for x in np.unravel_index(int(after.argmin()), after.shape))
        if not after[other, a, b] < time[full] * (1.0 - 1e-12):
            return
        experts[full, a], experts[other, b] = experts[other, b], experts[full, a]


def _solved(
    load: Floats, slots: Ints, speeds: Floats, experts: Ints, bound: float, seed: int
) -> tuple[Ints, float, float, str, tuple[str, ...]]:
    """(experts, time, bound, its kind, limits) of a small layer without replicas, by integer programme."""
    import pulp

    scale, gpus = float(load.sum() / speeds.sum()), range(len(slots))
    problem = pulp.LpProblem("layer", pulp.LpMinimize)
    top = pulp.LpVariable("T", lowBound=0.0)
    put: dict[tuple[int, int], Any] = {
        (e, g): pulp.LpVariable(f"x_{e}_{g}", cat="Binary") for e in range(len(load)) for g in gpus
    }
    problem += top
    for e in range(len(load)):
        problem += pulp.lpSum(put[e, g] for g in gpus) == 1, f"placed_{e}"
    for g in gpus:
        problem += pulp.lpSum(put[e, g] for e in range(len(load))) == int(slots[g]), f"slots_{g}"
        weight = pulp.lpSum(float(w) / scale / float(speeds[g]) * put[e, g] for e, w in enumerate(load))
        problem += weight <= top, f"load_{g}"
    solved = solve(problem, nodes=MOST_NODES, gap=CLOSE / 10, seed=seed)
    time = float(_times(experts, load, speeds).max())
    if solved.status != "infeasible":
        found = np.full_like(experts, NONE)
        for g in gpus:
            held = [e for e in range(len(load)) if put[e, g].value() > 0.5]
            found[g, : len(held)] = held
        if (then := float(_times(found, load, speeds).max())) < time:
            experts, time = found, then
    most = max(bound, min(solved.bound * scale, time))
    proved = solved.status == "optimal"
    return experts, time, most, "exact" if proved else "milp_dual", () if proved else ("node limit of a layer",)


def _freed(load: Floats, experts: Ints, share: Floats, speeds: Floats, time: float) -> tuple[Floats, float]:
    """Best shares by linear programme; slots that a GPU lacks stand for an expert without load."""
    padded = np.where(experts >= 0, experts, len(load))
    even = np.where(experts >= 0, share, 1.0 / max(1, int((experts < 0).sum())))
    freed = best_shares(np.r_[load, 0.0], padded, even, speeds)
    if not freed.time < time:
        return share, time
    return np.where(experts >= 0, freed.share, 0.0), freed.time
