"""Every hard rule: it has a source, one plan that breaks it alone, and words that help."""

from __future__ import annotations

from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner.rules import TARGETS, apply, check, context, rules_of, violations
from planner.space import space
from sim.columns import columns_of
from sim.mesh import RankMap
from sim.model import NO_ATTENTION, HeadSpec, ImageSpec, MixerSpec, ModelSpec
from sim.plan import Plan
from sim.workload import Lora, Offload, Optimizer, RampUp
from tests.planner.toy import make_cluster, make_dense, make_model, make_software, make_workload

GOOD = Plan(tp=2, pp=2, dp=4, ep=4, edp=2)


def mixed(**sizes: Any) -> ModelSpec:
    """The toy with Mamba 2 in place of attention in every second layer."""
    mixer = MixerSpec(kind="mamba2", head_dim=64, key_dim=64, conv_kernel=4, **sizes)
    model = make_model()
    other = replace(model.layers[0], attention=NO_ATTENTION, mixer=mixer)
    return replace(model, layers=(model.layers[0], other) * 4)


def with_attention(**changes: Any) -> ModelSpec:
    """The toy with another attention, the output projection in one group."""
    model = make_model()
    layers = (replace(x, attention=replace(x.attention, **changes)) for x in model.layers)
    return replace(model, layers=tuple(layers))


