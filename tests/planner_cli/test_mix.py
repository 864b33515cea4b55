"""`moecast mix`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.planner_cli.running import moecast

ASKED = ("mix", "--model", "Mixtral-8x7B", "--pool", "dgx-h100:32", "--pool", "dgx-a100-80g:32", "--global-batch", "64",
         "--tp", "2", "--pp", "2", "--vpp", "1", "--micro-batch", "1", "--recompute", "none",
         "--ep", "4", "--cp", "1", "--etp", "1", "--top", "2")  # fmt: skip


def test_mixed_plans_are_ranked_beside_each_pool(tmp_path: Path) -> None:
    out = tmp_path / "mix.json"
    done = moecast(*ASKED, "--between", "100 Gb/s,10 us", "--json", str(out))
    assert done.code == 0, done.err
    for piece in ("dgx-h100 x1 | dgx-a100-80g x1", "Each pool by itself", "No layout is faster"):
        assert piece in done.out, piece
    data = json.loads(out.read_text())
    best = data["plans"][0]
    assert set(best["pool_of_stage"]) == {"dgx-h100", "dgx-a100-80g"} and sum(best["stages"]) == 32
    assert data["search"]["bound_s"] <= best["step_s"]["value"] <= best["even_s"]
    assert [pool["devices"] for pool in data["pools"]] == [32, 32] and data["pools"][0]["alone"]["step_s"] > 0
    assert not any("between types" in note for note in best["provenance"])
    layers = " ".join(str(n) for n in best["stages"])
    assert "layers of each stage" in done.out and f" {layers} " in done.out and best["pipeline_layout"] in done.out
    loads = best["stage_loads"]
    assert [load["pool"] for load in loads] == best["pool_of_stage"]
    assert [sum(load["layers"]) for load in loads] == best["stages"]
    assert all(0.0 < load["busy_s"] < best["step_s"]["value"] for load in loads)
    assert max(load["peak_bytes"] for load in loads) <= best["peak_mem_bytes"]


def test_its_file_is_explained_checked_and_not_exported(tmp_path: Path) -> None:
    out = tmp_path / "mix.json"
    done = moecast(*ASKED, "--out", str(out))
    assert done.code == 0 and "wrote" in done.err, done.err
    assert moecast("explain", str(out)).out == done.out
    assert "answer of `moecast mix`" in moecast("schema", "--check", str(out)).out
    for verb in (["export", str(out), "--to", "megatron-lm", "--out", str(tmp_path)], ["compare", str(out), str(out)]):
        refused = moecast(*verb)
        assert refused.code == 2 and "`moecast explain` shows it" in refused.err, refused.err
    broken = json.loads(out.read_text())
    broken["plans"][0]["stage_loads"][0]["busy_s"], broken["extra"] = -1, 1
    out.write_text(json.dumps(broken))
    said = moecast("explain", str(out))
    assert said.code == 2 and "plans.0.stage_loads.0.busy_s" in said.err and "moecast mix" in said.err
    assert "extra" not in said.err and "extra" in moecast("schema", "--check", str(out)).err


def test_virtual_stages_are_a_line_for_each_stage() -> None:
    asked = list(ASKED)
    asked[asked.index("--vpp") + 1] = "2"
    asked[asked.index("--pp") + 1] = "4"
    done = moecast(*asked)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("Stages of the first plan"))
    rows = [line.split() for line in lines[at + 2 : at + 6]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert sum(int(row[2]) + int(row[3]) for row in rows) == 32


def test_what_it_does_not_model_is_said_plainly() -> None:
    small = ("mix", "--model", "Mixtral-8x7B", "--pool", "dgx-h100:16", "--pool", "dgx-a100-80g:16")
    done = moecast(*small, "--schedule", "zb-v,1f1b", "--offload", "optimizer=0.5,overlap")
    assert done.code == 2 and "2 problems" in done.err, done.err
    assert "schedule zb-v: stages on several types are chosen by the closed form of 1f1b and interleaved" in done.err
    assert "offload to the host is not modelled on several types" in done.err
    out = moecast(*small, "--out", "nowhere/mix.json")
    assert out.code == 2 and "no folder nowhere" in out.err


def test_bad_pools_are_named_at_once() -> None:
    done = moecast("mix", "--model", "Mixtral-8x7B", "--pool", "dgx-h100", "--gpus", "8", "--between", "fast")
    assert done.code == 2
    for piece in ("write a cluster and its devices", "--gpus is not for mix", "--between", "name two pools"):
        assert piece in done.err, piece
    assert moecast("export", "mix.json", "--to", "megatron-lm", "--out", "x").code == 2


def test_a_pool_named_twice_is_refused() -> None:
    done = moecast("mix", "--model", "Mixtral-8x7B", "--pool", "dgx-h100:16", "--pool", "dgx-h100:16")
    assert done.code == 2 and "named twice" in done.err
