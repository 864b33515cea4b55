"""Attention ops of one layer: projections, rotary, core, and the tensor/context-parallel traffic.

Shapes as in the fidelity notes of `docs/background/what-a-step-contains.md`: m = T tokens, heads
divided by tp, key/value heads replicated when tp exceeds them; MLA down-projections are not
divided by tp and run on the T/tp rows of a rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, Context, collective, linear, memory_op
from sim.build.indexer import indexer_ops, output_gate_ops
from sim.lengths import mean_pairs, met_length
from sim.model import AttentionSpec
from sim.ops import Op

# Norm forward and backward passes over T/tp x D 16-bit elements, kernels: hand-fused and compiler-fused read
# and write once; eager steps (cast to fp32, square, mean, scale, cast back, weight) pass again and again.
# "torch": the call of the library; what its backward leaves out, the sum of two gradients, is an op of its own.
NORM_PASSES = {"fused": (2, 6, 1), "compiled": (2, 6, 1), "eager": (14, 24, 6), "torch": (2, 3, 1)}
NORM_STEPS = (14, 24, 6)  # the same where torch has no fused norm
# Rotary as one kernel over q and k, or eager: cast, rotate halves, two products, sum (fp32).
# In 16 bits: product with the cosine, negate, join, product with the sine, sum.
ROTARY_PASSES = {"fused": (2, 2), "compiled": (2, 1), "eager": (14, 8), "torch": (10, 5)}
# As a product of complex numbers, which compilers leave to eager kernels: widen to fp32, multiply, narrow.
COMPLEX_ROTARY_PASSES = (10, 3)
ANGLE_KERNELS = 12
ROTARY_BYTES = 2 * ACT_BYTES  # per element of the measured class: read and written once


def attention_ops(ctx: Context, att: AttentionSpec) -> list[Op]:
    """All ops of the attention half of a layer, forward first, then backward."""
    ops = _norm(ctx, "attn_norm")
    if att.kind == "mla":
        ops += _mla_projections(ctx, att)
    else:
        ops += _gqa_projections(ctx, att)
    ops += indexer_ops(ctx, att) + _core(ctx, att)
    ops += _output(ctx, att)
    return ops


def _norm(ctx: Context, name: str) -> list[Op]:
    """Residual add (three passes over T/tp x D) and norm (two); six passes in the backward."""
    elements = ctx.rows * ctx.model.hidden_dim
    residual = elements * ACT_BYTES  # the residual stream stays for the norm's backward
    if not ctx.software.flash_attention:
        residual = residual + elements  # trainers of that age drop out in front of the residual add: a mask byte each
    if not ctx.software.fused_norm:
        residual = 0.0 * residual  # the fp32 copies are kept instead
    ops = [memory_op(f"{name}.residual", 3 * ACT_BYTES * elements, saved=residual, kernel="residual")]
    return ops + plain_norm_ops(ctx, name) + gradient_sum_ops(ctx, f"{name}.residual", elements)


def plain_norm_ops(ctx: Context, name: str) -> list[Op]:
    """A norm of the rank's rows, forward and backward."""
    elements = ctx.rows * ctx.model.hidden_dim
    fwd, bwd, kernels = NORM_PASSES[ctx.software.elementwise]
    kept = 0.0
    if not ctx.software.fused_norm:
        fwd, bwd, kernels = NORM_STEPS
        kept = 0.0 if ctx.drops("layernorm") else 2 * FP32_BYTES * elements
    counted = {"kernel": "rmsnorm", "kernel_bytes": 2 * ACT_BYTES * elements}
    forward = memory_op(name, fwd * ACT_BYTES * elements, module="layernorm", kernels=kernels, saved=kept, **counted)
    counted["kernel_bytes"] = 3 * ACT_BYTES * elements
    return [
        forward,
        memory_op(f"{name}.bwd", bwd * ACT_BYTES * elements, pass_="backward", kernels=kernels + 2, **counted),
    ]