# rule id -> (plan changes, scenario changes)
BREAKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "degrees-positive": ({"tp": 0}, {}),
    "schedule-known": ({"schedule": "gossip"}, {}),
    "recompute-known": ({"recompute": ("full", "mlp_act")}, {}),
    "recompute-module-present": ({"recompute": ("mla_up_proj",)}, {}),
    "zero-stage": ({"zero_stage": -1}, {}),
    "top-k": ({}, {"model": make_model(top_k=9)}),
    "positions": ({}, {"model": replace(make_model(), max_positions=2048)}),
    "world-product": ({"dp": 3}, {"workload": make_workload(global_batch_seqs=96)}),
    "expert-grid-product": ({"edp": 3}, {}),
    "experts-over-ep": ({"ep": 8, "edp": 1}, {"model": make_model(num_experts=12)}),
    "split-needs-pp": ({"schedule": "zb-h1", "pp": 1, "dp": 8, "edp": 4}, {}),
    "two-way-micro-batches": (
        {"schedule": "dualpipe"},
        {"workload": make_workload(global_batch_seqs=12)},
    ),
    "micro-batch-group": ({"vpp": 2, "schedule": "interleaved", "micro_batch_group": 1}, {}),
    "vpp-needs-pp": ({"schedule": "interleaved"}, {}),
    "layers-over-stages": ({"pp": 16, "tp": 1, "dp": 1, "ep": 1, "edp": 1, "account_ends": True}, {}),
    "batch-over-dp": ({"micro_batch_seqs": 3}, {}),
    "heads-over-tp": ({"tp": 16, "pp": 1, "dp": 1, "edp": 4}, {"model": "eight heads"}),
    "widths-over-tp": ({"etp": 2, "edp": 1}, {"model": make_model(ffn_dim=511)}),
    "seq-over-cp": ({"tp": 1, "cp": 2}, {"workload": make_workload(seq_tokens=4098)}),
    "mixer-heads-over-cp": ({"tp": 1, "cp": 2}, {"model": mixed(heads=7, key_heads=1)}),
    "output-groups-over-tp": ({}, {"model": with_attention(kind="shared_kv", kv_heads=1, out_rank=8, window=128)}),
    "image-tokens": (
        {},
        {
            "model": replace(
                make_model(), vocab_size=0, image=ImageSpec(size=32, patch=2, channels=4), head=HeadSpec(dim=32)
            )
        },
    ),
    "megatron-mixer-groups": ({}, {"model": mixed(heads=16, key_heads=1)}),
    "seq-over-tp": ({}, {"workload": make_workload(seq_tokens=4097)}),
    "fsdp-shard": ({"fsdp_shard": 2}, {}),
    "rank-order-pipelines": ({}, {"ranks": RankMap(order="tp-cp-ep-pp-dp")}),
    "megatron-rank-order": ({}, {"ranks": RankMap(order="tp-ep-cp-dp-pp")}),
    "torchtitan-rank-order": ({"ep": 2, "edp": 4}, {"ranks": RankMap(order="tp-cp-ep-pp-dp")}),
    "megatron-schedule": ({"schedule": "gpipe"}, {}),
    "megatron-even-stages": ({"pp": 8, "tp": 1, "dp": 2, "ep": 2, "edp": 1}, {"model": "nine layers"}),
    "megatron-interleave-p2p": ({"vpp": 2, "schedule": "interleaved"}, {"software": make_software(p2p_overlap=False)}),
    "megatron-micro-batch-group": (
        {"vpp": 2, "schedule": "interleaved"},
        {"workload": make_workload(global_batch_seqs=60)},
    ),
    "megatron-kv-groups": ({"tp": 8, "pp": 1, "dp": 2, "edp": 4}, {"model": "twelve KV heads"}),
    "megatron-moe-sp": ({}, {"software": make_software(sequence_parallel=False)}),
    "megatron-shared-recompute": (
        {"recompute": ("shared_experts",)},
        {"software": make_software(shared_expert_overlap=True), "model": make_model(shared_ffn_dim=512)},
    ),
    "megatron-layer-offload": ({}, {"software": make_software(activation_offload_layers=2)}),
    "megatron-optimizer-offload": ({}, {"software": make_software(optimizer_offload=True)}),
    "megatron-overlap-ep": (
        {"ep": 1, "edp": 8, "vpp": 2, "schedule": "interleaved"},
        {"software": make_software(a2a_overlap=True)},
    ),
    "megatron-overlap-vpp": ({}, {"software": make_software(a2a_overlap=True)}),
    "megatron-overlap-recompute": (
        {"vpp": 2, "schedule": "interleaved", "recompute": ("full",)},
        {"software": make_software(a2a_overlap=True)},
    ),
    "megatron-overlap-software": (
        {"vpp": 2, "schedule": "interleaved"},
        {
            "software": make_software(a2a_overlap=True, shared_expert_overlap=True),
            "model": make_model(shared_ffn_dim=512),
        },
    ),
    "megatron-shared-dispatcher": (
        {},
        {
            "software": make_software(shared_expert_overlap=True, dispatcher="allgather"),
            "model": make_model(shared_ffn_dim=512),
        },
    ),
    "megatron-fp8-dispatcher": (
        {},
        {"software": make_software(dispatcher="allgather"), "workload": make_workload(precision="fp8")},
    ),
    "megatron-expert-bias": ({"etp": 2, "edp": 1}, {"model": make_model(expert_bias=True)}),
    "megatron-expert-groups": ({}, {"model": make_model(num_groups=3)}),
    "megatron-fsdp-pp": ({"zero_stage": 3}, {}),
    "megatron-fsdp2": ({"zero_stage": 3, "pp": 1, "dp": 8, "edp": 4}, {"software": "fsdp2"}),
    "torchtitan-ep-mesh": ({"ep": 3, "edp": 2}, {"model": make_model(num_experts=12)}),
    "torchtitan-etp": ({"etp": 2, "edp": 1}, {}),
    "torchtitan-kv-heads": ({"tp": 16, "pp": 1, "dp": 1, "edp": 4}, {}),
    "torchtitan-stage-count": (
        {"pp": 8, "tp": 1, "dp": 2, "ep": 2, "edp": 1},
        {"model": "nine layers"},
    ),
    "torchtitan-tied-embeddings": ({}, {"model": replace(make_model(), tied_embeddings=True)}),
    "torchtitan-micro-batch-group": ({"vpp": 2, "schedule": "interleaved", "micro_batch_group": 4}, {}),
    "torchtitan-schedule": ({"schedule": "zb-h1"}, {}),
    "torchtitan-zero": ({"zero_stage": 1, "ep": 2, "edp": 4}, {}),
    "torchtitan-precision": ({}, {"workload": make_workload(precision="fp16")}),
    "torchtitan-recompute": ({"recompute": ("moe_act",)}, {}),
}
# What a target needs to be asked of a plan that breaks nothing: the plan, and the scenario where it is not the toy's.
BASES: dict[str, tuple[Plan, dict[str, Any]]] = {
    "layout": (GOOD, {}),
    "megatron-lm": (GOOD, {}),
    "megatron-bridge": (GOOD, {}),
    "torchtitan": (replace(GOOD, zero_stage=3), {}),
    "deepspeed": (replace(GOOD, tp=1, dp=8), {"model": replace(make_model(), family="mixtral")}),
    "accelerate": (replace(GOOD, pp=1, dp=8, edp=4, zero_stage=3), {}),
    "sglang": (GOOD, {}),
}
BREAKS |= {
    "bridge-fsdp-rank-order": (
        {"zero_stage": 3, "pp": 1, "dp": 8, "edp": 4},
        {"ranks": RankMap(order="tp-cp-ep-pp-dp")},
    ),
    "torchtitan-shard": ({"fsdp_shard": 4, "tp": 1, "cp": 8, "dp": 1}, {"workload": make_workload(seq_tokens=4096)}),
    "torchtitan-dispatcher": ({}, {"software": make_software(dispatcher="allgather")}),
    "deepspeed-rank-order": ({"ep": 1, "edp": 8}, {"ranks": RankMap(order="tp-cp-ep-pp-dp")}),
    "deepspeed-cp": ({"cp": 2, "dp": 4}, {}),
    "deepspeed-etp": ({"etp": 2, "edp": 1}, {}),
    "deepspeed-schedule": ({"vpp": 2, "schedule": "interleaved"}, {}),
    "deepspeed-autoep-preset": ({}, {"model": make_model()}),
    "deepspeed-autoep-autotp-pipeline": ({"tp": 2, "dp": 4}, {}),
    "deepspeed-autoep-autotp-offload": (
        {"tp": 2, "pp": 1, "edp": 4},
        {"software": make_software(optimizer_offload=True)},
    ),
    "deepspeed-zero-pipeline": ({"zero_stage": 2}, {}),
    "deepspeed-shard": ({"pp": 1, "dp": 16, "edp": 4, "zero_stage": 3, "fsdp_shard": 8}, {}),
    "deepspeed-precision": ({}, {"workload": make_workload(precision="fp8")}),
    "deepspeed-recompute": ({"recompute": ("moe_act",)}, {}),
    "deepspeed-dispatcher": ({}, {"software": make_software(dispatcher="hybridep")}),
    "accelerate-rank-order": ({"ep": 2, "edp": 8}, {"ranks": RankMap(order="tp-cp-ep-pp-dp")}),
    "accelerate-pp": ({"pp": 2, "dp": 4, "edp": 2}, {}),
    "accelerate-zero": ({"zero_stage": 1, "ep": 2, "edp": 8}, {}),
    "accelerate-replicate": ({"zero_stage": 0, "ep": 2, "edp": 8}, {}),
    "accelerate-shard": ({"fsdp_shard": 4, "tp": 1, "cp": 8, "dp": 2, "ep": 1, "edp": 16}, {}),
    "accelerate-etp": ({"etp": 2, "edp": 2}, {}),
    "transformers-ep-tp": ({"tp": 4, "dp": 4, "ep": 2, "edp": 8}, {}),
    "transformers-ep-fsdp": ({"fsdp_shard": 1}, {}),
    "transformers-all-reduce": ({}, {"software": make_software(dispatcher="allgather")}),
    "accelerate-precision": ({}, {"workload": make_workload(precision="mxfp8")}),
    "accelerate-recompute": ({"recompute": ("moe_act",)}, {}),
    "accelerate-dispatcher": ({}, {"software": make_software(dispatcher="deepep")}),
    "sglang-rank-order": ({"ep": 2, "edp": 4}, {"ranks": RankMap(order="tp-cp-ep-pp-dp")}),
    "sglang-schedule": ({"vpp": 2, "schedule": "interleaved"}, {}),
    "sglang-ep-world": ({"etp": 2, "edp": 1}, {}),
    "sglang-deepep-ep": ({}, {"software": make_software(dispatcher="deepep")}),
    "sglang-nodes": (
        {"tp": 1, "pp": 2, "dp": 5, "ep": 5, "edp": 1},
        {
            "model": make_model(num_experts=10),
            "cluster": replace(make_cluster(5), devices_per_node=2),
            "workload": make_workload(global_batch_seqs=5),
        },
    ),
}
SWITCHES: dict[str, Any] = {
    "two-batch-overlap": True,
    "all-to-all": "hierarchical",
    "tp-aware-dispatch": True,
    "fp8-dispatch": True,
    "dispatch-kernel": "low_latency",
    "a2a-overlap": True,
    "shared-expert-overlap": True,
    "activation-offload-layers": 2,
    "capacity-factor": 1.0,
    "optimizer-post-validation": True,
}


