"""The model: what is computed, as records; no plan, no hardware.

Letters used everywhere: D hidden_dim, V vocab_size, H heads, F ffn_dim, E num_experts, k top_k.
Readers of config files stand in `sim.families`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hwprofiles.specs import Source


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Attention of one layer. kind "gqa" covers MHA (kv_heads == heads) and MQA.

    head_dim is the query/key width per head (MLA: qk_nope_dim + qk_rope_dim); v_head_dim the
    value width. window: tokens seen by a query (None = full causal).
    """

    kind: Literal["gqa", "mla"] = "gqa"
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_dim: int = 0
    qk_rope_dim: int = 0
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    rotary: bool = True


@dataclass(frozen=True, kw_only=True)
class MoESpec:
    """Routed experts of one layer: E experts of width F, k chosen per token.

    shared_ffn_dim is the total width of the always-on shared experts (0 = none).
    """

    num_experts: int
    top_k: int
    ffn_dim: int
    shared_ffn_dim: int = 0
    shared_gate: bool = False
    num_groups: int = 1
    top_k_groups: int = 1
    router_bias: bool = False
    expert_bias: bool = False
    clamped_activation: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One transformer block: attention, then either a dense FFN (moe is None) or experts."""

    attention: AttentionSpec
    ffn_dim: int = 0
    moe: MoESpec | None = None
    gated: bool = True
    ffn_bias: bool = False
    norm_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole model. `layers` may differ; `mtp_layers` extra prediction blocks follow the last.

    max_positions > 0 adds a learned position table (GPT-2/GPT-3 style).
    """

    name: str
    hidden_dim: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    mtp_layers: int = 0
    tied_embeddings: bool = False
    max_positions: int = 0
    family: str = "custom"
    source: Source

    @property
    def is_moe(self) -> bool:
        """True when any layer has routed experts."""
        return any(layer.moe is not None for layer in self.layers)

    def layer_kinds(self) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
        """Distinct layers and, for each layer in order, the index of its kind."""
        kinds: list[LayerSpec] = []
        index: list[int] = []
        for layer in self.layers:
            if layer not in kinds:
                kinds.append(layer)
            index.append(kinds.index(layer))
        return tuple(kinds), tuple(index)


# ---------------------------------------------------------------- parameters


@dataclass(frozen=True, kw_only=True)
class LayerParams:
    """Parameter counts of one layer, split by how parallelism divides them.

    attention, dense, shared divide by tp; replicated (norms, router, MLA down-projections) by 1;
    routed divides by ep * etp.
    """

    attention: int
    dense: int
    shared: int
    replicated: int
    routed: int

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        return self.attention + self.dense + self.shared + self.replicated + self.routed


def _norm_params(dim: int, bias: bool) -> int:
    return dim * (2 if bias else 1)


def layer_params(layer: LayerSpec, hidden_dim: int) -> LayerParams:
    """Parameter counts of one layer (weights of GEMMs, biases, norms, router)."""
    att, d = layer.attention, hidden_dim
    replicated = 2 * _norm_params(d, layer.norm_bias)
    if att.kind == "mla":
        down = d * (att.kv_lora_rank + att.qk_rope_dim) + att.kv_lora_rank
        heads_up = att.heads * (att.qk_nope_dim + att.v_head_dim)
        weights = att.kv_lora_rank * heads_up + att.heads * att.v_head_dim * d
        if att.q_lora_rank:
            down += d * att.q_lora_rank + att.q_lora_rank
            weights += att.q_lora_rank * att.heads * att.head_dim
        else:
            weights += d * att.heads * att.head_dim
        if att.qkv_bias:  # on the down-projections only
            down += att.kv_lora_rank + att.qk_rope_dim + att.q_lora_rank
        replicated += down
        attention = weights + (d if att.out_bias else 0)
    else:
        qkv = (att.heads + att.kv_heads) * att.head_dim + att.kv_heads * att.v_head_dim
        attention = d * qkv + att.heads * att.v_head_dim * d
        if att.qkv_bias:
            attention += qkv
        if att.out_bias:
            attention += d
        if att.sinks:
            attention += att.heads
        if att.qk_norm:
            replicated += 2 * att.head_dim
    mats = 3 if layer.gated else 2
    ups = 2 if layer.gated else 1
    dense = shared = routed = 0
    if layer.moe is None:
        dense = mats * d * layer.ffn_dim
        if layer.ffn_bias:
            dense += ups * layer.ffn_dim + d
    else:
        moe = layer.moe
        routed = moe.num_experts * mats * d * moe.ffn_dim
        if moe.expert_bias:
            routed += moe.num_experts * (ups * moe.ffn_dim + d)
        shared = mats * d * moe.shared_ffn_dim
        replicated += d * moe.num_experts + (moe.num_experts if moe.router_bias else 0)
        if moe.shared_gate:
            replicated += d
    return LayerParams(attention=attention, dense=dense, shared=shared, replicated=replicated, routed=routed)