def gradient_sum_ops(ctx: Context, name: str, elements: Any) -> list[Op]:
    """The sum of two gradients of one tensor, where plain torch runs it apart from the kernels beside it."""
    if ctx.software.elementwise != "torch":
        return []
    return [memory_op(f"{name}.sum.bwd", 3 * ACT_BYTES * elements, pass_="backward", kernel="residual")]


def norm_ops(ctx: Context, name: str) -> list[Op]:
    """Norm and residual add in front of a sub-layer (shared with the FFN builders)."""
    return _norm(ctx, name)


def gather_ops(ctx: Context, name: str, width: int) -> list[Op]:
    """Enter a tensor-parallel region: all-gather of T x width forward, reduce-scatter backward.

    Without sequence parallelism nothing moves forward and the gradient is all-reduced. The input
    is gathered again for the weight gradient, behind the dgrad GEMM. What is gathered has been quantised
    before (low-precision recipes); what is reduced travels in 16 bits.
    """
    elements = ctx.tokens * width
    nbytes, quantised = elements * ACT_BYTES, elements * ctx.saved_width
    if not ctx.software.sequence_parallel:
        return [collective(f"{name}.all_reduce", "all_reduce", "tp", nbytes, pass_="backward")]
    return [
        collective(f"{name}.all_gather", "all_gather", "tp", quantised, overlap="tp"),
        collective(f"{name}.reduce_scatter", "reduce_scatter", "tp", nbytes, pass_="backward", overlap="tp"),
        collective(f"{name}.regather", "all_gather", "tp", quantised, pass_="backward", overlap="dgrad"),
    ]


def scatter_ops(ctx: Context, name: str, width: int) -> list[Op]:
    """Leave a tensor-parallel region: reduce-scatter of T x width forward, all-gather backward."""
    nbytes = ctx.tokens * width * ACT_BYTES
    if not ctx.software.sequence_parallel:
        return [collective(f"{name}.all_reduce", "all_reduce", "tp", nbytes)]
    quantised = ctx.tokens * width * ctx.saved_width
    return [
        collective(f"{name}.reduce_scatter", "reduce_scatter", "tp", nbytes, overlap="tp"),
        collective(f"{name}.all_gather", "all_gather", "tp", quantised, pass_="backward", overlap="tp"),
    ]


def _local_heads(ctx: Context, att: AttentionSpec) -> tuple[Any, Any]:
    """Query and key/value heads on one rank; key/value heads replicate when tp exceeds them."""
    return att.heads / ctx.plan.tp, np.maximum(1, att.kv_heads / np.asarray(ctx.plan.tp))


def saved_norm_output(ctx: Context) -> Any:
    """The normed input kept for the projection's weight gradient (dropped by layernorm recompute)."""
    return ctx.rows * ctx.model.hidden_dim * ctx.saved_width if not ctx.drops("layernorm") else 0.0


