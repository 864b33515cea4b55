"""What no placement can be made from: every mistake has words and a remedy, and wild sizes end at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwprofiles.errors import UserError
from planner.placement.answer import place_experts
from planner.placement.generate import load_instance
from planner.placement.placefile import load_placement, save_placement
from planner.placement.read import read_loads
from planner.placement.records import Instance, Placement, gpu_time
from planner.placement.replan import replan
from planner.placement.verify import check_answer
from tests.planner_cli.running import moecast

SIZES: dict[str, Any] = {"gpus": 4, "gpus_per_node": 4, "slots_per_gpu": 4}


@pytest.fixture(scope="module")
def drawn() -> Instance:
    return load_instance(layers=3, experts=16, gpus=4, slots_per_gpu=4, sigma=0.6, seed=2)


def lacking(experts: np.ndarray) -> None:
    experts[1, 0, 0] = experts[1, 1, 0]


def doubled(experts: np.ndarray) -> None:
    experts[1, 0, :2], experts[1, 1, 0] = experts[1, 1, 0], experts[1, 0, 0]


@pytest.mark.parametrize(("spoil", "said"), [(lacking, "layer 1 .*does not hold the 16"), (doubled, "layer 1 ")])
def test_a_previous_placement_is_looked_at_layer_by_layer(
    spoil: Callable[[np.ndarray], None], said: str, drawn: Instance
) -> None:
    """Every expert may stand in some layer and still lack in another."""
    experts = place_experts(drawn).placement.experts.copy()
    spoil(experts)
    with pytest.raises(UserError, match=said):
        replan(drawn, Placement.even(experts, 16), max_moves=2)
    with pytest.raises(UserError, match=said):
        place_experts(drawn, previous=Placement.even(experts, 16))


def test_an_expert_twice_on_a_gpu_is_refused() -> None:
    instance = load_instance(layers=1, experts=6, gpus=2, slots_per_gpu=4, sigma=0.3, seed=1)
    twice = Placement.even(np.array([[[0, 1, 2, 2], [3, 4, 5, 0]]]), 6)
    with pytest.raises(UserError, match="twice on a GPU"):
        place_experts(instance, previous=twice)


def test_layers_of_another_model_are_refused(drawn: Instance, tmp_path: Path) -> None:
    loads, saved = tmp_path / "loads.csv", tmp_path / "p.json"
    rows = [f"{i},{e},{int(v)}" for i, row in enumerate(drawn.loads) for e, v in enumerate(row)]
    loads.write_text("layer,expert,count\n" + "\n".join(rows) + "\n", encoding="utf-8")
    save_placement(place_experts(drawn), saved)
    words = ("place", "--loads", str(loads), "--gpus", "4", "--previous", str(saved))
    assert moecast(*words).code == 0  # a node of four where nothing is said
    data = json.loads(saved.read_text(encoding="utf-8"))
    for layer in data["layers"]:
        layer["layer"] += 40
    saved.write_text(json.dumps(data), encoding="utf-8")
    done = moecast(*words)
    assert done.code == 2 and "layers 40 to 42" in done.err and "layers 0 to 2" in done.err
    data["layers"][0]["experts_on_gpu"][0][0] = 2**40
    saved.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match="not a placement"):
        load_placement(saved)


def test_wild_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.7e\+308; give a count of 0 to 1e\+15"):
        Instance(loads=np.full((1, 16), 1.7e308), **SIZES)
    with pytest.raises(UserError, match="the fastest at most"):
        Instance(loads=np.ones((1, 16)), speed=(1e308, 1.0, 1.0, 1.0), **SIZES)
    with pytest.raises(UserError, match="1600000 slots"):
        Instance(loads=np.ones((1, 16)), gpus=100_000, gpus_per_node=8, slots_per_gpu=16)
    sparse = tmp_path / "sparse.csv"
    sparse.write_text("layer,expert,count\n" + "".join(f"{i},999999,1\n" for i in range(3000)), encoding="utf-8")
    with pytest.raises(UserError, match="3000 layers of 1000000 experts"):
        read_loads(sparse)


@pytest.mark.parametrize("moves", [0, 10**9])
def test_moves_without_end_or_none(moves: int, drawn: Instance) -> None:
    """None leaves everything; more than there are slots reach what the budget of all slots reaches."""
    loads = np.round(drawn.loads * np.exp(0.2 * np.random.default_rng(3).standard_normal(drawn.loads.shape)))
    new, old = Instance(loads=loads, **SIZES), place_experts(drawn).placement
    result = place_experts(new, previous=old, max_moves=moves)
    checked, said = check_answer(new, result.placement), result.certificate
    assert not checked.problems and said.lower_bound <= said.objective
    assert said.objective == pytest.approx(sum(checked.max_load))
    stale = float(gpu_time(new, old).max(axis=1).sum())
    if not moves:
        assert said.moved_experts == 0 and said.objective == pytest.approx(stale)
    else:
        assert said.objective < stale


def test_stopped_moves_keep_what_was_found(drawn: Instance) -> None:
    def stop(what: str, done: float, of: float | None) -> None:
        if what == "exchanging experts" and done == 1:
            raise KeyboardInterrupt

    loads = np.round(drawn.loads * np.exp(0.2 * np.random.default_rng(3).standard_normal(drawn.loads.shape)))
    new, old = Instance(loads=loads, **SIZES), place_experts(drawn).placement
    result = place_experts(new, previous=old, max_moves=8, progress=stop)
    assert result.stopped == "interrupted" and not check_answer(new, result.placement).problems
    assert np.array_equal(result.placement.experts[1:], old.experts[1:])
