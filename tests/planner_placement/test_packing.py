"""Every packing fills every slot with distinct experts on each GPU, with any counts, slots and speeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.placement.answer import place_experts
from planner.placement.counts import count_candidates, shifted
from planner.placement.generate import load_instance
from planner.placement.load import plan_layer
from planner.placement.pack import pack_lpt
from planner.placement.records import Instance
from planner.placement.uneven import plan_uneven_layer
from planner.placement.verify import check_answer

SPREAD = st.floats(0.0, 3.0)
SEEDS = st.integers(0, 2**31)


def filled(hosts: np.ndarray, slots: list[int], counts: np.ndarray | None, experts: int) -> None:
    """Slots of each GPU hold distinct experts, each as often as its count (None: at least once)."""
    for row, room in zip(hosts, slots, strict=True):
        held = row[row >= 0].tolist()
        assert len(held) == len(set(held)) == room
    seen = np.bincount(hosts[hosts >= 0], minlength=experts)
    assert seen.min() >= 1 and (counts is None or seen.tolist() == counts.tolist())


@settings(max_examples=60, deadline=None)
@given(gpus=st.integers(2, 8), experts=st.integers(2, 24), data=st.data(), spread=SPREAD, seed=SEEDS)
def test_any_counts_fill_any_slots(gpus: int, experts: int, data: st.DataObject, spread: float, seed: int) -> None:
    slots = data.draw(st.integers(-(-experts // gpus), experts))
    rng = np.random.default_rng(seed)
    load, speeds = np.exp(spread * rng.standard_normal(experts)), rng.choice([0.7, 1.0], gpus)
    for counts in count_candidates(load, gpus * slots, gpus):
        filled(pack_lpt(load, counts, slots, speeds), [slots] * gpus, counts, experts)
        moved = shifted(load, counts, int(rng.integers(experts)), gpus)
        if moved is not None:
            filled(pack_lpt(load, moved, slots, speeds), [slots] * gpus, moved, experts)


@settings(max_examples=25, deadline=None)
@given(gpus=st.integers(2, 6), experts=st.integers(2, 12), data=st.data(), spread=SPREAD, seed=SEEDS)
def test_any_layer_is_planned(gpus: int, experts: int, data: st.DataObject, spread: float, seed: int) -> None:
    slots = data.draw(st.integers(-(-experts // gpus), experts))
    load = np.exp(spread * np.random.default_rng(seed).standard_normal(experts))
    plan = plan_layer(load, slots=slots, speeds=np.ones(gpus))
    filled(plan.experts, [slots] * gpus, None, experts)
    assert plan.bound <= plan.time * (1.0 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), experts=st.integers(1, 16), spread=SPREAD, seed=SEEDS, quick=st.booleans())
def test_gpus_with_any_slots(data: st.DataObject, experts: int, spread: float, seed: int, quick: bool) -> None:
    """From GPUs with one slot to GPUs that hold every expert."""
    slots = data.draw(st.lists(st.integers(1, experts), min_size=1, max_size=8).filter(lambda s: sum(s) >= experts))
    load = np.exp(spread * np.random.default_rng(seed).standard_normal(experts))
    plan = plan_uneven_layer(load, slots=np.array(slots), speeds=np.ones(len(slots)), quick=quick)
    filled(plan.experts, slots, None, experts)


@pytest.mark.parametrize("seed", [739972013, 403723629])
def test_room_that_was_made_is_counted(seed: int) -> None:
    """Eight experts on four GPUs with five slots: exchanges for room fill GPUs that stood open."""
    drawn = load_instance(layers=1, experts=8, gpus=4, slots_per_gpu=5, sigma=2, seed=seed)
    assert not check_answer(drawn, place_experts(drawn).placement).problems


def test_a_heavy_expert_beside_light_ones() -> None:
    load = np.array([[1772, 1963, 348, 16354, 148869, 7626, 1853, 16468]], dtype=np.float64)
    drawn = Instance(loads=load, gpus=4, gpus_per_node=4, slots_per_gpu=5)
    result = place_experts(drawn)
    assert not check_answer(drawn, result.placement).problems
    assert result.certificate.gap < 0.02


def test_counts_that_no_placement_has_are_left_out() -> None:
    """Two GPUs must hold all three experts, so that a light one needs two replicas, whatever its load."""
    load, slots = np.array([1000.0, 1000.0, 1.0]), np.array([3, 3, 1])
    plan = plan_uneven_layer(load, slots=slots, speeds=np.ones(3))
    filled(plan.experts, slots.tolist(), None, 3)
    assert np.bincount(plan.experts[plan.experts >= 0]).tolist() == [3, 2, 2]
