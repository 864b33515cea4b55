"""From nodes to the GPUs in them: every node's experts are balanced over its GPUs, then GPUs still too full give way
across nodes at the least loss of what the nodes were chosen for, and at any loss where that does not reach.
"""

from __future__ import annotations

import numpy as np

from planner.placement.pack import Packing, pack_lpt, relieve
from planner.placement.records import Floats, Ints

MOST_REPAIRS = 400


def experts_on_gpus(
    part: Ints, load: Floats, *, slots: int, speeds: Floats, target: float, value: Floats, pairs: Floats | None = None
) -> Ints:
    """Experts [G, S] of one layer from part [E] -> node, with the fullest GPU at `target` where that can be reached.

    value [E, N]: what an expert gains on each node from what stands still; pairs [E, E]: what a pair gains on one node.
    """
    nodes = value.shape[1]
    per_node = len(speeds) // nodes
    ones = np.ones(len(load), dtype=np.int64)
    hosts = []
    for node in range(nodes):
        held, of_node = np.flatnonzero(part == node), speeds[node * per_node : (node + 1) * per_node]
        packing = Packing(
            pack_lpt(load[held], ones[: len(held)], slots, of_node), load[held], ones[: len(held)], of_node
        )
        relieve(packing, max(target, float(load[held].sum() / of_node.sum()) * (1.0 + 2e-4)))
        hosts.append(held[packing.expert])
    whole = Packing(np.concatenate(hosts), load, ones, speeds)
    _repair(whole, value, pairs, target, per_node)
    relieve(whole, target)
    return whole.expert


def _repair(packing: Packing, value: Floats, pairs: Floats | None, target: float, per_node: int) -> None:
    """Exchanges of the fullest GPU with any other, the least loss of value per load, until `target`."""
    gpus, slots = packing.expert.shape
    node = np.repeat(np.arange(gpus) // per_node, slots)
    for _ in range(MOST_REPAIRS):
        time = packing.time
        full = int(time.argmax())
        if time[full] <= target:
            return
        total = value
        if pairs is not None:
            on = np.zeros_like(value)
            on[packing.expert.ravel(), node] = 1.0
            total = value + pairs @ on
        mine, others = packing.expert[full], packing.expert.ravel()
        here = full // per_node
        gain = total[mine][:, node] + total[others, here] - total[mine, here][:, None] - total[others, node]
        if pairs is not None:
            gain = gain - 2.0 * pairs[np.ix_(mine, others)]
        gain = np.where((node == here)[None, :], 0.0, gain)
        less = packing.per_replica[mine][:, None] - packing.per_replica[others][None, :]
        gpu = np.repeat(np.arange(gpus), slots)
        ours = (packing.load[full] - less) / packing.speeds[full]
        theirs = (packing.load[gpu][None, :] + less) / packing.speeds[gpu][None, :]
        top = np.maximum(ours, theirs)
        excess = time[full] - np.maximum(top, target)
        helps = (excess > 1e-9 * time[full]) & (gpu != full)[None, :]
        if not helps.any():
            return
        # a gain is free; otherwise the loss per load taken off
        price = np.where(helps, np.maximum(-gain, 0.0) / np.where(helps, excess, 1.0), np.inf)
        i, k = np.unravel_index(int(price.argmin()), price.shape)
        ours_now, theirs_now = mine.copy(), packing.expert[gpu[k]].copy()
        slot = int(k) % slots
        ours_now[i], theirs_now[slot] = theirs_now[slot], ours_now[i]
        packing.put(full, ours_now)
        packing.put(int(gpu[k]), theirs_now)
