"""Home nodes of classes of tokens: requests that use a node's experts start on that node, so fewer of their nodes are
remote.

A class (a language, a customer, a data source) chooses experts in its own way. With experts placed, classes go to nodes
by a transportation programme: every node is home to equally many tokens, and the hits at home are as many as can be.
With homes known, experts have a value on each node (rows of tokens that live there) and are exchanged again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.placement.devices import experts_on_gpus
from planner.placement.fanout import fan_out_parts
from planner.placement.partition import improve
from planner.placement.records import Floats, Homes, Instance, Ints, Placement
from planner.placement.traffic import FAN_OUT_SLACK

TURNS = 2


def check_counts(instance: Instance, counts: Floats, top_k: int) -> None:
    """Raise UserError unless counts are [class, layer, expert] of the question's layers and experts, and usable."""
    problems = []
    if counts.ndim != 3 or counts.shape[1:] != instance.loads.shape:
        problems.append(f"counts of classes have shape {counts.shape}; give [class, layer, expert] of the loads")
    elif not np.all(np.isfinite(counts)) or counts.min() < 0.0 or np.any(counts.sum(axis=2) <= 0.0):
        problems.append("counts of classes are negative, not numbers or empty in a layer; give counts >= 0")
    if top_k < 1:
        problems.append(f"top_k = {top_k}; give a whole number >= 1")
    if instance.extra_slots:
        problems.append("homes are chosen without replicas; give as many slots as experts")
    if problems:
        raise UserError(problems, where="classes")


def home_nodes(instance: Instance, counts: Floats, placement: Placement, *, top_k: int) -> Homes:
    """Homes of classes from counts [class, layer, expert] for a placement; exact for its programme.

    A token's choices are independent given its class, so it hits a node with the share s of its choices with chance
    1 - (1 - s)^k.
    """
    check_counts(instance, counts, top_k)
    on = placement.on_gpu(instance.num_experts)
    on_node = on.reshape(*on.shape[:2], instance.num_nodes, -1).sum(axis=-1)
    share = np.einsum("cle,len->cln", counts, on_node) / counts.sum(axis=2)[:, :, None]
    hit = 1.0 - (1.0 - np.clip(share, 0.0, 1.0)) ** top_k
    at_home = hit.mean(axis=1)  # [class, node]
    tokens = counts.sum(axis=(1, 2)) / counts.sum()
    live = _transport(at_home * tokens[:, None], tokens)
    reached = float(tokens @ at_home.sum(axis=1))
    kept = float((tokens[:, None] * live * at_home).sum())
    return Homes(
        share=live, remote=reached - kept, remote_spread=reached - float((tokens @ at_home).sum()) / instance.num_nodes
    )


def _transport(worth: Floats, tokens: Floats) -> Floats:
    """Shares [class, node], rows of 1 and equal tokens on every node, with the largest summed worth [class, node]."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    classes, nodes = worth.shape
    row, column = (g.ravel() for g in np.indices((classes, nodes)))
    flat = np.arange(classes * nodes)
    whole: Any = csr_array(
        (np.r_[np.ones(len(flat)), tokens[row] * nodes], (np.r_[row, classes + column], np.r_[flat, flat]))
    )
    done: Any = linprog(-worth.ravel(), A_eq=whole, b_eq=np.ones(classes + nodes), bounds=(0.0, 1.0), method="highs-ds")
    out: Floats = np.clip(np.asarray(done.x, dtype=np.float64).reshape(classes, nodes), 0.0, 1.0)
    out /= out.sum(axis=1, keepdims=True)
    return out


def place_with_homes(
    instance: Instance, counts: Floats, *, top_k: int, targets: Floats, seed: int = 0
) -> tuple[Placement, Homes]:
    """Experts and homes in turns, from the placement for co-activation; the best of the turns by remote nodes.

    targets [L]: load of a GPU that is aimed at, in the unit of the loads. Needs coactivation and several nodes.
    """
    check_counts(instance, counts, top_k)
    if instance.coactivation is None or instance.num_nodes == 1:
        raise UserError("homes need coactivation and several nodes; give both", where="classes")
    nodes = instance.num_nodes
    caps = instance.loads.sum(axis=1) / nodes * FAN_OUT_SLACK
    pairs = [p - np.diag(np.diag(p)) for p in instance.coactivation]
    none = np.zeros((instance.num_experts, nodes))
    parts = [
        fan_out_parts(p, w, float(c), nodes, seed=seed)
        for p, w, c in zip(instance.coactivation, instance.loads, caps, strict=True)
    ]
    best: tuple[Placement, Homes] | None = None
    values = [none] * instance.num_layers
    for _ in range(1 + TURNS):
        placement = _on_gpus(instance, parts, values, pairs, targets)
        homes = home_nodes(instance, counts, placement, top_k=top_k)
        if best is None or homes.remote < best[1].remote:
            best = placement, homes
        values = [counts[:, i].T @ homes.share for i in range(instance.num_layers)]
        parts = [
            improve(p, v, w, np.full(nodes, float(c)), free)
            for p, v, w, c, free in zip(parts, values, instance.loads, caps, pairs, strict=True)
        ]
    assert best is not None
    return best


def _on_gpus(
    instance: Instance, parts: list[Ints], values: list[Floats], pairs: list[Floats], targets: Floats
) -> Placement:
    hosts = [
        experts_on_gpus(
            part, load, slots=instance.slots_per_gpu, speeds=instance.speeds, target=float(target), value=value,
            pairs=free,
        )
        for part, load, target, value, free in zip(parts, instance.loads, targets, values, pairs, strict=True)
    ]  # fmt: skip
    return Placement.even(np.stack(hosts), instance.num_experts)
