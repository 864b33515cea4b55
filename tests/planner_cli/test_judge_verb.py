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


def test_a_bridge_yaml_and_a_deepspeed_json_are_judged(tmp_path: Path) -> None:
    overrides, config = tmp_path / "overrides.yaml", tmp_path / "ds_config.json"
    overrides.write_text(
        "model:\n  expert_model_parallel_size: 8\n  seq_length: 4096\n  recompute_granularity: full\n"
        "  recompute_method: uniform\n  recompute_num_layers: 1\n"
        "train: {micro_batch_size: 1, global_batch_size: 64}\nddp: {use_distributed_optimizer: true}\n"
    )
    done = moecast("judge", str(overrides), *WHERE, "--gpus", "32")
    assert done.code == 0 and "gap" in done.out and "left to the recipe" in done.out, done.err
    config.write_text(
        json.dumps(
            {
                "train_batch_size": 64, "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1},
                "expert_parallel": {"enabled": True, "autoep_size": 8}, "activation_checkpointing": {},
            }
        )
    )  # fmt: skip
    words = ("judge", str(config), *WHERE, "--gpus", "32", "--software", "megatron-lm")
    done = moecast(*words)
    assert done.code == 2 and "--seq-len" in done.err
    done = moecast(*words, "--seq-len", "4096")
    assert done.code == 0 and "recompute" in done.out, done.err