def with_switch(name: str, value: Any) -> SoftwareProfile:
    """A profile with one switch set, also one that profiles may get later."""
    if name in SoftwareProfile.__dataclass_fields__:
        return make_software(**{name: value})
    later = make_dataclass("Later", [(name, Any)], bases=(SoftwareProfile,), frozen=True, kw_only=True)
    return later(**{name: value}, **{f: getattr(make_software(), f) for f in SoftwareProfile.__dataclass_fields__})


BREAKS |= {
    rule.id: ({}, {"software": with_switch(switch.replace("-", "_"), value)})
    for rules in TARGETS.values()
    for rule in rules
    for switch, value in SWITCHES.items()
    if rule.id.endswith(f"-no-{switch}")
}
RAMP = RampUp(start=32, increment=32, samples=1000)
LEVERS: dict[str, dict[str, Any]] = {
    "lora": {"lora": Lora(rank=8)},
    "ramp-up": {"ramp_up": RAMP},
    "module-offload": {"offload": Offload(modules=("core_attn",))},
    "layer-offload": {"offload": Offload(layers=1)},
    "offload-share": {"offload": Offload(optimizer=0.5)},
    "int8-state": {"optimizer": Optimizer(exp_avg="int8")},
}
BREAKS |= {
    rule.id: ({}, {"workload": make_workload(**asked)})
    for rules in TARGETS.values()
    for rule in rules
    for lever, asked in LEVERS.items()
    if rule.id.endswith(f"-no-{lever}")
}
MUON = Optimizer(name="muon")
BREAKS |= {
    "muon-whole-matrices": (
        {"zero_stage": 2, "pp": 1, "dp": 8, "edp": 4}, {"workload": make_workload(optimizer=MUON)}
    ),
    "muon-on-device": ({}, {"workload": make_workload(optimizer=MUON, offload=Offload(optimizer=1.0))}),
    "offload-one-form": (
        {"pp": 1, "dp": 8, "edp": 4}, {"workload": make_workload(offload=Offload(layers=1, modules=("core_attn",)))}
    ),
    "ramp-over-dp": ({}, {"workload": make_workload(ramp_up=replace(RAMP, start=33))}),
    "megatron-state-dtypes": ({"zero_stage": 0}, {"workload": make_workload(optimizer=Optimizer(exp_avg="bf16"))}),
    "megatron-offload-sharded": ({"zero_stage": 0}, {"workload": make_workload(offload=Offload(optimizer=0.5))}),
    "megatron-module-offload": ({}, {"workload": make_workload(offload=Offload(modules=("attn_proj",)))}),
}  # fmt: skip
# Arithmetic ties this rule to another: it cannot be broken alone.
WITH_OTHERS = {
    "torchtitan-ep-mesh": {"expert-grid-product"},
    "muon-without-adapters": {"megatron-lm-no-lora"},
    "split-needs-pp": {"megatron-schedule"},
    "two-way-micro-batches": {"megatron-schedule"},
}
BREAKS["muon-without-adapters"] = ({}, {"workload": make_workload(optimizer=MUON, lora=Lora(rank=8))})


