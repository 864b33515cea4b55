"""How a step is trained, in each target's own words; and a plan file that keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hwprofiles.errors import UserError
from planner.export import Handover, export_plan
from planner.export.megatron_bridge import tree_of
from planner.export.megatron_lm import flags_of
from planner.imports.training import training_fields
from sim.plan import Plan
from sim.workload import (
    Lengths,
    Lora,
    Offload,
    Optimizer,
    RampUp,
    Workload,
    workload_fields,
    workload_from,
)
from tests.planner.handed import handover

PLAN = Plan(tp=2, pp=4, vpp=3, dp=4, ep=8, edp=1, schedule="interleaved")
SHARDED = Plan(dp=32, ep=8, edp=4, zero_stage=3)


def asked(plan: Plan = PLAN, **work: Any) -> Handover:
    made = handover(plan)
    return replace(made, workload=replace(made.workload, **work))


def words(made: Handover) -> set[tuple[str, ...]]:
    return set(flags_of(made))


@pytest.mark.parametrize(
    ("work", "flags"),
    [
        ({"optimizer": Optimizer(exp_avg="bf16", exp_avg_sq="fp8", main_params="fp16", main_grads="bf16")},
         {("--use-precision-aware-optimizer",), ("--exp-avg-dtype", "bf16"), ("--exp-avg-sq-dtype", "fp8"),
          ("--main-params-dtype", "fp16"), ("--main-grads-dtype", "bf16")}),
        ({"optimizer": Optimizer(name="muon", ns_steps=7, tp_mode="duplicated")},
         {("--optimizer", "dist_muon"), ("--muon-num-ns-steps", "7"), ("--muon-tp-mode", "duplicated")}),
        ({"optimizer": Optimizer(name="sgd")}, {("--optimizer", "sgd")}),
        ({"offload": Offload(optimizer=0.5, overlap=True)},
         {("--optimizer-cpu-offload",), ("--optimizer-offload-fraction", "0.5"), ("--overlap-cpu-optimizer-d2h-h2d",),
          ("--use-precision-aware-optimizer",)}),
        ({"offload": Offload(modules=("core_attn", "moe_act"))},
         {("--fine-grained-activation-offloading",), ("--offload-modules", "core_attn", "moe_act")}),
        ({"ramp_up": RampUp(start=32, increment=32, samples=1000, train_samples=9000)},
         {("--rampup-batch-size", "32", "32", "1000"), ("--train-samples", "9000")}),
    ],
)  # fmt: skip
def test_flags_of_megatron(work: dict[str, Any], flags: set[tuple[str, ...]]) -> None:
    plain = words(handover(PLAN))
    assert not flags & plain - {("--use-precision-aware-optimizer",)}
    assert flags <= words(asked(**work))


@pytest.mark.parametrize(
    "work",
    [
        {"optimizer": Optimizer(exp_avg="bf16", exp_avg_sq="fp8", main_params="fp16", main_grads="bf16")},
        {"optimizer": Optimizer(name="muon", ns_steps=7, tp_mode="duplicated")},
        {"offload": Offload(optimizer=0.5, overlap=True)}, {"offload": Offload(modules=("core_attn", "moe_act"))},
        {"ramp_up": RampUp(start=32, increment=32, samples=1000, train_samples=9000)}, {},
    ],
)  # fmt: skip
def test_flags_are_read_back_as_they_were_written(work: dict[str, Any]) -> None:
    made = asked(**work)
    given = {flag[0][2:]: list(flag[1:]) for flag in flags_of(made)}
    problems: list[str] = []
    read = training_fields(given, problems)
    assert not problems
    for name, value in read.items():
        assert value == getattr(made.workload, name)


def test_flags_that_are_not_understood_are_listed() -> None:
    problems: list[str] = []
    training_fields(
        {"optimizer": ["lion"], "optimizer-cpu-offload": [], "optimizer-offload-fraction": ["3"],
         "fine-grained-activation-offloading": [], "offload-modules": ["all"], "rampup-batch-size": ["1"],
         "use-precision-aware-optimizer": [], "exp-avg-dtype": ["fp64"]}, problems,
    )  # fmt: skip
    assert len(problems) == 5


def test_bridge_takes_the_same_as_keys() -> None:
    tree = tree_of(asked(optimizer=Optimizer(exp_avg="bf16"), offload=Offload(optimizer=1.0), lora=Lora(rank=8)))
    assert tree["optimizer"]["exp_avg_dtype"] == "bf16"
    assert tree["optimizer"]["optimizer_offload_fraction"] == 1.0
    assert tree["peft"] == {"dim": 8, "target_modules": list(Lora(rank=8).targets)}
    assert "peft" not in tree_of(handover(PLAN))


def test_offloaded_modules_bring_the_switch_that_keeps_weights_on_the_device() -> None:
    """Megatron 0.19.2 and Bridge refuse to start without it under Transformer Engine 2.10 or newer."""
    away = asked(offload=Offload(modules=("core_attn",)))
    assert "export NVTE_CPU_OFFLOAD_V1=1\n" in export_plan(away, "megatron-lm").files["launch.sh"]
    assert "NVTE_CPU_OFFLOAD_V1: set it to 1 in the environment" in export_plan(away, "megatron-bridge").missing
    for plain in (handover(PLAN), asked(offload=Offload(optimizer=1.0))):
        assert not any("NVTE" in text for text in export_plan(plain, "megatron-lm").files.values())


def test_the_usage_line_does_not_contradict_the_flags() -> None:
    """Megatron takes iterations or samples; a plan that says its samples must not be started with iterations."""
    for samples, said in ((9000, False), (0, True)):
        made = export_plan(asked(ramp_up=RampUp(start=32, increment=32, samples=1000, train_samples=samples)),
                           "megatron-lm")  # fmt: skip
        assert ("--train-samples" in made.files["megatron_args.sh"]) is not said
        assert ("--train-iters" in made.files["launch.sh"]) is said
        assert "--mock-data" in made.files["launch.sh"]


@pytest.mark.parametrize("target", ["megatron-lm", "megatron-bridge"])
def test_dtypes_that_an_optimizer_on_the_host_drops_are_named(target: str) -> None:
    narrow, wide = Optimizer(exp_avg="bf16", exp_avg_sq="fp8"), Optimizer(exp_avg="fp32", main_grads="bf16")
    made = export_plan(asked(optimizer=narrow, offload=Offload(optimizer=0.5)), target)
    (said,) = [line for line in made.missing if "whole state in fp32" in line]
    assert "exp_avg in bf16, exp_avg_sq in fp8" in said
    for kept in (asked(optimizer=narrow), asked(optimizer=wide, offload=Offload(optimizer=0.5))):
        assert not any("whole state" in line for line in export_plan(kept, target).missing)


def test_bridge_ramps_up_by_iterations() -> None:
    """Megatron-Bridge 0.6.2 refuses a ramp-up beside train_samples, and train_samples beside a recipe's train_iters."""
    made = asked(ramp_up=RampUp(start=32, increment=32, samples=1000, train_samples=9000))
    assert "train_samples" not in tree_of(made)["train"]
    assert tree_of(made)["train"]["rampup_batch_size"] == [32, 32, 1000]
    assert any("9000 sequences in all" in line for line in export_plan(made, "megatron-bridge").missing)


