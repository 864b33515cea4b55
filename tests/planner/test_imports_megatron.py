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
from planner.imports import shell_script
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
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "launch.sh"
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


NUMBERS = "--micro-batch-size 1 --global-batch-size 64 --seq-length 4096"


@pytest.mark.parametrize(
    ("text", "degrees"),
    [
        ('A=(--tensor-model-parallel-size 2)\nrun --tensor-model-parallel-size 4 "${A[@]}"', (2, 1)),  # the last counts
        ('A=(--tensor-model-parallel-size 2)\nrun "${A[@]}" --tensor-model-parallel-size 4', (4, 1)),
        ("A=(--tensor-model-parallel-size 2\n)\nA+=(\n--expert-model-parallel-size 8)\nrun ${A[*]}", (2, 8)),
        ('S=(--tensor-model-parallel-size 2)\nL=(--tensor-model-parallel-size 8)\nrun "${S[@]}"', (2, 1)),
        ('A=(--tensor-model-parallel-size 2)\nB=("${A[@]}" --expert-model-parallel-size 8)\nrun ${B[@]} "$@"', (2, 8)),
        ('A=(--tensor-model-parallel-size 2)\nB=("${A[@]}" --expert-model-parallel-size 8)', (2, 8)),  # none is used
        ('A="\n  --tensor-model-parallel-size 2\n  --expert-model-parallel-size ${E:-8}\n"\nrun $A', (2, 8)),
        ('A="--tensor-model-parallel-size ${1:-2}"\nB="$A --expert-model-parallel-size 8"', (2, 8)),
        ('A=(--tensor-model-parallel-size 2)\nA=("${A[@]}" --expert-model-parallel-size 8)\nrun "${A[@]}"', (2, 8)),
        ('A=(--recompute-granularity selective --recompute-modules mlp)\nB=(--expert-model-parallel-size 8)\n'
         'run "${A[@]}" "${B[@]}" ${NOWHERE[@]} $@', (1, 8)),
    ],
)  # fmt: skip
def test_arrays_and_texts_count_where_they_are_used(text: str, degrees: tuple[int, int], tmp_path: Path) -> None:
    plan = read(f"{text} {NUMBERS}" if "run " in text else f"{text}\nC=({NUMBERS})", tmp_path).plan
    assert (plan.tp, plan.ep) == degrees


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('A="xx"\n' + 'A="$A$A"\n' * 60, "stand for more than"),
        ('A="' + "x" * 4000 + '"\nrun ' + "$A " * 1000, "stand for more than"),
        ("A=(x x)\n" + 'A+=("${A[@]}")\n' * 60, "more than 50000 words"),
        ("A=(" + "x " * 1000 + ")\nrun " + "${A[@]} " * 1000, "more than 50000 words"),
        ("source ( " + "a " * 100_000, "more than 50000 words"),
        ("A=(x) " * 60_000, "more than 50000 words"),
    ],
)
def test_what_grows_without_end_is_refused_at_once(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(text, tmp_path)


SOURCES = (
    "source args.sh", ". ./args.sh", 'source "$HERE/args.sh"', '. "${HERE}/args.sh"', "source $(dirname $0)/args.sh",
    'source "$(dirname "${BASH_SOURCE[0]}")/args.sh"', "cd x && source args.sh; echo", "if true; then . args.sh; fi",
)  # fmt: skip


@pytest.mark.parametrize("line", SOURCES)
def test_sourced_files_count_in_their_place(line: str, tmp_path: Path) -> None:
    (tmp_path / "args.sh").write_text(f"TP=2\nARGS=(--tensor-model-parallel-size $TP {NUMBERS})\nsource more/args.sh\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "args.sh").write_text("ARGS+=(--expert-model-parallel-size 8)\n. args.sh\n. next.sh\n")
    (tmp_path / "more" / "next.sh").write_text("UNUSED=(--context-parallel-size 2)\n")
    text = f'HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"\nTP=8\n{line}\nrun --x $TP "${{ARGS[@]}}"\n'
    launch = read(text, tmp_path)
    assert (launch.plan.tp, launch.plan.ep, launch.plan.cp) == (2, 8, 1)
    assert any("UNUSED: nothing uses it" in note for note in launch.notes)
    assert any("being read already" in note for note in launch.notes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("source gone.sh", "gone.sh: no such file"),
        ("source ../secret.sh", "outside the folder"),
        ("source /etc/hostname", "outside the folder"),
        ("source link.sh", "outside the folder"),
        ("source <(cat args.sh)", "only a shell can say"),
        ("source $(cd .. && echo a/b)/x.sh", "only a shell can say"),
        ("source 'a\x1b[31m'.sh", "source a?"),
        (f"source {'x' * 5000}", "no name of a file"),
        ("source loop.sh", "no name of a file"),
        ("source 'a\0b'", "source a?b"),
        ("source .", "no such file"),
    ],
)
def test_what_is_not_followed_is_said(line: str, said: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.sh").write_text("A=(--tensor-model-parallel-size 2)\n")
    (inside / "link.sh").symlink_to(tmp_path / "secret.sh")
    (inside / "loop.sh").symlink_to(inside / "loop.sh")
    launch = read(f"{line}\nrun {NUMBERS} ${{A[@]}}\n", inside)
    assert launch.plan.tp == 1 and any(said in note for note in launch.notes), launch.notes
    with pytest.raises(UserError, match="no flag of Megatron-LM"):
        read(f"{line}\n", inside)


def test_sourced_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(6):
        (tmp_path / f"s{n}.sh").write_text(f"source s{n + 1}.sh\n")
    with pytest.raises(UserError, match="deeper than 4"):
        read("source s0.sh\n", tmp_path)
    (tmp_path / "s6.sh").write_text("#" * 1000)
    with pytest.raises(UserError, match="more than 16 files"):
        read("source s6.sh\n" * 17, tmp_path)
    monkeypatch.setattr(shell_script, "MAX_SCRIPT_BYTES", 2000)
    with pytest.raises(UserError, match="are beyond 1 KiB"):
        read("source s6.sh\n" * 2, tmp_path)
    (tmp_path / "s6.sh").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="not a text file"):
        read("source s6.sh\n", tmp_path)


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = (
        f"X=$(touch {mark})\n`touch {mark}`\nsource <(touch {mark})\n. $(touch {mark})\n"
        f"--micro-batch-size 1 --global-batch-size 32 --seq-length $(touch {mark})\n"
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
