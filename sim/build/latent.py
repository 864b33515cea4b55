"""Latent experts: rows are projected to a narrower width in front of the exchange and back behind it."""

from __future__ import annotations

from sim.build.context import ACT_BYTES, Context, linear
from sim.model import MoESpec
from sim.ops import Op


def latent_ops(ctx: Context, moe: MoESpec, *, down: bool) -> list[Op]:
    """The projection of the rank's rows D -> latent (down) or back; on every rank, not divided by tp. Nothing without a
    latent width. The router's input is the first one's too; the weighted sum of rows is kept for the second."""
    if not moe.latent_dim:
        return []
    d, rows = ctx.model.hidden_dim, ctx.rows
    if down:
        return linear(ctx, "latent_down", m=rows, n=moe.latent_dim, k=d, module="moe")
    kept = rows * moe.latent_dim * ACT_BYTES
    return linear(ctx, "latent_up", m=rows, n=d, k=moe.latent_dim, module="moe", saved=kept)