def _gqa_projections(ctx: Context, att: AttentionSpec) -> list[Op]:
    d, t = ctx.model.hidden_dim, ctx.tokens
    heads, kv = _local_heads(ctx, att)
    queries = att.head_dim + (att.v_head_dim if att.output_gate else 0)
    width = heads * queries + kv * (att.head_dim + att.v_head_dim)
    ops = gather_ops(ctx, "qkv", d)
    ops += linear(ctx, "qkv", m=t, n=width, k=d, saved=saved_norm_output(ctx), bias=att.qkv_bias, normed=True)
    rotated = t * (heads + kv) * att.head_dim
    if att.rotary:
        complex_product = ctx.software.complex_rotary
        passes, kernels = COMPLEX_ROTARY_PASSES if complex_product else ROTARY_PASSES[ctx.software.elementwise]
        sizes = {"kernels": kernels, "kernel": "rotary", "kernel_bytes": ROTARY_BYTES * rotated}
        ops.append(memory_op("rotary", passes * ACT_BYTES * rotated, **sizes))
        ops.append(memory_op("rotary.bwd", passes * ACT_BYTES * rotated, pass_="backward", **sizes))
    if ctx.software.elementwise == "torch":
        # values are a view of the joint projection, so all of it is kept beside the rotated queries and keys;
        # the three gradients are joined again in the backward pass
        kept = rotated * ACT_BYTES if att.rotary else 0.0
        ops.append(memory_op("qkv.split", 0.0, kernels=0, saved=kept))
        if att.rotary:
            # each layer makes the angles of its positions anew: two 16-bit results over a dozen small fp32 kernels
            angles = ctx.workload.seq_tokens * att.head_dim / ctx.plan.cp
            steps = {"kernels": ANGLE_KERNELS, "kernel": "angles", "kernel_bytes": 2 * ACT_BYTES * angles}
            ops.append(memory_op("angles", ANGLE_KERNELS * FP32_BYTES * angles, saved=2 * ACT_BYTES * angles, **steps))
        joined = 2 * ACT_BYTES * t * width
        ops.append(memory_op("qkv.join.bwd", joined, pass_="backward", kernel="copy"))
    if ctx.software.repeated_kv:
        # each group is read once and written for all of its heads; the gradients of its heads are summed
        copied = ACT_BYTES * t * (heads + kv) * (att.head_dim + att.v_head_dim) * (heads > kv)
        ops.append(memory_op("repeat_kv", copied, kernels=2))
        ops.append(memory_op("repeat_kv.bwd", copied, pass_="backward", kernels=2))
    if att.qk_norm:
        ops.append(memory_op("qk_norm", 2 * ACT_BYTES * rotated, kernels=2, saved=ACT_BYTES * rotated))
        ops.append(memory_op("qk_norm.bwd", 3 * ACT_BYTES * rotated, pass_="backward", kernels=4))
    return ops


def _mla_projections(ctx: Context, att: AttentionSpec) -> list[Op]:
    d, rows, t = ctx.model.hidden_dim, ctx.rows, ctx.tokens
    heads = att.heads / ctx.plan.tp
    up = "mla_up_proj"
    kv_rank, q_rank = att.kv_lora_rank, att.q_lora_rank
    latent = q_rank + kv_rank + att.qk_rope_dim
    ops: list[Op] = []
    saved_in = saved_norm_output(ctx)
    if q_rank:
        ops += linear(ctx, "q_down", m=rows, n=q_rank, k=d, saved=saved_in)
    ops += linear(ctx, "kv_down", m=rows, n=kv_rank + att.qk_rope_dim, k=d, saved=0.0 if q_rank else saved_in)
    latent_elements = rows * latent
    kept = ACT_BYTES * latent_elements  # the latents before their norm are what recompute starts from
    ops.append(memory_op("latent", 0.0, kernels=0, saved=kept))
    ops.append(memory_op("latent_norm", 4 * ACT_BYTES * latent_elements, module=up, kernels=2))
    ops.append(memory_op("latent_norm.bwd", 5 * ACT_BYTES * latent_elements, pass_="backward", kernels=4))
    ops += gather_ops(ctx, "latent", latent)
    if q_rank:
        kept = t * q_rank * ctx.saved_width
        ops += linear(ctx, "q_up", m=t, n=heads * att.head_dim, k=q_rank, module=up, saved=kept, normed=True)
    else:
        ops += gather_ops(ctx, "q_proj", d) + linear(ctx, "q_proj", m=t, n=heads * att.head_dim, k=d, module=up)
    kv_width = heads * (att.qk_nope_dim + att.v_head_dim)
    ops += linear(ctx, "kv_up", m=t, n=kv_width, k=kv_rank, module=up, saved=t * kv_rank * ctx.saved_width, normed=True)
    # query and key are assembled from their rotary and plain parts: read, rotate, write both
    assembled = t * heads * (2 * att.head_dim + att.v_head_dim)
    ops.append(memory_op("mla_assemble", 2 * ACT_BYTES * assembled, module=up, kernels=4))
    ops.append(memory_op("mla_assemble.bwd", 2 * ACT_BYTES * assembled, pass_="backward", kernels=6))
    return ops


