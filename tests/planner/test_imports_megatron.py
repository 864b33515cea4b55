"""Flags become the plan they came from, scripts are read and not run, and traps of the parser are said."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.catalogue import software
from hwprofiles.errors import UserError
from planner.export import export_plan
from planner.imports.layout_text import stages_of
from planner.imports.megatron import Launch, read_launch, world_of
from planner.imports.shell_words import flags_of, words_of
from planner.judge import judge
from sim.families import load_model
from sim.mesh import RankMap
from sim.plan import Plan
from sim.scenario import Scenario
from tests.planner.handed import handover

MODEL = load_model("Qwen3-30B-A3B")
BASE = software("megatron-lm", device="H100", model=MODEL.name, arch="moe")


def read(text: str, tmp_path: Path, world: int = 32) -> Launch:
    path = tmp_path / "run.sh"
    path.write_text(text)
    return read_launch(str(path), MODEL, BASE, world)


PLANS = (
    Plan(dp=32, ep=8, edp=4),
    Plan(tp=2, pp=4, vpp=3, dp=4, ep=8, edp=1, schedule="interleaved", recompute=("moe_act", "layernorm")),
    Plan(tp=4, cp=2, dp=4, ep=4, edp=4, etp=2, recompute=("full",), micro_batch_seqs=2),
    Plan(pp=4, vpp=7, dp=8, ep=8, edp=1, schedule="interleaved", account_ends=True),
    Plan(pp=2, dp=16, ep=8, edp=2, stages=(25, 23)),
    Plan(tp=2, dp=16, ep=8, edp=4, zero_stage=3),
    Plan(tp=2, dp=16, ep=8, edp=4, zero_stage=3, fsdp_shard=8),
    Plan(tp=2, dp=16, ep=8, edp=4, zero_stage=0),
)
SWITCHES: tuple[dict[str, Any], ...] = (
    {},
    {"dispatcher": "deepep", "shared_expert_overlap": False, "dp_overlap_grad": False},
    {"grad_dtype": "bf16", "precision_aware_optimizer": True, "fused_loss": False, "permute_fusion": False},
)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.label()} z{p.zero_stage} s{p.fsdp_shard}")
@pytest.mark.parametrize("switches", SWITCHES, ids=["plain", "deepep", "fused"])
def test_plan_to_flags_to_plan(plan: Plan, switches: dict[str, Any], tmp_path: Path) -> None:
    order = "tp-cp-ep-pp-dp" if plan.pp == 1 and plan.zero_stage < 2 else "tp-cp-ep-dp-pp"
    asked = handover(plan, software=replace(BASE, **switches), ranks=RankMap(order=order))
    files = export_plan(asked, "megatron-lm").files
    path = tmp_path / "all.sh"
    path.write_text(files["megatron_args.sh"] + files["launch.sh"])
    back = read_launch(str(path), MODEL, BASE, 32)
    assert (back.plan, back.ranks, back.workload) == (plan, asked.ranks, asked.workload)
    assert world_of(str(path)) == 32
    kept = ("dispatcher", "grad_dtype", "fused_loss", "permute_fusion", "sequence_parallel")
    assert all(getattr(back.software, name) == getattr(asked.software, name) for name in kept)


def test_a_script_is_read_with_variables_arrays_and_comments(tmp_path: Path) -> None:
    text = """#!/bin/bash
    TP=2  # tensor
    export EP="8"
    PP=${PIPELINE:-2}
    ARGS=(
      --tensor-model-parallel-size $TP --sequence-parallel   # --pipeline-model-parallel-size 16
      --expert-model-parallel-size=${EP}
    )
    torchrun --nproc-per-node 8 pretrain_gpt.py "${ARGS[@]}" --pipeline-model-parallel-size ${PP} \\
      --micro-batch-size 1 --global-batch-size 64 --seq-length 4096 --num-experts 128 --use-distributed-optimizer \\
      --moe-token-dispatcher-type alltoall --num-layers 48 --num-layers-per-virtual-pipeline-stage 12
    """
    launch = read(text, tmp_path)
    assert launch.plan == Plan(
        tp=2, pp=2, vpp=2, dp=8, ep=8, etp=2, edp=1, schedule="interleaved", micro_batch_seqs=1
    )  # fmt: skip
    assert any("expert-tensor-parallel-size" in note for note in launch.notes)


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = (
        f"X=$(touch {mark})\n`touch {mark}`\n--micro-batch-size 1 --global-batch-size 32 --seq-length $(touch {mark})\n"
    )
    with pytest.raises(UserError, match="seq-length"):
        read(text, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo hello", "no flag of Megatron-LM"),
        ("--micro-batch-size x --seq-length 4096", "not a whole number"),
        ("--micro-batch-size 1", "no --seq-length"),
        ("--micro-batch-size 1 --seq-length 4096 --recompute-granularity full", "recompute-method"),
        ("--micro-batch-size 1 --seq-length 4096 --recompute-activations --recompute-method block", "selective"),
        ("--tensor-model-parallel-size 3 --seq-length 4096", "does not divide 32"),
        ("--micro-batch-size 1 --seq-length 4096 --num-layers 24", "which has 48"),
        ("--micro-batch-size 1 --seq-length 4096 --pipeline-model-parallel-layout 'Et(|L'", "not closed"),
        ("--micro-batch-size 1 --seq-length 4096 --recompute-granularity selective --recompute-modules x", "use core"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(text, tmp_path)


def test_files_are_bounded_and_text(tmp_path: Path) -> None:
    big, binary = tmp_path / "big.sh", tmp_path / "binary.sh"
    big.write_text("#" * (2**20 + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (big, binary, tmp_path / "none.sh", tmp_path):
        with pytest.raises(UserError):
            read_launch(str(path), MODEL, BASE, 32)
    with pytest.raises(UserError, match="too long"):
        stages_of("((((t*9999)*9999)*9999)*9999)")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="-= \n'\"\\$(){}#ab1*|tEL", max_size=80))
def test_any_text_is_words_or_a_user_error(text: str) -> None:
    flags_of(words_of(text))
    with contextlib.suppress(UserError):
        assert all(n >= 0 for n in stages_of(text))


def test_judging_the_best_plan_finds_no_gap_and_a_worse_one_a_change_that_helps() -> None:
    asked = handover(Plan(tp=2, pp=4, dp=4, ep=4, edp=2, recompute=("full",)), software=BASE)
    scenario = Scenario(
        model=MODEL, cluster=asked.cluster, software=BASE, workload=asked.workload, plan=asked.plan
    )  # fmt: skip
    slow = judge(scenario)
    assert slow.gap > 0.1 and slow.changes[0].gain > 0
    assert [c.step_s for c in slow.changes] == sorted(c.step_s for c in slow.changes)
    first = slow.best.plans[0].report
    best = judge(replace(scenario, plan=first.plan, ranks=first.ranks))
    assert best.gap == 0.0
    assert not [c for c in best.changes if not c.change.startswith("add --")]
    with pytest.raises(UserError, match="megatron-schedule"):
        judge(replace(scenario, plan=replace(asked.plan, schedule="gpipe")))
