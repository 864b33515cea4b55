"""Re-planning within a budget, honest scores, and the placement in the simulator."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.placement.answer import place_experts
from planner.placement.baselines import contiguous_placement, random_placement
from planner.placement.generate import load_instance
from planner.placement.records import Instance, Placement, gpu_time
from planner.placement.replan import migration, moved_experts, replan
from planner.placement.replan_bound import least_after
from planner.placement.scoring import halves, load_gain, placed_loads, routing_instance, simulated_steps
from planner.placement.turn_programme import fewest_turns
from planner.placement.verify import check_answer
from sim import Scenario
from sim.families import load_model
from sim.plan import Plan
from sim.routing import parse_routing, resolve
from sim.routing.loads import contiguous
from sim.routing.place import expected_rows
from sim.workload import Workload


@pytest.fixture(scope="module")
def drifted() -> tuple[Instance, Placement]:
    """Loads that drifted since the placement in use was made."""
    before = load_instance(layers=4, experts=128, gpus=8, slots_per_gpu=16, sigma=0.4, seed=1)
    rng = np.random.default_rng(2)
    loads = np.round(before.loads * np.exp(0.15 * rng.standard_normal(before.loads.shape)))
    after = Instance(loads=loads, gpus=8, gpus_per_node=8, slots_per_gpu=16)
    return after, place_experts(before).placement


def test_most_of_the_gain_with_few_moves(drifted: tuple[Instance, Placement]) -> None:
    instance, previous = drifted
    stale = gpu_time(instance, previous).max(axis=1).sum()
    fresh = sum(f.max_load for f in place_experts(instance).layers)
    budget = instance.loads.size // 10
    done = replan(instance, previous, max_moves=budget)
    assert not check_answer(instance, done.placement).problems
    assert done.moved == moved_experts(previous.experts, done.placement.experts) <= budget
    assert stale - done.after.sum() >= 0.9 * (stale - fresh)
    assert np.all(done.after <= done.before)


def test_more_moves_never_hurt(drifted: tuple[Instance, Placement]) -> None:
    instance, previous = drifted
    totals = [replan(instance, previous, max_moves=m).after.sum() for m in (0, 8, 16, 64)]
    assert totals[0] == pytest.approx(gpu_time(instance, previous).max(axis=1).sum())
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(totals))


def test_sizes_that_differ_are_refused(drifted: tuple[Instance, Placement]) -> None:
    instance, _ = drifted
    other = contiguous_placement(load_instance(layers=4, experts=64, gpus=16, slots_per_gpu=4, sigma=0.4, seed=1))
    with pytest.raises(UserError, match="previous placement is"):
        replan(instance, other, max_moves=3)


def test_time_to_move_is_that_of_the_fullest_link() -> None:
    """Two experts change places: each GPU receives one; nothing moves where nothing changed."""
    old = Placement.of_ranks(np.array([[0, 0, 1, 1]]), 2)
    new = Placement.of_ranks(np.array([[0, 1, 0, 1]]), 2)
    done = migration(old, new, expert_bytes=6.0, bytes_per_s=3.0, saved_s_per_step=0.5)
    assert (done.moved_bytes, done.most_bytes, done.move_s, done.pays_back_after_steps) == (12.0, 6.0, 2.0, 4.0)
    still = migration(old, old, expert_bytes=6.0, bytes_per_s=3.0)
    assert (still.moved_bytes, still.move_s, still.pays_back_after_steps) == (0.0, 0.0, None)


def test_a_gain_within_sampling_error_is_none() -> None:
    """Two random placements of even loads differ by chance alone; a real difference counts."""
    even = Instance(loads=np.full((2, 32), 40.0), gpus=8, gpus_per_node=8, slots_per_gpu=4)
    assert not load_gain(even, random_placement(even, 1), random_placement(even, 2)).counts
    uneven = load_instance(layers=2, experts=32, gpus=8, slots_per_gpu=4, sigma=0.6, seed=3)
    found = load_gain(uneven, contiguous_placement(uneven), place_experts(uneven).placement)
    assert found.counts and found.low <= found.value <= found.high
    first, second = halves(np.array([[0, 1], [1, 2], [3, 0], [3, 1]]), 4)
    assert first.tolist() == [1, 2, 1, 0] and second.tolist() == [1, 1, 0, 2]


def test_the_simulator_sees_the_placed_loads() -> None:
    """Rows of neighbouring slots in the placed order are the loads of the placement's GPUs, replicas included."""
    model = load_model("Qwen3-30B-A3B")
    routing = resolve(parse_routing("lognormal:0.4"), model, seed=1)
    for slots in (16, 20):
        instance = routing_instance(routing, gpus=8, gpus_per_node=8, slots_per_gpu=slots, tokens=1000.0)
        placed = place_experts(instance).placement
        loads = placed_loads(routing.loads[0], placed)
        rows = expected_rows(loads, 8, 1000, contiguous(loads, 8))
        np.testing.assert_allclose(rows, gpu_time(instance, placed), rtol=1e-9)


def test_a_better_placement_is_a_faster_step() -> None:
    model = load_model("Qwen3-30B-A3B")
    routing = resolve(parse_routing("lognormal:0.6"), model, seed=1)
    cluster = catalogue.cluster("dgx-h100", gpus=8)
    scenario = Scenario(
        model=model, cluster=cluster, software=catalogue.software(catalogue.default_software(cluster.device)),
        workload=Workload(seq_tokens=4096, global_batch_seqs=16), routing=routing,
        plan=Plan(dp=8, ep=8, edp=1, recompute=("moe_act", "layernorm")),
    )  # fmt: skip
    instance = routing_instance(routing, gpus=8, gpus_per_node=8)
    steps = simulated_steps(scenario, place_experts(instance).placement)
    assert steps.after_s < steps.before_s
    assert 0.0 < steps.gain < 0.5
    assert steps.after_low_s <= steps.after_s <= steps.after_high_s
    with pytest.raises(UserError, match="ep = 8"):
        simulated_steps(scenario, contiguous_placement(routing_instance(routing, gpus=4, gpus_per_node=4)))


def test_no_answer_beats_the_ceiling_of_its_moves() -> None:
    """Against all placements within two moves of a small layer; the programme reaches a target with the fewest."""
    rng = np.random.default_rng(5)
    for _ in range(6):
        load = rng.integers(1, 60, 6).astype(np.float64)
        old = Placement.even(np.array([[[0, 1], [2, 3], [4, 5]]]), 6)
        instance = Instance(loads=load[None], gpus=3, gpus_per_node=3, slots_per_gpu=2)
        reach: dict[int, float] = {}
        for order in itertools.permutations(range(6)):
            hosts = np.array(order).reshape(3, 2)
            moves = moved_experts(old.experts[0], hosts)
            reach[moves] = min(reach.get(moves, np.inf), float(load[hosts].sum(axis=1).max()))
        for most in (0, 2, 3, 4):
            best = min(top for moves, top in reach.items() if moves <= most)
            least, tops = least_after(instance, old, most)
            assert least <= best * (1 + 1e-9) and tops.tolist() == [least]
            done = replan(instance, old, max_moves=most)
            assert best <= done.after[0] * (1 + 1e-9) and done.moved <= most
        target = min(reach.values()) * 1.02
        turned = fewest_turns(old.experts[0], load, target)
        if turned is not None:
            assert sorted(turned.ravel()) == list(range(6))
            assert load[turned].sum(axis=1).max() <= target * (1 + 1e-9)
            assert moved_experts(old.experts[0], turned) >= min(m for m, top in reach.items() if top <= target)
