"""Chains and fan-out: proved optima, valid bounds, sweeps at scale, held-out tokens."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.placement.answer import place_experts
from planner.placement.baselines import ranks_of
from planner.placement.chain import exact_chain, kept, swept_chain
from planner.placement.chain_bound import counting_bound, kept_bound, spectral_bound
from planner.placement.fanout import nodes_per_token
from planner.placement.flows import same_node_pairs
from planner.placement.generate import STRUCTURES, chain_instance, coactivation_of, draw_tokens, topic_chances
from planner.placement.moetuner import bottleneck_match, moetuner_placement
from planner.placement.partition import assign, improve, one_hot, spectral_parts
from planner.placement.records import Instance
from planner.placement.verify import check_answer

DATA = Path(__file__).parents[1] / "data/placement"


@pytest.fixture(params=[4, 8])
def known(request: pytest.FixtureRequest) -> dict:
    return json.loads((DATA / f"chain_mixtral_L{request.param}.json").read_text(encoding="utf-8"))


def test_the_proved_optimum_is_found(known: dict) -> None:
    flow, load = np.array(known["A"], dtype=float), np.array(known["W"], dtype=float)
    part = exact_chain(flow, load, np.array(known["load_cap"]), 4)
    assert part is not None
    assert kept(flow, part) == kept(flow, np.array(known["optimal_placement"]))
    for row, weight, cap in zip(part, load, known["load_cap"], strict=True):
        assert np.bincount(row).tolist() == [2] * 4
        assert np.bincount(row, weights=weight).max() <= cap * (1 + 1e-9)


def test_bounds_hold_for_every_pair(known: dict) -> None:
    """No pair of layers keeps more than its bounds say, even when that pair alone counts."""
    load = np.array(known["W"], dtype=float)
    for i, pair in enumerate(np.array(known["A"], dtype=float)):
        free = np.full(2, np.inf)
        best = exact_chain(pair[None], load[i : i + 2], free, 4)
        assert best is not None
        most = kept(pair[None], best)
        assert most <= counting_bound(pair, 4)
        assert most <= spectral_bound(pair, 4) * (1 + 1e-9)
    assert kept_bound(np.array(known["A"], dtype=float), 4)[0] >= most


def test_dynamic_programme_against_all_placements() -> None:
    rng = np.random.default_rng(3)
    flow, load = rng.random((2, 4, 4)), np.ones((3, 4))
    halves = [np.array(p) for p in set(itertools.permutations([0, 0, 1, 1]))]
    best = max(kept(flow, np.stack(c)) for c in itertools.product(halves, repeat=3))
    part = exact_chain(flow, load, np.full(3, 10.0), 2)
    assert part is not None
    assert kept(flow, part) == pytest.approx(best)


def test_chain_of_32_layers_through_the_door() -> None:
    """Mixtral size: proved, feasible, and never above what the sweep finds."""
    instance = chain_instance(
        STRUCTURES["medium"], layers=32, experts=8, gpus=4, gpus_per_node=4, slots_per_gpu=2, seed=2
    )
    result = place_experts(instance, traffic="chain")
    checked = check_answer(instance, result.placement)
    assert not checked.problems
    assert result.certificate.bound_kind == "dp"
    assert result.certificate.gap == pytest.approx(0.0, abs=1e-12)
    assert checked.cross_gpu == pytest.approx(result.certificate.objective)
    assert instance.transitions is not None
    cap = np.array([figure.max_load for figure in result.layers])
    swept = swept_chain(instance.transitions, instance.loads, cap, 4)
    assert 1 - kept(instance.transitions, swept) / instance.transitions.sum() >= result.certificate.objective - 1e-12


@pytest.mark.parametrize(("name", "less"), [("medium", 0.13), ("strong", 0.18)])
def test_chain_at_scale(name: str, less: float) -> None:
    """Part of the 58 layers: cross-node flow below contiguous, every GPU within 1.2 % of its bound, gap <= 9 %."""
    instance = chain_instance(
        STRUCTURES[name], layers=8, experts=256, gpus=64, gpus_per_node=8, slots_per_gpu=4, seed=21
    )
    result = place_experts(instance, traffic="chain")
    certificate = result.certificate
    assert not check_answer(instance, result.placement).problems
    assert certificate.cross_node is not None
    assert certificate.cross_node <= (1 - less) * certificate.baselines["contiguous"]["cross_node"]
    assert certificate.worst_layer <= 0.012
    assert certificate.gap <= 0.095


def test_fan_out_on_unseen_tokens() -> None:
    rng = np.random.default_rng(5)
    prior, chance = topic_chances(STRUCTURES["medium"], 1, 256, rng)
    train, unseen = (draw_tokens(chance[0], prior, 8, 20_000, rng) for _ in range(2))
    pairs = coactivation_of(train, 256)
    sizes = {"gpus": 64, "gpus_per_node": 8, "slots_per_gpu": 4}
    with_pairs = Instance(loads=np.diag(pairs)[None], coactivation=pairs[None], **sizes)
    placed = place_experts(with_pairs)
    packed = place_experts(Instance(loads=np.diag(pairs)[None], **sizes))
    assert not check_answer(with_pairs, placed.placement).problems
    nodes = [nodes_per_token(unseen, ranks_of(p.placement)[0] // 8, 8) for p in (placed, packed)]
    assert nodes[0] <= 0.84 * nodes[1]
    load = np.bincount(ranks_of(placed.placement)[0] // 8, weights=np.diag(pairs)) * 8 / pairs.trace()
    assert load.max() <= 1.05
    assert placed.certificate.same_node_pairs == same_node_pairs(with_pairs, placed.placement)


def test_exchanges_gain_what_they_say() -> None:
    """Pairs and surroundings: the result is within the cap, never worse than its start and has equal parts."""
    rng = np.random.default_rng(1)
    pairs = rng.random((24, 24))
    pairs = pairs + pairs.T
    np.fill_diagonal(pairs, 0.0)
    value, load = rng.random((24, 4)), rng.random(24) + 0.5
    start = np.arange(24) % 4

    def worth(part: np.ndarray) -> float:
        x = one_hot(part, 4)
        return float((value * x).sum() + 0.5 * (pairs * (x @ x.T)).sum())

    free = improve(start, value, load, np.full(4, np.inf), pairs)
    assert worth(free) > worth(start)
    cap = np.full(4, load.sum() / 4 * 1.02)
    capped = improve(start, value, load, cap, pairs)
    assert np.bincount(capped, weights=load).max() <= cap[0]
    assert np.bincount(capped).tolist() == [6] * 4
    assert worth(capped) <= worth(free) * 1.05


def test_planted_parts_are_found() -> None:
    home = np.random.default_rng(2).permutation(32) % 4
    affinity = (home[:, None] == home[None, :]) * 1.0 + 0.05
    part = spectral_parts(affinity, 4)
    assert all(len(set(home[part == p])) == 1 for p in range(4))
    assert np.array_equal(assign(one_hot(home, 4)), home)


def test_what_traffic_cannot_do_is_said() -> None:
    instance = chain_instance(
        STRUCTURES["medium"], layers=2, experts=8, gpus=4, gpus_per_node=2, slots_per_gpu=2, seed=2
    )
    instance = replace(instance, speed=(1.0, 1.0, 1.0, 0.5))
    result = place_experts(instance, traffic="chain")
    assert any("speeds" in text for text in result.certificate.limits)
    assert not check_answer(instance, result.placement).problems


def test_bottleneck_match_is_exact() -> None:
    """Against all permutations: the smallest largest volume between different GPUs."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        volume = rng.random((5, 5))
        best = min(
            max(volume[r, c] for r in range(5) for c in range(5) if p[c] != r) for p in itertools.permutations(range(5))
        )
        found = bottleneck_match(volume)
        assert sorted(found.tolist()) == list(range(5))
        assert max(volume[r, c] for r in range(5) for c in range(5) if found[c] != r) == pytest.approx(best)


def test_never_more_flow_than_two_stages(known: dict) -> None:
    """One joint answer keeps at least what clustering for load and then matching does, at a load cap no lower."""
    load = np.array(known["W"], dtype=float)
    instance = Instance(
        loads=load, transitions=np.array(known["A"], dtype=float), gpus=4, gpus_per_node=4, slots_per_gpu=2
    )
    said = place_experts(instance, traffic="chain").certificate
    theirs = moetuner_placement(instance)
    assert theirs is not None and not check_answer(instance, theirs).problems
    assert said.cross_gpu is not None
    assert said.cross_gpu <= said.baselines["moetuner"]["cross_gpu"] + 1e-12
