"""`moecast place`: files in, placement and certificate out, the same bytes again, errors with a remedy."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import planner.placement.answer as answer
from planner.placement.generate import load_instance
from planner.placement.placefile import load_placement
from planner.placement.read import read_instance
from planner.placement.records import Certificate
from planner.placement.verify import check_answer
from tests.planner_cli.running import LAYOUT, SMALL, moecast


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    instance = load_instance(layers=4, experts=16, gpus=4, slots_per_gpu=5, sigma=0.8, seed=1)
    rows = [f"{i},{e},{int(v)}" for i, row in enumerate(instance.loads) for e, v in enumerate(row)]
    path = tmp_path / "loads.csv"
    path.write_text("layer,expert,count\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def arguments(loads: Path) -> list[str]:
    return ["place", "--loads", str(loads), "--gpus", "4", "--gpus-per-node", "2", "--slots-per-gpu", "5"]


def test_place_writes_a_checked_placement(loads: Path, tmp_path: Path) -> None:
    saved = tmp_path / "placement.json"
    done = moecast(*arguments(loads), "--json", "-", "--out", str(saved))
    assert done.code == 0, done.err
    data = json.loads(done.out)
    placement, layers = load_placement(saved)
    instance = read_instance(loads, gpus=4, gpus_per_node=2, slots_per_gpu=5)
    assert layers == (0, 1, 2, 3)
    checked = check_answer(instance, placement)
    assert not checked.problems
    assert [layer["max_load"] for layer in data["layers"]] == pytest.approx(list(checked.max_load))
    for layer in data["layers"]:
        hosts = np.array(layer["experts_on_gpu"])
        assert hosts.shape == (4, 5)
        assert layer["bound"] <= layer["max_load"]
        for expert, parts in layer["split"].items():
            assert len(parts) == (hosts == int(expert)).sum() > 1
            assert sum(parts) == pytest.approx(1.0)
    assert data["certificate"]["gap"] >= 0.0


def test_the_same_question_gives_the_same_bytes(loads: Path) -> None:
    texts = []
    for _ in range(2):
        data = json.loads(moecast(*arguments(loads), "--json", "-").out)
        del data["timing"]
        texts.append(json.dumps(data))
    assert texts[0] == texts[1]


def test_the_table_names_the_baselines(loads: Path) -> None:
    done = moecast(*arguments(loads))
    assert done.code == 0
    for word in ("contiguous", "random", "eplb", "this answer", "gap"):
        assert word in done.out


def test_mistakes_are_reported_at_once(loads: Path, tmp_path: Path) -> None:
    done = moecast("place", "--gpus", "x", "--traffic", "chian", "--seed", "-1")
    assert done.code == 2
    for part in ("--gpus 'x'", "did you mean chain", "no --loads", "--seed -1"):
        assert part in done.err
    few = moecast("place", "--loads", str(loads), "--gpus", "4", "--gpus-per-node", "4", "--slots-per-gpu", "2")
    assert few.code == 2 and "cannot hold 16 experts; give at least 4" in few.err
    assert "needs --transitions" in moecast(*arguments(loads), "--traffic", "chain").err
    bad = tmp_path / "bad.json"
    bad.write_text("{}", encoding="utf-8")
    with pytest.raises(Exception, match="not a placement"):
        load_placement(bad)


def test_an_interrupt_loses_nothing(loads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = answer._layer, []

    def interrupted(*given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(answer, "_layer", interrupted)
    done = moecast(*arguments(loads), "--json", "-")
    assert done.code == 130
    data = json.loads(done.out)
    assert data["stopped"] == "interrupted" and len(data["layers"]) == 4
    assert any("stopped" in text for text in data["certificate"]["limits"])


def test_reference_names_every_key(loads: Path) -> None:
    data = json.loads(moecast(*arguments(loads), "--json", "-").out)
    keys = {*data, *data["inputs"], *data["layers"][0], *data["certificate"], *data["certificate"]["baselines"]}
    keys |= {field.name for field in fields(Certificate)}
    text = (Path(__file__).parents[2] / "docs/reference/json.md").read_text(encoding="utf-8")
    assert not sorted(keys - set(re.findall(r"\w+", text)))


def test_a_placement_in_use_is_bettered_by_few_moves(loads: Path, tmp_path: Path) -> None:
    saved = tmp_path / "placement.json"
    assert moecast(*arguments(loads), "--out", str(saved)).code == 0
    again = json.loads(moecast(*arguments(loads), "--previous", str(saved), "--json", "-").out)
    assert again["certificate"]["moved_experts"] == 0
    drifted = tmp_path / "drifted.csv"
    rows = loads.read_text(encoding="utf-8").splitlines()
    turned = [f"{row.rsplit(',', 1)[0]},{int(row.rsplit(',', 1)[1]) + 900 * (i % 5)}" for i, row in enumerate(rows[1:])]
    drifted.write_text("\n".join([rows[0], *turned]) + "\n", encoding="utf-8")
    done = moecast(*arguments(drifted), "--previous", str(saved), "--max-moves", "6", "--json", "-")
    assert 0 < json.loads(done.out)["certificate"]["moved_experts"] <= 6
    assert "experts move" in moecast(*arguments(drifted), "--previous", str(saved), "--max-moves", "6").out
    assert "needs --previous" in moecast(*arguments(drifted), "--max-moves", "6").err


def test_simulate_runs_with_placed_experts(tmp_path: Path) -> None:
    """The placed step is faster, its GPUs are evenly loaded, and sizes that differ are refused."""
    loads, saved = tmp_path / "loads.csv", tmp_path / "placement.json"
    instance = load_instance(layers=48, experts=128, gpus=8, slots_per_gpu=16, sigma=0.5, seed=1)
    rows = [f"{i},{e},{int(v)}" for i, row in enumerate(instance.loads) for e, v in enumerate(row)]
    loads.write_text("layer,expert,count\n" + "\n".join(rows) + "\n", encoding="utf-8")
    assert moecast("place", "--loads", str(loads), "--gpus", "8", "--out", str(saved)).code == 0
    runs = []
    for more in ([], ["--placement", str(saved)]):
        done = moecast("simulate", *SMALL, *LAYOUT, "--routing", str(loads), *more, "--json", "-")
        assert done.code == 0, done.err
        runs.append(json.loads(done.out))
    assert runs[1]["step_s"]["value"] < runs[0]["step_s"]["value"]
    assert np.max(runs[1]["imbalance"]["rank_load"]) < 1.01 < 1.1 < np.max(runs[0]["imbalance"]["rank_load"])
    assert "placed" in runs[1]["imbalance"]["source"]
    wrong = moecast("simulate", *SMALL, "--ep", "4", "--routing", str(loads), "--placement", str(saved))
    assert wrong.code == 2 and "give --ep 8" in wrong.err
    even = moecast("simulate", *SMALL, *LAYOUT, "--placement", str(saved))
    assert even.code == 2 and "balanced routing" in even.err


def test_the_busiest_link_decides_where_asked(loads: Path, tmp_path: Path) -> None:
    flows = tmp_path / "flows.csv"
    rng = np.random.default_rng(4)
    counts = rng.poisson(200 * np.exp(rng.standard_normal((3, 16, 16))))
    rows = [f"{i},{e},{f},{v}" for i, a in enumerate(counts) for e, row in enumerate(a) for f, v in enumerate(row)]
    flows.write_text("layer,expert,next_expert,count\n" + "\n".join(rows) + "\n", encoding="utf-8")
    chain = ["place", "--loads", str(loads), "--gpus", "4", "--gpus-per-node", "2", "--transitions", str(flows)]
    said = []
    for objective in ("total", "worst-link"):
        done = moecast(*chain, "--traffic", "chain", "--chain-objective", objective, "--json", "-")
        assert done.code == 0, done.err
        said.append(json.loads(done.out)["certificate"])
    assert said[1]["objective"] == said[1]["worst_link"] <= said[0]["worst_link"]
    assert "busiest link between nodes" in said[1]["objective_of"]
    assert said[0]["cross_node"] <= said[1]["cross_node"]
    assert "needs --traffic chain" in moecast(*chain, "--chain-objective", "worst-link").err
    assert "did you mean worst-link" in moecast(*chain, "--traffic", "chain", "--chain-objective", "worst-lnk").err


def test_gpus_that_differ(loads: Path, tmp_path: Path) -> None:
    table, saved = tmp_path / "gpus.csv", tmp_path / "placement.json"
    table.write_text("gpu,slots,speed\n0,6,1\n1,4,1\n2,4,0.5\n3,2,1\n", encoding="utf-8")
    asked = ["place", "--loads", str(loads), "--gpus", "4", "--gpus-per-node", "2"]
    done = moecast(*asked, "--gpus-file", str(table), "--json", "-", "--out", str(saved))
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["inputs"]["slots"] == [6, 4, 4, 2]
    assert [len(row) for row in data["layers"][0]["experts_on_gpu"]] == [6, 4, 4, 2]
    instance = read_instance(
        loads, gpus=4, gpus_per_node=2, slots_per_gpu=6, slots=(6, 4, 4, 2), speed=(1.0, 1.0, 0.5, 1.0)
    )  # fmt: skip
    checked = check_answer(instance, load_placement(saved)[0])
    assert not checked.problems
    assert [layer["max_load"] for layer in data["layers"]] == pytest.approx(list(checked.max_load))
    listed = moecast(*asked, "--slots-per-gpu", "6,4,4,2", "--json", "-")
    assert json.loads(listed.out)["inputs"]["slots"] == [6, 4, 4, 2]
    refused = moecast("export", str(saved), "--to", "sglang", "--model", "mixtral-8x7b", "--out", str(tmp_path / "x"))
    assert refused.code == 2 and "place with --slots-per-gpu N" in refused.err
    both = moecast(*asked, "--gpus-file", str(table), "--slots-per-gpu", "5")
    assert "both give slots" in both.err
    assert "lists 3 GPUs of 4" in moecast(*asked, "--slots-per-gpu", "5,5,6").err
    table.write_text("gpu,mem_bytes\n0,1e9\n1,1e9\n2,1e9\n3,1e9\n", encoding="utf-8")
    assert "needs --model" in moecast(*asked, "--gpus-file", str(table)).err
    other = moecast(*asked, "--gpus-file", str(table), "--model", "mixtral-8x7b")
    assert other.code == 2 and "give the loads of this model" in other.err
