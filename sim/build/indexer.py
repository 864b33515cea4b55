"""What some attention kinds do around the core: the indexer of sparse attention, the gate on the result."""

from __future__ import annotations

from typing import Any

from sim.build.context import ACT_BYTES, FP32_BYTES, Context, linear, memory_op
from sim.model import AttentionSpec
from sim.ops import Op

RESTS_ON = "indexer of sparse attention (scores as GEMMs, selection as bytes): assumed"


def indexer_ops(ctx: Context, att: AttentionSpec) -> list[Op]:
    """Projections on every rank of a tensor-parallel group, scores of all earlier keys (half of the square), choice of
    the best: one fused pass, of which only the indices reach memory."""
    if not att.index_topk:
        return []
    rows, d = ctx.tokens, ctx.model.hidden_dim
    ops = linear(ctx, "index_q", m=rows, n=att.index_heads * att.index_dim, k=att.q_lora_rank or d)
    ops += linear(ctx, "index_k", m=rows, n=att.index_dim + att.index_heads, k=d)
    return ops + index_score_ops(ctx, att)


def index_score_ops(ctx: Context, att: AttentionSpec) -> list[Op]:
    """Scores of the earlier keys, or of the compressed entries that stand for them, and the choice of the best."""
    s, rows = ctx.workload.seq_tokens / (att.compress_rate or 1), ctx.tokens
    kept = rows * att.index_heads * att.index_dim * ACT_BYTES
    flop = 2.0 * rows * s / 2 * att.index_heads * att.index_dim
    chosen = rows * min(att.index_topk, s) * FP32_BYTES
    shape = {"kind": "gemm", "m": rows * att.index_heads, "n": s / 2, "k": att.index_dim, "rests_on": RESTS_ON}
    return [
        Op(name="index_scores", module="core_attn", flop=flop, saved_bytes=kept + chosen, **shape),
        Op(name="index_scores.bwd_q", pass_="backward", flop=flop, **shape),
        Op(name="index_scores.bwd_k", pass_="backward", flop=flop, **shape),
        memory_op("index_topk", rows * s / 2 * FP32_BYTES + chosen, module="core_attn", kernels=2),
    ]


def output_gate_ops(ctx: Context, elements: Any) -> list[Op]:
    """Sigmoid gate on the core's result: result and gate read, product written; the gate is kept."""
    return [
        memory_op("attn_gate", 3 * ACT_BYTES * elements, saved=2 * ACT_BYTES * elements),
        memory_op("attn_gate.bwd", 5 * ACT_BYTES * elements, pass_="backward"),
    ]