def _core(ctx: Context, att: AttentionSpec) -> list[Op]:
    """softmax(QK^T)V. cp > 1 exchanges key/value blocks around a ring behind the core's compute."""
    s, t, cp = ctx.workload.seq_tokens, ctx.tokens, ctx.plan.cp
    heads, kv = _local_heads(ctx, att)
    flop = 2.0 * t * mean_pairs(ctx.workload, att) * heads * (att.head_dim + att.v_head_dim)
    document = met_length(ctx.workload)  # the kernel works on documents of this length, as many as fill the sequence
    qkv_elements = t * (heads * att.head_dim + kv * (att.head_dim + att.v_head_dim))
    out_elements = t * heads * att.v_head_dim
    qkv_saved = qkv_elements * ACT_BYTES
    if att.kind == "mla":
        qkv_saved = t * heads * (2 * att.head_dim + att.v_head_dim) * ACT_BYTES
        if ctx.drops("mla_up_proj"):
            qkv_saved = 0.0 * qkv_saved
    saved = qkv_saved + out_elements * ACT_BYTES + t * heads * FP32_BYTES
    # the ring keeps one tensor more of the output's size: published peaks at cp 4 and cp 8 both show it
    saved = saved + np.where(np.asarray(cp) > 1, out_elements * ACT_BYTES, 0.0)
    # chunks do not see each other: sequences of their own
    pieces = 1 if att.chunk is None else max(1, document // att.chunk)
    common = {
        "seq": document / cp / pieces, "batch": ctx.plan.micro_batch_seqs * (s / document) * pieces, "heads": heads,
        "kv_heads": kv, "dqk": att.head_dim, "dv": att.v_head_dim, "window": att.index_topk or att.window,
        "dtype": "fp8" if ctx.software.fp8_attention else "bf16",
    }  # fmt: skip
    ops: list[Op] = []
    if ctx.software.flash_attention:
        ops.append(memory_op("core_io", 0.0, kernels=0, saved=saved))
        ops.append(Op(name="core_attn", kind="attention", module="core_attn", flop=flop, **common))
        ops.append(Op(name="core_attn.bwd", kind="attention", pass_="backward", flop=2.5 * flop, kernels=3, **common))
    else:
        ops += _unfused_core(ctx, att, heads, qkv_saved + out_elements * ACT_BYTES)
    return ops + _ring_ops(ctx, att, out_elements, qkv_elements)


# Bytes per element of a step of torch's ring attention (torch.distributed.tensor.experimental._attention, 2.6), all of
# it single eager kernels. Forward: keys and values joined in one buffer, the step's output widened to fp32, then the
# difference to the sum so far, its product with a sigmoid, the subtraction. Backward: the same buffer again, three
# gradients added in fp32 (those of half a sequence joined with the other half), theirs of keys and values joined.
RING_FORWARD_BYTES = 8 + 6 + 12 + 8 + 12
RING_BACKWARD_BYTES = 8 + 36 + 16
RING_ENDS_BYTES = (12, 30)  # once: first output widened, result narrowed; fp32 gradients cleared, three narrowed
RING_KERNELS = (8, 12)


def _ring_ops(ctx: Context, att: AttentionSpec, out_elements: Any, qkv_elements: Any) -> list[Op]:
    """Exchange of keys and values among context-parallel ranks, and what merges the steps of the ring.

    Plain torch sends the gradients of keys and values in fp32 and merges in fp32. Keys and values that were repeated to
    all heads travel so.
    """
    cp = ctx.plan.cp
    further = np.asarray(cp) - 1
    heads, kv = _local_heads(ctx, att)
    plain = ctx.software.context_ring == "torch"
    sent = heads if ctx.software.repeated_kv else kv
    ring = ctx.workload.seq_tokens * ctx.plan.micro_batch_seqs * sent * (att.head_dim + att.v_head_dim) * ACT_BYTES
    back = 3.0 * ring if plain else 2.0 * ring
    ops = [
        collective("cp_ring", "ring", "cp", ring, overlap="attention", kernels=cp),
        collective("cp_ring.bwd", "ring", "cp", back, pass_="backward", overlap="attention", kernels=cp),
    ]
    if plain:
        some = further > 0
        forward, backward = further * RING_FORWARD_BYTES, some * cp * RING_BACKWARD_BYTES
        ends = [some * once for once in RING_ENDS_BYTES]
        return [
            *ops,
            memory_op("cp_merge", (forward + ends[0]) * out_elements, kernels=further * RING_KERNELS[0]),
            memory_op(
                "cp_merge.bwd", (backward + ends[1]) * out_elements, pass_="backward", kernels=further * RING_KERNELS[1]
            ),
        ]
    # every further step of the ring is added to what the steps before it gave: one read, and one read and write;
    # forward the output, backward the gradients of queries, keys and values
    merged = 3 * ACT_BYTES * further
    return [
        *ops,
        memory_op("cp_merge", merged * out_elements, kernels=further),
        memory_op("cp_merge.bwd", merged * qkv_elements, pass_="backward", kernels=3 * further),
    ]


def _unfused_core(ctx: Context, att: AttentionSpec, heads: Any, saved_io: Any) -> list[Op]:
    """Attention of trainers before flash attention: two batched GEMMs over the full s x s square,
    a fused scale-mask-softmax and dropout over the scores (T s heads elements, 16-bit).
    Saved for backward: softmax output, dropout mask and output (5 bytes a score; arXiv 2205.05198)."""
    s, t = ctx.workload.seq_tokens, ctx.tokens
    scores = t * s * heads
    module = "core_attn"
    batches = ctx.plan.micro_batch_seqs * heads
    shape = {"count": batches, "dtype": "bf16", "m": s}
    full = 2.0 * scores
    flop_k, flop_v = full * att.head_dim, full * att.v_head_dim
    return [
        memory_op("core_io", 0.0, kernels=0, saved=saved_io),
        Op(name="scores", kind="gemm", module=module, n=s, k=att.head_dim, flop=flop_k, **shape),
        memory_op("softmax", 4.0 * scores, module=module, saved=5.0 * scores),
        memory_op("attn_dropout", 5.0 * scores, module=module),
        Op(name="context", kind="gemm", module=module, n=att.v_head_dim, k=s, flop=flop_v, **shape),
        Op(name="context.bwd", kind="gemm", pass_="backward", n=s, k=att.v_head_dim, flop=flop_v, **shape),
        Op(name="context.bwd_v", kind="gemm", pass_="backward", n=att.v_head_dim, k=s, flop=flop_v, **shape),
        memory_op("attn_dropout.bwd", 5.0 * scores, pass_="backward"),
        memory_op("softmax.bwd", 6.0 * scores, pass_="backward"),
        Op(name="scores.bwd_q", kind="gemm", pass_="backward", n=att.head_dim, k=s, flop=flop_k, **shape),
        Op(name="scores.bwd_k", kind="gemm", pass_="backward", n=att.head_dim, k=s, flop=flop_k, **shape),
    ]


def _output(ctx: Context, att: AttentionSpec) -> list[Op]:
    d = ctx.model.hidden_dim
    heads = att.heads / ctx.plan.tp
    k = heads * att.v_head_dim
    gate = output_gate_ops(ctx, ctx.tokens * k) if att.output_gate else []
    # in bf16 the core's output is the projection's input: one tensor, already counted there
    saved = 0.0 if ctx.saved_width == SAVED_BF16 else ctx.tokens * k * ctx.saved_width
    ops = gate + linear(ctx, "attn_out", m=ctx.tokens, n=d, k=k, saved=saved, bias=att.out_bias)
    return ops + scatter_ops(ctx, "attn_out", d)


SAVED_BF16 = float(ACT_BYTES)
