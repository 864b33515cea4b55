"""A plan in Megatron's own keys: the decisions once, for the flags of Megatron-LM and the YAML of Megatron-Bridge.

A setting's `key` is the field of the configuration class; its flag is the key with dashes unless `flag` says otherwise.
`section` is the part of Bridge's tree; an empty one marks what only the command line knows.
"""

from __future__ import annotations

from planner.export.base import Handover
from planner.export.megatron_training import Setting, batch_settings, training_missing, training_settings
from planner.rules.base import context
from planner.rules.megatron import RANK_ORDERS, is_torch_fsdp2

# Profile's dispatcher -> (token dispatcher type, backend of the flexible one).
DISPATCHERS: dict[str, tuple[str, str]] = {
    "alltoall": ("alltoall", ""),
    "allgather": ("allgather", ""),
    "deepep": ("flex", "deepep"),
    "hybridep": ("flex", "hybridep"),
}
# Precision -> (flags of the command line, Bridge's named recipe).
PRECISIONS: dict[str, tuple[dict[str, str], str]] = {
    "bf16": ({}, "bf16_mixed"),
    "fp16": ({}, "fp16_mixed"),
    "fp8": ({"fp8_format": "hybrid", "fp8_recipe": "tensorwise"}, "bf16_with_fp8_current_scaling_mixed"),
    "fp8_block": ({"fp8_format": "e4m3", "fp8_recipe": "blockwise"}, "bf16_with_fp8_subchannel_scaling_mixed"),
    "mxfp8": ({"fp8_format": "e4m3", "fp8_recipe": "mxfp8"}, "bf16_with_mxfp8_mixed"),
    "nvfp4": ({"fp4_format": "e2m1", "fp4_recipe": "nvfp4"}, "bf16_with_nvfp4_mixed"),
}


def settings_of(asked: Handover) -> list[Setting]:
    """Every setting that the plan and the software profile decide, in the order of the guide."""
    return [*_degrees(asked), *_batch(asked), *_experts(asked), *_recompute(asked), *_sharding(asked), *_rest(asked)]


def _degrees(asked: Handover) -> list[Setting]:
    p = asked.plan
    out = [
        Setting(key="tensor_model_parallel_size", value=p.tp),
        Setting(key="sequence_parallel", value=p.tp > 1 and asked.software.sequence_parallel),
        Setting(key="pipeline_model_parallel_size", value=p.pp),
        Setting(key="context_parallel_size", value=p.cp),
        Setting(key="expert_model_parallel_size", value=p.ep),
        Setting(key="expert_tensor_parallel_size", value=p.etp),
    ]
    if asked.laid_out and p.pp > 1:
        out.append(Setting(key="pipeline_model_parallel_layout", value=asked.layout))
    if p.vpp > 1:
        named = asked.laid_out  # the layout says how many virtual stages there are
        flag = "" if named else "num-virtual-stages-per-pipeline-rank"
        out.append(Setting(key="virtual_pipeline_model_parallel_size", value=p.vpp, flag=flag))
        if p.micro_batch_group:
            flag = "microbatch-group-size-per-virtual-pipeline-stage"
            out.append(Setting(key="microbatch_group_size_per_vp_stage", value=p.micro_batch_group, flag=flag))
        if not asked.software.p2p_overlap:
            out.append(Setting(key="no_overlap_p2p_communication", value=True, section=""))
            out.append(Setting(key="overlap_p2p_comm", value=False, section="comm_overlap", flag=""))
    if RANK_ORDERS.get(asked.ranks.order):
        out.append(Setting(key="use_tp_pp_dp_mapping", value=True, section="dist"))
    return out


def _batch(asked: Handover) -> list[Setting]:
    work = asked.workload
    return [
        Setting(key="micro_batch_size", value=asked.plan.micro_batch_seqs, section="train"),
        Setting(key="global_batch_size", value=work.global_batch_seqs, section="train"),
        Setting(key="seq_length", value=work.seq_tokens),
        Setting(key="seq_length", value=work.seq_tokens, section="dataset", flag=""),
        *batch_settings(asked),
    ]


