"""Load and replication of single layers: bounds, packing, never worse than EPLB, known instances."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.placement.answer import place_experts
from planner.placement.bounds import fairest_counts, load_bound
from planner.placement.eplb import eplb_layer, eplb_times
from planner.placement.generate import load_instance
from planner.placement.load import plan_layer
from planner.placement.records import Instance
from planner.placement.split import best_shares
from planner.placement.verify import check_answer

DATA = Path(__file__).parents[1] / "data/placement"
CASES = [
    (entry["load"], case)
    for entry in json.loads((DATA / "loads.json").read_text(encoding="utf-8"))
    for case in entry["cases"]
]


@pytest.mark.parametrize(("load", "case"), CASES, ids=[case["id"] for _, case in CASES])
def test_known_layers(load: list[float], case: dict) -> None:
    """As good as the best known placement to 0.05 % of the mean, above the given bound."""
    weight = np.array(load, dtype=np.float64)
    plan = plan_layer(weight, slots=case["slots_per_gpu"], speeds=np.ones(case["G"]))
    mean = weight.sum() / case["G"]
    assert plan.time <= case["best"] + 5e-4 * mean
    assert plan.time >= case["bound"] - 1e-6 * mean
    assert plan.bound <= case["best"] + 1e-6 * mean
    assert plan.time - plan.bound <= 5e-4 * mean


def test_loads_at_scale() -> None:
    """256 experts on 64 GPUs without replicas: mean <= 0.1 %, worst <= 0.5 % above the bound (a part of 58 layers)."""
    result = place_experts(load_instance(layers=12, experts=256, gpus=64, slots_per_gpu=4, sigma=0.4, seed=5))
    assert result.certificate.mean_layer <= 1e-3
    assert result.certificate.worst_layer <= 5e-3
    assert not check_answer(result.instance, result.placement).problems


@pytest.mark.parametrize("slots", [5, 6])
def test_replicas_at_scale(slots: int) -> None:
    result = place_experts(load_instance(layers=2, experts=256, gpus=64, slots_per_gpu=slots, sigma=0.8, seed=3))
    checked = check_answer(result.instance, result.placement)
    assert not checked.problems
    for figure, seen in zip(result.layers, checked.max_load, strict=True):
        assert figure.max_load == pytest.approx(seen)
        assert figure.max_load <= figure.bound * (1 + 5e-4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_never_worse_than_eplb(data: st.DataObject) -> None:
    gpus = data.draw(st.sampled_from([1, 2, 3, 4, 8, 12]))
    slots = data.draw(st.integers(1, 6))
    experts = data.draw(st.integers(slots, gpus * slots))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    sigma = data.draw(st.sampled_from([0.2, 0.6, 1.5]))
    loads = np.round(1e4 * np.exp(sigma * rng.standard_normal((1, experts)))) + 1
    instance = Instance(loads=loads, gpus=gpus, gpus_per_node=gpus, slots_per_gpu=slots)
    result = place_experts(instance)
    checked = check_answer(instance, result.placement)
    assert not checked.problems
    assert checked.max_load[0] <= eplb_times(instance)[0] * (1 + 1e-9)
    assert result.layers[0].bound <= checked.max_load[0] * (1 + 1e-9)
    assert result.layers[0].max_load == pytest.approx(checked.max_load[0])


def brute_force(load: np.ndarray, gpus: int, slots: int) -> float:
    """Smallest max load over all placements without replicas."""

    def rest(left: tuple[int, ...], on: int, best: float) -> float:
        if on == gpus:
            return 0.0
        found = np.inf
        for held in itertools.combinations(left, slots):
            mine = float(load[list(held)].sum())
            if mine < best:
                found = min(found, max(mine, rest(tuple(x for x in left if x not in held), on + 1, best)))
        return found

    return rest(tuple(range(len(load))), 0, np.inf)


@pytest.mark.parametrize("seed", range(8))
def test_small_layers_are_solved_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    load = np.round(1000 * np.exp(rng.standard_normal(9)))
    best = brute_force(load, 3, 3)
    assert load_bound(load, 3, np.ones(3)) <= best
    plan = plan_layer(load, slots=3, speeds=np.ones(3))
    assert plan.time <= best * (1 + 5e-4)
    assert plan.bound <= best * (1 + 1e-9)
    assert plan.time >= best * (1 - 1e-9)


def test_fast_gpus_take_more() -> None:
    load = np.full(64, 10.0)
    speeds = np.array([2.0, 1.0, 1.0, 1.0])
    plan = plan_layer(np.arange(1, 65, dtype=float), slots=16, speeds=speeds)
    on = np.arange(1, 65)[plan.experts].sum(axis=1)
    assert on[0] > 1.5 * on[1:].max()
    assert plan.time <= plan.bound * 1.01
    assert plan_layer(load, slots=16, speeds=np.ones(4)).time == pytest.approx(160.0)


def test_fairest_counts_are_exact() -> None:
    """Against all ways to give three more replicas to four experts on three GPUs."""
    load = np.array([9.0, 5.0, 4.0, 1.0])
    ways = [c for c in itertools.product(range(1, 4), repeat=4) if sum(c) == 7]
    best = min(max(load / np.array(c)) for c in ways)
    assert (load / fairest_counts(load, 7, 3)).max() == pytest.approx(best)


def test_shares_reach_the_mean_where_hosts_allow() -> None:
    """Two GPUs hold everything: free shares equal the mean; the dual prices name both."""
    load = np.array([7.0, 2.0, 1.0])
    experts = np.array([[0, 1, 2], [0, 1, 2]])
    shares = best_shares(load, experts, np.array([[1.0, 1, 1], [0.0, 0, 0]]), np.ones(2))
    assert shares.time == pytest.approx(5.0)
    assert shares.hot == (0, 1)
    alone = best_shares(load, np.array([[0, 1], [2, 1]]), np.array([[1.0, 0.5], [1.0, 0.5]]), np.ones(2))
    assert alone.time == pytest.approx(7.0)
    assert alone.hot == (0,)


def test_eplb_follows_its_description() -> None:
    """Heaviest first with equal numbers; the largest load per replica gets the next copy."""
    hosts, counts = eplb_layer(np.array([8.0, 7.0, 3.0, 2.0]), gpus=2, slots=2)
    assert [sorted(h) for h in hosts.tolist()] == [[0, 3], [1, 2]]
    assert counts.tolist() == [1, 1, 1, 1]
    _, counts = eplb_layer(np.array([8.0, 7.0, 3.0]), gpus=2, slots=3)
    assert counts.tolist() == [3, 2, 1] or counts.tolist() == [2, 2, 2]


def test_groups_stay_on_their_node() -> None:
    instance = load_instance(layers=3, experts=64, gpus=8, slots_per_gpu=10, sigma=0.6, seed=2)
    grouped = Instance(
        loads=instance.loads, gpus=8, gpus_per_node=2, slots_per_gpu=10, num_groups=8, source="drawn with groups"
    )
    result = place_experts(grouped)
    assert not check_answer(grouped, result.placement).problems
    assert np.all(np.array([f.max_load for f in result.layers]) <= eplb_times(grouped) * (1 + 1e-9))
    assert result.certificate.worst_layer >= 0.0


def test_free_shares_are_never_worse() -> None:
    instance = load_instance(layers=2, experts=12, gpus=4, slots_per_gpu=4, sigma=1.2, seed=8)
    even, free = place_experts(instance), place_experts(instance, split="free")
    assert not check_answer(instance, free.placement).problems
    assert free.certificate.objective <= even.certificate.objective * (1 + 1e-9)
