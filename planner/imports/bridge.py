"""Overrides of Megatron-Bridge as a plan: its keys are those of Megatron-LM's flags, so they are read as flags.

What the file does not set is the recipe's: degrees are then taken as 1, switches as the software profile has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner.export.megatron_settings import DISPATCHERS, PRECISIONS
from planner.imports.megatron import Flags, Launch, launch_of
from planner.imports.trees import read_tree, section
from sim.model import ModelSpec

TARGET = "megatron-bridge"
# Section -> keys whose flag has the same name.
_SAME: dict[str, tuple[str, ...]] = {
    "model": (
        "tensor_model_parallel_size", "sequence_parallel", "pipeline_model_parallel_size", "context_parallel_size",
        "expert_model_parallel_size", "expert_tensor_parallel_size", "pipeline_model_parallel_layout",
        "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split", "num_layers", "seq_length",
        "mtp_num_layers", "moe_token_dispatcher_type", "moe_flex_dispatcher_backend", "moe_permute_fusion",
        "moe_expert_capacity_factor", "moe_router_padding_for_quantization", "moe_shared_expert_overlap",
        "recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules",
        "cross_entropy_loss_fusion", "cross_entropy_fusion_impl", "attention_backend", "cuda_graph_impl",
        "cuda_graph_modules", "cuda_graph_scope", "fine_grained_activation_offloading", "offload_modules",
    ),
    "train": ("micro_batch_size", "global_batch_size", "rampup_batch_size", "train_samples"),
    "ddp": (
        "use_distributed_optimizer", "use_megatron_fsdp", "data_parallel_sharding_strategy",
        "num_distributed_optimizer_instances", "overlap_grad_reduce", "overlap_param_gather",
    ),
    "optimizer": (
        "optimizer", "use_precision_aware_optimizer", "optimizer_cpu_offload", "optimizer_offload_fraction",
        "overlap_cpu_optimizer_d2h_h2d", "main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype",
        "muon_num_ns_steps", "muon_tp_mode",
    ),
    "comm_overlap": ("overlap_moe_expert_parallel_comm", "delay_wgrad_compute", "tp_comm_overlap"),
    "dist": ("use_tp_pp_dp_mapping", "use_torch_fsdp2"),
}  # fmt: skip
# (section, key) whose flag is called otherwise.
_RENAMED = {
    ("model", "virtual_pipeline_model_parallel_size"): "num-virtual-stages-per-pipeline-rank",
    ("model", "microbatch_group_size_per_vp_stage"): "microbatch-group-size-per-virtual-pipeline-stage",
    ("model", "num_layers_in_first_pipeline_stage"): "decoder-first-pipeline-num-layers",
    ("model", "num_layers_in_last_pipeline_stage"): "decoder-last-pipeline-num-layers",
}
# Field of the software profile -> the key that decides it; without the key the profile's value holds.
_DECIDED = {
    "permute_fusion": ("model", "moe_permute_fusion"),
    "a2a_overlap": ("comm_overlap", "overlap_moe_expert_parallel_comm"),
    "delay_wgrad": ("comm_overlap", "delay_wgrad_compute"),
    "shared_expert_overlap": ("model", "moe_shared_expert_overlap"),
    "tp_overlap": ("comm_overlap", "tp_comm_overlap"),
    "dp_overlap_grad": ("ddp", "overlap_grad_reduce"),
    "dp_overlap_param": ("ddp", "overlap_param_gather"),
    "grad_dtype": ("ddp", "grad_reduce_in_fp32"),
    "precision_aware_optimizer": ("optimizer", "use_precision_aware_optimizer"),
    "optimizer_offload": ("optimizer", "optimizer_cpu_offload"),
    "fused_loss": ("model", "cross_entropy_loss_fusion"),
    "loss_fp32_logits": ("model", "cross_entropy_fusion_impl"),
    "flash_attention": ("model", "attention_backend"),
    "cuda_graph": ("model", "cuda_graph_impl"),
    "capacity_factor": ("model", "moe_expert_capacity_factor"),
    "router_padding": ("model", "moe_router_padding_for_quantization"),
    "p2p_overlap": ("comm_overlap", "overlap_p2p_comm"),
    "activation_offload_layers": ("model", "cpu_offloading_num_layers"),
}
_DEGREES = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "expert_model_parallel_size",
)  # fmt: skip


def read_overrides(path: str, model: ModelSpec, software: SoftwareProfile, world: int) -> Launch:
    """The plan that an override file asks of `model` on `world` devices. Raises UserError with all problems."""
    problems: list[str] = []
    notes: list[str] = []
    tree = read_tree(path)
    parts = {name: section(tree, name, problems) for name in (*_SAME, "dataset")}
    if not any(key in parts["model"] for key in _DEGREES) and not parts["train"]:
        raise UserError("no key of Megatron-Bridge in it; give a YAML with model: and train:", where=path)
    flags = Flags(_as_flags(parts, tree, model, notes, problems))
    flags.problems += problems
    if model.is_moe and "moe_token_dispatcher_type" not in parts["model"]:
        kind, backend = DISPATCHERS[software.dispatcher]
        flags.given = {**flags.given, "moe-token-dispatcher-type": [kind]}
        if backend:
            flags.given["moe-flex-dispatcher-backend"] = [backend]
    if "micro-batch-size" not in flags.given:
        flags.problems.append("no train.micro_batch_size in the file; add it: the recipe's is not known here")
    left = [key for key in _DEGREES if key not in parts["model"]]
    if left:
        notes.append(f"left to the recipe, taken as 1: {', '.join(left)}")
    launch = launch_of(flags, model, software, world, path)
    kept = {
        field: getattr(software, field) for field, (name, key) in _DECIDED.items() if key not in parts[name]
    }  # fmt: skip
    if launch.plan.zero_stage == 3:
        kept.pop("dp_overlap_grad", None)
        kept.pop("dp_overlap_param", None)
    if kept:
        notes.append(f"left to the recipe, taken from {software.name}: {', '.join(sorted(kept))}")
    return replace(
        launch, software=replace(launch.software, **kept), notes=(*notes, *launch.notes), target=TARGET
    )  # fmt: skip


def _as_flags(
    parts: Mapping[str, Mapping[str, Any]], tree: Mapping[str, Any], model: ModelSpec, notes: list[str],
    problems: list[str],
) -> dict[str, list[str]]:  # fmt: skip
    """Flag without dashes -> values; null and false are flags that are not there."""
    named = {(name, key): key.replace("_", "-") for name, keys in _SAME.items() for key in keys} | _RENAMED
    out: dict[str, list[str]] = {}
    for (name, key), flag in named.items():
        words = _words(parts[name].get(key), f"{name}.{key}", problems)
        if words is not None:
            out[flag] = words
    if model.is_moe:
        out["num-experts"] = []  # only whether there are any matters: the model says how many
    if parts["model"].get("cpu_offloading"):
        count = _words(parts["model"].get("cpu_offloading_num_layers"), "model.cpu_offloading_num_layers", problems)
        out["cpu-offloading-num-layers"] = count or ["1"]
    if parts["ddp"].get("grad_reduce_in_fp32") is False:
        out["grad-reduce-in-bf16"] = []
    elif parts["ddp"].get("grad_reduce_in_fp32"):
        out["accumulate-allreduce-grads-in-fp32"] = []
    if parts["optimizer"].get("use_distributed_optimizer") is True:
        out["use-distributed-optimizer"] = []
    if parts["comm_overlap"].get("overlap_p2p_comm") is False:
        out["no-overlap-p2p-communication"] = []
    if "seq-length" not in out and parts["dataset"].get("seq_length") is not None:
        out["seq-length"] = [str(parts["dataset"]["seq_length"])]
    if "mtp_num_layers" not in parts["model"] and model.mtp_layers:
        out["mtp-num-layers"] = [str(model.mtp_layers)]  # as the recipe, which follows the model
    return out | _precision(tree.get("mixed_precision"), notes)


def _words(value: Any, where: str, problems: list[str]) -> list[str] | None:
    if value is None or value is False:
        return None
    if value is True:
        return []
    if isinstance(value, list):
        if where.endswith("layout"):  # names of modules, one list a virtual stage
            return [_layout(value, where, problems)]
        return [str(one) for one in value]
    if isinstance(value, dict):
        problems.append(f"{where} is a mapping; write its value")
        return None
    return [str(value)]


_LETTERS = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}


def _layout(stages: list[Any], where: str, problems: list[str]) -> str:
    rows = [row if isinstance(row, list) else [row] for row in stages]
    unknown = sorted({str(name)[:20] for row in rows for name in row} - set(_LETTERS))
    if unknown:
        problems.append(f"{where} names {', '.join(unknown[:4])}; use {', '.join(_LETTERS)}")
    return "|".join("".join(_LETTERS.get(str(name), "") for name in row) for row in rows)


def _precision(said: Any, notes: list[str]) -> dict[str, list[str]]:
    """Flags of a named precision; another name, or none, is bf16."""
    for flags, recipe in PRECISIONS.values():
        if said == recipe:
            half: dict[str, list[str]] = {"fp16": []} if recipe == "fp16_mixed" else {}
            return half | {key.replace("_", "-"): [value] for key, value in flags.items()}
    if said == "bf16_with_fp8_delayed_scaling_mixed":
        return {"fp8-format": ["hybrid"], "fp8-recipe": ["delayed"]}
    if said is None:
        notes.append("no mixed_precision in the file: taken as bf16_mixed")
    else:
        notes.append(f"mixed_precision {str(said)[:60]!r} is not known here: taken as bf16_mixed")
    return {}