def test_bridge_names_the_products_of_experts() -> None:
    tree = tree_of(asked(lora=Lora(rank=8, targets=("linear_qkv", "experts_shared"))))
    assert tree["peft"]["target_modules"] == ["linear_qkv", "linear_fc1", "linear_fc2"]


@pytest.mark.parametrize(
    ("target", "plan", "work", "rule"),
    [
        ("megatron-lm", PLAN, {"lora": Lora(rank=8)}, "megatron-lm-no-lora"),
        ("megatron-lm", replace(PLAN, zero_stage=0), {"optimizer": Optimizer(exp_avg="bf16")}, "megatron-state-dtypes"),
        ("torchtitan", SHARDED, {"lora": Lora(rank=8)}, "torchtitan-no-lora"),
        ("torchtitan", SHARDED, {"offload": Offload(optimizer=0.5)}, "torchtitan-no-offload-share"),
        ("accelerate", SHARDED, {"ramp_up": RampUp(start=32, increment=32, samples=9)}, "accelerate-no-ramp-up"),
    ],
)  # fmt: skip
def test_what_a_target_lacks_is_refused_by_name(target: str, plan: Plan, work: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        export_plan(asked(plan, **work), target)


def test_offload_of_the_other_targets() -> None:
    piped = Plan(pp=4, dp=8, ep=8, edp=1)
    made = export_plan(asked(piped, offload=Offload(optimizer=1.0)), "deepspeed")
    assert json.loads(made.files["ds_config.json"])["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    made = export_plan(asked(SHARDED, offload=Offload(optimizer=1.0)), "accelerate")
    assert any("fsdp_offload_params: true" in text for text in made.files.values())


def test_scripts_are_told_what_they_decide() -> None:
    packed = Lengths(tokens=(10.0,), source="fixed:10")
    piped = Plan(pp=4, dp=8, ep=8, edp=1)
    made = export_plan(asked(piped, optimizer=Optimizer(exp_avg="bf16"), lengths=packed), "deepspeed")
    assert any("optimizer adam with exp_avg in bf16" in line for line in made.missing)
    assert any("fixed:10" in line for line in made.missing)


FULL = Workload(
    seq_tokens=4096, global_batch_seqs=64, precision="fp8", optimizer=Optimizer(name="muon", exp_avg="bf16"),
    offload=Offload(modules=("core_attn",)), lora=Lora(rank=4, targets=("linear_qkv",)),
    lengths=Lengths(tokens=(5.0, 6.5), source="x"), ramp_up=RampUp(start=8, increment=8, samples=80), with_mtp=True,
)  # fmt: skip


@pytest.mark.parametrize("work", [FULL, Workload(seq_tokens=1, global_batch_seqs=1)])
def test_a_workload_survives_its_json(work: Workload) -> None:
    assert workload_from(json.loads(json.dumps(workload_fields(work)))) == work


def test_the_plain_workload_is_written_as_ever() -> None:
    plain = workload_fields(Workload(seq_tokens=8, global_batch_seqs=2))
    assert plain == {
        "kind": "train", "seq_tokens": 8, "global_batch_seqs": 2, "precision": "bf16", "optimizer": "adam",
        "with_mtp": False,
    }  # fmt: skip


def test_an_unknown_field_is_not_dropped() -> None:
    with pytest.raises(TypeError):
        workload_from({"seq_tokens": 8, "global_batch_seqs": 2, "colour": "red"})
