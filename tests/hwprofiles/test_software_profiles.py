"""Trainer releases: known states, resolution order, a run's own columns, bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.catalogue import default_software, names, software
from hwprofiles.errors import UserError
from hwprofiles.software_profiles import GRAPH_MODULES, override_from_columns, precision_key, software_for_run
from hwprofiles.specs import SoftwareProfile

NAMES = names("software")
CASES = [
    {"device": device, "arch": arch, "precision": precision}
    for device in (None, "A100", "H100", "B200", "GB200")
    for arch in ("moe", "dense")
    for precision in ("bf16", "fp8", "mxfp8", "nvfp4")
]


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_consistent_for_every_case(name: str) -> None:
    for case in CASES:
        made = software(name, **case)
        assert made.name == name
        if made.cuda_graph == ("full_iteration",) and case["arch"] == "moe":
            assert not made.host_sync, f"{case}: a whole captured iteration cannot wait for the host"
        if made.delay_wgrad:
            assert made.a2a_overlap, case
        if made.capacity_factor is not None:
            assert not made.host_sync, case


def _bridge(release: str, model: str, device: str, precision: str, arch: str = "moe") -> SoftwareProfile:
    return software(f"megatron-bridge-{release}", device=device, model=model, arch=arch, precision=precision)


def test_history_of_deepseek_v3_on_gb200() -> None:
    states = {r: _bridge(r, "DeepSeek-V3", "GB200", "MXFP8") for r in ("25.09", "25.11", "26.02", "26.06", "26.08")}
    assert states["25.09"].capacity_factor == 1.0
    assert (states["25.09"].dispatcher, states["25.09"].cuda_graph) == ("alltoall", ())
    assert (states["25.11"].dispatcher, states["25.11"].capacity_factor) == ("hybridep", None)
    assert states["25.11"].cuda_graph == ("moe_router", "moe_preprocess")
    assert states["26.02"].cuda_graph == ("attn", "moe_router", "moe_preprocess")
    assert not states["26.02"].a2a_overlap
    for release in ("26.06", "26.08"):
        late = states[release]
        assert late.cuda_graph == ("full_iteration",)
        assert late.fused_experts
        assert late.a2a_overlap
        assert late.delay_wgrad
        assert late.fp8_output_proj
        assert not late.host_sync


def test_states_that_depend_on_model_and_device() -> None:
    assert _bridge("25.09", "DeepSeek-V3", "H100", "FP8-CS").dispatcher == "deepep"
    assert _bridge("25.09", "DeepSeek-V3", "H100", "FP8-CS").capacity_factor is None
    assert _bridge("25.09", "Qwen3-30B-A3B", "H100", "FP8-CS").capacity_factor == 1.0
    assert _bridge("26.04.01", "DeepSeek-V3", "B200", "MXFP8").dispatcher == "deepep"
    assert _bridge("26.04.01", "Qwen3-235B-A22B", "B200", "MXFP8").cuda_graph == ()
    assert _bridge("26.06", "GPT-OSS-120B", "GB200", "BF16").fused_experts is False
    assert _bridge("26.06", "GPT-OSS-120B", "GB200", "MXFP8").fp8_attention is True
    assert _bridge("26.04", "Llama3-70B", "GB200", "FP8", "dense").activation_offload_layers == 40
    assert _bridge("26.06", "Llama3-70B", "GB200", "FP8", "dense").activation_offload_layers == 0
    assert _bridge("25.11", "Llama3-8B", "GB200", "MXFP8", "dense").cuda_graph == ("full_iteration",)
    assert _bridge("25.11", "Llama3-70B", "GB200", "MXFP8", "dense").cuda_graph == ()


def test_h200_and_h800_follow_h100_and_aliases_resolve() -> None:
    for device in ("H200", "h800", "H100-SXM5"):
        assert _bridge("25.11", "Qwen3-235B-A22B", device, "FP8") == _bridge("25.11", "Qwen3-235B-A22B", "H100", "fp8")


@pytest.mark.parametrize(
    ("framework", "version", "notes", "name"),
    [
        ("Megatron-Bridge (NeMo container)", "26.02.01", "", "megatron-bridge-26.02.01"),
        ("Megatron-Bridge / NeMo 26.04", "MLPerf v6.0", "", "mlperf-v6.0"),
        ("PyTorch NVIDIA Release 23.09", "MLPerf Training v5.1", "", "mlperf-v5.1"),
        ("Megatron-LM", "2021", "", "megatron-lm-2021"),
        ("Megatron-LM", "2022", "", "megatron-lm-seqpar-2022"),
        ("Megatron-LM (mcore)", "dev/main 2025-2026", "", "megatron-lm"),
        ("Megatron-Core", "TP + EP + DP; PyTorch 2.5.0, CUDA 12.6", "", "megatron-core-0.9"),
        ("NeMo", "25.04.rc2", "", "nemo-25.04"),
        ("NeMo AutoModel (PyTorch)", "main 2026-04-10", "", "nemo-automodel"),
        ("torchtitan", "2024-12", "eager", "torchtitan-2024-12"),
        ("torchtitan", "2024-12", "torch.compile", "torchtitan-2024-12-compile"),
        ("Composer/llm-foundry FSDP", "2024-01", "", "llm-foundry-2024-01"),
        ("MaxText", "2025", "", None),
    ],
)
def test_runs_find_their_profile(framework: str, version: str, notes: str, name: str | None) -> None:
    assert software_for_run(framework, version, notes=notes) == name


def test_defaults_follow_the_device() -> None:
    assert default_software("gb200") == "megatron-bridge-26.08"
    assert default_software("A100-40GB") == "megatron-lm"
    assert default_software("H200") == default_software("H100")


def test_columns_that_say_nothing_change_nothing() -> None:
    base = software("megatron-lm")
    columns = ("sw_cuda_graph_impl", "sw_dispatcher", "sw_dp_overlap", "sw_capacity_factor", "sw_paged_stash")
    for cell in ("", "na", "NA", None):
        assert override_from_columns(base, dict.fromkeys(columns, cell)) == base  # type: ignore[arg-type]
    assert override_from_columns(base, {}) == base


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        ({"sw_cuda_graph_impl": "none", "sw_cuda_graph_scope": "full_iteration"}, "cuda_graph", ()),
        (
            {"sw_cuda_graph_impl": "local(enable_cuda_graph)", "sw_cuda_graph_scope": "full"},
            "cuda_graph",
            ("full_iteration",),
        ),
        (
            {"sw_cuda_graph_impl": "transformer_engine", "sw_cuda_graph_scope": "moe_preprocess+attn+moe_router"},
            "cuda_graph",
            ("attn", "moe_router", "moe_preprocess"),
        ),
        ({"sw_dispatcher": "flex:hybridep"}, "dispatcher", "hybridep"),
        ({"dispatcher": "DeepEP"}, "dispatcher", "deepep"),
        ({"dispatcher": "alltoall", "sw_dispatcher": "flex:deepep"}, "dispatcher", "deepep"),
        ({"sw_fused_expert_path": "te_op_fuser+cutedsl_grouped_mlp"}, "fused_experts", True),
        ({"sw_fused_expert_path": "off"}, "fused_experts", False),
        ({"sw_capacity_factor": "1.0"}, "capacity_factor", 1.0),
        ({"sw_capacity_factor": "1.0"}, "host_sync", False),
        ({"sw_paged_stash": "on"}, "host_sync", False),
        ({"sw_paged_stash": "off"}, "host_sync", True),
        ({"sw_a2a_overlap": "on"}, "a2a_overlap", True),
        ({"sw_tp_comm_overlap": "on(ub_cfg)"}, "tp_overlap", True),
        ({"sw_tp_comm_overlap": "off(tp1)"}, "tp_overlap", False),
        ({"sw_dp_overlap": "param_gather"}, "dp_overlap_grad", False),
        ({"sw_dp_overlap": "grad_reduce+param_gather_in_opt_step"}, "dp_overlap_param", True),
        ({"sw_grad_reduce_fp32": "off"}, "grad_dtype", "bf16"),
        ({"sw_cpu_offload": "layers=40"}, "activation_offload_layers", 40),
        ({"sw_cpu_offload": "off(optimizer)"}, "optimizer_offload", False),
        ({"sw_fp8_param_gather": "fp4_param_gather:on"}, "fp8_param_gather", True),
        ({"sw_fp8_dot_product_attention": "on"}, "fp8_attention", True),
        ({"sw_ce_fusion": "te"}, "loss_fp32_logits", False),
    ],
)
def test_columns_set_switches(row: dict[str, str], field: str, value: object) -> None:
    made = override_from_columns(software("megatron-lm"), row)
    assert getattr(made, field) == value
    assert field not in made.unknown


def test_columns_not_understood_are_listed_together() -> None:
    row = {"sw_dispatcher": "pigeon", "sw_a2a_overlap": "perhaps", "sw_capacity_factor": "-1"}
    row["sw_cpu_offload"] = "layers=x"
    with pytest.raises(UserError) as caught:
        override_from_columns(software("megatron-lm"), row)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("printed", "key"),
    [("FP8-CS", "fp8"), ("FP8-blockwise", "fp8_block"), ("fp8_block", "fp8_block"), ("MXFP8", "mxfp8")],
)
def test_precisions_as_printed(printed: str, key: str) -> None:
    assert precision_key(printed) == key


PROFILE = """
name = "mine"
trainer = "ours"
version = "1"
cuda_graph = ["attn"]
[source]
kind = "user"
title = "t"
where = "w"
date = "2026"
[[override]]
match = { device = "H100" }
a2a_overlap = true
"""


def test_user_profile_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE)
    assert software(str(path)).a2a_overlap is False
    assert software(str(path), device="h100-sxm").a2a_overlap is True


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('["attn"]', '["attention"]', "unknown module 'attention'"),
        ('["attn"]', '["attn", "full_iteration"]', "stands alone"),
        ("cuda_graph", "cuda_graf", "did you mean 'cuda_graph'"),
        ("a2a_overlap = true", "a2a_overlapp = true", "unknown switch 'a2a_overlapp'"),
        ("match = {", "match = { colour = 1,", "unknown match key 'colour'"),
        ("match = { device", "mach = { device", "give match"),
        ('version = "1"', "version = 1", "version = 1"),
        ('trainer = "ours"', 'trainer = "ours"\nunknown = ["spin"]', "'spin' is not a switch"),
        ("[[override]]", "[override]", "[[override]] tables"),
        ('kind = "user"', 'kind = "heard"', "source.kind"),
    ],
)
def test_bad_profiles_are_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE.replace(old, new))
    with pytest.raises(UserError) as caught:
        software(str(path))
    assert says in str(caught.value)


def test_unknown_profile_suggests_a_near_one() -> None:
    with pytest.raises(UserError, match=r"megatron-bridge-26\.06"):
        software("megatron-bridge-2606")
    assert set(GRAPH_MODULES) >= set(software("megatron-bridge-26.06", device="GB200", arch="moe").cuda_graph)
