"""Peak memory of plain torch's autograd: what lives at the fullest moments of one block, forward and backward.

Counted from the operations of `calibration.harness.moe_block` as autograd runs them: every operation makes a new
tensor, and one that is not kept for the backward pass lives until the next needs it no more. Letters: f, the routed
rows times the expert width; r, the routed rows times the hidden size; t, a tensor of the residual stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, Context
from sim.build.moe import received_rows
from sim.model import LayerSpec, layer_params

NORM_COPIES = 5  # fp32 tensors alive in the backward of a norm that runs in single steps


def block_peak_bytes(ctx: Context, layer: LayerSpec, saved: Any) -> tuple[Any, Any]:
    """(forward, backward) peak of one block above its input, weights and, backward, what forward has saved.

    The backward pass keeps all weight gradients until its end. Raises nothing; layers without experts count none.
    """
    stream, routed, inner = _sizes(ctx, layer)
    # the residual stream lives on; a norm in one kernel has kept it, and the block's own input stood before
    out = saved + (0.0 if ctx.software.fused_norm else stream)
    sum_up = 2 * routed + stream  # rows of the experts, weighted rows, their sum
    if layer.moe is None:
        out = out + sum_up
    else:
        # the rows sent out; those received, the experts' and the sorted results, the rows come back (not yet saved)
        sent = ctx.rows * layer.moe.rows_per_token * layer.moe.row_dim(ctx.model.hidden_dim) * ACT_BYTES
        out = out + np.maximum(sum_up, np.where(np.asarray(ctx.plan.ep) > 1, sent + 3 * routed, 0.0))
    up, down, rest = _weights(ctx, layer)
    experts = np.maximum(down + 4 * inner, up + down + 2 * inner + routed)
    norm = up + down + rest + stream + _norm_working(ctx, stream)
    return out, np.maximum(experts, norm)


def torch_working_bytes(ctx: Context, layer: LayerSpec) -> Any:
    """Bytes on top of all that is saved at the fullest moment of a block's backward in a training step.

    Weight gradients go into the main gradient one by one; saved tensors are freed as they are used.
    """
    stream, routed, inner = _sizes(ctx, layer)
    up, down, _ = _weights(ctx, layer)
    second = stream + 2 * routed + inner + down - routed  # gradients of the second expert GEMM; its rows are gone
    activation = stream + 4 * inner - routed - 2 * inner
    first = stream + 2 * inner + routed + up - routed - 4 * inner
    return np.maximum(np.maximum(second, activation), np.maximum(first, 0.0))


def _sizes(ctx: Context, layer: LayerSpec) -> tuple[Any, Any, Any]:
    """Bytes of t, r and f."""
    stream = ctx.rows * ctx.model.hidden_dim * layer.streams * ACT_BYTES
    if layer.moe is None:
        return stream, 0.0, ctx.tokens * layer.ffn_dim / np.asarray(ctx.plan.tp) * ACT_BYTES
    rows = received_rows(ctx, layer.moe) * ctx.plan.etp
    routed = rows * layer.moe.row_dim(ctx.model.hidden_dim) * ACT_BYTES
    return stream, routed, rows * layer.moe.ffn_dim / np.asarray(ctx.plan.etp) * ACT_BYTES


def _weights(ctx: Context, layer: LayerSpec) -> tuple[Any, Any, Any]:
    """16-bit bytes of the gradients of the first and second FFN or expert weight of a rank, and of all others."""
    d, ups = ctx.model.hidden_dim, 2 if layer.gated else 1
    params = layer_params(layer, d)
    if layer.moe is None:
        one = layer.ffn_dim * d / np.asarray(ctx.plan.tp)
    else:
        one = (
            layer.moe.num_experts * layer.moe.ffn_dim * layer.moe.row_dim(d) / (np.asarray(ctx.plan.ep) * ctx.plan.etp)
        )
    rest = (params.attention + params.shared) / np.asarray(ctx.plan.tp) + params.replicated
    return ACT_BYTES * ups * one, ACT_BYTES * one, ACT_BYTES * rest


def _norm_working(ctx: Context, stream: Any) -> Any:
    """Bytes alive in the backward of a norm: its gradient, or fp32 copies of it."""
    return stream if ctx.software.fused_norm else NORM_COPIES * FP32_BYTES / ACT_BYTES * stream
