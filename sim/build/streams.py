"""Ops of hyper-connections: what they read and write of n residual streams in the place of the residual add.

Counted as the fused kernels of arXiv 2512.24880 (section 4.3) read and write, in tensors of T/tp x D. Forward: the
streams for their norm and coefficients (n), again for their weighted sum (n) and that (1); behind the half the streams
and the result (n + 1), the new streams (n). Backward: gradients of the new streams, streams and result read, gradients
of streams and result written (3 n + 2); of the weighted sum and the coefficients: its gradient and the streams read,
twice, the gradient of the streams read and written (4 n + 1). The steps on n x n coefficients stay in registers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sim.build.context import ACT_BYTES, Context, memory_op
from sim.model import LayerSpec, connection_flop_per_token
from sim.ops import Op

RESTS_ON = "hyper-connections (bytes of fused kernels): assumed"
RESIDUALS = ("attn_norm.residual", "ffn_norm.residual", "moe_norm.residual")
KERNELS = (4, 6)


def stream_passes(streams: int) -> tuple[int, int]:
    """Tensors of T/tp x D moved by the hyper-connection of one half, forward and backward.

    >>> stream_passes(4)
    (18, 31)
    """
    return 4 * streams + 2, 7 * streams + 3


def with_streams(ctx: Context, layer: LayerSpec, ops: list[Op]) -> list[Op]:
    """The ops of a layer with hyper-connections instead of residual adds. The streams and the half's result wait for
    the backward pass, beside the half's input, which the plain residual keeps too."""
    if layer.streams == 1:
        return ops
    n, tensor = layer.streams, ctx.rows * ctx.model.hidden_dim * ACT_BYTES
    flop = ctx.rows * connection_flop_per_token(n, ctx.model.hidden_dim)
    out: list[Op] = []
    for op in ops:
        if op.name in RESIDUALS:
            name = op.name.replace("residual", "streams")
            out += [replace(x, scope=op.scope) for x in _connection(name, n, tensor, op.saved_bytes, flop)]
        elif op.name.removesuffix(".sum.bwd") not in RESIDUALS:  # the sum of gradients is among the passes
            out.append(op)
    return out


def _connection(name: str, n: int, tensor: Any, kept: Any, flop: Any) -> list[Op]:
    forward, backward = stream_passes(n)
    saved = kept + (n + 1) * tensor
    return [
        Op(
            name=name, kind="memory", bytes=forward * tensor, kernels=KERNELS[0], flop=flop, saved_bytes=saved,
            rests_on=RESTS_ON,
        ),
        Op(
            name=f"{name}.bwd", kind="memory", pass_="backward", bytes=backward * tensor, kernels=KERNELS[1],
            flop=2.0 * flop, rests_on=RESTS_ON,
        ),
    ]  # fmt: skip


def expand_ops(ctx: Context) -> list[Op]:
    """Embedded rows written to every stream, their gradients summed; nothing with the plain residual."""
    n, tensor = ctx.model.streams, ctx.rows * ctx.model.hidden_dim * ACT_BYTES
    if n == 1:
        return []
    moved = (n + 1) * tensor
    return [memory_op("streams.expand", moved), memory_op("streams.expand.bwd", moved, pass_="backward")]


def collapse_ops(ctx: Context) -> list[Op]:
    """The weighted sum of the streams in front of the last norm; they wait for the backward pass."""
    n, tensor = ctx.model.streams, ctx.rows * ctx.model.hidden_dim * ACT_BYTES
    if n == 1:
        return []
    return [
        memory_op("streams.collapse", (2 * n + 1) * tensor, kernels=2, saved=n * tensor),
        memory_op("streams.collapse.bwd", (3 * n + 1) * tensor, pass_="backward", kernels=3),
    ]
