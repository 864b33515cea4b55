"""What stands outside the layers: embedding, final norm, LM head, loss, and MTP blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.build.attention import gather_ops, plain_norm_ops
from sim.build.context import ACT_BYTES, FP32_BYTES, Context, accumulate_ops, collective, linear, memory_op
from sim.build.patches import linear_head_ops, patch_ops
from sim.build.streams import collapse_ops, expand_ops
from sim.ops import Op


def embedding_ops(ctx: Context) -> list[Op]:
    """Vocabulary-parallel table look-up and its gradient, or the embedding of patches (first stage)."""
    if ctx.model.image is not None:
        return patch_ops(ctx, ctx.model.image) + expand_ops(ctx)
    d, t, rows = ctx.model.hidden_dim, ctx.tokens, ctx.rows
    nbytes = t * d * ACT_BYTES
    kind = "reduce_scatter" if ctx.software.sequence_parallel else "all_reduce"
    # plain torch writes a gradient of the whole table in 16 bits
    table = ctx.model.vocab_size * d / ctx.plan.tp
    counted = nbytes + ACT_BYTES * table
    return [
        memory_op("embedding", 2 * nbytes, kernels=4, saved=rows * 0.0, kernel="embedding"),
        collective("embedding.tp", kind, "tp", nbytes),
        collective("embedding.tp.bwd", "all_gather", "tp", nbytes, pass_="backward"),
        memory_op(
            "embedding.bwd", 2 * nbytes + t * d * FP32_BYTES, pass_="backward", kernels=4,
            kernel="embedding", kernel_bytes=counted,
        ),
        *accumulate_ops(ctx, "embedding", table),
        *expand_ops(ctx),
    ]  # fmt: skip


def head_ops(ctx: Context) -> list[Op]:
    """Final norm, LM head GEMM of T x V/tp and vocabulary-parallel cross-entropy in fp32.

    A fused loss reads the 16-bit logits twice and writes their gradient in place; an unfused one
    passes over fp32 copies (cast, maximum, exponential, sum, gradient). A model with a head of its own has that.
    """
    if ctx.model.head is not None:
        return collapse_ops(ctx) + _final_norm(ctx) + linear_head_ops(ctx, ctx.model.head)
    d, t, v = ctx.model.hidden_dim, ctx.tokens, ctx.model.vocab_size / ctx.plan.tp
    dtype = ctx.dtype if ctx.software.fp8_output_proj else "bf16"
    logits = t * v
    in_place = ctx.software.fused_loss and not ctx.software.loss_fp32_logits
    # 1F1B runs the backward of the head right after its forward: only under GPipe do logits wait
    kept = (ACT_BYTES if in_place else FP32_BYTES) * logits if ctx.plan.schedule == "gpipe" else 0.0 * logits
    ops = collapse_ops(ctx) + _final_norm(ctx)
    ops += gather_ops(ctx, "head", d)
    # a rank's part of a vocabulary that nothing pads: whole columns, 16 bits each
    row_bytes = 0 if ctx.software.padded_vocab or dtype != "bf16" else ACT_BYTES * np.floor(v)
    ops += linear(ctx, "head", m=t, n=v, k=d, dtype=dtype, saved=ctx.rows * d * ACT_BYTES, row_bytes=row_bytes)
    if ctx.software.fused_loss:
        ops.append(memory_op("loss", 5 * ACT_BYTES * logits, kernels=6, saved=kept))
        ops.append(memory_op("loss.bwd", 2 * ACT_BYTES * logits, pass_="backward", kernels=3))
    else:
        counted = {"kernel": "cross_entropy", "kernel_bytes": ACT_BYTES * logits}
        ops.append(memory_op("loss", 6 * FP32_BYTES * logits, kernels=12, saved=kept, **counted))
        counted["kernel_bytes"] = 2 * ACT_BYTES * logits
        ops.append(memory_op("loss.bwd", 3 * FP32_BYTES * logits, pass_="backward", kernels=6, **counted))
    ops.append(collective("loss.tp", "all_reduce", "tp", 3 * t * FP32_BYTES, kernels=3))
    return ops


def _final_norm(ctx: Context) -> list[Op]:
    """Norm in front of the head; its input, the residual stream, is kept."""
    elements = ctx.rows * ctx.model.hidden_dim
    if ctx.software.elementwise == "torch":
        waiting = elements * ACT_BYTES if ctx.software.fused_norm else 0.0 * elements
        kept = memory_op("final_norm.input", 0.0, kernels=0, saved=waiting)
        return [kept, *plain_norm_ops(ctx, "final_norm")]
    return [
        memory_op("final_norm", 4 * ACT_BYTES * ctx.rows * ctx.model.hidden_dim, saved=elements * ACT_BYTES),
        memory_op("final_norm.bwd", 5 * ACT_BYTES * ctx.rows * ctx.model.hidden_dim, pass_="backward", kernels=2),
    ]


def update_ops(ctx: Context, count: Any) -> list[Op]:
    """Weight update of a flat buffer of `count` parameters: norm and clipping, Adam, 16-bit copy, clearing."""
    master = FP32_BYTES * count
    return [
        # read for the norm; read and written by the clipping
        memory_op("update.clip", 3 * master, kernels=3, kernel="grad_norm_clip"),
        # gradient, master weight and two moments read, the last three written
        memory_op("update.adam", 7 * master, kernel="fused_adam"),
        memory_op("update.cast", master + ACT_BYTES * count, kernel="cast_16"),
        memory_op("update.clear", master, kernel="clear"),
    ]


def mtp_projection_ops(ctx: Context) -> list[Op]:
    """Entry of a multi-token-prediction block: two norms, a second look-up, a 2D -> D projection."""
    d, rows = ctx.model.hidden_dim, ctx.rows
    ops = [
        memory_op("mtp_norms", 6 * ACT_BYTES * rows * d, kernels=6, saved=3 * ACT_BYTES * rows * d),
        memory_op("mtp_norms.bwd", 8 * ACT_BYTES * rows * d, pass_="backward", kernels=8),
    ]
    return ops + linear(ctx, "mtp_proj", m=rows, n=d, k=2 * d, saved=2 * rows * d * ctx.saved_width)
