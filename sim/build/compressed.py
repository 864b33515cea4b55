"""Attention over one shared tensor and compressed entries (kind "shared_kv"): projections, compressor, indexer, core,
grouped output projection; `sim.model.compressed` has the letters.

What latent attention keeps whole under tensor parallelism is whole here too: down-projections and compressors run on
the T/tp rows of a rank, their narrow results are gathered, and heads divide from the up-projection on. Under context
parallelism ranks gather the compressed entries of the whole sequence, and of their neighbour the window. No kernel of
this core was measured: it is the measured core at these lengths; the compressor is bytes through HBM.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.build.attention import (
    ROTARY_BYTES,
    ROTARY_PASSES,
    gather_ops,
    norm_ops,
    saved_norm_output,
    scatter_ops,
)
from sim.build.context import ACT_BYTES, FP32_BYTES, Context, accumulate_bytes, collective, linear, memory_op
from sim.build.indexer import index_score_ops
from sim.lengths import mean_pairs, met_length
from sim.model import AttentionSpec, compressor_dim, entries_seen, indexer_dim
from sim.ops import Op

RESTS_ON = "compressor of attention (bytes of fused kernels): assumed"
# Passes over what is projected (values and gates): read; backward: read again, both gradients written.
COMPRESS_PASSES = (1, 2)


def shared_kv_ops(ctx: Context, att: AttentionSpec) -> list[Op]:
    """All ops of the attention half of a layer, forward first, then backward."""
    ops = norm_ops(ctx, "attn_norm") + _projections(ctx, att)
    if att.index_topk:
        columns = att.index_heads * att.index_dim
        ops += linear(ctx, "index_q", m=ctx.tokens, n=columns, k=att.q_lora_rank)
        ops += index_score_ops(ctx, att)
    return ops + _core(ctx, att) + _output(ctx, att)


def _projections(ctx: Context, att: AttentionSpec) -> list[Op]:
    d, rows, t = ctx.model.hidden_dim, ctx.rows, ctx.tokens
    rank, dim = att.q_lora_rank, att.head_dim
    heads = att.heads / ctx.plan.tp
    ops = linear(ctx, "q_down", m=rows, n=rank, k=d, saved=saved_norm_output(ctx))
    ops += linear(ctx, "kv_down", m=rows, n=dim, k=d)
    width = rank + dim
    if att.compress_rate:
        ops += linear(ctx, "compress_down", m=rows, n=2 * compressor_dim(att), k=d)
        ops += _compressor(ctx, att, "compress", compressor_dim(att), dim)
        width += dim // att.compress_rate
    if att.index_topk:
        ops += linear(ctx, "index_down", m=rows, n=2 * indexer_dim(att) + att.index_heads, k=d)
        ops += _compressor(ctx, att, "index_compress", indexer_dim(att), att.index_dim)
        width += att.index_dim // att.compress_rate + att.index_heads
    latent = rows * (rank + dim)
    ops.append(memory_op("latent", 0.0, kernels=0, saved=ACT_BYTES * latent))
    ops.append(memory_op("latent_norm", 4 * ACT_BYTES * latent, kernels=2))
    ops.append(memory_op("latent_norm.bwd", 5 * ACT_BYTES * latent, pass_="backward", kernels=4))
    ops += gather_ops(ctx, "latent", width)
    ops += linear(ctx, "q_up", m=t, n=heads * dim, k=rank, saved=t * rank * ctx.saved_width, normed=True)
    queries = t * heads * dim
    ops.append(memory_op("q_norm", 2 * ACT_BYTES * queries, saved=ACT_BYTES * queries))
    ops.append(memory_op("q_norm.bwd", 3 * ACT_BYTES * queries, pass_="backward", kernels=2))
    if att.rotary:
        # queries, the shared tensor, and the result, whose values were rotated and are turned back
        rotated = t * (2 * heads + 1) * att.qk_rope_dim
        passes, kernels = ROTARY_PASSES[ctx.software.elementwise]
        sizes = {"kernels": 2 * kernels, "kernel": "rotary", "kernel_bytes": ROTARY_BYTES * rotated}
        ops.append(memory_op("rotary", passes * ACT_BYTES * rotated, **sizes))
        ops.append(memory_op("rotary.bwd", passes * ACT_BYTES * rotated, pass_="backward", **sizes))
    return ops


def _compressor(ctx: Context, att: AttentionSpec, name: str, columns: int, width: int) -> list[Op]:
    """Softmax over the gates of the tokens of an entry, weighted sum, norm; values and gates wait for the backward."""
    projected = ctx.rows * 2 * columns * ACT_BYTES
    entries = ctx.rows / att.compress_rate * width * ACT_BYTES
    forward, backward = (passes * projected + entries for passes in COMPRESS_PASSES)
    return [
        Op(name=name, kind="memory", bytes=forward, kernels=2, saved_bytes=projected, rests_on=RESTS_ON),
        Op(name=f"{name}.bwd", kind="memory", pass_="backward", bytes=backward, kernels=3, rests_on=RESTS_ON),
    ]


def _core(ctx: Context, att: AttentionSpec) -> list[Op]:
    """Softmax over the window and the entries that a query sees; keys and values are one tensor."""
    s, t, cp, dim = ctx.workload.seq_tokens, ctx.tokens, ctx.plan.cp, att.head_dim
    heads = att.heads / ctx.plan.tp
    flop = 2.0 * t * mean_pairs(ctx.workload, att) * heads * 2 * dim
    document = met_length(ctx.workload)
    entries = t / att.compress_rate if att.compress_rate else 0.0 * t
    out = t * heads * dim * ACT_BYTES
    saved = 2 * out + (t + entries) * dim * ACT_BYTES + t * heads * FP32_BYTES
    # the kernel works in whole tiles of the keys a query sees: none are cut where that is the whole sequence
    seen = (att.window or s) + entries_seen(att, document)
    common = {
        "seq": document / cp, "batch": ctx.plan.micro_batch_seqs * (s / document), "heads": heads, "kv_heads": 1,
        "dqk": dim, "dv": dim, "window": int(seen) if seen < document else None,
        "dtype": "fp8" if ctx.software.fp8_attention else "bf16",
    }  # fmt: skip
    ops = [
        memory_op("core_io", 0.0, kernels=0, saved=saved),
        Op(name="core_attn", kind="attention", module="core_attn", flop=flop, **common),
        Op(name="core_attn.bwd", kind="attention", pass_="backward", flop=2.5 * flop, kernels=3, **common),
    ]
    return ops + _context_ops(ctx, att)


def _context_ops(ctx: Context, att: AttentionSpec) -> list[Op]:
    """Entries of the whole sequence, and a window of every rank, gathered over context-parallel ranks; their gradients
    reduced back."""
    s, cp = ctx.workload.seq_tokens, np.asarray(ctx.plan.cp)
    width = att.head_dim + (att.index_dim if att.index_topk else 0)
    entries = s / att.compress_rate * width if att.compress_rate else 0.0
    near = np.minimum(cp * (att.window or s), s) * att.head_dim
    nbytes = ctx.plan.micro_batch_seqs * (entries + near) * ACT_BYTES
    return [
        collective("cp_entries", "all_gather", "cp", nbytes),
        collective("cp_entries.bwd", "reduce_scatter", "cp", nbytes, pass_="backward"),
    ]


def _output(ctx: Context, att: AttentionSpec) -> list[Op]:
    """Each group of heads to K columns by weights of its own (one batched product), then all of them to D."""
    t, groups = ctx.tokens, att.out_groups / ctx.plan.tp
    inner, k = att.heads * att.head_dim / att.out_groups, att.out_rank
    # rows of all groups together make the batched product; every group has a weight, whose gradient is accumulated
    saved = 0.0 if ctx.dtype == "bf16" else t * groups * inner * ctx.saved_width
    grouped = [
        replace(op, bytes=accumulate_bytes(ctx, groups * inner * k)) if op.name == "out_group.wgrad" else op
        for op in linear(ctx, "out_group", m=t * groups, n=k, k=inner, saved=saved)
    ]
    kept = t * groups * k * ctx.saved_width
    ops = grouped + linear(ctx, "attn_out", m=t, n=ctx.model.hidden_dim, k=groups * k, saved=kept)
    return ops + scatter_ops(ctx, "attn_out", ctx.model.hidden_dim)