def scenario(changes: dict[str, Any]) -> dict[str, Any]:
    """The four records of a case; named models are built from the toy."""
    out: dict[str, Any] = {
        "model": make_model(),
        "cluster": make_cluster(),
        "software": make_software(),
        "workload": make_workload(),
    } | changes
    model = make_model()
    attention = model.layers[0].attention
    named = {
        "eight heads": replace(attention, heads=8, kv_heads=8),
        "twelve KV heads": replace(attention, heads=48, kv_heads=12),
    }
    if out["model"] == "nine layers":
        out["model"] = replace(model, layers=model.layers[:1] * 9)
    elif isinstance(out["model"], str):
        chosen = named[out["model"]]
        out["model"] = replace(model, layers=tuple(replace(x, attention=chosen) for x in model.layers))
    if out["software"] == "fsdp2":
        out["software"] = replace(make_software(), trainer="megatron-lm fsdp2")
    return out


def target_of(rule: str) -> str:
    """The first target whose list holds the rule; rules of the layout are asked of Megatron-LM."""
    named = (name for name, rules in TARGETS.items() if name != "layout" and rule in {r.id for r in rules})
    return next(named)


def test_the_good_plan_breaks_nothing() -> None:
    assert set(BASES) == set(TARGETS)
    for target, (plan, world) in BASES.items():
        assert check(plan, **scenario(world), target=target) == [], target