def _experts(asked: Handover) -> list[Setting]:
    if not asked.model.is_moe:
        return []
    software = asked.software
    kind, backend = DISPATCHERS[software.dispatcher]
    out = [Setting(key="moe_token_dispatcher_type", value=kind)]
    if backend:
        out.append(Setting(key="moe_flex_dispatcher_backend", value=backend))
    out.append(Setting(key="moe_grouped_gemm", value=True))
    out.append(Setting(key="moe_permute_fusion", value=software.permute_fusion))
    if software.router_padding:
        out.append(Setting(key="moe_router_padding_for_quantization", value=True))
    if software.capacity_factor is not None:
        out.append(Setting(key="moe_expert_capacity_factor", value=software.capacity_factor))
    if any(x.moe and x.moe.shared_ffn_dim for x in asked.model.layers):
        out.append(Setting(key="moe_shared_expert_overlap", value=software.shared_expert_overlap))
    late = software.a2a_overlap and software.delay_wgrad
    out.append(Setting(key="overlap_moe_expert_parallel_comm", value=software.a2a_overlap, section="comm_overlap"))
    out.append(Setting(key="delay_wgrad_compute", value=late, section="comm_overlap"))
    return out


def _recompute(asked: Handover) -> list[Setting]:
    modules = asked.plan.recompute
    if modules == ("full",):
        return [
            Setting(key="recompute_granularity", value="full"),
            Setting(key="recompute_method", value="uniform"),
            Setting(key="recompute_num_layers", value=1),
        ]
    if modules:
        return [
            Setting(key="recompute_granularity", value="selective"),
            Setting(key="recompute_modules", value=list(modules)),
        ]
    return []


def _sharding(asked: Handover) -> list[Setting]:
    p, software = asked.plan, asked.software
    overlap = [
        Setting(key="overlap_grad_reduce", value=software.dp_overlap_grad, section="ddp"),
        Setting(key="overlap_param_gather", value=software.dp_overlap_param and p.zero_stage > 0, section="ddp"),
    ]
    ctx = context(asked.model, asked.cluster, software, asked.workload)
    if p.zero_stage == 3 and is_torch_fsdp2(ctx):
        return [
            Setting(key="use_torch_fsdp2", value=True, section="dist"),
            Setting(key="gradient_accumulation_fusion", value=False, flag=""),
            Setting(key="no_gradient_accumulation_fusion", value=True, section=""),
            Setting(key="ckpt_format", value="torch_dist", section="checkpoint"),
        ]
    out = [Setting(key="use_distributed_optimizer", value=p.zero_stage >= 1, section="ddp")]
    if p.zero_stage >= 2:
        strategy = "optim_grads" if p.zero_stage == 2 else "optim_grads_params"
        out += [
            Setting(key="use_megatron_fsdp", value=True, section="ddp"),
            Setting(key="data_parallel_sharding_strategy", value=strategy, section="ddp"),
            Setting(key="ckpt_format", value="fsdp_dtensor", section="checkpoint"),
        ]
    if p.fsdp_shard:
        instances = p.dp * p.cp // p.fsdp_shard
        out.append(Setting(key="num_distributed_optimizer_instances", value=instances, section="ddp"))
    return out + overlap


