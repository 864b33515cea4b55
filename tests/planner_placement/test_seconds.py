"""Placements in seconds: event run against closed form, bounds, never slower than others, time to move, no gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.placement.answer import place_experts
from planner.placement.baselines import baseline_placements, contiguous_placement, random_placement
from planner.placement.bounds import load_bound
from planner.placement.clock import LayerClock, Machine, near_and_far, pair_flows
from planner.placement.generate import STRUCTURES, chain_instance, coactivation_of, draw_tokens, topic_chances
from planner.placement.records import Instance, Placement, Range
from planner.placement.scoring import thinned
from planner.placement.seconds import seconds_bound, settled
from planner.placement.verify import check_answer
from sim.families import load_model
from sim.routing.spread import expected_nodes


@pytest.fixture(scope="module")
def machine() -> Machine:
    cluster = catalogue.cluster("dgx-h100", gpus=16)
    software = catalogue.software(catalogue.default_software(cluster.device), device=cluster.device)
    return Machine(cluster=cluster, model=load_model("qwen3-30b-a3b"), software=software, tokens_per_gpu=4096)


@pytest.fixture(scope="module")
def chain() -> Instance:
    return chain_instance(
        STRUCTURES["strong"], layers=3, experts=128, gpus=16, gpus_per_node=8, slots_per_gpu=8, seed=5
    )


@pytest.fixture(scope="module")
def pairs() -> Instance:
    rng = np.random.default_rng(6)
    prior, chance = topic_chances(STRUCTURES["medium"], 2, 128, rng)
    held = np.stack([coactivation_of(draw_tokens(c, prior, 8, 20_000, rng), 128) for c in chance])
    loads = np.stack([np.diag(c) for c in held])
    return Instance(loads=loads, coactivation=held, gpus=16, gpus_per_node=8, slots_per_gpu=8)


def test_the_answer_lies_in_its_interval() -> None:
    """A placement made from few counts is flattered by them; what is said is not, and the gain is of what is said."""
    cluster = catalogue.cluster("dgx-h100", gpus=8)
    software = catalogue.software(catalogue.default_software(cluster.device), device=cluster.device)
    few = Machine(cluster=cluster, model=load_model("qwen3-30b-a3b"), software=software, tokens_per_gpu=4096)
    loads = np.random.default_rng(4).poisson(60.0, (2, 128)).astype(np.float64)
    even = Instance(loads=loads, gpus=8, gpus_per_node=8, slots_per_gpu=16)
    time = place_experts(even, machine=few).certificate.time
    assert time is not None
    assert time.after_s < time.after_range.low  # beside this interval stood a figure outside it
    for each in (time.before_range, time.after_range, time.gain):
        assert each.low <= each.value <= each.high
    assert time.gain.value == pytest.approx(1.0 - time.after_range.value / time.before_range.value, rel=1e-12)


def test_an_interval_holds_its_value() -> None:
    """The mean of one far draw and many near ones lies beyond their quantiles."""
    assert (Range.about(3.0, 1.0, 2.0).high, Range.about(0.5, 1.0, 2.0).low) == (3.0, 0.5)
    assert Range.about(1.5, 1.0, 2.0) == Range(value=1.5, low=1.0, high=2.0)


@pytest.mark.parametrize("traffic", ["chain", "dispatch"])
@pytest.mark.parametrize("training", [True, False])
def test_event_run_takes_the_closed_form(machine: Machine, chain: Instance, traffic: str, training: bool) -> None:
    """Lanes meet at every exchange, so the run is the sum of the fullest GPUs and slowest exchanges."""
    clock = LayerClock(chain, machine, traffic=traffic, training=training)
    for placement in (contiguous_placement(chain), random_placement(chain, 3)):
        assert clock.run_s(placement) == pytest.approx(clock.layer_s(placement).sum(), rel=1e-9)


def test_flow_between_gpus_is_conserved(chain: Instance) -> None:
    assert chain.transitions is not None
    flow = pair_flows(chain, random_placement(chain, 1))
    assert flow.sum(axis=(1, 2)) == pytest.approx(chain.transitions.sum(axis=(1, 2)))
    near, far = near_and_far(np.array([[5.0, 1.0, 2.0, 0.0], [3.0, 9.0, 0.0, 0.0], [0.0] * 4, [0.0, 7.0, 0.0, 4.0]]), 2)
    assert near.tolist() == [3.0, 3.0, 0.0, 0.0]  # sent 1, received 3 and the other way round
    assert far.tolist() == [2.0, 7.0, 2.0, 7.0]


def test_a_chain_in_seconds_beats_two_stages(machine: Machine, chain: Instance) -> None:
    """Never slower than any baseline, at least 3 % faster than clustering, then matching; none below the bound."""
    result = place_experts(chain, traffic="chain", machine=machine, objective="time")
    said, checked = result.certificate, check_answer(chain, result.placement)
    assert said.time is not None and not checked.problems
    assert checked.cross_node == pytest.approx(said.cross_node)
    clock = LayerClock(chain, machine, traffic="chain")
    for name, each in baseline_placements(chain, 0).items():
        assert said.time.baselines_s[name] == pytest.approx(clock.run_s(each), rel=1e-9)
        assert said.objective <= said.time.baselines_s[name]
        assert said.lower_bound <= said.time.baselines_s[name]
    assert said.time.after_s <= 0.97 * said.time.baselines_s["moetuner"]
    assert said.time.gain.low <= said.time.gain.value <= said.time.gain.high and said.time.gain.counts
    drawn = said.time.after_range
    assert drawn.low < drawn.value < drawn.high and said.time.after_s < drawn.value
    assert said.time.step_after.value < said.time.step_before_s
    assert said.time.weights_s_per_row["cross_node"] > said.time.weights_s_per_row["in_node"] > 0.0


def test_settling_moves_nothing_between_nodes(machine: Machine, chain: Instance) -> None:
    clock = LayerClock(chain, machine, traffic="chain")
    start = random_placement(chain, 2)
    done = settled(clock, start)
    assert clock.layer_s(done).sum() < clock.layer_s(start).sum()
    assert not check_answer(chain, done).problems
    for a, b in zip(start.experts, done.experts, strict=True):
        for node in range(2):
            assert sorted(a[node * 8 : node * 8 + 8].ravel()) == sorted(b[node * 8 : node * 8 + 8].ravel())


def test_dispatch_in_seconds(machine: Machine, pairs: Instance) -> None:
    """Fewer nodes of a token are less time; every layer takes the fastest candidate; the bound holds."""
    result = place_experts(pairs, machine=machine, objective="time")
    time = result.certificate.time
    assert time is not None and time.nodes_over_uniform < 0.98
    assert all(time.after_s <= other for other in time.baselines_s.values())
    assert result.certificate.lower_bound <= time.after_s
    clock = LayerClock(pairs, machine, traffic="dispatch")
    alone = place_experts(replace(pairs, coactivation=None)).placement
    assert clock.layer_s(result.placement).sum() <= clock.layer_s(alone).sum()


def test_nodes_of_a_token_from_pairs(pairs: Instance) -> None:
    """Against tokens counted: 1 % below to 3 % above, for co-active experts together and for any."""
    rng = np.random.default_rng(8)
    prior, chance = topic_chances(STRUCTURES["medium"], 1, 128, rng)
    chosen = draw_tokens(chance[0], prior, 8, 20_000, rng)
    held = coactivation_of(chosen, 128)
    one = Instance(loads=np.diag(held)[None], coactivation=held[None], gpus=16, gpus_per_node=4, slots_per_gpu=8)
    for placement in (place_experts(one).placement, random_placement(one, 1)):
        part = np.empty(128, dtype=np.int64)
        part[placement.experts[0].ravel()] = np.arange(128) // 32
        hit = np.zeros((len(chosen), 4), dtype=bool)
        np.put_along_axis(hit, part[chosen], True, axis=1)
        assert 0.99 <= expected_nodes(held, np.diag(held), part, 4, 8) / hit.sum(axis=1).mean() <= 1.03


def test_bound_in_seconds_holds_for_every_placement(machine: Machine, chain: Instance) -> None:
    clock = LayerClock(chain, machine, traffic="chain")
    least = np.array([load_bound(load, chain.slots_per_gpu, chain.speeds) for load in chain.loads])
    bound = seconds_bound(clock, least).seconds
    for seed in range(4):
        assert bound <= clock.run_s(random_placement(chain, seed))


def test_moving_is_timed_and_pays_back(machine: Machine, chain: Instance) -> None:
    previous = contiguous_placement(chain)
    said = place_experts(chain, machine=machine, previous=previous, max_moves=40).certificate
    assert said.time is not None and said.time.moved_bytes and said.time.move_s and said.moved_experts <= 40
    per_expert = said.time.moved_bytes / said.moved_experts
    assert per_expert == pytest.approx(3 * 2048 * 768 * 14)  # three matrices, 2 bytes and 12 of the optimizer
    assert said.time.pays_back_after_steps == pytest.approx(
        said.time.move_s / (said.time.step_before_s - said.time.step_after.value)
    )
    still = place_experts(chain, machine=machine, previous=previous, max_moves=0).certificate
    assert still.time is not None and still.time.moved_bytes == 0.0 and still.time.pays_back_after_steps is None


def test_a_gain_on_the_other_half_or_none() -> None:
    """Equal experts with few counts: planned on one half, the gain of the other half is none; with skew it counts."""
    rng = np.random.default_rng(9)
    sizes = {"gpus": 8, "gpus_per_node": 8, "slots_per_gpu": 4}
    even = Instance(loads=rng.poisson(50.0, (4, 32)).astype(float), **sizes)
    seen, unseen = thinned(even, seed=1)
    assert np.array_equal(seen.loads + unseen.loads, even.loads)
    none = place_experts(seen, held_out=unseen).certificate.held_out
    assert none is not None and not none.counts
    skewed = Instance(loads=rng.poisson(np.linspace(2000.0, 9000.0, 32), (4, 32)).astype(float), **sizes)
    seen, unseen = thinned(skewed, seed=1)
    some = place_experts(seen, held_out=unseen).certificate.held_out
    assert some is not None and some.counts
    with pytest.raises(UserError, match="held-out"):
        place_experts(seen, held_out=even if even.num_layers != 4 else replace(even, loads=even.loads[:2], layers=()))


def test_slow_gpus_take_less(machine: Machine) -> None:
    """A GPU of half the speed counts as one of twice the load, in loads and in seconds."""
    loads = np.ones((1, 128)) * 100.0
    slow = Instance(loads=loads, gpus=16, gpus_per_node=8, slots_per_gpu=9, speed=(0.5,) + (1.0,) * 15)
    result = place_experts(slow)
    assert not check_answer(slow, result.placement).problems
    rows = (loads[0][result.placement.experts[0]] * result.placement.share[0]).sum(axis=1)
    assert rows[0] < 0.7 * rows[1:].mean()


def test_what_does_not_go_together_is_refused(machine: Machine, chain: Instance) -> None:
    with pytest.raises(UserError, match="the cluster has 16 GPUs"):
        LayerClock(replace(chain, gpus=8, slots_per_gpu=16), machine, traffic="chain")
    other = Instance(loads=np.ones((1, 64)), gpus=16, gpus_per_node=8, slots_per_gpu=4)
    with pytest.raises(UserError, match="64 experts"):
        LayerClock(other, machine, traffic="dispatch")
    with pytest.raises(UserError, match="needs a machine"):
        place_experts(chain, objective="time")


def test_pricing_is_a_copy_of_no_number(machine: Machine, chain: Instance) -> None:
    """Twice the rows never take less time, and no rows across nodes are cheaper than any."""
    clock = LayerClock(chain, machine, traffic="chain")
    grid = np.linspace(0.1, 12.0, 60)
    for way in clock.passes:
        assert np.all(np.diff(clock.experts_s(grid, way)) >= 0.0)
    rows = np.array([0.0, 1e3, 1e4, 3e4])
    assert np.all(np.diff(clock.flow_time(np.zeros(4), rows).alone_s) > 0.0)
    even = Placement.of_ranks(np.tile(np.arange(128) // 8, (3, 1)), 16)
    assert clock.demand(even).far is not None
