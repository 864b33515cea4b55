"""Ops of token mixers without softmax: projections, short convolution, chunked scan, gate; `sim.model.mixer` has the
forms.

Heads divide by tp; keys shared by a group replicate when tp exceeds their number. Under context parallelism the ranks
of a ring exchange heads for tokens before the convolution and back behind the core (two all-to-alls, as Megatron-LM's
state-space layers do), because the scan runs along the whole sequence.
No kernel of these cores was measured: their products are priced as batched GEMMs of their sizes and the rest as bytes
through HBM, on record as assumed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.build.attention import gather_ops, norm_ops, saved_norm_output, scatter_ops
from sim.build.context import ACT_BYTES, FP32_BYTES, Context, collective, linear, memory_op
from sim.model import MixerSpec
from sim.ops import Op, Pass

RESTS_ON = "core without softmax (products of a chunk as batched GEMMs): assumed"
# Passes of a fused causal convolution over its channels: read, write; backward: input, gradient, gradient of the input.
CONV_PASSES = (2, 3)
# Gate and norm behind the core: result and gate read, one written; backward: both and the gradient read, both written.
GATE_PASSES = (3, 5)


def mixer_ops(ctx: Context, mixer: MixerSpec) -> list[Op]:
    """All ops of the mixing half of a layer, forward first, then backward."""
    ops = norm_ops(ctx, "attn_norm") + gather_ops(ctx, "qkv", ctx.model.hidden_dim)
    ops += _projections(ctx, mixer)
    width = mixer.conv_dim or mixer.in_dim
    ops += _swap(ctx, "mixer_in", width)
    ops += _convolution(ctx, mixer)
    if mixer.kind == "mamba1":
        ops += _selective_scan(ctx, mixer)
    elif mixer.kind != "short_conv":
        ops += _chunked_core(ctx, mixer)
    ops += _swap(ctx, "mixer_out", mixer.inner_dim) + _gate(ctx, mixer)
    k = mixer.inner_dim / ctx.plan.tp
    kept = ctx.tokens * k * ctx.saved_width
    ops += linear(ctx, "attn_out", m=ctx.tokens, n=ctx.model.hidden_dim, k=k, saved=kept, bias=mixer.proj_bias)
    return ops + scatter_ops(ctx, "attn_out", ctx.model.hidden_dim)


def _key_share(ctx: Context, mixer: MixerSpec) -> Any:
    """Key heads on one rank."""
    return np.maximum(1, mixer.key_heads / np.asarray(ctx.plan.tp))


def _local_width(ctx: Context, mixer: MixerSpec) -> Any:
    """Columns of the input projection on one rank."""
    keys = 0 if mixer.kind in ("mamba1", "short_conv") else 2 * mixer.keys_dim
    return (mixer.in_dim - keys) / ctx.plan.tp + (2 * mixer.key_dim * _key_share(ctx, mixer) if keys else 0.0)


def _local_conv(ctx: Context, mixer: MixerSpec) -> Any:
    """Channels of the convolution on one rank."""
    if not mixer.conv_dim:
        return 0.0
    return mixer.inner_dim / ctx.plan.tp + (
        2 * mixer.key_dim * _key_share(ctx, mixer) if mixer.conv_dim > mixer.inner_dim else 0.0
    )


def _projections(ctx: Context, mixer: MixerSpec) -> list[Op]:
    t, d = ctx.tokens, ctx.model.hidden_dim
    width = _local_width(ctx, mixer)
    ops = linear(ctx, "qkv", m=t, n=width, k=d, saved=saved_norm_output(ctx), bias=mixer.proj_bias, normed=True)
    if mixer.kind == "kda":  # decay and gate through a low rank each
        up = (mixer.inner_dim + mixer.keys_dim) / 2 / ctx.plan.tp
        for name in ("decay", "gate"):
            ops += linear(ctx, f"{name}_down", m=ctx.rows, n=mixer.rank, k=d)
            ops += gather_ops(ctx, f"{name}_up", mixer.rank)
            ops += linear(ctx, f"{name}_up", m=t, n=up, k=mixer.rank, saved=t * mixer.rank * ctx.saved_width)
    return ops


def _swap(ctx: Context, name: str, width: Any) -> list[Op]:
    """Tokens of some heads for all tokens of fewer heads over the context-parallel ranks; the reverse in backward."""
    nbytes = ctx.tokens * width / ctx.plan.tp * ACT_BYTES
    return [
        collective(f"{name}.swap", "all_to_all", "cp", nbytes),
        collective(f"{name}.swap.bwd", "all_to_all", "cp", nbytes, pass_="backward"),
    ]


def _convolution(ctx: Context, mixer: MixerSpec) -> list[Op]:
    """Causal convolution of K taps with its activation; its input stays for the backward pass."""
    channels = _local_conv(ctx, mixer)
    elements = ctx.tokens * channels
    forward, backward = (passes * ACT_BYTES * elements for passes in CONV_PASSES)
    flop = 2.0 * mixer.conv_kernel * elements
    if not mixer.conv_kernel:
        return [memory_op("conv_io", 0.0, kernels=0, saved=ctx.tokens * _local_width(ctx, mixer) * ACT_BYTES)]
    kept = ctx.tokens * _local_width(ctx, mixer) * ACT_BYTES
    return [
        memory_op("conv_io", 0.0, kernels=0, saved=kept),
        Op(name="conv", kind="memory", bytes=forward, flop=flop, saved_bytes=ACT_BYTES * elements),
        Op(name="conv.bwd", kind="memory", pass_="backward", bytes=backward, flop=2.0 * flop, kernels=2),
    ]


def _selective_scan(ctx: Context, mixer: MixerSpec) -> list[Op]:
    """mamba1: step, B and C from the values, then one fused scan that keeps its state on chip."""
    t, inner = ctx.tokens, mixer.inner_dim / ctx.plan.tp
    low = mixer.rank + 2 * mixer.key_dim
    ops = linear(ctx, "scan_in", m=t, n=low, k=inner, saved=t * inner * ctx.saved_width)
    # each rank holds a part of the channels: what it makes of them is summed over the tensor-parallel ranks
    ops.append(collective("scan_in.all_reduce", "all_reduce", "tp", t * low * ACT_BYTES))
    ops.append(collective("scan_in.all_reduce.bwd", "all_reduce", "tp", t * low * ACT_BYTES, pass_="backward"))
    ops += linear(ctx, "scan_step", m=t, n=inner, k=mixer.rank, saved=t * low * ctx.saved_width)
    flop = 7.0 * mixer.key_dim * inner * t
    moved = t * (3 * inner + 2 * mixer.key_dim) * ACT_BYTES
    kept = 2 * t * inner * ACT_BYTES
    return [
        *ops,
        Op(name="scan", kind="memory", bytes=moved, flop=flop, saved_bytes=kept, rests_on=RESTS_ON),
        # the states are computed again from the kept inputs
        Op(
            name="scan.bwd", kind="memory", pass_="backward", bytes=2.5 * moved, flop=2.0 * flop, kernels=2,
            rests_on=RESTS_ON,
        ),
    ]  # fmt: skip


def _chunked_core(ctx: Context, mixer: MixerSpec) -> list[Op]:
    """The products of the chunked scan as batched GEMMs, and what travels through HBM between its kernels: queries,
    keys, values and result, and the state of every chunk in fp32."""
    m, t = mixer, ctx.tokens
    heads = m.heads / ctx.plan.tp
    delta = m.kind in ("gated_delta", "kda")
    scored = heads if delta else _key_share(ctx, m)
    chunks = t / m.chunk
    c, n, p = m.chunk, m.key_dim, m.head_dim
    # name, batch, rows, columns, depth
    products = [
        ("core_scores", chunks * scored, c, c, n),
        ("core_values", chunks * heads, c, p, c),
        ("core_states", chunks * heads, n, p, c),
        ("core_read", chunks * heads, c, p, n),
    ]
    if delta:
        products += [
            ("core_keys", chunks * heads, c, c, n),
            ("core_triangle_k", chunks * heads, c, n, c),
            ("core_triangle_v", chunks * heads, c, p, c),
            ("core_write", chunks * heads, c, p, n),
        ]
    state = chunks * heads * n * p * FP32_BYTES
    io = t * (2 * scored * n + 2 * heads * p) * ACT_BYTES
    ops = [
        Op(
            name="core_state", kind="memory", bytes=io + 4.0 * state,
            kernels=len(products) // 2 + 1, saved_bytes=t * heads * p * ACT_BYTES + state, rests_on=RESTS_ON,
        ),
        Op(
            name="core_state.bwd", kind="memory", pass_="backward", bytes=2.0 * io + 6.0 * state,
            kernels=len(products) + 2, rests_on=RESTS_ON,
        ),
    ]  # fmt: skip
    for name, batch, rows, columns, depth in products:
        flop = 2.0 * batch * rows * columns * depth
        passes: tuple[tuple[str, Pass], ...] = (
            (name, "forward"), (f"{name}.bwd_a", "backward"), (f"{name}.bwd_b", "backward"),
        )  # fmt: skip
        for twin, pass_ in passes:
            ops.append(
                Op(
                    name=twin, kind="gemm", pass_=pass_,
                    m=rows, n=columns, k=depth, count=batch, flop=flop, kernels=0, rests_on=RESTS_ON,
                )
            )  # fmt: skip
    return ops


def _gate(ctx: Context, mixer: MixerSpec) -> list[Op]:
    """Gate and norm of the mixed values, forward and backward; the short convolution has two gates."""
    elements = ctx.tokens * mixer.inner_dim / ctx.plan.tp
    times = 2 if mixer.kind == "short_conv" else 1
    forward, backward = (times * passes * ACT_BYTES * elements for passes in GATE_PASSES)
    return [
        memory_op("core_gate", forward, kernels=times),
        memory_op("core_gate.bwd", backward, pass_="backward", kernels=2 * times),
    ]
