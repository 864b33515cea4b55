"""`moecast judge`: what it prints of a script and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.planner_cli.running import moecast

FLAGS = (
    "torchrun --nnodes 4 --nproc-per-node 8 pretrain_gpt.py --tensor-model-parallel-size 2 --sequence-parallel "
    "--expert-model-parallel-size 8 --num-experts 128 --micro-batch-size 1 --global-batch-size 64 --seq-length 4096 "
    "--use-distributed-optimizer --moe-token-dispatcher-type alltoall --recompute-granularity full "
    "--recompute-method uniform --recompute-num-layers 1"
)
WHERE = ("--model", "Qwen3-30B-A3B", "--cluster", "dgx-h100")


def test_a_script_is_judged(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(FLAGS)
    done = moecast("judge", str(script), *WHERE, "--json", str(tmp_path / "out.json"))
    assert done.code == 0, done.err
    assert "slower than the best plan" in done.out and "expert-tensor-parallel-size is not given" in done.out
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["gap"] > 0 and data["changes"] and data["given"]["plan"]["dp"] == 16


def test_a_broken_rule_is_named(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(FLAGS.replace("--sequence-parallel", ""))
    done = moecast("judge", str(script), *WHERE)
    assert done.code == 2 and "megatron-moe-sp" in done.err


def test_no_script(tmp_path: Path) -> None:
    done = moecast("judge", str(tmp_path / "none.sh"), *WHERE)
    assert done.code == 2 and "no such file" in done.err
