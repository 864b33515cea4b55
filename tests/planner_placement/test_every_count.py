"""Small layers with replicas are solved to the end, counts of replicas with them: against all placements there are."""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.placement import every_count
from planner.placement.answer import place_experts
from planner.placement.every_count import EveryCount
from planner.placement.load import COUNTS_LIMIT, plan_layer
from planner.placement.records import Instance
from planner.placement.verify import check_answer


def least_of_all(load: np.ndarray, slots: int, gpus: int) -> float:
    """The least largest load of a GPU, over every hand of every GPU."""
    hands = list(combinations(range(len(load)), slots))
    best = np.inf
    for dealt in combinations_with_replacement(hands, gpus):
        experts = np.array(dealt)
        counts = np.bincount(experts.ravel(), minlength=len(load))
        if counts.min() > 0:
            best = min(best, float((load / counts)[experts].sum(axis=1).max()))
    return best


@settings(max_examples=25, deadline=None)
@given(gpus=st.integers(2, 4), experts=st.integers(3, 5), data=st.data(), seed=st.integers(0, 2**31))
def test_no_placement_is_better(gpus: int, experts: int, data: st.DataObject, seed: int) -> None:
    slots = data.draw(st.integers(experts // gpus + 1, 3))
    load = np.round(1e4 * np.exp(np.random.default_rng(seed).standard_normal(experts)))
    every = EveryCount(load, slots, gpus, np.inf)
    least = least_of_all(load, slots, gpus)
    assert every.finished and every.best == pytest.approx(least, rel=1e-8)
    plan = plan_layer(load, slots=slots, speeds=np.ones(gpus))
    assert plan.bound <= plan.time <= least * (1.0 + 4.1e-4)  # nearer to its bound a layer is left alone
    if plan.bound_kind == "exact":
        assert plan.bound == plan.time == pytest.approx(least, rel=1e-8)
    free = plan_layer(load, slots=slots, speeds=np.ones(gpus), split="free")
    assert free.bound_kind != "exact" and free.time <= plan.time * (1.0 + 1e-9)


def test_counts_that_greedy_rules_miss() -> None:
    """Eight experts on four GPUs of three slots: 52,656 by the rules for counts, 52,059 by the best counts."""
    load = np.array([[31992, 2248, 2291, 57283, 14735, 1334, 11823, 78294]], dtype=np.float64)
    drawn = Instance(loads=load, gpus=4, gpus_per_node=4, slots_per_gpu=3)
    result = place_experts(drawn)
    assert not check_answer(drawn, result.placement).problems
    assert result.layers[0].max_load == pytest.approx(52059.0, abs=0.5)
    assert result.certificate.gap == 0.0 and result.certificate.bound_kind == "exact"


def test_a_search_that_stops_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    load = np.array([31992, 2248, 2291, 57283, 14735, 1334, 11823, 78294], dtype=np.float64)
    monkeypatch.setattr(every_count, "MOST_TRIED", 3)
    plan = plan_layer(load, slots=3, speeds=np.ones(4))
    assert plan.bound_kind != "exact" and plan.bound < plan.time and COUNTS_LIMIT in plan.limits
