"""Chains by their busiest link: proved optimum of small ones, exchanges, bounds, independent figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwprofiles.errors import UserError
from planner.placement.answer import place_experts
from planner.placement.chain import exact_chain
from planner.placement.generate import STRUCTURES, chain_instance
from planner.placement.records import Instance
from planner.placement.verify import check_answer
from planner.placement.worst_link import least_worst_links, link_flows, relieved_chain


def busiest(flow: np.ndarray, part: np.ndarray, parts: int) -> float:
    return float(link_flows(flow, part, parts).max(axis=(1, 2)).sum())


def test_dynamic_programme_against_all_placements() -> None:
    rng = np.random.default_rng(3)
    flow, load = rng.random((2, 4, 4)), np.ones((3, 4))
    halves = [np.array(p) for p in set(itertools.permutations([0, 0, 1, 1]))]
    best = min(busiest(flow, np.stack(c), 2) for c in itertools.product(halves, repeat=3))
    part = exact_chain(flow, load, np.full(3, 10.0), 2, worst_link=True)
    assert part is not None
    assert busiest(flow, part, 2) == pytest.approx(best)


def test_exchanges_relieve_within_the_cap() -> None:
    rng = np.random.default_rng(4)
    flow, load = rng.random((3, 24, 24)), rng.random((4, 24)) + 0.5
    start = np.stack([rng.permutation(24) % 4 for _ in range(4)])
    cap = np.array([np.bincount(p, weights=w).max() for p, w in zip(start, load, strict=True)])
    done = relieved_chain(flow, load, cap, start, 4)
    assert busiest(flow, done, 4) < 0.95 * busiest(flow, start, 4)
    for part, weight, most in zip(done, load, cap, strict=True):
        assert np.bincount(part).tolist() == [6] * 4
        assert np.bincount(part, weights=weight).max() <= most * (1 + 1e-9)
    kept = np.array([a.sum() for a in flow]) * 0.25
    assert np.all(least_worst_links(flow, kept, 4) * 12 == pytest.approx(0.75 * flow.sum(axis=(1, 2))))


@pytest.mark.parametrize(
    ("layers", "experts", "gpus", "node", "slots", "kind"),
    [(12, 8, 4, 4, 2, "dp"), (5, 64, 16, 4, 4, "eig_diag")],
)
def test_through_the_door(layers: int, experts: int, gpus: int, node: int, slots: int, kind: str) -> None:
    """Below the answer for all flow and below MoETuner's, never below the bound; the verifier finds the same."""
    instance = chain_instance(
        STRUCTURES["medium"], layers=layers, experts=experts, gpus=gpus, gpus_per_node=node, slots_per_gpu=slots, seed=9
    )
    total = place_experts(instance, traffic="chain").certificate
    result = place_experts(instance, traffic="chain", chain_objective="worst-link")
    said, checked = result.certificate, check_answer(instance, result.placement)
    assert not checked.problems and said.worst_link is not None and total.worst_link is not None
    assert checked.worst_link == pytest.approx(said.worst_link)
    assert said.objective == said.worst_link and "busiest link" in said.objective_of
    assert said.bound_kind == kind
    assert said.lower_bound <= said.objective < total.worst_link
    assert said.worst_link <= said.baselines["moetuner"]["worst_link"]
    assert (said.gap < 1e-12) == (kind == "dp")


def test_only_for_chains() -> None:
    instance = Instance(loads=np.ones((1, 4)), gpus=2, gpus_per_node=2, slots_per_gpu=2)
    with pytest.raises(UserError, match="is for chain traffic"):
        place_experts(instance, chain_objective="worst-link")
    with pytest.raises(UserError, match="use one of: total, worst-link"):
        place_experts(instance, traffic="chain", chain_objective="least")
