"""`layer_ops`: the ops of ONE layer, the single description behind screening and simulation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.build.adapters import adapter_params, with_adapters
from sim.build.attention import attention_ops, plain_norm_ops
from sim.build.compressed import shared_kv_ops
from sim.build.context import ACT_BYTES, FP32_BYTES, Context, collective, memory_op, scoped
from sim.build.ends import embedding_ops, head_ops, mtp_projection_ops
from sim.build.ffn import dense_ffn_ops
from sim.build.mixer import mixer_ops
from sim.build.moe import moe_ops
from sim.build.patches import layer_modulation_ops
from sim.build.recompute import with_recompute
from sim.build.streams import with_streams
from sim.model import LayerSpec, layer_params
from sim.ops import Op


def layer_ops(ctx: Context, layer: LayerSpec) -> tuple[Op, ...]:
    """Ops of one layer on one rank for one micro-batch: forward, recompute, backward, wgrad.

    Sizes are numbers or columns, as the plan's degrees are. Recomputed modules keep nothing for
    the backward pass but appear a second time with pass "recompute"; with ("full",) only the
    layer's input is kept.
    """
    ops = with_adapters(ctx, _plain_ops(ctx, layer))
    if ctx.plan.zero_stage == 3:
        ops += fsdp_ops(ctx, layer)
    return with_recompute(ctx, ops, layer)


def _plain_ops(ctx: Context, layer: LayerSpec) -> list[Op]:
    """Both halves of a layer with all weights trained, nothing sharded or recomputed."""
    ops: list[Op] = []
    if layer.attention.kind == "shared_kv":
        ops += scoped("attn", shared_kv_ops(ctx, layer.attention))
    elif layer.attention.kind != "none":
        ops += scoped("attn", attention_ops(ctx, layer.attention))
    if layer.mixer is not None:
        ops += scoped("attn", mixer_ops(ctx, layer.mixer))
    if layer.moe is None:
        if layer.ffn_dim:
            ops += scoped("mlp", dense_ffn_ops(ctx, layer.ffn_dim, gated=layer.gated, bias=layer.ffn_bias))
    else:
        ops += moe_ops(ctx, layer.moe, gated=layer.gated)
    if layer.parallel:
        ops = [_third_addend(op) if op.name in ("ffn_norm.residual", "moe_norm.residual") else op for op in ops]
    if layer.extra_norms:
        ops += extra_norm_ops(ctx, layer.extra_norms)
    if layer.modulation:
        ops += scoped("mlp", layer_modulation_ops(ctx, layer))
    return with_streams(ctx, layer, ops)


def extra_norm_ops(ctx: Context, count: int) -> list[Op]:
    """Norms behind the halves of a layer (sandwich norms)."""
    return [op for i in range(count) for op in scoped("mlp", plain_norm_ops(ctx, f"post_norm{i}"))]


def _third_addend(op: Op) -> Op:
    """The residual add of the second half where both halves are added at once: one more operand is read."""
    return replace(
        op, bytes=op.bytes / 3.0, kernel_bytes=op.kernel_bytes / 3.0, kernels=0, saved_bytes=0.0 * op.saved_bytes
    )


def fsdp_ops(ctx: Context, layer: LayerSpec) -> list[Op]:
    """Sharded parameters: gathered in forward and again in backward, gradients reduce-scattered.

    Dense parameters live on the data x context-parallel ranks, experts on the expert-data-parallel
    ones; all of it is prefetched behind the layer's compute.
    """
    dense, routed = local_layer_params(ctx, layer)
    trained = trained_layer_params(ctx, layer) if ctx.workload.lora else (dense, routed)
    width = ACT_BYTES if not ctx.software.fp8_param_gather else 1
    grad = FP32_BYTES if ctx.software.grad_dtype == "fp32" else ACT_BYTES
    ops: list[Op] = []
    for name, axis, count, summed in (("dense", "dp_cp", dense, trained[0]), ("routed", "edp", routed, trained[1])):
        if layer.moe is None and name == "routed":
            continue
        nbytes = count * width
        ops.append(collective(f"fsdp_{name}.gather", "all_gather", axis, nbytes, overlap="fsdp"))
        ops.append(collective(f"fsdp_{name}.regather", "all_gather", axis, nbytes, pass_="backward", overlap="fsdp"))
        ops.append(
            collective(f"fsdp_{name}.reduce", "reduce_scatter", axis, summed * grad, pass_="backward", overlap="fsdp")
        )
        # gathered buffers are copied out into parameters, gradients copied into the reduction buffer
        ops.append(memory_op(f"fsdp_{name}.copy_out", 2 * nbytes, kernels=2))
        copied = 2 * nbytes + summed * (ACT_BYTES + grad)
        ops.append(memory_op(f"fsdp_{name}.copy_in", copied, pass_="backward", kernels=4))
    return ops


def local_layer_params(ctx: Context, layer: LayerSpec) -> tuple[Any, Any]:
    """(dense, routed) parameters of one layer on one rank before data-parallel sharding, adapters included."""
    p = layer_params(layer, ctx.model.hidden_dim)
    dense = (p.attention + p.dense + p.shared) / ctx.plan.tp + p.replicated
    routed = p.routed / (ctx.plan.ep * ctx.plan.etp)
    if ctx.workload.lora is None:
        return dense, routed
    extra = trained_layer_params(ctx, layer)
    return dense + extra[0], routed + extra[1]


def trained_layer_params(ctx: Context, layer: LayerSpec) -> tuple[Any, Any]:
    """(dense, routed) parameters of the adapters of one layer on one rank."""
    return adapter_params(ctx, _plain_ops(ctx, layer))


def end_ops(ctx: Context, which: str) -> tuple[Op, ...]:
    """Ops outside the layers: which is "embedding", "head" or "mtp" (projection + head again)."""
    if which == "embedding":
        ops = embedding_ops(ctx)
    else:
        ops = head_ops(ctx) if which == "head" else mtp_projection_ops(ctx) + head_ops(ctx)
    return tuple(scoped("ends", with_adapters(ctx, ops)))


__all__ = ["end_ops", "layer_ops", "trained_layer_params", "with_recompute"]