def embedding_params(model: ModelSpec) -> int:
    """Input table, learned positions, output head (unless tied) and the final norm."""
    tables = 1 if model.tied_embeddings else 2
    norm = _norm_params(model.hidden_dim, any(layer.norm_bias for layer in model.layers[:1]))
    return (tables * model.vocab_size + model.max_positions) * model.hidden_dim + norm


def total_params(model: ModelSpec) -> int:
    """All parameters, MTP blocks excluded (as model cards count them)."""
    return embedding_params(model) + sum(layer_params(x, model.hidden_dim).total for x in model.layers)


def active_params(model: ModelSpec) -> int:
    """Parameters one token uses: k of E routed experts, everything else whole."""
    used = embedding_params(model)
    for layer in model.layers:
        p = layer_params(layer, model.hidden_dim)
        used += p.total - p.routed
        if layer.moe is not None:
            used += p.routed * layer.moe.top_k // layer.moe.num_experts
    return used


# ---------------------------------------------------------------- FLOP per token


def attention_pairs(seq_tokens: int, window: int | None) -> float:
    """Mean number of keys a query sees under a causal mask: s/2, or about w when windowed."""
    if window is None or window >= seq_tokens:
        return seq_tokens / 2
    return window - window * window / (2 * seq_tokens)


def layer_flop_per_token(layer: LayerSpec, hidden_dim: int, seq_tokens: int) -> float:
    """Forward FLOP of one layer per token (multiply-add = 2; causal attention counted once)."""
    att, d = layer.attention, hidden_dim
    if att.kind == "mla":
        kv = d * (att.kv_lora_rank + att.qk_rope_dim) + att.kv_lora_rank * att.heads * (
            att.qk_nope_dim + att.v_head_dim
        )
        q = (
            d * att.q_lora_rank + att.q_lora_rank * att.heads * att.head_dim
            if att.q_lora_rank
            else d * att.heads * att.head_dim
        )
        gemm = kv + q + att.heads * att.v_head_dim * d
    else:
        gemm = d * (att.heads + att.kv_heads) * att.head_dim + d * att.kv_heads * att.v_head_dim
        gemm += att.heads * att.v_head_dim * d
    core = attention_pairs(seq_tokens, att.window) * att.heads * (att.head_dim + att.v_head_dim)
    mats = 3 if layer.gated else 2
    if layer.moe is None:
        ffn = mats * d * layer.ffn_dim
    else:
        moe = layer.moe
        ffn = mats * d * (moe.top_k * moe.ffn_dim + moe.shared_ffn_dim) + d * moe.num_experts
    return 2.0 * (gemm + core + ffn)


def train_flop_per_token(model: ModelSpec, seq_tokens: int, *, with_mtp: bool = False) -> float:
    """Model FLOP per trained token: 3 x forward of layers and LM head (no recompute)."""
    layers: Iterable[LayerSpec] = model.layers
    head = 2.0 * model.hidden_dim * model.vocab_size
    forward = head + sum(layer_flop_per_token(x, model.hidden_dim, seq_tokens) for x in layers)
    if with_mtp and model.mtp_layers:
        last = layer_flop_per_token(model.layers[-1], model.hidden_dim, seq_tokens)
        forward += model.mtp_layers * (last + head + 2.0 * 2 * model.hidden_dim**2)
    return 3.0 * forward
