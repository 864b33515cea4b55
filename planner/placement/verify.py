"""An independent check of an answer: feasibility and objective recomputed from the slots, in plain loops.

Shares no code with the search, so that a mistake there is seen here.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.placement.records import Instance, Placement

SHARE_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found. max_load [L]; cross_node, cross_gpu, worst_link: shares of the flow, or None."""

    problems: tuple[str, ...]
    max_load: tuple[float, ...]
    cross_node: float | None
    cross_gpu: float | None
    worst_link: float | None = None


def check_answer(instance: Instance, placement: Placement) -> Checked:
    """Every broken rule by layer, and the objectives: the load of the fullest GPU and the flow that moves."""
    problems: list[str] = []
    fullest: list[float] = []
    shares: list[list[dict[int, float]]] = []  # [layer][expert] -> {gpu: share}
    slots = placement.experts.tolist()
    parts = placement.share.tolist()
    if len(slots) != instance.num_layers:
        problems.append(f"{len(slots)} layers placed of {instance.num_layers}")
    for layer, hosts in enumerate(slots):
        taken: list[dict[int, float]] = [{} for _ in range(instance.num_experts)]
        load = [0.0] * instance.gpus
        if len(hosts) != instance.gpus:
            problems.append(f"layer {layer}: {len(hosts)} GPUs instead of {instance.gpus}")
        for gpu, held in enumerate(hosts):
            wanted = instance.slots[gpu] if instance.slots else instance.slots_per_gpu
            filled = len(held) - (held.count(-1) if instance.slots else 0)
            if filled != wanted:
                problems.append(f"layer {layer}, GPU {gpu}: {filled} slots filled of {wanted}")
            for slot, expert in enumerate(held):
                if expert == -1 and instance.slots and not parts[layer][gpu][slot]:
                    continue
                if not 0 <= expert < instance.num_experts:
                    problems.append(f"layer {layer}, GPU {gpu}: no expert {expert}")
                    continue
                if gpu in taken[expert]:
                    problems.append(f"layer {layer}, GPU {gpu}: expert {expert} twice")
                part = parts[layer][gpu][slot]
                if not 0.0 <= part <= 1.0 + SHARE_TOLERANCE:
                    problems.append(f"layer {layer}, GPU {gpu}: expert {expert} has the share {part}")
                taken[expert][gpu] = taken[expert].get(gpu, 0.0) + part
                load[gpu] += part * float(instance.loads[layer, expert])
        for expert, at in enumerate(taken):
            if abs(sum(at.values()) - 1.0) > SHARE_TOLERANCE * max(1, len(at)):
                problems.append(f"layer {layer}: shares of expert {expert} sum to {sum(at.values())}")
        fullest.append(max(load[g] / float(instance.speeds[g]) for g in range(instance.gpus)))
        shares.append(taken)
        problems += _group_problems(instance, layer, taken)
    cross = None if instance.transitions is None else _cross(instance, shares)
    return Checked(
        problems=tuple(problems), max_load=tuple(fullest), cross_node=None if cross is None else cross[0],
        cross_gpu=None if cross is None else cross[1], worst_link=None if cross is None else cross[2],
    )  # fmt: skip


def _group_problems(instance: Instance, layer: int, taken: list[dict[int, float]]) -> list[str]:
    if instance.num_groups == 1:
        return []
    size = instance.num_experts // instance.num_groups
    problems = []
    for group in range(instance.num_groups):
        nodes = {g // instance.gpus_per_node for e in range(group * size, (group + 1) * size) for g in taken[e]}
        if len(nodes) > 1:
            problems.append(f"layer {layer}: group {group} is spread over {len(nodes)} nodes")
    return problems


def _cross(instance: Instance, shares: list[list[dict[int, float]]]) -> tuple[float, float, float]:
    """Share of adjacent-layer flow that changes node, GPU, and that takes the busiest link of its pair of layers; a
    replica sends and receives in proportion to its share."""
    assert instance.transitions is not None
    total = node_kept = gpu_kept = busiest = 0.0
    per_node = instance.gpus_per_node
    block = 1 if per_node == instance.gpus else per_node
    for layer in range(instance.num_layers - 1):
        here, there = shares[layer], shares[layer + 1]
        links: dict[tuple[int, int], float] = {}
        homes: list[dict[int, float]] = []
        for at in there:
            home: dict[int, float] = {}
            for gpu, part in at.items():
                home[gpu // per_node] = home.get(gpu // per_node, 0.0) + part
            homes.append(home)
        for e, row in enumerate(instance.transitions[layer].tolist()):
            for f, flow in enumerate(row):
                if not flow:
                    continue
                total += flow
                for gpu, part in here[e].items():
                    node_kept += flow * part * homes[f].get(gpu // per_node, 0.0)
                    gpu_kept += flow * part * there[f].get(gpu, 0.0)
                    for other, share in there[f].items():
                        if gpu // block != other // block:
                            link = gpu // block, other // block
                            links[link] = links.get(link, 0.0) + flow * part * share
        busiest += max(links.values(), default=0.0)
    return (1.0 - node_kept / total, 1.0 - gpu_kept / total, busiest / total) if total else (0.0, 0.0, 0.0)
