"""Traffic terms of a placement: flow between adjacent layers that moves, and pairs of experts that share a node."""

from __future__ import annotations

import numpy as np

from planner.placement.records import Floats, Instance, Placement


def crossing(instance: Instance, placement: Placement) -> tuple[float, float] | None:
    """Shares of adjacent-layer flow that change node, GPU; None without transitions.

    Replicas send and receive in proportion to their shares.
    """
    if instance.transitions is None or instance.transitions.size == 0:
        return None
    on_gpu = placement.on_gpu(instance.num_experts)
    on_node = on_gpu.reshape(*on_gpu.shape[:2], instance.num_nodes, -1).sum(axis=-1)
    total = instance.transitions.sum()
    if total <= 0.0:
        return 0.0, 0.0
    return (
        1.0 - kept_flow(instance.transitions, on_node) / float(total),
        1.0 - kept_flow(instance.transitions, on_gpu) / float(total),
    )


def kept_flow(flow: Floats, on: Floats) -> float:
    """sum over layers, e, e', blocks of flow[l, e, e'] on[l, e, block] on[l + 1, e', block]."""
    return float(sum(((on[i].T @ flow[i]) * on[i + 1].T).sum() for i in range(len(flow))))


def same_node_pairs(instance: Instance, placement: Placement) -> float | None:
    """Share of co-active pairs of different experts whose experts share a node; None without coactivation."""
    if instance.coactivation is None:
        return None
    on_gpu = placement.on_gpu(instance.num_experts)
    on_node = on_gpu.reshape(*on_gpu.shape[:2], instance.num_nodes, -1).sum(axis=-1)
    kept = total = 0.0
    for pairs, on in zip(instance.coactivation, on_node, strict=True):
        diagonal = np.diag(pairs)
        kept += float(((on.T @ pairs) * on.T).sum() - (diagonal * (on**2).sum(axis=1)).sum())
        total += float(pairs.sum() - diagonal.sum())
    return kept / total if total > 0.0 else None
