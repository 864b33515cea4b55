"""Which forward ops of a layer run again in its backward pass, and what is kept for it.

Three kinds: by module (Megatron-LM's names), the whole layer, and by operator (torch's selective policy).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.build.context import ACT_BYTES, Context, memory_op
from sim.model import LayerSpec
from sim.ops import Op

# A dense layer ends with them: the down-projection and what carries its result out of the tensor-parallel region.
LAST_PRODUCT = ("fc2", "fc2.reduce_scatter", "fc2.all_reduce")
# A routed one with a kernel that adds up the rows of a token on their way back: nothing of it is kept for the backward.
LAST_EXCHANGE = ("combine", "combine.tp")


def with_recompute(ctx: Context, ops: list[Op], layer: LayerSpec) -> tuple[Op, ...]:
    """Apply the plan's recompute choice to a list of ops."""
    if not ctx.plan.recompute:
        return tuple(ops)
    if "operators" in ctx.plan.recompute:
        return _by_operator(ops, layer)
    full = "full" in ctx.plan.recompute
    early = _not_again(ctx, layer) if full and ctx.software.recompute_stops_early else ()
    out: list[Op] = []
    again: list[Op] = []
    for op in ops:
        if op.pass_ == "forward" and op.name in early:
            out.append(replace(op, saved_bytes=0.0))
            again.append(_held(op, op.saved_bytes))
        elif op.pass_ == "forward" and ctx.recomputes(op.module):
            again.append(_again(op, op.saved_bytes))
            out.append(replace(op, saved_bytes=0.0))
        else:
            out.append(op)
    if full:
        keep = ctx.rows * ctx.model.hidden_dim * ACT_BYTES * layer.streams
        out[0] = replace(out[0], saved_bytes=keep)
    return tuple(out + again)


def _not_again(ctx: Context, layer: LayerSpec) -> tuple[str, ...]:
    """Forward ops behind the last tensor that the backward of a layer needs: a norm behind them would need their
    result. A plain all-to-all is followed by the weighted sum, which keeps its rows or their order."""
    if layer.extra_norms:
        return ()
    if layer.moe is None:
        return LAST_PRODUCT
    fused = ctx.software.dispatcher in ("deepep", "hybridep")
    return LAST_EXCHANGE if fused and not layer.moe.latent_dim and not layer.moe.residual_ffn_dim else ()


def _again(op: Op, transient: Any) -> Op:
    return replace(op, pass_="recompute", saved_bytes=0.0, transient_bytes=transient, name=f"{op.name}.again")


def _held(op: Op, transient: Any) -> Op:
    """Nothing runs, but what the op's own inputs need is there again."""
    kept = memory_op(f"{op.name}.again", 0.0, pass_="recompute", kernels=0)
    return replace(kept, transient_bytes=transient, scope=op.scope)


def _by_operator(ops: list[Op], layer: LayerSpec) -> tuple[Op, ...]:
    """torch's per-operator policy as torchtitan sets it: the results of attention, of collectives and of every other
    matrix product are kept; every second product, and all that is elementwise, runs again.

    Products inside a kernel of its own (those that state what they rest on: a mixer's core, the scores of an indexer)
    are no matrix products to the policy, which does not see into the kernel: it runs again as a whole.
    """
    out: list[Op] = []
    again: list[Op] = []
    count = 0
    for op in ops:
        if op.pass_ != "forward":
            out.append(op)
        elif op.kind == "gemm" and not op.rests_on:
            second = 0.0
            for share in _products(op, layer):
                count += 1
                second += share if count % 2 == 0 else 0.0
            # its input is elementwise work and is made again; of the results the first ones are kept (those of the
            # projections in front of the core are counted with it)
            kept = 0.0 * op.saved_bytes if op.name in ("qkv", "attn_out") else ACT_BYTES * op.m * op.n * (1.0 - second)
            out.append(replace(op, saved_bytes=kept))
            again.append(_held(op, op.saved_bytes))
            if second > 0.0:
                again.append(replace(_again(op, 0.0), n=op.n * second, flop=op.flop * second))
        elif op.rests_on or (op.kind == "memory" and op.kernels):
            out.append(replace(op, saved_bytes=0.0))
            again.append(_again(op, op.saved_bytes))
        else:
            out.append(op)
    return tuple(out + again)


def _products(op: Op, layer: LayerSpec) -> tuple[float, ...]:
    """The products that one gemm op stands for in plain torch, as shares of its columns."""
    att = layer.attention
    if op.name == "qkv" and layer.mixer is None:
        queries = att.head_dim + (att.v_head_dim if att.output_gate else 0)
        width = att.heads * queries + att.kv_heads * (att.head_dim + att.v_head_dim)
        keys, values = (att.kv_heads * dim / width for dim in (att.head_dim, att.v_head_dim))
        return 1.0 - keys - values, keys, values
    if op.name in ("fc1", "shared_fc1") and layer.gated:
        return 0.5, 0.5
    return (1.0,)
