"""Plan -> file of a trainer -> the same plan, over the plans that the real parsers are asked about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.catalogue import software
from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner.export import Handover, export_plan
from planner.imports.launch import Launch, read_any
from planner.imports.trees import read_tree
from planner.judge import judge
from sim.families import load_model
from sim.plan import Plan
from sim.scenario import Scenario
from tests.exports.plans import handovers
from tests.planner.handed import handover

FILES = {
    "megatron-lm": "launch.sh",
    "megatron-bridge": "overrides.yaml",
    "deepspeed": "ds_config.json",
}
KEPT = ("dispatcher", "grad_dtype", "fused_loss", "permute_fusion", "sequence_parallel", "dp_overlap_grad")
MODEL = load_model("Qwen3-30B-A3B")
BASE = software("megatron-lm", device="H100", model=MODEL.name, arch="moe")


def back(asked: Handover, target: str, folder: Path, base: SoftwareProfile | None = None) -> Launch:
    """What is read of the export of a plan. base: the profile whose switches the files change; None: the plan's."""
    made = dict(export_plan(asked, target).files)
    for name, text in made.items():
        (folder / name).write_text(text)
    path = folder / FILES[target]
    world = asked.plan.num_devices
    return read_any(str(path), asked.model, base or asked.software, world, asked.workload.seq_tokens)


def laid(plan: Plan, asked: Handover, target: str) -> Plan:
    """The plan with its stages counted out: there are two ways to ask for some; DeepSpeed's file has none."""
    if plan.pp == 1:
        return replace(plan, account_ends=False)
    if target == "deepspeed":
        return replace(plan, stages=None, account_ends=False)
    with_stages = handover(
        plan, model=asked.model.name, cluster=asked.cluster.name, software=asked.software,
        with_mtp=asked.workload.with_mtp,
    )  # fmt: skip
    return replace(plan, stages=with_stages.stages, account_ends=False)


@pytest.mark.parametrize("target", FILES)
def test_every_plan_comes_back(target: str, tmp_path: Path) -> None:
    plans = handovers(target)
    assert len(plans) >= 200
    for asked in plans:
        launch = back(asked, target, tmp_path)
        want = laid(asked.plan, asked, target)
        if not asked.model.is_moe:  # the experts' mesh of a dense model means nothing
            want = replace(want, ep=launch.plan.ep, etp=launch.plan.etp, edp=launch.plan.edp)
        assert laid(launch.plan, asked, target) == want
        work = asked.workload
        if target == "megatron-bridge" and work.ramp_up is not None:  # which ramps up by iterations alone
            work = replace(work, ramp_up=replace(work.ramp_up, train_samples=0))
        assert (launch.workload, launch.ranks.order, launch.target) == (work, asked.ranks.order, target)
        if target != "deepspeed":
            kept = KEPT if asked.model.is_moe else KEPT[1:3]
            assert [getattr(launch.software, k) for k in kept] == [getattr(asked.software, k) for k in kept]


def read(name: str, text: str, folder: Path, seq: int | None = 4096, world: int = 32) -> Launch:
    path = folder / name
    path.write_text(text)
    return read_any(str(path), MODEL, BASE, world, seq)


def test_what_a_yaml_leaves_to_the_recipe_is_said(tmp_path: Path) -> None:
    text = "model:\n  expert_model_parallel_size: 8\n  seq_length: 4096\ntrain: {micro_batch_size: 1}\n"
    launch = read("a.yaml", text, tmp_path)
    assert launch.plan == Plan(dp=32, ep=8, edp=4, zero_stage=0)
    assert launch.software.dispatcher == BASE.dispatcher and launch.software.fused_loss == BASE.fused_loss
    assert any("left to the recipe, taken as 1: tensor_model_parallel_size" in note for note in launch.notes)
    assert any("mixed_precision" in note for note in launch.notes)
    off = read("a.yaml", text + "comm_overlap: {tp_comm_overlap: false}\nddp: {overlap_grad_reduce: false}\n", tmp_path)
    assert not off.software.dp_overlap_grad and BASE.dp_overlap_grad


