"""One model of every family of the catalogue is planned, simulated, recomputed and exported, or refused by a rule."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner import find_plans
from planner.export import EXPORTS, Handover, export_plan
from sim.detail import simulate_layers
from sim.families import load_model, model_names
from sim.model import MIXERS, ModelSpec, total_params
from sim.plan import Plan
from sim.report import Report
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Workload

CLUSTER = "dgx-h100"
STATE_BYTES = 18 * 1.6  # per parameter: weights, gradients and Adam, with room for activations


@cache
def smallest() -> dict[str, ModelSpec]:
    """Per family of the catalogue the model with fewest parameters."""
    found: dict[str, ModelSpec] = {}
    for model in sorted(map(load_model, model_names()), key=lambda m: (total_params(m), m.name)):
        found.setdefault(model.family, model)
    return found


def software(model: ModelSpec, name: str = "megatron-lm") -> SoftwareProfile:
    arch = "moe" if model.is_moe else "dense"
    return catalogue.software(name, device="H100", model=model.name, arch=arch, precision="bf16")


def workload(model: ModelSpec, batch: int) -> Workload:
    return Workload(seq_tokens=min(4096, model.max_positions or 4096), global_batch_seqs=batch)


def gpus_of(model: ModelSpec) -> int:
    return max(8, 2 ** math.ceil(math.log2(total_params(model) * STATE_BYTES / 80e9)))


@cache
def planned(family: str) -> tuple[Scenario, Report]:
    """The best plan of a small search and its report."""
    model = smallest()[family]
    gpus = gpus_of(model)
    cluster, work, profile = catalogue.cluster(CLUSTER, gpus=gpus), workload(model, 2 * gpus), software(model)
    fixed = {"cp": 1, "micro_batch_seqs": 1, "etp": 1, "schedule": "1f1b"}
    found = find_plans(model, cluster, profile, work, target="megatron-lm", top=1, max_simulated=1, fixed=fixed)
    report = found.plans[0].report
    return Scenario(model=model, cluster=cluster, software=profile, workload=work, plan=report.plan), report


FAMILIES = tuple(smallest())


def test_every_mixer_is_among_them() -> None:
    there = {layer.mixer.kind for model in smallest().values() for layer in model.layers if layer.mixer is not None}
    assert there == set(MIXERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_plans_and_simulates(family: str) -> None:
    scenario, report = planned(family)
    again = simulate(scenario, trace=False)
    assert again.step_s.value == pytest.approx(report.step_s.value, rel=1e-9)
    assert report.bound_s <= report.step_s.value * (1 + 1e-9)
    assert report.step_s.low < report.step_s.value < report.step_s.high
    assert 0.03 < report.mfu.value < 0.7 and 0.0 < report.peak_mem_bytes <= report.usable_mem_bytes
    mixes = any(layer.mixer is not None and layer.mixer.kind != "short_conv" for layer in scenario.model.layers)
    assert mixes == any("without softmax" in line and "assumed" in line for line in report.provenance)


def run(family: str, plan: Plan, profile: str) -> Report:
    model = smallest()[family]
    cluster = catalogue.cluster(CLUSTER, gpus=32)
    return simulate(
        Scenario(
            model=model, cluster=cluster, software=software(model, profile), workload=workload(model, 32), plan=plan
        ), trace=False,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_recompute_by_operators_lies_between_none_and_whole_blocks(family: str) -> None:
    """In memory saved and in time spent; torchtitan's profile recomputes by operator."""
    experts = math.gcd(*(x.moe.num_experts for x in smallest()[family].layers if x.moe is not None), 0)
    ep = math.gcd(8, experts) if experts else 1
    plan = Plan(dp=32, ep=ep, edp=32 // ep, zero_stage=3)
    kept, some, full = (
        run(family, replace(plan, recompute=how), "torchtitan-2024-12") for how in ((), ("operators",), ("full",))
    )
    assert full.peak_mem_bytes < some.peak_mem_bytes < kept.peak_mem_bytes
    assert kept.step_s.value < some.step_s.value <= full.step_s.value * (1 + 1e-9)


@pytest.mark.parametrize("family", ("jamba", "nemotron_h", "qwen3_next", "kimi_linear", "gemma2"))
def test_a_run_of_layers_takes_as_long_as_one_of_stages(family: str) -> None:
    scenario, _ = planned(family)
    few = replace(scenario.workload, global_batch_seqs=2 * scenario.plan.dp * scenario.plan.pp)
    small = replace(scenario, workload=few)
    stages_s = simulate(small, trace=False).step_s.value
    # layer by layer the host and the device wait for each other more often than stage by stage: Jamba 3.4 %
    assert simulate_layers(small).makespan_s == pytest.approx(stages_s, rel=0.05)


def handed(family: str, target: str) -> Handover:
    scenario, report = planned(family)
    plan: Plan = scenario.plan
    whole: dict[str, Any] = {"stages": report.stages, "layout": report.pipeline_layout}
    if target in ("deepspeed", "torchtitan", "accelerate"):
        devices = plan.num_devices
        plan = Plan(dp=devices, ep=1, edp=devices, zero_stage=3)
        whole["stages"] = (len(scenario.model.layers),)
    return Handover(
        model=scenario.model, cluster=scenario.cluster, software=scenario.software, workload=scenario.workload,
        plan=plan, base={"torchtitan": "mine:model", "kubernetes": "registry.example/trainer:1"}.get(target), **whole,
    )  # fmt: skip


@pytest.mark.parametrize("target", sorted(EXPORTS))
def test_a_family_is_exported_or_refused_by_a_rule(target: str) -> None:
    refused = set()
    for family in FAMILIES:
        try:
            assert export_plan(handed(family, target), target).files
        except UserError as error:
            assert all("[rule " in problem for problem in error.problems), (family, error)
            refused.add(family)
    halves = {"bamba", "granitemoehybrid", "nemotron_h", "jamba", "kimi_linear", "lfm2_moe", "minimax"}
    blocks = {"gemma2", "gemma3", "gpt_neox", "llama4", "longcat_flash", "arctic", "deepseek_v4"}
    assert refused == (halves | blocks if target == "megatron-lm" else set())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("Jamba-v0.1", "mamba1 mixers"), ("Bamba-9B", "mamba2 mixers"), ("Nemotron-3-Nano", "blocks of one half"),
        ("Llama4-Scout", "attention in chunks"), ("LongCat-Flash", "experts that do nothing"),
        ("Arctic-480B", "a dense FFN beside the experts"), ("Gemma2-2B", "norms behind the halves"),
        ("Pythia-6.9B", "side by side"), ("DeepSeek-V4-Flash", "keys and values in one tensor, hyper-connections"),
    ],
)  # fmt: skip
def test_megatron_refuses_layers_it_has_no_flags_for(model: str, words: str) -> None:
    spec = load_model(model)
    asked = replace(handed(spec.family, "deepspeed"), model=spec, stages=(len(spec.layers),))
    with pytest.raises(UserError, match=f"(?s){words}.*rule megatron-layer-kinds"):
        export_plan(asked, "megatron-lm")


def test_gated_delta_nets_and_sparse_attention_are_flags_of_megatron() -> None:
    """Accepted by the parser of megatron-core 0.19.2 (`make test-exports`)."""
    delta, sparse = (
        export_plan(handed(family, "megatron-lm"), "megatron-lm").files["megatron_args.sh"]
        for family in ("qwen3_next", "glm_moe_dsa")
    )
    for flag in ("--experimental-attention-variant gated_delta_net", "--linear-attention-freq '([1]*3+[0]*1"):
        assert flag in delta
    assert "--attention-output-gate" in delta
    for flag in ("--experimental-attention-variant dsa", "--dsa-indexer-topk 2048", "--no-rope-fusion"):
        assert flag in sparse
