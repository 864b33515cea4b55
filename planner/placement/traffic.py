"""Placements that also keep traffic on nodes: node level by the traffic model, then device level by load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import exact_chain, swept_chain
from planner.placement.chain_bound import STEPS, kept_by_pair
from planner.placement.chain_ilp import MOST_LAYER, programmed_chain, whole_chain
from planner.placement.devices import experts_on_gpus
from planner.placement.fanout import fan_out_parts
from planner.placement.flows import kept_flow
from planner.placement.load import LayerPlan
from planner.placement.partition import improve, one_hot
from planner.placement.records import Floats, Instance, Ints, Placement
from planner.placement.slots import of_slots, slot_instance
from planner.placement.worst_link import least_worst_links, link_flows, relieved_chain, worst_links

NODE_SLACK = 1.006  # load of a node over what its GPUs need at least
GPU_SLACK = 1.008  # load of a GPU over the layer's bound
CHAIN_SLACK = 1.05  # the same where a few large experts leave no finer choice (one GPU a part)
FAN_OUT_SLACK = 1.025  # load of a node over the mean
FAN_OUT_GPU_SLACK = 1.04  # load of a GPU over the layer's bound
Step = Callable[[str, float, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Routed:
    """A placement chosen for traffic; lower bound of the crossing share of the flow, and its kind (None: no bound).

    kept: flow between two layers [L - 1] that no placement keeps in its parts, where it was worked out. link_bound:
    least share of the flow on the busiest links, where these were to be relieved.
    """

    placement: Placement
    crossing_bound: float | None
    kind: str | None
    kept: Floats | None = None
    link_bound: float | None = None


def place_for_traffic(
    instance: Instance,
    plans: list[LayerPlan],
    *,
    traffic: str,
    seed: int = 0,
    progress: Step | None = None,
    bounded: bool = True,
    slack: float | None = None,
    steps: int = STEPS,
    worst_link: bool = False,
) -> Routed | None:
    """The placement for a traffic model, loads within a slack of each layer's bound; None where nothing is to gain.

    Needs transitions ("chain") or coactivation ("dispatch") and equal speeds. Replicas are placed as slots, without a
    bound of the flow. Parts are nodes; the GPUs themselves where there is one node and tokens travel along the chain.
    slack: load of a GPU over the layer's bound that dispatch may cost (default: FAN_OUT_GPU_SLACK). steps: of the
    bound of the flow between two layers. worst_link: of chains, relieve the busiest links instead of all together.
    """
    if instance.extra_slots:
        of = slot_instance(instance, plans)
        found = place_for_traffic(
            of, plans, traffic=traffic, seed=seed, progress=progress, bounded=False, slack=slack, worst_link=worst_link
        )  # fmt: skip
        if found is None:
            return None
        return Routed(placement=of_slots(instance, plans, found.placement), crossing_bound=None, kind=None)
    single = instance.num_nodes == 1
    table = instance.transitions if traffic == "chain" else instance.coactivation
    if table is None or table.size == 0 or (single and traffic == "dispatch"):
        return None
    parts = instance.gpus if single else instance.num_nodes
    reached, least = np.array([plan.time for plan in plans]), np.array([plan.bound for plan in plans])
    if traffic == "dispatch":
        return _dispatch(
            instance, table, np.maximum(reached, least * (slack or FAN_OUT_GPU_SLACK)), parts, seed, progress
        )
    mean = instance.loads.sum(axis=1) / parts
    cap = reached * CHAIN_SLACK if single else mean * NODE_SLACK
    part = exact_chain(table, instance.loads, cap, parts, worst_link=worst_link)
    if part is not None:
        links = float(link_flows(table, part, parts).max(axis=(1, 2)).sum()) if worst_link else 0.0
        most: tuple[float, str] | None = (links if worst_link else _kept(table, part), "dp")
        first = exact_chain(table, instance.loads, cap, parts) if worst_link else None
    else:
        first, most = _searched(table, instance.loads, cap, parts, seed, progress)
        part = first
        if worst_link:
            part, most = relieved_chain(table, instance.loads, cap, part, parts, seed=seed), None
    bounding = table if bounded else None
    if single:
        placement = Placement.of_ranks(part, instance.gpus)
        return _routed(instance, placement, bounding, most, steps, worst_link, progress)
    hosts = [plan.experts for plan in plans] if bounded else None
    targets = np.maximum(reached, least * GPU_SLACK)
    placement = _on_gpus(instance, table, part, targets, hosts, progress, bettered=not worst_link)
    if worst_link and first is not None:  # what GPUs do to nodes may cost more than was won on nodes
        other = _on_gpus(instance, table, first, targets, hosts, progress, bettered=True)
        placement = min((placement, other), key=lambda each: _busiest(instance, each))
    return _routed(instance, placement, bounding, most, steps, worst_link, progress)


def _busiest(instance: Instance, placement: Placement) -> float:
    found = worst_links(instance, placement)
    return 0.0 if found is None else float(found.sum())


def _routed(
    instance: Instance,
    placement: Placement,
    flow: Floats | None,
    most: tuple[float, str] | None,
    steps: int,
    worst_link: bool,
    progress: Step | None,
) -> Routed:
    """With the bound of what counts: `most`, of the whole chain, where that is known, or by pairs of layers."""
    if flow is None:
        return Routed(placement=placement, crossing_bound=None, kind=None)
    total = float(flow.sum())
    if most is not None and worst_link:
        return Routed(placement=placement, crossing_bound=None, kind=most[1], link_bound=most[0] / total)
    if most is not None:
        return Routed(placement=placement, crossing_bound=1.0 - most[0] / total, kind=most[1])
    if progress is not None:
        progress("bounding the flow", 0, None)
    single = instance.num_nodes == 1
    on = placement.on_gpu(instance.num_experts)
    on = on if single else on.reshape(*on.shape[:2], instance.num_nodes, -1).sum(axis=-1)
    reached = np.array([kept_flow(flow[i : i + 1], on[i : i + 2]) for i in range(len(flow))])
    kept, kind = kept_by_pair(flow, on.shape[2], steps, reached)
    links = float(least_worst_links(flow, kept, on.shape[2]).sum()) / total if worst_link else None
    crossing = 1.0 - float(kept.sum()) / total
    return Routed(placement=placement, crossing_bound=crossing, kind=kind, kept=kept, link_bound=links)


def _searched(
    flow: Floats, load: Floats, cap: Floats, parts: int, seed: int, progress: Step | None
) -> tuple[Ints, tuple[float, str] | None]:
    """(part [L, E], flow that no chain within the caps exceeds and the kind of that bound, of small chains).

    Caps that the search does not reach are raised to what it reached.
    """
    best = swept_chain(flow, load, cap, parts, progress)
    if load.shape[1] * parts > MOST_LAYER:
        return best, None
    best = programmed_chain(flow, load, cap, best, parts, seed=seed)
    fullest = np.array([np.bincount(p, weights=w, minlength=parts).max() for p, w in zip(best, load, strict=True)])
    whole = whole_chain(flow, load, np.maximum(cap, fullest), parts, seed=seed)
    if whole is None:
        return best, None
    part, most, proved = whole
    if _kept(flow, part) > _kept(flow, best):
        best = part
    return best, (most, "exact" if proved else "milp_dual")


def _kept(flow: Floats, part: Ints) -> float:
    return float(sum((a * (p[:, None] == q[None, :])).sum() for a, p, q in zip(flow, part, part[1:], strict=False)))


def _on_gpus(
    instance: Instance,
    flow: Floats,
    part: Ints,
    targets: Floats,
    plans: list[Ints] | None,
    progress: Step | None,
    *,
    bettered: bool,
) -> Placement:
    nodes, done = instance.num_nodes, []
    for i in range(instance.num_layers):
        if progress is not None:
            progress("placing on GPUs", i, instance.num_layers)
        value = np.zeros((instance.num_experts, nodes))
        if i > 0:
            value += flow[i - 1].T @ one_hot(part[i - 1], nodes)
        if i < len(flow):
            value += flow[i] @ one_hot(part[i + 1], nodes)
        hosts = experts_on_gpus(
            part[i], instance.loads[i], slots=instance.slots_per_gpu, speeds=instance.speeds,
            target=float(targets[i]), value=value, balanced=None if plans is None else plans[i],
        )  # fmt: skip
        done.append(hosts)
        part = part.copy()
        part[i][hosts.ravel()] = np.repeat(np.arange(instance.gpus) // instance.gpus_per_node, instance.slots_per_gpu)
    if not bettered:
        return Placement.even(np.stack(done), instance.num_experts)
    return Placement.of_ranks(_bettered(instance, flow, np.stack(done), targets), instance.gpus)


def _bettered(instance: Instance, flow: Floats, experts: Ints, targets: Floats) -> Ints:
    """GPU [L, E] after exchanges between nodes that keep more flow and every GPU of experts [L, G, S] within its
    target."""
    per, nodes = instance.gpus_per_node, instance.num_nodes
    layers = instance.num_layers
    gpu = np.empty((layers, instance.num_experts), dtype=np.int64)
    for i, hosts in enumerate(experts):
        gpu[i, hosts.ravel()] = np.repeat(np.arange(instance.gpus), instance.slots_per_gpu)
    for i in range(layers):
        value = np.zeros((instance.num_experts, nodes))
        if i > 0:
            value += flow[i - 1].T @ one_hot(gpu[i - 1] // per, nodes)
        if i < len(flow):
            value += flow[i] @ one_hot(gpu[i + 1] // per, nodes)
        fullest = np.bincount(gpu[i], weights=instance.loads[i], minlength=instance.gpus).max()
        cap = np.full(instance.gpus, max(float(targets[i]), float(fullest)))
        gpu[i] = improve(gpu[i], np.repeat(value, per, axis=1), instance.loads[i], cap)
    return gpu


def _dispatch(
    instance: Instance, pairs: Floats, targets: Floats, nodes: int, seed: int, progress: Step | None
) -> Routed:
    zero, done = np.zeros((instance.num_experts, nodes)), []
    for i, load in enumerate(instance.loads):
        if progress is not None:
            progress("placing for dispatch", i, instance.num_layers)
        part = fan_out_parts(pairs[i], load, float(load.sum() / nodes) * FAN_OUT_SLACK, nodes, seed=seed)
        free = pairs[i] - np.diag(np.diag(pairs[i]))
        done.append(
            experts_on_gpus(
                part,
                load,
                slots=instance.slots_per_gpu,
                speeds=instance.speeds,
                target=float(targets[i]),
                value=zero,
                pairs=free,
            )
        )
    placement = Placement.even(np.stack(done), instance.num_experts)
    return Routed(placement=placement, crossing_bound=None, kind=None)
