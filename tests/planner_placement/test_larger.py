"""Replicas under traffic, turns of experts, integer programmes of chains, placement inside the search for a layout."""

from __future__ import annotations

import numpy as np
import pytest

from hwprofiles import catalogue
from planner.placement.answer import place_experts
from planner.placement.chain import exact_chain, kept, swept_chain
from planner.placement.chain_ilp import layer_programme, programmed_chain, whole_chain
from planner.placement.everywhere import placed_everywhere
from planner.placement.generate import STRUCTURES, chain_instance, load_instance
from planner.placement.partition import one_hot
from planner.placement.records import Instance, gpu_time
from planner.placement.replan import moved_experts, replan
from planner.placement.turn_programme import fewest_turns
from planner.placement.verify import check_answer
from planner.search import find_plans
from sim.families import load_model
from sim.routing import parse_routing, resolve
from sim.workload import Workload


@pytest.mark.parametrize("slots", [5, 6])
def test_replicas_are_placed_for_traffic(slots: int) -> None:
    """Slots filled, copies on distinct GPUs, less flow between nodes than neighbours together and than load alone."""
    instance = chain_instance(
        STRUCTURES["strong"], layers=3, experts=64, gpus=16, gpus_per_node=4, slots_per_gpu=slots, seed=3
    )
    result = place_experts(instance, traffic="chain")
    checked = check_answer(instance, result.placement)
    assert not checked.problems
    alone = place_experts(instance).certificate
    assert alone.cross_node is not None and checked.cross_node is not None
    assert checked.cross_node <= 0.9 * min(alone.cross_node, alone.baselines["contiguous"]["cross_node"])
    assert result.certificate.worst_layer <= 0.03


def test_a_turn_relieves_two_gpus_at_three_moves() -> None:
    """Exchanges of two would take four."""
    load = np.array([9.0, 4.0, 7.0, 5.0, 4.0, 1.0])  # GPUs hold 13, 12 and 5
    start = np.arange(6).reshape(3, 2)
    turned = fewest_turns(start, load, 11.0)
    assert turned is not None
    assert load[turned].sum(axis=1).max() <= 11.0
    assert moved_experts(start, turned) == 3
    assert sorted(turned.ravel()) == list(range(6))


def test_the_lightest_go_where_one_expert_is_too_heavy() -> None:
    """The heavy one stays, its three companions go for the three lightest, of which one GPU holds two."""
    load = np.array([36.0, 7.0, 6.0, 5.0, 20.0, 3.0, 2.9, 14.0, 15.0, 16.0, 2.8, 12.0, 13.0, 12.5, 11.0, 10.0])
    start = np.arange(16).reshape(4, 4)
    turned = fewest_turns(start, load, 48.5)
    assert turned is not None and sorted(turned.ravel()) == list(range(16))
    assert load[turned].sum(axis=1).max() <= 48.5


