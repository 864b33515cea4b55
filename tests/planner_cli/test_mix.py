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


def test_bad_pools_are_named_at_once() -> None:
    done = moecast("mix", "--model", "Mixtral-8x7B", "--pool", "dgx-h100", "--gpus", "8", "--between", "fast")
    assert done.code == 2
    for piece in ("write a cluster and its devices", "--gpus is not for mix", "--between", "name two pools"):
        assert piece in done.err, piece
    assert moecast("export", "mix.json", "--to", "megatron-lm", "--out", "x").code == 2


def test_a_pool_named_twice_is_refused() -> None:
    done = moecast("mix", "--model", "Mixtral-8x7B", "--pool", "dgx-h100:16", "--pool", "dgx-h100:16")
    assert done.code == 2 and "named twice" in done.err
