"""The expert-parallel load balancer that DeepSeek published, written from its description, as a baseline.

Hierarchical: groups of experts are packed to nodes with as many groups on each, heaviest group first to the emptiest
node; inside a node each further replica goes to the expert with the largest load per replica; replicas are packed to
the node's GPUs the same way as groups. Global (no groups, or groups that do not divide over nodes): the same with one
node that holds every GPU. Copies of one expert may share a GPU, and no bound is known.
"""

from __future__ import annotations

import numpy as np

from planner.placement.records import Floats, Instance, Ints


def eplb_layer(load: Floats, *, gpus: int, slots: int, groups: int = 1, nodes: int = 1) -> tuple[Ints, Ints]:
    """(experts [G, S], counts [E]) of one layer of load [E]."""
    if groups % nodes or groups < nodes:
        groups, nodes = 1, 1
    size = len(load) // groups
    by_group = load.reshape(groups, size).sum(axis=1)
    of_node = _balanced(by_group, nodes)
    hosts = np.empty((gpus, slots), dtype=np.int64)
    counts = np.ones(len(load), dtype=np.int64)
    per_node = gpus // nodes
    for node, held in enumerate(of_node):
        experts = np.concatenate([np.arange(g * size, (g + 1) * size) for g in held])
        replicas = experts.tolist()
        for _ in range(per_node * slots - len(experts)):
            most = experts[int(np.argmax(load[experts] / counts[experts]))]
            counts[most] += 1
            replicas.append(int(most))
        at = np.array(replicas)
        for i, packed in enumerate(_balanced(load[at] / counts[at], per_node)):
            hosts[node * per_node + i] = at[packed]
    return hosts, counts


def _balanced(weight: Floats, bins: int) -> list[list[int]]:
    """Heaviest first to the lightest bin that is not full; equal numbers in all bins."""
    room = len(weight) // bins
    packed: list[list[int]] = [[] for _ in range(bins)]
    filled = np.zeros(bins)
    for i in np.argsort(-weight, kind="stable").tolist():
        b = int(filled.argmin())
        packed[b].append(i)
        filled[b] = filled[b] + weight[i] if len(packed[b]) < room else np.inf
    return packed


def eplb_times(instance: Instance) -> Floats:
    """Max over GPUs of load over speed, [L], of EPLB's placement (which knows neither speeds nor moves)."""
    out = np.empty(instance.num_layers)
    for i, load in enumerate(instance.loads):
        hosts, counts = eplb_layer(
            load, gpus=instance.gpus, slots=instance.slots_per_gpu, groups=instance.num_groups, nodes=instance.num_nodes
        )
        out[i] = float(((load / counts)[hosts].sum(axis=1) / instance.speeds).max())
    return out
