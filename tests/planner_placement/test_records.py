"""Records, readers and the verifier: every problem at once, and a checker that sees what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprofiles.errors import UserError
from planner.placement.baselines import contiguous_placement, random_placement
from planner.placement.flows import crossing, same_node_pairs
from planner.placement.generate import STRUCTURES, chain_instance, coactivation_of, draw_tokens, topic_chances
from planner.placement.read import read_instance
from planner.placement.records import Instance, Placement, gpu_time
from planner.placement.verify import check_answer

SIZES = {"gpus": 2, "gpus_per_node": 1, "slots_per_gpu": 2}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def loads_text(layers: int = 2, experts: int = 4) -> str:
    rows = [f"{layer + 3},{e},{10 * (e + 1) + layer}" for layer in range(layers) for e in range(experts)]
    return "layer,expert,count\n" + "\n".join(rows) + "\n"


def test_files_are_read(tmp_path: Path) -> None:
    loads = write(tmp_path, "loads.csv", loads_text())
    flows = write(tmp_path, "t.csv", "layer,expert,next_expert,count\n3,0,1,5\n3,2,2,7\n")
    pairs = write(tmp_path, "c.csv", "layer,expert_a,expert_b,count\n4,1,0,3\n")
    instance = read_instance(loads, transitions=flows, coactivation=pairs, **SIZES)
    assert instance.layers == (3, 4)
    assert instance.loads[1].tolist() == [11, 21, 31, 41]
    assert instance.transitions is not None and instance.transitions[0, 2, 2] == 7
    assert instance.coactivation is not None
    assert instance.coactivation[1, 0, 1] == instance.coactivation[1, 1, 0] == 3


BAD = {
    "layer,expert,count\n0,0,1\n0,0,2\n0,1,3\n0,2,3\n0,3,3\n": "row 3: layer 0, expert 0 again",
    "layer,expert,count\n0,0,1\n0,1,2\n0,3,3\n": "expert 2 is missing",
    "layer,expert,count\n0,0,nan\n0,1,2\n": "row 2: count 'nan'",
    "layer,expert,count\n0,0,-4\n0,1,2\n": "row 2: count '-4'",
    "layer,expert,count\n0,0.5,4\n0,1,2\n": "row 2: expert '0.5'",
    "layer,expert,count\n0,0,x\n0,1,2\n": "row 2: count 'x'",
    "layer,expert\n0,0\n": "columns count are missing",
    "layer,expert,count\n": "no rows",
    "layer,expert,count\n" + "".join(f"0,{e},1\n" for e in range(9)): "cannot hold 9 experts; give at least 5",
    "layer,expert,count\n0,0,0\n0,1,0\n": "no load at all",
    "layer,expert,count\n0,0,1\n": "more than the 1 experts",
}


@pytest.mark.parametrize("text", BAD, ids=list(BAD.values()))
def test_bad_loads_are_refused_with_a_remedy(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_instance(write(tmp_path, "loads.csv", text), **SIZES)
    assert BAD[text] in str(error.value)


def test_all_problems_at_once(tmp_path: Path) -> None:
    loads = write(tmp_path, "loads.csv", loads_text())
    flows = write(tmp_path, "t.csv", "layer,expert,next_expert,count\n4,0,1,5\n3,9,2,7\n")
    pairs = write(tmp_path, "c.csv", "layer,expert_a,expert_b,count\n4,1,0,3\n4,0,1,2\n")
    with pytest.raises(UserError) as error:
        read_instance(loads, transitions=flows, coactivation=pairs, gpus=3, gpus_per_node=2, slots_per_gpu=1)
    said = str(error.value)
    for part in ("no next layer", "expert 9 is not among", "again (first in row 2)", "whole nodes", "cannot hold"):
        assert part in said, said
    with pytest.raises(UserError, match="cannot be read"):
        read_instance(tmp_path / "none.csv", **SIZES)


@pytest.fixture
def chain() -> Instance:
    return chain_instance(STRUCTURES["medium"], layers=3, experts=16, gpus=4, gpus_per_node=2, slots_per_gpu=4, seed=1)


def test_verifier_agrees_with_the_arrays(chain: Instance) -> None:
    """Flow and load by plain loops equal those by arrays, with replicas too."""
    wide = Instance(loads=chain.loads, transitions=chain.transitions, gpus=4, gpus_per_node=2, slots_per_gpu=6)
    for instance in (chain, wide):
        for placement in (contiguous_placement(instance), random_placement(instance, 3)):
            checked = check_answer(instance, placement)
            assert not checked.problems
            assert checked.max_load == pytest.approx(gpu_time(instance, placement).max(axis=1).tolist())
            assert (checked.cross_node, checked.cross_gpu) == pytest.approx(crossing(instance, placement))


def test_verifier_sees_what_is_wrong(chain: Instance) -> None:
    good = contiguous_placement(chain)
    twice = good.experts.copy()
    twice[0, 0, 0] = twice[0, 0, 1]
    said = " ".join(check_answer(chain, Placement(experts=twice, share=good.share)).problems)
    assert "twice" in said and "expert 0 sum to 0" in said
    share = good.share.copy()
    share[1, 2, 3] = 0.5
    assert "sum to 0.5" in check_answer(chain, Placement(experts=good.experts, share=share)).problems[0]
    few = Placement(experts=good.experts[:, :, :3], share=good.share[:, :, :3])
    assert any("slots filled of 4" in p for p in check_answer(chain, few).problems)
    grouped = Instance(loads=chain.loads, gpus=4, gpus_per_node=2, slots_per_gpu=4, num_groups=4)
    assert not check_answer(grouped, good).problems
    assert any("is spread" in p for p in check_answer(grouped, random_placement(grouped, 0)).problems)


def test_generator_keeps_its_marginals() -> None:
    """Flows have the loads of both their layers as marginals, up to Poisson noise; the same seed, the same instance."""
    sizes = {"layers": 3, "experts": 32, "gpus": 8, "gpus_per_node": 4, "slots_per_gpu": 4}
    one = chain_instance(STRUCTURES["strong"], seed=4, **sizes)
    assert one.transitions is not None
    np.testing.assert_allclose(one.transitions.sum(axis=2), one.loads[:-1], rtol=0.02)
    np.testing.assert_allclose(one.transitions.sum(axis=1), one.loads[1:], rtol=0.02)
    assert one.digest == chain_instance(STRUCTURES["strong"], seed=4, **sizes).digest
    assert one.digest != chain_instance(STRUCTURES["strong"], seed=5, **sizes).digest


def test_tokens_follow_the_chances() -> None:
    rng = np.random.default_rng(0)
    prior, chance = topic_chances(STRUCTURES["medium"], 1, 16, rng)
    chosen = draw_tokens(chance[0], prior, 1, 40_000, rng)
    seen = np.bincount(chosen.ravel(), minlength=16) / 40_000
    np.testing.assert_allclose(seen, prior @ chance[0], atol=0.01)
    pairs = coactivation_of(draw_tokens(chance[0], prior, 4, 500, rng), 16)
    assert np.array_equal(pairs, pairs.T)
    assert pairs.sum() == 500 * 16
    instance = Instance(loads=np.diag(pairs)[None], coactivation=pairs[None], gpus=4, gpus_per_node=4, slots_per_gpu=4)
    assert same_node_pairs(instance, contiguous_placement(instance)) == pytest.approx(1.0)
