"""`moecast export` of a placement and the verbs of `moecast import` beside `cluster`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from planner.imports.expert_map import map_text
from planner.placement.placefile import load_placement
from planner.placement.records import Placement
from tests.planner_cli.running import moecast

MODEL = "OLMoE-1B-7B"


def placement_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    rank = np.stack([rng.permutation(64) // 8 for _ in range(16)])
    path = tmp_path / "placement.json"
    path.write_text(map_text(Placement.of_ranks(rank, 8), tuple(range(16)), "drawn"))
    return path


def test_a_placement_goes_out_as_a_map_and_comes_back(tmp_path: Path) -> None:
    path = placement_file(tmp_path)
    done = moecast("export", str(path), "--to", "sglang", "--model", MODEL, "--out", str(tmp_path / "map"))
    assert done.code == 0 and "16 layers on 8 GPUs" in done.out, done.err
    back = tmp_path / "back.json"
    done = moecast(
        "import", "experts", str(tmp_path / "map/expert_location.json"), "--gpus", "8", "--model", MODEL,
        "--out", str(back),
    )  # fmt: skip
    assert done.code == 0 and "8 GPUs of 8 slots" in done.out, done.err
    assert np.array_equal(load_placement(back)[0].experts, load_placement(path)[0].experts)


def test_a_placement_needs_a_model_and_the_right_file(tmp_path: Path) -> None:
    path = placement_file(tmp_path)
    done = moecast("export", str(path), "--to", "permutation", "--out", str(tmp_path / "x"))
    assert done.code == 2 and "--model" in done.err
    done = moecast("export", str(path), "--to", "megatron-lm", "--out", str(tmp_path / "x"))
    assert done.code == 2 and "not a plan file" in done.err
    done = moecast("export", str(path), "--to", "permutation", "--model", MODEL, "--out", str(tmp_path / "x"))
    assert done.code == 0
    tree = json.loads((tmp_path / "x/permutation.json").read_text())
    assert tree["ep"] == 8 and len(tree["layers"]) == 16


def test_recorded_routing_becomes_a_file_that_place_and_simulate_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    lines = []
    for layer in range(16):
        chosen = [rng.choice(64, size=8, replace=False).tolist() for _ in range(64)]
        lines.append(json.dumps({"block": "decoder", "layer": layer, "rank": 0, "top_indices": chosen}))
    (tmp_path / "router_trace_rank0.jsonl").write_text("\n".join(lines))
    counts, trace = tmp_path / "counts.csv", tmp_path / "trace.csv"
    done = moecast(
        "import", "routing", str(tmp_path), "--model", MODEL, "--out", str(counts), "--tokens", str(trace)
    )  # fmt: skip
    assert done.code == 0 and "16 layers of 64 experts, 8,192 choices" in done.out, done.err
    done = moecast("place", "--loads", str(counts), "--gpus", "8", "--json", "-")
    assert done.code == 0 and len(json.loads(done.out)["layers"]) == 16
    for file in (counts, trace):
        done = moecast(
            "simulate", "--model", MODEL, "--cluster", "dgx-h100", "--gpus", "8", "--ep", "8", "--global-batch", "16",
            "--routing", str(file), "--json", "-",
        )  # fmt: skip
        assert done.code in (0, 4), done.err
    done = moecast("import", "routing", str(counts), "--out", str(tmp_path / "x.csv"), "--tokens", str(trace))
    assert done.code == 2 and "--tokens" in done.err
