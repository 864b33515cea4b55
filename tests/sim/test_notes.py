"""What is said beside the figures: modules with nothing to offload, cut documents, a precision that backfires."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprofiles import catalogue
from sim.families import load_model
from sim.lengths import read_lengths
from sim.notes import notes
from sim.plan import Plan
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.workload import Offload, Workload, workload_fields, workload_from


def scenario(model: str, plan: Plan, *, seq: int = 4096, software: str = "megatron-lm", **asked: Any) -> Scenario:
    return Scenario(
        model=load_model(model), cluster=catalogue.cluster("dgx-h100", gpus=plan.num_devices),
        software=catalogue.software(software, device="H100"), plan=plan,
        workload=Workload(seq_tokens=seq, global_batch_seqs=2 * plan.dp, **asked),
    )  # fmt: skip


DENSE, MOE = Plan(dp=8, edp=8), Plan(ep=8, dp=8)


@pytest.mark.parametrize(
    ("recompute", "modules", "idle"),
    [
        (("full",), ("core_attn",), "core_attn"),
        (("full",), ("core_attn", "moe_act"), "core_attn+moe_act"),
        (("moe_act",), ("core_attn", "moe_act"), "moe_act"),
        ((), ("core_attn", "moe_act"), ""),
    ],
)
def test_modules_that_keep_nothing_are_named(recompute: tuple[str, ...], modules: tuple[str, ...], idle: str) -> None:
    s = scenario("Qwen3-30B-A3B", replace(MOE, recompute=recompute), offload=Offload(modules=modules))
    said, run = notes(s), Simulation(s)
    moved = sum(float(run.step.moved_bytes(content)) for row in run.contents for content in row)
    assert (len(said) == 1 and f"modules={idle} sends nothing" in said[0]) if idle else said == ()
    assert (moved == 0.0) == (idle == "+".join(modules))


def test_a_module_the_model_lacks_is_named_too() -> None:
    (said,) = notes(scenario("Llama3-8B", DENSE, offload=Offload(modules=("expert_fc1",))))
    assert "expert_fc1" in said and "in this model" in said


def test_documents_cut_at_the_sequence_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    file.write_text("1000\n4096\n6096\n8096\n")
    lengths = read_lengths(str(file), 4096)
    assert (lengths.cut, lengths.lost_tokens) == (2, 6000.0)
    (said,) = notes(scenario("Llama3-8B", DENSE, lengths=lengths))
    share = 6000 / (1000 + 4096 + 6096 + 8096)
    assert "2 of 4 documents (50.0%)" in said and f"{share:.1%} of all tokens" in said
    assert notes(scenario("Llama3-8B", DENSE, lengths=read_lengths("fixed:4096", 4096))) == ()
    work = Workload(seq_tokens=4096, global_batch_seqs=8, lengths=lengths)
    assert workload_from(workload_fields(work)) == work


@pytest.mark.parametrize(
    ("model", "plan", "seq", "dear"),
    [("Qwen3-30B-A3B", MOE, 1024, True), ("Llama3-8B", DENSE, 8192, False), ("Mixtral-8x7B", MOE, 4096, False)],
)
def test_a_precision_that_costs_more_than_it_gains_is_said(model: str, plan: Plan, seq: int, dear: bool) -> None:
    """Small experts, launched one by one: the casts and launches of 8 bits. The step says the same."""
    low = scenario(model, plan, seq=seq, precision="fp8")
    wide = replace(low, workload=replace(low.workload, precision="bf16"))
    slower = simulate(low, trace=False).step_s.value > simulate(wide, trace=False).step_s.value
    said = notes(low)
    assert slower == dear and any("fp8 costs more than it gains" in text for text in said) == dear
    assert notes(wide) == ()


def test_where_the_loss_comes_from_adds_up() -> None:
    (said,) = notes(scenario("Qwen3-30B-A3B", MOE, seq=1024, precision="fp8"))
    words = said.replace("(", " ").replace(",", " ").split()
    low, wide, *parts = [float(words[i - 1]) for i, word in enumerate(words) if word == "ms"]
    assert len(parts) == 3 and sum(parts) == pytest.approx(low - wide, rel=0.02)