def _rest(asked: Handover) -> list[Setting]:
    software, precision = asked.software, asked.workload.precision
    flags, recipe = PRECISIONS[precision]
    if precision == "fp8" and software.fp8_amax == "history":
        flags, recipe = {**flags, "fp8_recipe": "delayed"}, "bf16_with_fp8_delayed_scaling_mixed"
    half = precision == "fp16"
    out = [
        Setting(key="fp16" if half else "bf16", value=True, section=""),
        *(Setting(key=key, value=value, section="") for key, value in flags.items()),
        Setting(key="mixed_precision", value=recipe, section="mixed_precision", flag=""),
    ]
    if precision != "bf16" and software.fp8_param_gather and asked.plan.zero_stage == 1 and "fp8_format" in flags:
        out.append(Setting(key="fp8_param_gather", value=True, section=""))
    if half:  # reduced in 16 bits unless asked for
        wide = software.grad_dtype == "fp32"
        out.append(Setting(key="accumulate_allreduce_grads_in_fp32", value=wide, section=""))
    else:
        out.append(Setting(key="grad_reduce_in_bf16", value=software.grad_dtype == "bf16", section=""))
    out.append(Setting(key="grad_reduce_in_fp32", value=software.grad_dtype == "fp32", section="ddp", flag=""))
    out += training_settings(asked)
    out.append(Setting(key="cross_entropy_loss_fusion", value=software.fused_loss))
    if software.fused_loss:
        # Megatron-LM 0.19.2 refuses Transformer Engine's fused loss, the one on 16-bit logits; Bridge takes it.
        out.append(Setting(key="cross_entropy_fusion_impl", value="native", section=""))
        native = software.loss_fp32_logits
        out.append(Setting(key="cross_entropy_fusion_impl", value="native" if native else "te", flag=""))
    if not software.flash_attention:
        out.append(Setting(key="attention_backend", value="unfused"))
    tp_overlap = software.tp_overlap and asked.plan.tp > 1 and software.sequence_parallel
    out.append(Setting(key="tp_comm_overlap", value=tp_overlap, section="comm_overlap"))
    out += _graphs(asked)
    return out


# Modules of a profile's CUDA graphs and the names of the trainer's.
GRAPH_MODULES = {name: name for name in ("attn", "moe_router", "moe_preprocess", "moe", "mlp")}


def _graphs(asked: Handover) -> list[Setting]:
    modules = asked.software.cuda_graph
    if not modules:
        return [Setting(key="cuda_graph_impl", value="none", flag="")]
    if modules == ("full_iteration",):
        return [
            Setting(key="cuda_graph_impl", value="full_iteration"),
            Setting(key="no_check_for_nan_in_loss_and_grad", value=True, section=""),
            Setting(key="check_for_nan_in_loss", value=False, section="rerun_state_machine", flag=""),
        ]
    known = [GRAPH_MODULES[name] for name in modules if name in GRAPH_MODULES]
    return [
        Setting(key="cuda_graph_impl", value="transformer_engine"),
        Setting(key="cuda_graph_modules", value=known),
    ]


def env_of(asked: Handover) -> dict[str, str | None]:
    """The environment as the trainer wants it (None: unset).

    CUDA_DEVICE_MAX_CONNECTIONS: never 1 with FSDP, many with the expert overlap, else 1 where tensor or context
    parallelism overlaps communication by launch order. NVTE_CPU_OFFLOAD_V1: 1 where activations of modules go to the
    host; from Transformer Engine 2.10 on, Megatron refuses to start without it, as weights would go there too.
    """
    out = {"NVTE_CPU_OFFLOAD_V1": "1"} if asked.workload.offload.modules else {}
    return {**_connections(asked), **out}


def _connections(asked: Handover) -> dict[str, str | None]:
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    if asked.plan.zero_stage >= 2:
        return {name: None}
    if asked.software.a2a_overlap and asked.model.is_moe:
        return {name: "32"}
    return {name: "1"} if asked.plan.tp > 1 or asked.plan.cp > 1 else {}


def missing_of(asked: Handover) -> list[str]:
    """What neither flags nor keys of Megatron can say."""
    software, out = asked.software, training_missing(asked)
    if asked.model.is_moe and not software.host_sync and software.capacity_factor is None:
        out.append("token counts that stay on the device (host_sync false): the release decides")
    if software.tuned_overlap:
        out.append("the tuning of overlaps (tuned_overlap): the release and its environment decide")
    if software.fp8_attention or software.fp8_output_proj:
        out.append("attention in 8 bits (fp8_attention, fp8_output_proj): a matter of the fp8 recipe's own options")
    if asked.plan.zero_stage >= 2 and not software.dp_overlap_param:
        out.append("FSDP without overlap: it always gathers parameters ahead")
    return out
