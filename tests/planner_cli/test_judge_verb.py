"""`moecast judge`: what it prints of a script and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.cli.judge import gap_text
from sim.plan import Plan
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


def test_deepspeed_that_does_not_fit_is_told_the_stage_that_does(tmp_path: Path) -> None:
    config = tmp_path / "ds_config.json"
    words = ("judge", str(config), *WHERE, "--gpus", "32", "--software", "megatron-lm", "--seq-len", "4096")
    config.write_text(json.dumps({"train_batch_size": 256, "train_micro_batch_size_per_gpu": 1,
                                  "activation_checkpointing": {}, "zero_optimization": {"stage": 1}}))  # fmt: skip
    done = moecast(*words)
    assert done.code == 0 and "DOES NOT FIT" in done.out and "change ZeRO 1 -> 3" in done.out, done.err
    assert "fits in memory" in done.out and "of the step saved" not in done.out


def test_what_a_deepspeed_json_leaves_open_is_said(tmp_path: Path) -> None:
    config = tmp_path / "ds_config.json"
    words = ("judge", str(config), *WHERE, "--gpus", "32", "--software", "megatron-lm", "--seq-len", "4096")
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme"}, "offload_param": {"device": "cpu"}}
    auto = {"enabled": "auto"}
    config.write_text(json.dumps({"train_batch_size": "auto", "bf16": auto, "fp16": auto, "zero_optimization": zero}))
    done = moecast(*words, "--json", "-")
    assert done.code == 0, done.err
    notes = " ".join(json.loads(done.out)["notes"])
    for said in (
        "taken as 32 sequences a step",
        "nvme is taken as host memory",
        "offload_param to cpu",
        "taken as bf16",
    ):
        assert said in notes, said
    config.write_text(json.dumps({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 1,
                                  "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}))  # fmt: skip
    done = moecast(*words, "--json", "-")
    assert "sequences a step" not in " ".join(json.loads(done.out)["notes"])


@pytest.mark.parametrize(
    ("gap", "stages", "said"),
    [
        (0.25, None, "25.0% slower than the best plan"),
        (-0.016, (4, 2), "1.6% faster than the best layout with even stages found"),
        (-0.016, None, "1.6% faster than the best layout found"),
    ],
)
def test_a_gap_says_what_was_searched(gap: float, stages: tuple[int, ...] | None, said: str) -> None:
    assert gap_text(gap, Plan(pp=2, stages=stages)) == said
