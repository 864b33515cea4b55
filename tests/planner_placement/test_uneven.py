"""GPUs that differ in slots, speed and memory: feasible, bounded, proved where small; tables and their mistakes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from planner.placement.answer import place_experts
from planner.placement.gpus import expert_weight_bytes, read_gpus, slots_of
from planner.placement.placefile import load_placement, save_placement
from planner.placement.records import Instance
from planner.placement.uneven import plan_uneven_layer, uneven_bound
from planner.placement.verify import check_answer
from sim.families import load_model


def uneven(loads: np.ndarray, slots: tuple[int, ...], speed: tuple[float, ...] = ()) -> Instance:
    return Instance(
        loads=loads, gpus=len(slots), gpus_per_node=1, slots_per_gpu=max(slots), slots=slots, speed=speed
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    slots=st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple),
    extra=st.integers(0, 3), sigma=st.floats(0.1, 1.5), seed=st.integers(0, 99), free=st.booleans(),
)  # fmt: skip
def test_feasible_and_never_below_the_bound(
    slots: tuple[int, ...], extra: int, sigma: float, seed: int, free: bool
) -> None:
    rng = np.random.default_rng(seed)
    experts = max(max(slots), sum(slots) - extra)
    loads = np.exp(sigma * rng.standard_normal((2, experts)))
    instance = uneven(loads, slots, tuple(rng.uniform(0.5, 2.0, len(slots))))
    result = place_experts(instance, split="free" if free else "even")
    checked = check_answer(instance, result.placement)
    assert not checked.problems
    for layer, most in zip(result.layers, checked.max_load, strict=True):
        assert layer.max_load == pytest.approx(most)
        assert layer.bound <= most * (1 + 1e-9)


def test_small_layers_are_proved() -> None:
    """Against every way to deal six experts to GPUs of three, two and one slot and different speeds."""
    rng = np.random.default_rng(2)
    slots, speeds = np.array([3, 2, 1]), np.array([1.0, 2.0, 1.5])
    for _ in range(5):
        load = rng.random(6) + 0.1
        best = min(
            max(load[list(p[:3])].sum() / 1.0, load[list(p[3:5])].sum() / 2.0, load[p[5]] / 1.5)
            for p in itertools.permutations(range(6))
        )
        plan = plan_uneven_layer(load, slots=slots, speeds=speeds)
        assert plan.time == pytest.approx(best, rel=3e-4)
        assert plan.bound <= best * (1 + 1e-9) and uneven_bound(load, slots, speeds) <= best * (1 + 1e-9)


def test_a_file_keeps_rows_of_different_length(tmp_path: Path) -> None:
    loads = np.random.default_rng(3).random((2, 9)) + 0.2
    result = place_experts(uneven(loads, (4, 3, 3)))
    assert "eplb" not in result.certificate.baselines
    save_placement(result, tmp_path / "p.json")
    placement, _ = load_placement(tmp_path / "p.json")
    assert np.array_equal(placement.experts, result.placement.experts)
    assert placement.share == pytest.approx(result.placement.share)
    again = place_experts(uneven(loads, (4, 3, 3)), previous=placement)
    assert again.certificate.moved_experts == 0
    with pytest.raises(UserError, match="leave --max-moves out"):
        place_experts(uneven(loads, (4, 3, 3)), previous=placement, max_moves=2)


def test_memory_limits_slots() -> None:
    """Two layers of eight experts; GPU 0 has room for one of each layer."""
    each = expert_weight_bytes(load_model("mixtral-8x7b"), 8)
    assert each == 3 * 4096 * 14336 * 2
    loads = np.ones((2, 8))
    wide = 8 * 2 * each
    assert slots_of(loads, 3, mem_bytes=(2.5 * each, wide, wide), expert_bytes=each)[0] == (1, 4, 4)
    asked = slots_of(loads, 3, asked=(4, 4, 4), mem_bytes=(2.5 * each, wide, wide), expert_bytes=each)
    assert asked[0] == (1, 4, 4) and "GPU 0" in asked[1][0]
    with pytest.raises(UserError, match="memory for 3 experts of a layer and there are 8; give more GPUs"):
        slots_of(loads, 3, mem_bytes=(2.5 * each,) * 3, expert_bytes=each)
    with pytest.raises(UserError, match="hold no expert of 2 layers"):
        slots_of(loads, 3, mem_bytes=(each, wide, wide), expert_bytes=each)
    with pytest.raises(UserError, match="give --model"):
        slots_of(loads, 3, mem_bytes=(wide,) * 3)


def test_tables_and_their_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "gpus.csv"
    path.write_text("gpu,slots,speed\n1,2,0.5\n0,4,1\n", encoding="utf-8")
    table = read_gpus(path, 2)
    assert (table.slots, table.speed, table.mem_bytes) == ((4, 2), (1.0, 0.5), ())
    path.write_text("gpu,slots,mem_bytes\n0,1.5,-1\n0,2,x\n7,1,1\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_gpus(path, 2)
    for words in (
        "slots '1.5'",
        "mem_bytes '-1'",
        "mem_bytes 'x'",
        "gpu '7'; give one of 0 to 1",
        "GPU 0 is listed 2",
        "GPU 1 is listed 0",
    ):
        assert words in str(error.value)
    path.write_text("gpu\n0\n", encoding="utf-8")
    with pytest.raises(UserError, match="give gpu and any of slots"):
        read_gpus(path, 1)
