"""Group-limited routing: whole groups of neighbouring experts stay on a node, so that few nodes see a token.

Groups are packed to nodes as experts are to GPUs, then every node is balanced on its own, replicas included.
"""

from __future__ import annotations

import numpy as np

from planner.placement.bounds import load_bound, mean_bound
from planner.placement.eplb import eplb_layer
from planner.placement.load import COMBINATORIAL, LayerPlan, distinct, plan_layer
from planner.placement.records import Floats


def plan_grouped_layer(
    load: Floats, *, slots: int, speeds: Floats, groups: int, nodes: int, split: str = "even", seed: int = 0,
    quick: bool = False,
) -> LayerPlan:  # fmt: skip
    """As `plan_layer`, with each of `groups` groups on one of `nodes` nodes, as many on each."""
    size, per_node = len(load) // groups, len(speeds) // nodes
    by_group, of_node = load.reshape(groups, size).sum(axis=1), speeds.reshape(nodes, per_node)
    homes = plan_layer(by_group, slots=groups // nodes, speeds=of_node.sum(axis=1), seed=seed, quick=quick)
    experts, share, limits = [], [], list(homes.limits)
    time = 0.0
    for node in range(nodes):
        held = np.sort((homes.experts[node][:, None] * size + np.arange(size)).ravel())
        plan = plan_layer(load[held], slots=slots, speeds=of_node[node], split=split, seed=seed, quick=quick)
        experts.append(held[plan.experts])
        share.append(plan.share)
        limits += plan.limits
        time = max(time, plan.time)
    hosts, copies = eplb_layer(load, gpus=len(speeds), slots=slots, groups=groups, nodes=nodes)
    theirs = float(((load / copies)[hosts].sum(axis=1) / speeds).max())
    placed, shares = np.concatenate(experts), np.concatenate(share)
    if theirs < time:
        placed, shares, time = (*distinct(hosts, copies, len(load)), theirs)
    # a node's GPUs take at least the mean of the groups on it, and no node-free placement is beaten
    free = mean_bound(load, speeds) if split == "free" else load_bound(load, slots, speeds)
    bound = min(max(free, homes.bound), time)
    return LayerPlan(
        experts=placed, share=shares, time=time, bound=bound,
        bound_kind=COMBINATORIAL, limits=tuple(dict.fromkeys(limits)),
    )  # fmt: skip
