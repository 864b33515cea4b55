"""Dense feed-forward ops: the FFN of dense layers and the shared experts of MoE layers."""

from __future__ import annotations

from typing import Any

from sim.build.attention import gather_ops, norm_ops, scatter_ops
from sim.build.context import ACT_BYTES, Context, linear, memory_op
from sim.ops import Op


def dense_ffn_ops(ctx: Context, ffn_dim: int, *, gated: bool, bias: bool = False) -> list[Op]:
    """Norm, all-gather, two (or gated: three) GEMMs with the activation, reduce-scatter."""
    d = ctx.model.hidden_dim
    # layernorm recompute drops the normed input; recompute of the whole module starts from it
    saved_in = 0.0 if ctx.drops("layernorm") else ctx.rows * d * ctx.saved_width
    ops = norm_ops(ctx, "ffn_norm") + gather_ops(ctx, "fc1", d)
    ops += mlp_ops(ctx, "fc", ffn_dim, gated=gated, module="mlp", saved_in=saved_in, bias=bias, normed=True)
    return ops + scatter_ops(ctx, "fc2", d)


def mlp_ops(
    ctx: Context, name: str, ffn_dim: int, *, gated: bool, module: str, saved_in: Any, bias: bool = False,
    normed: bool = False,
) -> list[Op]:  # fmt: skip
    """The two GEMMs and the activation between them, tensor parallel over tp; normed: of a norm's output."""
    d, t = ctx.model.hidden_dim, ctx.tokens
    f = ffn_dim / ctx.plan.tp
    ups = 2 if gated else 1
    inner = t * f
    ops = linear(ctx, f"{name}1", m=t, n=ups * f, k=d, module=module, saved=saved_in, bias=bias, normed=normed)
    ops += activation_ops(ctx, f"{name}_act", inner, ups, module=module)
    ops += linear(ctx, f"{name}2", m=t, n=d, k=f, module=module, saved=inner * ctx.saved_width, bias=bias)
    return ops


def activation_ops(ctx: Context, name: str, inner: Any, ups: int, *, module: str) -> list[Op]:
    """SwiGLU (ups = 2) or a plain activation of `inner` elements, forward and backward; its input is kept.

    Eager: silu (read, write), then the product (two reads, one write), mirrored twice over backward. Plain torch also
    keeps silu's result, and joins the gradients of gate and up.
    """
    eager = ctx.software.elementwise in ("eager", "torch") and ups == 2
    extra = 2 if eager else 0
    copies = {"eager": 2, "torch": 1}.get(ctx.software.elementwise, 0) if eager else 0
    forward, backward = ((passes * ACT_BYTES * inner) for passes in (ups + 1 + extra, 2 * ups + 1 + 2 * extra))
    kernel = "swiglu" if ups == 2 else ""
    return [
        memory_op(
            name, forward, module=module, kernels=1 + eager, saved=(ups + copies) * ACT_BYTES * inner,
            kernel=kernel, kernel_bytes=3 * ACT_BYTES * inner,
        ),
        memory_op(
            f"{name}.bwd", backward, pass_="backward", kernels=1 + 2 * eager,
            kernel=kernel, kernel_bytes=5 * ACT_BYTES * inner,
        ),
    ]  # fmt: skip