def test_a_layout_may_name_its_modules(tmp_path: Path) -> None:
    rows = [["embedding", *["decoder"] * 25], [*["decoder"] * 23, "loss"]]
    text = json.dumps(
        {
            "model": {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": rows, "seq_length": 4096},
            "train": {"micro_batch_size": 1},
        }
    )
    assert read("a.yaml", text, tmp_path).plan.stages == (25, 23)
    with pytest.raises(UserError, match="names brain"):
        read("a.yaml", text.replace("loss", "brain"), tmp_path)


def test_what_deepspeed_skips_silently_is_said(tmp_path: Path) -> None:
    tree = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3, "zero_optimisation": {"stage": 3},
        "fp16": {"enabled": True},
    }  # fmt: skip
    launch = read("ds.json", json.dumps(tree), tmp_path)
    assert launch.plan.zero_stage == 0 and launch.workload.global_batch_seqs == 2 * 3 * 32
    assert any("did you mean zero_optimization" in note for note in launch.notes)
    assert launch.workload.precision == "fp16"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "a: &x [1]\nb: *x\n", "aliases"),
        ("a.yaml", "a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "aliases"),
        ("a.yaml", "!!python/object/apply:os.system ['true']\n", "not YAML"),
        ("a.yaml", "a: " + "[" * 100 + "]" * 100, "deeper than"),
        ("a.yaml", "- 1\n", "no mapping"),
        ("a.yaml", "other: 1\n", "no key of Megatron-Bridge"),
        ("a.yaml", "model: 3\ntrain: {micro_batch_size: 1}\n", "not a mapping"),
        ("a.yaml", "model: {seq_length: 4096}\ntrain: {global_batch_size: 8}\n", "no train.micro_batch_size"),
        ("a.yaml", "model: {seq_length: 9, num_layers: 3}\ntrain: {micro_batch_size: 1}\n", "which has 48"),
        ("ds.json", "{", "not JSON"),
        ("ds.json", "[" * 100_000, "not JSON"),
        ("ds.json", "{}", "no section of DeepSpeed"),
        ("ds.json", '{"train_batch_size": "many"}', "not a whole number"),
        ("ds.json", '{"train_batch_size": 64, "tensor_parallel": {"autotp_size": 3}}', "does not divide 32"),
        ("ds.json", '{"train_batch_size": 64, "sequence_parallel_size": 2}', "Ulysses"),
        (
            "ds.json",
            '{"train_batch_size": 65, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}',
            "is not micro 1 x steps 2 x dp 32",
        ),
    ],
)
def test_what_cannot_be_read_is_said(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(name, text, tmp_path)


def test_a_deepspeed_json_needs_a_sequence_length(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seq-len"):
        read("ds.json", '{"train_batch_size": 64}', tmp_path, seq=None)


def test_trees_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text('{"a": "' + "x" * 2**20 + '"}')
    with pytest.raises(UserError, match="larger than"):
        read_tree(str(path))


def test_a_deepspeed_run_is_judged_by_its_own_rules() -> None:
    asked = handover(Plan(dp=32, ep=8, edp=4, recompute=("full",)), software=replace(BASE, shared_expert_overlap=False))
    scenario = Scenario(
        model=MODEL, cluster=asked.cluster, software=asked.software, workload=asked.workload, plan=asked.plan
    )  # fmt: skip
    found = judge(scenario, target="deepspeed")
    assert found.gap >= 0 and not [c for c in found.changes if "--" in c.change]
    with pytest.raises(UserError, match="deepspeed-etp"):
        judge(replace(scenario, plan=replace(asked.plan, tp=2, dp=16, etp=2, edp=2)), target="deepspeed")