@pytest.mark.parametrize("rule", sorted({r.id for rules in TARGETS.values() for r in rules}))
def test_one_violation_each(rule: str) -> None:
    changes, world = BREAKS[rule]
    target = target_of(rule)
    base, own = BASES[target]
    found = check(replace(base, **changes), **scenario(own | world), target=target)
    assert {v.rule for v in found} - WITH_OTHERS.get(rule, set()) == {rule}
    broken = next(v for v in found if v.rule == rule)
    assert broken.what and broken.where and broken.remedy and rule in str(broken)


def test_the_reference_lists_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/rules.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    known = {rule.id: rule for rules in TARGETS.values() for rule in rules}
    assert set(rows) == {*known, "stage-sizes"}
    for name, rule in known.items():
        assert rule.text in rows[name] and rule.source in rows[name], name


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_rule_has_a_source_and_its_own_words(target: str) -> None:
    rules = TARGETS[target]
    for rule in rules:
        assert rule.source and rule.version and rule.text and rule.remedy and rule.where
    assert len({r.id for r in rules}) == len({r.text for r in rules}) == len(rules)


def test_check_lists_every_broken_rule_at_once() -> None:
    plan = replace(GOOD, dp=3, edp=5, micro_batch_seqs=7, recompute=("mla_up_proj",))
    rules = {v.rule for v in check(plan, **scenario({}))}
    assert rules == {"world-product", "expert-grid-product", "batch-over-dp", "recompute-module-present"}


def test_explicit_stages_replace_the_even_split() -> None:
    nine = scenario({"model": "nine layers"})
    assert check(replace(GOOD, stages=(4, 5)), **nine, target="megatron-lm") == []
    found = check(replace(GOOD, stages=(4, 4, 2)), **nine, target="megatron-lm")
    assert [v.rule for v in found] == ["stage-sizes", "stage-sizes"]


def test_dense_models_take_no_expert_degrees() -> None:
    plan = replace(GOOD, ep=2, edp=4)
    assert [v.rule for v in check(plan, **scenario({"model": make_dense()}))] == ["experts-over-ep"]


def test_an_unknown_target_is_a_user_error() -> None:
    with pytest.raises(UserError, match="megatron-lm"):
        rules_of("no-such-trainer")


@pytest.mark.parametrize("target", sorted(TARGETS))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), overlap=st.booleans(), p2p=st.booleans())
def test_columns_and_single_plans_agree(target: str, seed: int, overlap: bool, p2p: bool) -> None:
    """A row survives exactly when `check` finds nothing, and counts for the first rule it breaks."""
    world = scenario({"software": make_software(a2a_overlap=overlap, p2p_overlap=p2p)})
    ctx = context(**world)
    rules = rules_of(target)
    blocks = list(space(world["model"], world["cluster"], world["workload"], None, world["software"]))
    rng = np.random.default_rng(seed)
    block = blocks[int(rng.integers(len(blocks)))]
    block = block.take(rng.integers(0, len(block), size=25))
    mask, lost = apply(block, ctx, rules)
    firsts: dict[str, int] = {}
    for i in range(len(block)):
        broken = violations(block.plan(i), ctx, rules)
        assert bool(mask[i]) == (not broken)
        if broken:
            firsts[broken[0].rule] = firsts.get(broken[0].rule, 0) + 1
    assert firsts == lost


def test_apply_counts_every_row_once() -> None:
    plans = [GOOD, replace(GOOD, dp=3), replace(GOOD, dp=3, edp=7), replace(GOOD, micro_batch_seqs=5)]
    mask, lost = apply(columns_of(plans)[0], context(**scenario({})), rules_of("layout"))
    assert list(mask) == [True, False, False, False]
    assert lost == {"world-product": 2, "batch-over-dp": 1}


def test_recompute_by_operator_stands_alone_and_needs_a_trainer_that_does_it() -> None:
    model, cluster, work = make_dense(), make_cluster(), make_workload()
    rule = next(rule for rule in rules_of("layout") if rule.id == "recompute-known")

    def allowed(recompute: tuple[str, ...], by_operator: bool) -> bool:
        software = replace(make_software(), selective_by_operator=by_operator)
        block = columns_of([replace(GOOD, recompute=recompute)])[0]
        return bool(np.all(rule.ok(block, context(model, cluster, software, work))))

    assert allowed(("operators",), True)
    assert not allowed(("operators",), False)
    assert not allowed(("mlp", "operators"), True)
    assert allowed(("mlp",), False)
