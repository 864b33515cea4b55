"""What others place, in the same records: neighbouring experts together, at random, EPLB's greedy balancing,
MoETuner's two stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.placement.eplb import eplb_layer, eplb_times
from planner.placement.flows import crossing, same_node_pairs
from planner.placement.load import distinct
from planner.placement.moetuner import moetuner_placement
from planner.placement.records import Floats, Instance, Ints, Placement, gpu_time
from planner.placement.worst_link import worst_links


def contiguous_placement(instance: Instance) -> Placement:
    """Neighbouring experts together, as trainers do it; slots beyond the experts start again from the first."""
    hosts = _dealt(instance, np.arange(instance.num_slots) % instance.num_experts)
    wide = np.broadcast_to(hosts, (instance.num_layers, *hosts.shape))
    return Placement.even(wide, instance.num_experts)


def _dealt(instance: Instance, experts: Ints) -> Ints:
    """Experts in order to the slots [G, S] of the GPUs; -1 in slots that a GPU lacks."""
    slots = instance.gpu_slots
    out = np.full((instance.gpus, instance.slots_per_gpu), -1, dtype=np.int64)
    out[np.arange(instance.slots_per_gpu) < slots[:, None]] = experts
    return out


def random_placement(instance: Instance, seed: int) -> Placement:
    """Experts in a random order per layer, dealt as above."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(instance.num_experts) for _ in range(instance.num_layers)])
    slots = order[:, np.arange(instance.num_slots) % instance.num_experts]
    hosts = np.stack([_dealt(instance, row) for row in slots])
    return Placement.even(hosts, instance.num_experts)


def figures(instance: Instance, placement: Placement) -> dict[str, float]:
    """max_load: mean over layers of the fullest GPU's time; cross_node, cross_gpu, worst_link, same_node_pairs
    where known."""
    out = {"max_load": float(gpu_time(instance, placement).max(axis=1).mean())}
    cross = crossing(instance, placement)
    if cross is not None:
        out |= {"cross_node": cross[0], "cross_gpu": cross[1]}
    links = worst_links(instance, placement)
    if links is not None and instance.transitions is not None:
        out["worst_link"] = float(links.sum() / instance.transitions.sum())
    pairs = same_node_pairs(instance, placement)
    return out if pairs is None else out | {"same_node_pairs": pairs}


def baseline_placements(instance: Instance, seed: int) -> dict[str, Placement]:
    """Contiguous and random placement, EPLB's and, where it applies, MoETuner's."""
    out = {
        "contiguous": contiguous_placement(instance),
        "random": random_placement(instance, seed),
    }
    if not instance.slots:  # it knows equal slots only
        out["eplb"] = eplb_placement(instance)
    tuned = moetuner_placement(instance)
    return out if tuned is None else out | {"moetuner": tuned}


def eplb_placement(instance: Instance) -> Placement:
    """EPLB's plan with distinct experts on every GPU and its GPU loads."""
    done = []
    for load in instance.loads:
        hosts, copies = eplb_layer(
            load, gpus=instance.gpus, slots=instance.slots_per_gpu,
            groups=instance.num_groups, nodes=instance.num_nodes if instance.num_groups > 1 else 1,
        )  # fmt: skip
        done.append(distinct(hosts, copies, instance.num_experts))
    return Placement(experts=np.stack([d[0] for d in done]), share=np.stack([d[1] for d in done]))


def baseline_figures(instance: Instance, placements: Mapping[str, Placement]) -> Mapping[str, Mapping[str, float]]:
    """`figures` of contiguous and random placement and of MoETuner where it applies, and the loads of EPLB."""
    out = {name: figures(instance, placements[name]) for name in ("contiguous", "random")}
    if not instance.slots:
        out["eplb"] = {"max_load": float(eplb_times(instance).mean())}
    if "moetuner" in placements:
        out["moetuner"] = figures(instance, placements["moetuner"])
    return out


def ranks_of(placement: Placement) -> Ints:
    """GPU [L, E] of each expert, the lowest of several."""
    layers, gpus, slots = placement.experts.shape
    out = np.full((layers, int(placement.experts.max()) + 1), gpus, dtype=np.int64)
    gpu = np.repeat(np.arange(gpus), slots)
    for i in range(layers):
        np.minimum.at(out[i], placement.experts[i].ravel(), gpu)
    return out


def shares_by(placement: Placement, num_experts: int, per: int) -> Floats:
    """Share [L, E, block] of each expert on every block of `per` neighbouring GPUs."""
    on = placement.on_gpu(num_experts)
    out: Floats = on.reshape(*on.shape[:2], -1, per).sum(axis=-1)
    return out
