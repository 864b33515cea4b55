"""From nodes to the GPUs in them: every node's experts are balanced over its GPUs, then GPUs still too full give way
across nodes at the least loss of what the nodes were chosen for, and at any loss where that does not reach.
"""

from __future__ import annotations

import numpy as np

from planner.placement.pack import Packing, pack_lpt, relieve
from planner.placement.records import Floats, Ints

MOST_REPAIRS = 400
MOST_ADOPTED = 6


def experts_on_gpus(
    part: Ints,
    load: Floats,
    *,
    slots: int,
    speeds: Floats,
    target: float,
    value: Floats,
    pairs: Floats | None = None,
    balanced: Ints | None = None,
) -> Ints:
    """Experts [G, S] of one layer from part [E] -> node, with the fullest GPU at `target` where that can be reached.

    value [E, N]: what an expert gains on each node from what stands still; pairs [E, E]: what a pair gains on one node.
    balanced [G, S]: the plan for load alone, whose companions the heaviest experts take where nothing else reaches.
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
    if balanced is not None:
        _adopt(whole, balanced, target)
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


def _adopt(packing: Packing, balanced: Ints, target: float) -> None:
    """Give the heaviest expert of a GPU that is still too full the companions that it has in a balanced plan.

    A few experts so heavy that only the very lightest go with them leave no single exchange that helps. Kept where the
    fullest GPU becomes less full.
    """
    home = np.empty(packing.expert.size, dtype=np.int64)
    home[balanced.ravel()] = np.repeat(np.arange(len(balanced)), balanced.shape[1])
    for _ in range(MOST_ADOPTED):
        before, was = packing.expert.copy(), float(packing.time.max())
        if was <= target:
            return
        full = int(packing.time.argmax())
        heavy = packing.expert[full][int(packing.per_replica[packing.expert[full]].argmax())]
        wanted = balanced[home[heavy]]
        for e in wanted.tolist():
            if e in packing.expert[full]:
                continue
            g, t = (int(x[0]) for x in np.nonzero(packing.expert == e))
            mine, theirs = packing.expert[full].copy(), packing.expert[g].copy()
            s = int(np.flatnonzero(~np.isin(mine, wanted))[0])
            mine[s], theirs[t] = theirs[t], mine[s]
            packing.put(full, mine)
            packing.put(g, theirs)
        relieve(packing, target)
        if not packing.time.max() < was * (1.0 - 1e-12):
            for g, row in enumerate(before):
                packing.put(g, row)
            return
