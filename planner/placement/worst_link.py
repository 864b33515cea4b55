"""Chains whose busiest link is as free as can be: the largest flow between two parts, summed over pairs of layers.

The objective of MoETuner's second stage (arXiv 2502.06643): an exchange between two layers is over when its busiest
pair is. With the layers beside it fixed, what goes from part to part is a sum over the experts of a layer. Maxima are
descended as norms of high order, by exchanges that keep the load cap; small layers then by programmes with a row for
every link (`chain_ilp.layer_programme`).
"""

from __future__ import annotations

import numpy as np

from planner.placement.chain_ilp import programmed_chain
from planner.placement.partition import one_hot
from planner.placement.records import Floats, Instance, Ints, Placement

ORDER = 32  # of the norms
SWEEPS = 3
MOST_EXCHANGES = 200  # of a layer in a sweep
TRIED = 64  # exchanges with the best slope that are worked out
LEAST = 1e-6
MOST_PROGRAMMED = 64  # experts x parts of a layer whose programme takes a fraction of a second
WEIGHT = 10.0  # of the largest flows over all that is kept, in programmes: they decide, what is kept breaks ties


def link_flows(flow: Floats, part: Ints, parts: int) -> Floats:
    """Flow [L - 1, from, to] between parts of adjacent layers; nothing from a part to itself."""
    out = np.stack([one_hot(p, parts).T @ a @ one_hot(q, parts) for a, p, q in zip(flow, part, part[1:], strict=False)])
    out[:, np.arange(parts), np.arange(parts)] = 0.0
    return out


def worst_links(instance: Instance, placement: Placement) -> Floats | None:
    """The largest flow [L - 1] between two nodes (GPUs where there is one node); None without transitions."""
    if instance.transitions is None or instance.transitions.size == 0:
        return None
    on = placement.on_gpu(instance.num_experts)
    if instance.num_nodes > 1:
        on = on.reshape(*on.shape[:2], instance.num_nodes, -1).sum(axis=-1)
    between = np.stack([p.T @ a @ q for a, p, q in zip(instance.transitions, on, on[1:], strict=False)])
    between[:, np.arange(on.shape[2]), np.arange(on.shape[2])] = 0.0
    out: Floats = between.max(axis=(1, 2))
    return out


def least_worst_links(flow: Floats, kept: Floats, parts: int) -> Floats:
    """No parts have a smaller largest flow [L - 1]: what cannot be kept, spread evenly over all links."""
    out: Floats = np.maximum(flow.sum(axis=(1, 2)) - kept, 0.0) / max(1, parts * (parts - 1))
    return out


def relieved_chain(flow: Floats, load: Floats, cap: Floats, part: Ints, parts: int, *, seed: int = 0) -> Ints:
    """Part [L, E] from `part`, with smaller largest flows where exchanges (and programmes) find any, at the cap [L]
    or nearer to it."""
    best, least = part, float(link_flows(flow, part, parts).max(axis=(1, 2)).sum())
    now = part.copy()
    for sweep in range(SWEEPS):
        order = range(len(load)) if sweep % 2 == 0 else range(len(load) - 1, -1, -1)
        for i in order:
            fullest = float(np.bincount(now[i], weights=load[i], minlength=parts).max())
            now[i] = _descended(now[i], *_beside(flow, now, i, parts), load[i], max(float(cap[i]), fullest), parts)
        found = float(link_flows(flow, now, parts).max(axis=(1, 2)).sum())
        if found >= least * (1.0 - LEAST):
            break
        best, least = now.copy(), found
    if load.shape[1] * parts <= MOST_PROGRAMMED:
        weight = WEIGHT * parts**2
        tried = programmed_chain(flow, load, cap, best, parts, worst_link=weight, seed=seed)
        if link_flows(flow, tried, parts).max(axis=(1, 2)).sum() < least:
            best = tried
    return best


def _beside(flow: Floats, part: Ints, i: int, parts: int) -> tuple[Floats, Floats]:
    """(into [N, E], out [E, N]): flow from each part of the layer before, to each part of the layer after."""
    none = np.zeros((part.shape[1], parts))
    into = one_hot(part[i - 1], parts).T @ flow[i - 1] if i > 0 else none.T
    out = flow[i] @ one_hot(part[i + 1], parts) if i < len(flow) else none
    return into, out


def _descended(part: Ints, into: Floats, out: Floats, load: Floats, cap: float, parts: int) -> Ints:
    """Part [E] of one layer after exchanges that lower the norms of what goes in and out."""
    part, apart = part.copy(), ~np.eye(parts, dtype=bool)
    scale = max(float((into.sum() + out.sum()) / (2 * parts)), 1e-300)
    into, out = into / scale, out / scale
    x = one_hot(part, parts)
    arrives, leaves, loads = into @ x, x.T @ out, load @ x
    for _ in range(MOST_EXCHANGES):
        norms = [_norm(arrives, apart), _norm(leaves, apart)]
        slopes = [
            np.where(apart, (v / n) ** (ORDER - 1) if n > 0.0 else 0.0, 0.0)
            for v, n in zip((arrives, leaves), norms, strict=True)
        ]
        price = into.T @ slopes[0] + out @ slopes[1].T  # [E, N]: of an expert on a part
        here = np.take_along_axis(price, part[:, None], axis=1)
        gain = here + here.T - price[:, part] - price[:, part].T
        more = load[None, :] - load[:, None]
        room = (cap - loads)[part]
        fits = (part[:, None] < part[None, :]) & (more <= room[:, None]) & (-more <= room[None, :])
        gain = np.where(fits, gain, -np.inf)
        flat = np.argpartition(-gain, min(TRIED, gain.size - 1), axis=None)[:TRIED]
        first, second = np.unravel_index(flat, gain.shape)
        keep = np.isfinite(gain[first, second])
        first, second = first[keep], second[keep]
        if not len(first):
            break
        a, b, k = part[first], part[second], np.arange(len(first))
        tried_in = np.repeat(arrives[None], len(first), axis=0)
        tried_out = np.repeat(leaves[None], len(first), axis=0)
        step_in, step_out = (into[:, second] - into[:, first]).T, out[second] - out[first]
        tried_in[k, :, a] += step_in
        tried_in[k, :, b] -= step_in
        tried_out[k, a] += step_out
        tried_out[k, b] -= step_out
        after = _norm(tried_in, apart) + _norm(tried_out, apart)
        best = int(after.argmin())
        if not after[best] < (norms[0] + norms[1]) * (1.0 - LEAST):
            break
        e, f = int(first[best]), int(second[best])
        arrives, leaves = tried_in[best], tried_out[best]
        loads[part[e]] += load[f] - load[e]
        loads[part[f]] += load[e] - load[f]
        part[e], part[f] = part[f], part[e]
    return part


def _norm(volume: Floats, apart: Floats) -> Floats:
    """The norm of the flows between different parts [..., N, N]."""
    powers = np.where(apart, np.maximum(volume, 0.0), 0.0)
    for _ in range(ORDER.bit_length() - 1):
        powers = powers * powers
    out: Floats = powers.sum(axis=(-1, -2))
    return out ** (1.0 / ORDER)
