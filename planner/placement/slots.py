"""Traffic with replicas: every slot of the balanced plan stands for an expert of its own, with its share of load, flow
and pairs; slots are placed like experts, then copies that met on one GPU part again.

Tokens choose among replicas by share, whichever is nearest: what nearest replicas would save is not counted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.placement.load import LayerPlan
from planner.placement.records import Floats, Instance, Ints, Placement


def slot_instance(instance: Instance, plans: list[LayerPlan]) -> Instance:
    """The question with one expert for each slot [L, G x S] of the plans; no replicas."""
    expert = np.stack([plan.experts.ravel() for plan in plans])
    share = np.stack([plan.share.ravel() for plan in plans])
    flows = pairs = None
    if instance.transitions is not None:
        between = zip(instance.transitions, expert, expert[1:], share, share[1:], strict=False)
        flows = np.stack([a[np.ix_(e, f)] * np.outer(s, t) for a, e, f, s, t in between])
    if instance.coactivation is not None:
        inside = zip(instance.coactivation, expert, share, strict=True)
        pairs = np.stack([c[np.ix_(e, e)] * np.outer(s, s) * (e[:, None] != e[None, :]) for c, e, s in inside])
    loads = np.take_along_axis(instance.loads, expert, axis=1) * share
    return replace(instance, loads=loads, transitions=flows, coactivation=pairs)


def of_slots(instance: Instance, plans: list[LayerPlan], placed: Placement) -> Placement:
    """The placement of experts from one of slots, copies of an expert on distinct GPUs."""
    hosts, shares = [], []
    for load, plan, slots in zip(instance.loads, plans, placed.experts, strict=True):
        expert, share = plan.experts.ravel()[slots], plan.share.ravel()[slots]
        _part(expert, share, load, instance.gpus_per_node)
        hosts.append(expert)
        shares.append(share)
    return Placement(experts=np.stack(hosts), share=np.stack(shares))


def _part(expert: Ints, share: Floats, load: Floats, per_node: int) -> None:
    """Exchange second copies on a GPU for slots of other GPUs, in place: of its node if there are any, then of the
    nearest load."""
    gpus, slots = expert.shape
    for g in range(gpus):
        for s in range(slots):
            mine = int(expert[g, s])
            if mine not in expert[g, :s]:
                continue
            lacks = (expert != mine).all(axis=1)
            free = lacks[:, None] & ~np.isin(expert, expert[g])
            away = np.abs(load[expert] * share - load[mine] * share[g, s])
            far = (np.arange(gpus) // per_node != g // per_node)[:, None] * (1.0 + float(load.sum()))
            cost = np.where(free, away + far, np.inf)
            h, t = (int(x) for x in np.unravel_index(int(cost.argmin()), cost.shape))
            if not np.isfinite(cost[h, t]):  # no GPU lacks it: a copy less, and any expert this GPU lacks
                first = int(np.flatnonzero(expert[g] == mine)[0])
                share[g, first] += share[g, s]
                expert[g, s] = next(e for e in range(len(load)) if e not in expert[g])
                share[g, s] = 0.0
                continue
            expert[g, s], expert[h, t] = expert[h, t], expert[g, s]
            share[g, s], share[h, t] = share[h, t], share[g, s]
