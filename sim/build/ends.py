"""What stands outside the layers: embedding, final norm, LM head, loss, and MTP blocks."""

from __future__ import annotations

from sim.build.attention import gather_ops
from sim.build.context import ACT_BYTES, FP32_BYTES, Context, collective, linear, memory_op
from sim.ops import Op


def embedding_ops(ctx: Context) -> list[Op]:
    """Vocabulary-parallel table look-up and its gradient (first stage)."""
    d, t, rows = ctx.model.hidden_dim, ctx.tokens, ctx.rows
    nbytes = t * d * ACT_BYTES
    kind = "reduce_scatter" if ctx.software.sequence_parallel else "all_reduce"
    return [
        memory_op("embedding", 2 * nbytes, kernels=4, saved=rows * 0.0),
        collective("embedding.tp", kind, "tp", nbytes),
        collective("embedding.tp.bwd", "all_gather", "tp", nbytes, pass_="backward"),
        memory_op("embedding.bwd", 2 * nbytes + t * d * FP32_BYTES, pass_="backward", kernels=4),
    ]


def head_ops(ctx: Context) -> list[Op]:
    """Final norm, LM head GEMM of T x V/tp and vocabulary-parallel cross-entropy in fp32.

    A fused loss reads the 16-bit logits twice and writes their gradient in place; an unfused one
    passes over fp32 copies (cast, maximum, exponential, sum, gradient).
    """
    d, t, v = ctx.model.hidden_dim, ctx.tokens, ctx.model.vocab_size / ctx.plan.tp
    dtype = ctx.dtype if ctx.software.fp8_output_proj else "bf16"
    logits = t * v
    in_place = ctx.software.fused_loss and not ctx.software.loss_fp32_logits
    # 1F1B runs the backward of the head right after its forward: only under GPipe do logits wait
    kept = (ACT_BYTES if in_place else FP32_BYTES) * logits if ctx.plan.schedule == "gpipe" else 0.0 * logits
    ops = [
        memory_op("final_norm", 4 * ACT_BYTES * ctx.rows * d, saved=ctx.rows * d * ACT_BYTES),
        memory_op("final_norm.bwd", 5 * ACT_BYTES * ctx.rows * d, pass_="backward", kernels=2),
    ]
    ops += gather_ops(ctx, "head", d)
    ops += linear(ctx, "head", m=t, n=v, k=d, dtype=dtype, saved=ctx.rows * d * ACT_BYTES)
    if ctx.software.fused_loss:
        ops.append(memory_op("loss", 5 * ACT_BYTES * logits, kernels=6, saved=kept))
        ops.append(memory_op("loss.bwd", 2 * ACT_BYTES * logits, pass_="backward", kernels=3))
    else:
        ops.append(memory_op("loss", 6 * FP32_BYTES * logits, kernels=12, saved=kept))
        ops.append(memory_op("loss.bwd", 3 * FP32_BYTES * logits, pass_="backward", kernels=6))
    ops.append(collective("loss.tp", "all_reduce", "tp", 3 * t * FP32_BYTES, kernels=3))
    return ops


def mtp_projection_ops(ctx: Context) -> list[Op]:
    """Entry of a multi-token-prediction block: two norms, a second look-up, a 2D -> D projection."""
    d, rows = ctx.model.hidden_dim, ctx.rows
    ops = [
        memory_op("mtp_norms", 6 * ACT_BYTES * rows * d, kernels=6, saved=3 * ACT_BYTES * rows * d),
        memory_op("mtp_norms.bwd", 8 * ACT_BYTES * rows * d, pass_="backward", kernels=8),
    ]
    return ops + linear(ctx, "mtp_proj", m=rows, n=d, k=2 * d, saved=2 * rows * d * ctx.saved_width)
