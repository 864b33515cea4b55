"""Options of how a step is trained: what they mean, and all that is wrong with them at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hwprofiles.errors import UserError
from planner.question.asked import Asked
from planner.question.levers import read_levers, read_lora, read_offload, read_optimizer, read_ramp
from sim.workload import LORA_DEFAULT, Lora, Offload, Optimizer, RampUp
from tests.planner_cli.running import moecast

BASE = ["simulate", "--model", "llama3-8b", "--cluster", "dgx-h100", "--gpus", "8", "--tp", "2", "--global-batch", "16",
        "--json", "-"]  # fmt: skip


def test_words_to_records() -> None:
    assert read_optimizer("adam") == Optimizer()
    assert read_optimizer("adam:exp_avg=bf16,exp_avg_sq=int8") == Optimizer(exp_avg="bf16", exp_avg_sq="int8")
    assert read_optimizer("muon:ns_steps=6,tp_mode=duplicated") == Optimizer(
        name="muon", ns_steps=6, tp_mode="duplicated"
    )
    assert read_offload("optimizer") == Offload(optimizer=1.0)
    assert read_offload("optimizer=0.25, overlap") == Offload(optimizer=0.25, overlap=True)
    assert read_offload("modules=moe_act+core_attn") == Offload(modules=("core_attn", "moe_act"))
    assert read_offload("layers=3") == Offload(layers=3)
    assert read_lora("16") == Lora(rank=16, targets=LORA_DEFAULT)
    assert read_lora("8:experts+linear_qkv") == Lora(rank=8, targets=("linear_qkv", "experts"))
    assert read_ramp("32:32:1_000", "5000") == RampUp(start=32, increment=32, samples=1000, train_samples=5000)


@pytest.mark.parametrize(
    ("reader", "text", "said"),
    [
        (read_optimizer, "adamw", "adam, sgd, muon"), (read_optimizer, "adam:exp_avg=fp64", "exp_avg=fp64"),
        (read_optimizer, "adam:ns_steps=3", "setting of muon"),
        (read_optimizer, "sgd:exp_avg_sq=bf16", "no exp_avg_sq"),
        (read_optimizer, "adam:colour=red", "unknown setting"), (read_optimizer, "muon:ns_steps=0", "at least 1"),
        (read_offload, "optimizer=2", "at most 1"), (read_offload, "overlap", "add optimizer=1"),
        (read_offload, "layers", "layers=VALUE"), (read_offload, "modules=attention", "core_attn"),
        (read_offload, "layers=1,modules=core_attn", "one of them"), (read_offload, "disk=1", "unknown setting"),
        (read_offload, "layers=1,layers=2", "given twice"), (read_lora, "0", "at least 1"),
        (read_lora, "8:qkv", "linear_qkv"), (read_lora, "8:experts+experts_shared", "one of them"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(reader: Any, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        reader(text)


def test_all_mistakes_at_once() -> None:
    asked = Asked(optimizer="lion", offload="x", lora="many", lengths="fixed:no", rampup_batch_size="1:2")
    with pytest.raises(UserError) as caught:
        read_levers(asked, 4096)
    assert len(caught.value.problems) >= 5
    with pytest.raises(UserError, match="--rampup-batch-size"):
        read_levers(Asked(train_samples="5"), 4096)


def test_simulate_reports_what_was_asked() -> None:
    data = json.loads(moecast(*[*BASE, "--offload", "optimizer=1,overlap", "--lengths", "lognormal:600:1",
                           "--rampup-batch-size", "4:4:120", "--train-samples", "1000"]).out)  # fmt: skip
    assert 0.0 < data["host_mem_bytes"] < data["host_mem_capacity_bytes"] == 2e12
    assert all("optimizer" not in tags or tags["optimizer"] == 0.0 for tags in data["memory"])
    assert data["packs"]["drawn_step_s"] >= data["packs"]["even_step_s"] > 0.0
    assert [x["global_batch_seqs"] for x in data["ramp_up"]["levels"]] == [4, 8, 12, 16]
    assert data["ramp_up"]["samples"] >= 1000 and data["ramp_up"]["tokens"] == data["ramp_up"]["samples"] * 4096
    assert data["ramp_up"]["seconds"] > data["ramp_up"]["full_batch_s"]


def test_adapters_are_refused_by_a_trainer_without_them() -> None:
    done = moecast(*[*BASE, "--lora", "16"])
    assert done.code == 2 and "megatron-lm-no-lora" in done.err
    assert moecast(*[*BASE, "--lora", "16", "--target", "megatron-bridge"]).code == 0


def test_host_memory_that_is_not_there_is_exit_code_4() -> None:
    done = moecast(*["simulate", "--model", "llama3.1-405b", "--cluster", "a100-pcie", "--gpus", "8", "--tp", "8",
                     "--global-batch", "8", "--offload", "optimizer=1"])  # fmt: skip
    assert done.code == 4 and "memory" in done.err
