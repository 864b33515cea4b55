"""Memory on a rank, by tag: weights, gradients, optimizer, activations, workspace.

Attention, dense MLP and shared experts divide by tp; norms, router and MLA down-projections by 1;
routed experts by ep x etp; optimizer state over data x context parallel (experts: expert data
parallel). All functions take numbers or columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, LOW_PRECISION, Context
from sim.build.layer import local_layer_params, trained_layer_params
from sim.build.moe import received_rows
from sim.build.patches import head_rows
from sim.build.stages import StageContent
from sim.cost.state import LocalParams, host_share, more_fields, shards, state_bytes, trained
from sim.cost.torch_memory import torch_working_bytes
from sim.model import LayerSpec, compressor_dim, indexer_dim, input_params, mtp_block, output_params

# Parameter tensors of a mixer, its constants and norms included.
MIXER_TENSORS = {"mamba1": 9.0, "mamba2": 8.0, "gated_delta": 7.0, "kda": 12.0, "lightning": 4.0, "short_conv": 3.0}


def kind_params(ctx: Context) -> tuple[LocalParams, ...]:
    """Local parameters of one layer of each kind."""
    kinds, _ = ctx.model.layer_kinds()
    made = tuple(LocalParams(dense=d, routed=r) for d, r in (local_layer_params(ctx, layer) for layer in kinds))
    if ctx.workload.lora is None:
        return made
    return tuple(replace(p, more=trained_layer_params(ctx, layer)) for p, layer in zip(made, kinds, strict=True))


def end_params(ctx: Context, *, embedding: bool, head: bool) -> LocalParams:
    """Embedding (and learned positions, patches) on the first stage; norm, head and MTP blocks on the last."""
    model, tp = ctx.model, ctx.plan.tp
    d = model.hidden_dim
    table = model.vocab_size * d / tp
    dense = 0.0 * np.asarray(tp, float)
    routed = 0.0 * np.asarray(tp, float)
    if embedding:
        dense = dense + table + input_params(model)
    if head:
        shared = model.head is not None or (model.tied_embeddings and embedding)
        norm = 0 if model.condition is not None else d
        dense = dense + (0.0 if shared else table) + output_params(model) + norm
        if ctx.workload.with_mtp and model.mtp_layers:
            blocks = [local_layer_params(ctx, layer) for layer in mtp_block(model)]
            extra_dense, extra_routed = sum(b[0] for b in blocks), sum(b[1] for b in blocks)
            second_table = 0.0 if embedding else table  # the block looks tokens up again on its own stage
            dense = dense + model.mtp_layers * (extra_dense + 2 * d * d + 3 * d) + second_table
            routed = routed + model.mtp_layers * extra_routed
    return LocalParams(dense=dense, routed=routed, more=(0.0,) * len(more_fields(ctx.workload)))


def static_bytes(ctx: Context, params: LocalParams) -> dict[str, Any]:
    """Bytes held through the whole step: weights, gradients, optimizer state.

    Distributed optimizer (ZeRO-1) shards the state; stage 2 the gradients too; stage 3 everything.
    Low-precision recipes hold row- and column-wise copies of the weights (or one where products take either layout)
    beside the 16-bit ones, unless parameters are gathered in that precision already.
    """
    plan, software = ctx.plan, ctx.software
    dp = np.asarray(plan.dp * plan.cp, float)
    edp = np.asarray(plan.edp, float)
    stage = plan.zero_stage
    shard_state = shards(ctx)
    shard_grad = (dp, edp) if stage >= 2 else (np.ones(()), np.ones(()))
    shard_weight = (dp, edp) if stage >= 3 else (np.ones(()), np.ones(()))
    weight = float(ACT_BYTES)
    if ctx.dtype in LOW_PRECISION:
        copies = 1.0 if ctx.dtype == "fp8" and not software.fp8_transpose else 2.0
        weight = copies if software.fp8_param_gather else ACT_BYTES + copies
    grad = FP32_BYTES if software.grad_dtype == "fp32" else ACT_BYTES
    mine, state = trained(ctx, params), state_bytes(ctx, params)
    held = state[0] / shard_state[0] + state[1] / shard_state[1]
    away = host_share(ctx)
    return {
        "weights": params.dense * weight / shard_weight[0] + params.routed * weight / shard_weight[1],
        "gradients": mine.dense * grad / shard_grad[0] + mine.routed * grad / shard_grad[1],
        "optimizer": held * (1.0 - away) if away else held,
    }


def placeholder_bytes(ctx: Context, kinds: Iterable[LayerSpec]) -> Any:
    """Bytes of the gradient placeholders of one rank: one 16-bit tensor per distinct weight shape.

    Weight gradients accumulate straight into the main-gradient buffer; autograd still wants a tensor of the
    weight's shape, and Transformer Engine keeps one per shape for the whole run (`get_dummy_wgrad`).
    Experts of one layer share a shape.
    """
    plan, d = ctx.plan, ctx.model.hidden_dim
    if not ctx.software.grad_placeholders or plan.zero_stage == 3 or ctx.workload.lora:
        return 0.0
    shapes: dict[tuple[str, int, int], Any] = {}
    ranks: dict[str, Any] = {"rep": 1, "tp": np.asarray(plan.tp), "etp": np.asarray(plan.etp)}
    for layer in kinds:
        att = layer.attention
        ups = 2 if layer.gated else 1
        if att.kind == "mla":
            kv_up = att.heads * (att.qk_nope_dim + att.v_head_dim)
            q = att.heads * att.head_dim
            sized = [("rep", att.kv_lora_rank + att.qk_rope_dim, d), ("tp", kv_up, att.kv_lora_rank)]
            sized += [("rep", att.q_lora_rank, d), ("tp", q, att.q_lora_rank)] if att.q_lora_rank else [("tp", q, d)]
        elif att.kind == "shared_kv":
            inner = att.heads * att.head_dim
            sized = [("rep", x, d) for x in (att.q_lora_rank, att.head_dim, compressor_dim(att), indexer_dim(att))]
            sized += [("tp", inner, att.q_lora_rank), ("tp", att.out_rank, inner)]
            sized += [("rep", att.index_heads * att.index_dim, att.q_lora_rank)]
        else:
            qkv = (att.heads + att.kv_heads) * att.head_dim + att.kv_heads * att.v_head_dim
            sized = [("tp", qkv + att.output_gate * att.heads * att.v_head_dim, d)]
        sized.append(("tp", d, att.out_groups * att.out_rank or att.heads * att.v_head_dim))
        if layer.mixer is not None:
            sized += [("tp", layer.mixer.in_dim, d), ("tp", d, layer.mixer.inner_dim)]
        for ffn in _dense_widths(layer):
            sized += [("tp", ups * ffn, d), ("tp", d, ffn)]
        if layer.moe is not None:
            row = layer.moe.row_dim(d)
            sized += [("etp", ups * layer.moe.ffn_dim, row), ("etp", row, layer.moe.ffn_dim)]
            sized += [("rep", layer.moe.latent_dim, d), ("rep", d, layer.moe.latent_dim)]
        for how, n, k in sized:
            shapes[how, n, k] = n * k / ranks[how]
    return ACT_BYTES * sum(shapes.values())


def _dense_widths(layer: LayerSpec) -> list[int]:
    """Widths of the FFNs of a layer that every token passes."""
    widths = [layer.ffn_dim] if layer.moe is None else [layer.moe.shared_ffn_dim, layer.moe.residual_ffn_dim]
    return [width for width in widths if width]


def head_working_bytes(ctx: Context) -> Any:
    """Transient bytes of the LM head and loss on the last stage, on top of what is saved.

    Two moments compete. Loss: the logits in the loss's own width - 16-bit and overwritten by their gradient
    (Transformer Engine), 16-bit and beside it (FlashAttention's loss kernel in eager torch), an fp32 copy beside the
    16-bit logits (Megatron-LM), or plain PyTorch operators with cast, log-probabilities and logits all alive. Head
    backward: 16-bit gradient of the logits, a tensor of the head weight's shape for its gradient, the gathered input
    and the input's gradient.
    """
    plan, software, d = ctx.plan, ctx.software, ctx.model.hidden_dim
    if ctx.model.head is not None:  # its result in fp32 beside the gradient; no logits
        result = head_rows(ctx, ctx.model.head) * ctx.model.head.dim
        return (ACT_BYTES + FP32_BYTES) * result + ACT_BYTES * ctx.rows * d
    logits = ctx.tokens * ctx.model.vocab_size / plan.tp
    in_place = software.fused_loss and not software.loss_fp32_logits
    if in_place:
        width, kept = ACT_BYTES, ACT_BYTES
        if software.elementwise == "torch":
            width = 2 * ACT_BYTES
    else:
        kept = FP32_BYTES
        width = ACT_BYTES + FP32_BYTES if software.elementwise == "fused" else ACT_BYTES + 2 * FP32_BYTES
        if software.elementwise == "torch":
            width = 3 * FP32_BYTES  # its backward: log-probabilities, their gradient, that of the logits
    waiting = ctx.model.mtp_layers * kept * logits if ctx.workload.with_mtp else 0.0  # losses of the other depths
    gathered = np.where(np.asarray(plan.tp) > 1, ctx.tokens + ctx.rows, 0.0) if software.sequence_parallel else 0.0
    weight = 0.0 if ctx.workload.lora else ACT_BYTES * ctx.model.vocab_size * d / plan.tp
    backward = ACT_BYTES * (logits + (ctx.tokens + gathered) * d) + weight
    if plan.schedule == "gpipe":  # the logits of every micro-batch wait, counted as saved
        return np.maximum(width * logits - kept * logits, backward - kept * logits)
    return waiting + np.maximum(width * logits, backward)


def layer_working_bytes(ctx: Context, layer: LayerSpec) -> Any:
    """Gradients of activations alive at once in one layer's backward, at the fullest moment."""
    if ctx.software.elementwise == "torch":
        return torch_working_bytes(ctx, layer)
    d, t, att = ctx.model.hidden_dim, ctx.tokens, layer.attention
    tp = np.asarray(ctx.plan.tp)
    ups = 2 if layer.gated else 1
    stream = ctx.rows * d * layer.streams  # gradient of the residual stream
    heads = att.heads / tp
    kv = heads if att.kind == "mla" else np.maximum(1, att.kv_heads / tp)
    # gradients of output, q, k, v and the core's fp32 accumulator of the gradient of q
    core = t * (heads * (att.v_head_dim + 3 * att.head_dim) + kv * (att.head_dim + att.v_head_dim))
    if layer.moe is None:
        f = layer.ffn_dim / tp
        half = np.maximum(t * (ups + 1) * f, t * (ups * f + 2 * d))
    else:
        rows = received_rows(ctx, layer.moe) * ctx.plan.etp
        f = layer.moe.ffn_dim / np.asarray(ctx.plan.etp)
        row = layer.moe.row_dim(d)
        half = rows * np.maximum(np.maximum((ups + 1) * f, ups * f + row), 2 * row) + stream
    if layer.mixer is not None:
        core = core + t * (layer.mixer.in_dim + 2 * layer.mixer.conv_dim + layer.mixer.inner_dim) / tp
    return ACT_BYTES * (stream + np.maximum(core, half))


def dense_tensors(layer: LayerSpec) -> float:
    """Parameter tensors of one layer that are not experts'."""
    attention = {"mla": 6.0, "gqa": 3.0, "none": 0.0, "shared_kv": 8.0}[layer.attention.kind]
    if layer.attention.index_topk:
        attention += 4.0
    if layer.attention.compress_rate:  # two projections, places, norm; the indexer's own but for what v3.2's has
        attention += 6.0 if layer.attention.index_topk else 4.0
    if layer.mixer is not None:
        attention += MIXER_TENSORS[layer.mixer.kind]
    norms = 0.0 if layer.modulation else layer.norms
    norms += 2.0 * layer.attention.qk_norm + 2.0 * (layer.modulation > 0)
    if layer.streams > 1:
        norms += 3.0 * layer.halves
    if layer.moe is None:
        return attention + norms + (2.0 if layer.ffn_dim else 0.0)
    shared = 2.0 * (layer.moe.shared_ffn_dim > 0) + 3.0 * (layer.moe.residual_ffn_dim > 0)
    shared += 2.0 * (layer.moe.latent_dim > 0)
    return attention + norms + 1.0 + shared


def expert_tensors(layer: LayerSpec, ep: Any) -> Any:
    """Parameter tensors of the experts of one layer that a rank holds."""
    return 0.0 if layer.moe is None else 2.0 * layer.moe.num_experts / np.asarray(ep, float)


def stage_params(
    ctx: Context, content: StageContent, kinds: Sequence[LayerSpec], layer_params: Sequence[LocalParams]
) -> LocalParams:
    """Parameters of one virtual stage on a rank, before data-parallel sharding;
    layer_params: of a layer of each kind."""
    params = end_params(ctx, embedding=content.embedding, head=content.head)
    for n, p in zip(content.kind_counts, layer_params, strict=True):
        params = params + p.times(n)
    if params.more and content.head and ctx.workload.with_mtp:
        last = layer_params[kinds.index(ctx.model.layers[-1])].times(ctx.model.mtp_layers)
        params = params + LocalParams(dense=0.0, routed=0.0, more=last.more)
    return params
