"""Plan -> file -> the same plan, drawn from all that Megatron-LM can express and not from a list."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.export import Handover
from planner.rules import check
from sim.mesh import DEFAULT_MAP
from tests.planner.drawn import drawn, profile
from tests.planner.test_imports_round_trip import back, laid

NARROW = ("fp8", "fp8_block", "mxfp8", "nvfp4")


def said_of(asked: Handover, target: str) -> dict[str, Any]:
    """Switches of the profile that the files decide, with the value they must come back with."""
    s, plan, work = asked.software, asked.plan, asked.workload
    out: dict[str, Any] = {
        "grad_dtype": s.grad_dtype, "fused_loss": s.fused_loss, "cuda_graph": s.cuda_graph,
        "flash_attention": s.flash_attention, "activation_offload_layers": s.activation_offload_layers,
        "sequence_parallel": s.sequence_parallel,
    }  # fmt: skip
    out["dp_overlap_grad"] = s.dp_overlap_grad or plan.zero_stage == 3
    out["dp_overlap_param"] = plan.zero_stage == 3 or (s.dp_overlap_param and plan.zero_stage > 0)
    out["tp_overlap"] = s.tp_overlap and plan.tp > 1
    stated = any((work.optimizer.main_params, work.optimizer.exp_avg, work.offload.optimizer))
    out["precision_aware_optimizer"] = plan.zero_stage > 0 and (s.precision_aware_optimizer or stated)
    if plan.vpp > 1:
        out["p2p_overlap"] = s.p2p_overlap
    if s.fused_loss:  # Megatron-LM refuses the one on 16-bit logits, and the notes say so
        out["loss_fp32_logits"] = s.loss_fp32_logits or target == "megatron-lm"
    if work.precision == "fp8":
        out["fp8_amax"] = s.fp8_amax
    if work.precision in NARROW and work.precision != "nvfp4" and target == "megatron-lm":
        out["fp8_param_gather"] = s.fp8_param_gather and plan.zero_stage == 1
    if asked.model.is_moe:
        out |= {
            "dispatcher": s.dispatcher, "permute_fusion": s.permute_fusion, "capacity_factor": s.capacity_factor,
            "router_padding": s.router_padding,
            "a2a_overlap": s.a2a_overlap, "delay_wgrad": s.delay_wgrad and s.a2a_overlap,
        }  # fmt: skip
        if any(layer.moe and layer.moe.shared_ffn_dim for layer in asked.model.layers):
            out["shared_expert_overlap"] = s.shared_expert_overlap
    return out


@pytest.mark.parametrize("target", ["megatron-lm", "megatron-bridge"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_what_is_drawn_comes_back(target: str, seed: int) -> None:
    asked = drawn(seed)
    parts = (asked.plan, asked.model, asked.cluster, asked.software, asked.workload)
    if check(*parts, target=target, ranks=asked.ranks):
        asked = replace(asked, ranks=DEFAULT_MAP)  # Bridge shards parameters in one rank order alone
    with tempfile.TemporaryDirectory() as folder:
        launch = back(asked, target, Path(folder), base=profile(asked.model.name))
    want, got = laid(asked.plan, asked, target), laid(launch.plan, asked, target)
    if not asked.model.is_moe:  # the experts' mesh of a dense model means nothing
        want = replace(want, ep=got.ep, etp=got.etp, edp=got.edp)
    assert got == want
    work, ramp = asked.workload, asked.workload.ramp_up
    if target == "megatron-bridge" and ramp is not None:  # it ramps up by iterations alone
        work = replace(work, ramp_up=replace(ramp, train_samples=0))
    assert (launch.workload, launch.ranks) == (work, asked.ranks)
    said = said_of(asked, target)
    assert {name: getattr(launch.software, name) for name in said} == said


def test_the_draws_reach_every_choice() -> None:
    """None of the options above is left out by the rules: of 200 draws each value is there."""
    seen: dict[str, set[Any]] = {}
    for seed in range(200):
        asked = drawn(seed)
        for part in (asked.plan, asked.workload, asked.software):
            for field in fields(part):
                seen.setdefault(field.name, set()).add(getattr(part, field.name))
        seen.setdefault("order", set()).add(asked.ranks.order)
        seen.setdefault("layout", set()).add((asked.plan.pp > 1, asked.plan.vpp > 1, asked.plan.stages is not None))
    assert seen["precision"] == {"bf16", *NARROW, "fp16"} and seen["zero_stage"] == {0, 1, 2, 3}
    assert seen["dispatcher"] == {"alltoall", "allgather", "deepep", "hybridep"} and len(seen["order"]) == 2
    assert len(seen["cuda_graph"]) == 6 and len(seen["layout"]) == 5 and {True, False} == seen["with_mtp"]
    assert {name for modules in seen["recompute"] for name in modules} >= {"full", "mla_up_proj", "shared_experts"}
    assert {o.name for o in seen["optimizer"]} == {"adam", "sgd", "muon"} and len(seen["offload"]) > 5
    assert {bool(ramp) for ramp in seen["ramp_up"]} == {True, False} and len(seen["micro_batch_group"]) > 3
    switches = ("a2a_overlap", "delay_wgrad", "tp_overlap", "p2p_overlap", "fused_loss", "flash_attention")
    assert all(seen[name] == {True, False} for name in switches)
