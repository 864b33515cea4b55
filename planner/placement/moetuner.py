"""The two stages of MoETuner (arXiv 2502.06643), written from its description, as a baseline.

Stage 1, per layer: experts to as many clusters as GPUs, with the least summed distance of cluster loads from the mean.
Stage 2, per pair of layers: clusters to GPUs, one to one, such that the largest volume between two different GPUs is as
small as can be; ties by the volume that stays. Here clusters have equal numbers of experts in every layer (there only
over all layers), and links between GPUs are taken as alike, in which case matching layer after layer is exact for stage
2: only the relative order of adjacent layers matters.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from planner.placement.pack import Packing, pack_lpt, relieve
from planner.placement.partition import one_hot
from planner.placement.records import Floats, Instance, Ints, Placement

TOLERANCE = 0.025  # relative, of its solver


def moetuner_placement(instance: Instance) -> Placement | None:
    """The placement of both stages; None with what it does not know: replicas, different slots, no transitions."""
    if instance.extra_slots or instance.slots or instance.transitions is None:
        return None
    parts = np.stack([clusters(load, instance.slots_per_gpu, instance.gpus) for load in instance.loads])
    for i, flow in enumerate(instance.transitions):
        here, there = one_hot(parts[i], instance.gpus), one_hot(parts[i + 1], instance.gpus)
        parts[i + 1] = bottleneck_match(here.T @ flow @ there)[parts[i + 1]]
    return Placement.of_ranks(parts, instance.gpus)


def clusters(load: Floats, slots: int, gpus: int) -> Ints:
    """Cluster [E] of each expert, with loads near the mean to the tolerance of the solver it used."""
    ones, even = np.ones(len(load), dtype=np.int64), np.ones(gpus)
    packing = Packing(pack_lpt(load, ones, slots, even), load, ones, even)
    relieve(packing, float(load.sum() / gpus) * (1.0 + TOLERANCE))
    out = np.empty(len(load), dtype=np.int64)
    out[packing.expert] = np.arange(gpus)[:, None]
    return out


def bottleneck_match(volume: Floats) -> Ints:
    """GPU [cluster] of the next layer such that the largest volume [GPU, cluster] that travels is smallest.

    Volumes above a threshold must stay where they are, so they form a matching; the lowest threshold for which they do,
    then the largest volume that stays in all.
    """
    order = np.argsort(-volume, axis=None, kind="stable")
    rows, columns = np.unravel_index(order, volume.shape)
    forced: list[tuple[int, int]] = []
    for r, c in zip(rows.tolist(), columns.tolist(), strict=True):
        if any(r == a or c == b for a, b in forced):
            break
        forced.append((r, c))
    value = volume.copy()
    for r, c in forced:
        value[r, c] += float(volume.sum())
    found, matched = linear_sum_assignment(value, maximize=True)
    out = np.empty(len(volume), dtype=np.int64)
    out[matched] = found
    return out