def test_most_of_the_gain_at_four_experts_on_a_gpu() -> None:
    """The hard case: every full GPU needs a move of its own, and a tenth of the experts are few."""
    old = load_instance(layers=6, experts=256, gpus=64, slots_per_gpu=4, sigma=0.4, seed=1)
    rng = np.random.default_rng(2)
    loads = np.round(old.loads * np.exp(0.15 * rng.standard_normal(old.loads.shape)))
    new = Instance(loads=loads, gpus=64, gpus_per_node=64, slots_per_gpu=4)
    before = place_experts(old).placement
    stale = gpu_time(new, before).max(axis=1).sum()
    fresh = sum(figure.max_load for figure in place_experts(new).layers)
    done = replan(new, before, max_moves=loads.size // 10)
    assert done.moved <= loads.size // 10 and not check_answer(new, done.placement).problems
    assert stale - done.after.sum() >= 0.9 * (stale - fresh)


def small() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    flow, load = rng.random((2, 6, 6)) ** 3, rng.random((3, 6)) + 0.5
    return flow, load, load.sum(axis=1) / 2 * 1.1


def test_whole_programme_against_the_dynamic_programme() -> None:
    flow, load, cap = small()
    exact = exact_chain(flow, load, cap, 2)
    found = whole_chain(flow, load, cap, 2)
    assert exact is not None and found is not None
    part, most, proved = found
    assert proved and kept(flow, part) == pytest.approx(kept(flow, exact)) == pytest.approx(most)
    assert whole_chain(np.zeros((30, 64, 64)), np.ones((31, 64)), np.ones(31), 4) is None  # too large to try


def test_layer_programmes_never_lose_and_keep_the_cap() -> None:
    instance = chain_instance(
        STRUCTURES["medium"], layers=3, experts=16, gpus=4, gpus_per_node=1, slots_per_gpu=4, seed=4
    )
    assert instance.transitions is not None
    cap = instance.loads.sum(axis=1) / 4 * 1.05
    start = swept_chain(instance.transitions, instance.loads, cap, 4)
    done = programmed_chain(instance.transitions, instance.loads, cap, start, 4)
    assert kept(instance.transitions, done) >= kept(instance.transitions, start)
    for part, load, top, was in zip(done, instance.loads, cap, start, strict=True):
        fullest = np.bincount(was, weights=load, minlength=4).max()
        assert np.bincount(part).tolist() == [4] * 4
        assert np.bincount(part, weights=load).max() <= max(top, fullest) * (1 + 1e-6)


def test_the_worst_link_has_rows() -> None:
    """With all weight on the largest flow between two parts it falls below what most kept flow leaves."""
    rng = np.random.default_rng(5)
    into = rng.random((2, 8)) ** 4
    out, load = np.zeros((8, 2)), np.ones(8)

    def worst(part: np.ndarray) -> float:
        across = into @ one_hot(part, 2)
        return float(max(across[0, 1], across[1, 0]))

    most = layer_programme(into.T, load, 4.0, into, out)
    least = layer_programme(np.zeros((8, 2)), load, 4.0, into, out, worst_link=1.0)
    assert most is not None and least is not None
    best = min(worst(p) for p in (np.array([int(c) for c in f"{i:08b}"]) for i in range(256)) if p.sum() == 4)
    assert worst(least) == pytest.approx(best, rel=1e-2) and worst(least) <= worst(most) + 1e-12


def test_the_search_places_experts_for_every_size() -> None:
    """Loads are those of placed experts at each size, bound as run; the best plan is faster than without placement."""
    model, cluster = load_model("qwen3-30b-a3b"), catalogue.cluster("dgx-h100", gpus=8)
    software = catalogue.software(catalogue.default_software(cluster.device), device=cluster.device)
    routing = resolve(parse_routing("lognormal:0.6"), model)
    placed = placed_everywhere(routing, 8)
    sizes, tokens = np.array([1, 2, 4, 8, 4]), np.full(5, 32768.0)
    column = placed.max_over_mean_for(sizes, tokens)
    for size, value in zip(sizes.tolist(), column.tolist(), strict=True):
        assert value == pytest.approx(placed.at_ep(size).max_over_mean_for(size, 32768.0))
    assert column[3] < 0.95 * routing.max_over_mean_for(8, 32768.0)
    found = placed.placement_at(8)  # type: ignore[attr-defined]
    assert found is not None and not check_answer(found.instance, found.placement).problems
    work = Workload(seq_tokens=4096, global_batch_seqs=64)
    asked = {"fixed": {"pp": 1, "tp": 1, "cp": 1, "ep": 8, "micro_batch_seqs": 2}, "top": 1}  # not host-bound
    plain, better = (find_plans(model, cluster, software, work, routing=r, **asked) for r in (routing, placed))  # type: ignore[arg-type]
    assert better.search.certificate != "void"
    assert better.plans[0].bound_s <= better.plans[0].report.step_s.value
    assert better.plans[0].report.step_s.value < 0.99 * plain.plans[0].report.step_s.value
    assert placed_everywhere(resolve(None, model), 8) == resolve(None, model)
