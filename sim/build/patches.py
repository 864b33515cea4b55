"""Ops of models without a vocabulary: patch embedding, linear head, and the modulation of layers by a condition.

All of it is whole on every rank of a tensor-parallel group: these layers are narrow or work on one vector a sequence.
"""

from __future__ import annotations

from typing import Any

from sim.build.context import ACT_BYTES, FP32_BYTES, Context, linear, memory_op
from sim.model import FINAL_VECTORS, ConditionSpec, HeadSpec, ImageSpec, LayerSpec
from sim.ops import Op

# Of an elementwise scale-and-shift, or gate: read and written; backward: input and gradient read, one written.
MODULATE_PASSES = (2, 3)
LOSS_PASSES = (4, 3)  # over the head's fp32 result: prediction and target read, difference, sum; mirrored


def patch_ops(ctx: Context, image: ImageSpec) -> list[Op]:
    """Patches times their weights, plus positions; no gradient of the image is made."""
    d, rows = ctx.model.hidden_dim, ctx.rows
    made = linear(ctx, "patches", m=rows, n=d, k=image.patch_dim, saved=rows * image.patch_dim * ACT_BYTES, bias=True)
    ops = [op for op in made if op.name not in ("patches.dgrad", "patches.dy.quantise")]
    ops.append(memory_op("positions", 2 * ACT_BYTES * rows * d))
    if ctx.model.condition is not None:
        ops += _condition(ctx, ctx.model.condition)
    return ops


def _condition(ctx: Context, condition: ConditionSpec) -> list[Op]:
    """The embedding of a timestep, two layers on a row per sequence, and the class's row of a table."""
    d, rows = ctx.model.hidden_dim, ctx.plan.micro_batch_seqs
    ops = linear(ctx, "condition1", m=rows, n=d, k=condition.frequencies, dtype="bf16", bias=True)
    ops += linear(ctx, "condition2", m=rows, n=d, k=d, dtype="bf16", bias=True)
    return [op for op in ops if op.name != "condition1.dgrad"]


def modulation_ops(ctx: Context, vectors: int, kernels: int) -> list[Op]:
    """Vectors made from the condition, and `kernels` passes over the rows that apply them; what they are applied to
    waits for their gradients. Nothing without vectors."""
    if not vectors:
        return []
    d, elements = ctx.model.hidden_dim, ctx.rows * ctx.model.hidden_dim
    forward, backward = (kernels * passes * ACT_BYTES * elements for passes in MODULATE_PASSES)
    return [
        *linear(ctx, "modulation", m=ctx.plan.micro_batch_seqs, n=vectors * d, k=d, dtype="bf16", bias=True),
        memory_op("modulate", forward, kernels=kernels, saved=kernels * ACT_BYTES * elements),
        memory_op("modulate.bwd", backward, pass_="backward", kernels=kernels),
    ]


def layer_modulation_ops(ctx: Context, layer: LayerSpec) -> list[Op]:
    """Of one layer: a scale and shift behind each norm, a gate on each result where there are three vectors a half."""
    return modulation_ops(ctx, layer.modulation * layer.halves, (layer.modulation - 1) * layer.halves)


def head_rows(ctx: Context, head: HeadSpec) -> Any:
    """Rows that the head works on: the rank's tokens, or one a sequence."""
    return ctx.plan.micro_batch_seqs if head.pooled else ctx.rows


def linear_head_ops(ctx: Context, head: HeadSpec) -> list[Op]:
    """Last modulation, the linear layer, and an elementwise loss on its result."""
    rows, d = head_rows(ctx, head), ctx.model.hidden_dim
    ops = modulation_ops(ctx, FINAL_VECTORS, 1) if ctx.model.condition is not None else []
    if head.dim:
        ops += linear(ctx, "head", m=rows, n=head.dim, k=d, dtype="bf16", saved=rows * d * ACT_BYTES, bias=True)
    elements = rows * (head.dim or d) * FP32_BYTES
    forward, backward = LOSS_PASSES
    return [
        *ops,
        memory_op("loss", forward * elements, kernels=4),
        memory_op("loss.bwd", backward * elements, pass_="backward", kernels=2),
    ]
