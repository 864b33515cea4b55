"""The weight matrices of a layer on one rank, which Muon orthogonalises one by one (arXiv 2502.16982).

Queries, keys and values count apart (Megatron-LM splits their joint projection), gate and up together, every local
expert for itself. Shapes are of a tensor-parallel shard, or whole where ranks gather them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.build.context import Context
from sim.model import LayerSpec, compressor_dim, indexer_dim


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """`count` matrices of rows x columns on a rank; split: ranks that share each, along its columns where `across`;
    routed: of experts."""

    rows: Any
    columns: Any
    count: Any = 1.0
    split: Any = 1
    across: bool = False
    routed: bool = False

    @property
    def held(self) -> Any:
        """Elements of all of them that rest on one rank."""
        return self.count * self.rows * self.columns

    @property
    def whole(self) -> tuple[Any, Any]:
        """(rows, columns) of one of them before it was cut."""
        if self.across:
            return self.rows, self.columns * self.split
        return self.rows * self.split, self.columns


def layer_matrices(ctx: Context, layer: LayerSpec) -> tuple[Matrix, ...]:
    """Shards of one layer's matrices; attention, FFN, router, then experts."""
    d, att = ctx.model.hidden_dim, layer.attention
    tp, etp = np.asarray(ctx.plan.tp), np.asarray(ctx.plan.etp)
    heads, kv = att.heads / tp, np.maximum(1, att.kv_heads / tp)
    split: dict[str, Any] = {"split": tp}
    if att.kind == "mla":
        out = [Matrix(rows=att.kv_lora_rank + att.qk_rope_dim, columns=d)]
        out.append(Matrix(rows=heads * (att.qk_nope_dim + att.v_head_dim), columns=att.kv_lora_rank, **split))
        if att.q_lora_rank:
            out.append(Matrix(rows=att.q_lora_rank, columns=d))
        out.append(Matrix(rows=heads * att.head_dim, columns=att.q_lora_rank or d, **split))
    elif att.kind == "shared_kv":
        out = [Matrix(rows=att.q_lora_rank, columns=d), Matrix(rows=att.head_dim, columns=d)]
        # values and gates of each compressor apart
        out += [Matrix(rows=x, columns=d, count=2.0) for x in (compressor_dim(att), indexer_dim(att)) if x]
        if att.index_topk:
            out.append(Matrix(rows=att.index_heads * att.index_dim, columns=att.q_lora_rank))
            out.append(Matrix(rows=att.index_heads, columns=d))
        out.append(Matrix(rows=heads * att.head_dim, columns=att.q_lora_rank, **split))
        out.append(
            Matrix(rows=att.out_rank, columns=att.heads * att.head_dim / att.out_groups, count=att.out_groups / tp)
        )
    elif att.kind == "none":
        out = []
    else:
        widths = (heads * att.head_dim, kv * att.head_dim, kv * att.v_head_dim)
        out = [Matrix(rows=width, columns=d, **split) for width in widths]
    if att.kind != "none":
        inner = att.out_groups * att.out_rank / tp if att.kind == "shared_kv" else heads * att.v_head_dim
        out.append(Matrix(rows=d, columns=inner, across=True, **split))
    if layer.streams > 1:  # the projection to coefficients of each half
        n = layer.streams
        out.append(Matrix(rows=n * (n + 2), columns=n * d, count=float(layer.halves)))
    if layer.mixer is not None:
        out.append(Matrix(rows=layer.mixer.in_dim / tp, columns=d, **split))
        out.append(Matrix(rows=d, columns=layer.mixer.inner_dim / tp, across=True, **split))
    ups = 2 if layer.gated else 1
    ffns = (layer.ffn_dim,) if layer.moe is None else (layer.moe.shared_ffn_dim, layer.moe.residual_ffn_dim)
    for ffn in (width for width in ffns if width):
        out.append(Matrix(rows=ups * ffn / tp, columns=d, **split))
        out.append(Matrix(rows=d, columns=ffn / tp, across=True, **split))
    if layer.moe is not None:
        out.append(Matrix(rows=layer.moe.num_experts, columns=d))
        local, f = layer.moe.num_experts / np.asarray(ctx.plan.ep), layer.moe.ffn_dim / etp
        of: dict[str, Any] = {"count": local, "split": etp, "routed": True}
        row = layer.moe.row_dim(d)
        out += [Matrix(rows=ups * f, columns=row, **of), Matrix(rows=row, columns=f, across=True, **of)]
    return tuple(out)


def newton_schulz_flop(rows: Any, columns: Any, steps: int) -> Any:
    """FLOP of `steps` iterations on one matrix: X Xᵀ and B X (2 n² m each) and (X Xᵀ)² (2 n³), n the shorter side.

    >>> newton_schulz_flop(2, 3, 5)
    320
    """
    n, m = np.minimum(rows, columns), np.maximum(rows, columns)
    return steps * (4 * n * n * m + 2 * n * n * n)
