"""FLOP per token of layers and models (multiply-add = 2; a causal core is counted once, not as the square; one without
a causal mask as the square)."""

from __future__ import annotations

from collections.abc import Iterable

from sim.model.compressed import shared_kv_gemm
from sim.model.image import FINAL_VECTORS
from sim.model.mixer import MixerSpec
from sim.model.params import mtp_block
from sim.model.specs import AttentionSpec, LayerSpec, ModelSpec
from sim.model.streams import collapse_flop_per_token, connection_flop_per_token


def attention_pairs(seq_tokens: float, window: int | None) -> float:
    """Mean number of keys a query sees under a causal mask: s/2, or about w when windowed."""
    if window is None or window >= seq_tokens:
        return seq_tokens / 2
    return window - window * window / (2 * seq_tokens)


def core_pairs(att: AttentionSpec, seq_tokens: float) -> float:
    """Mean number of keys a query of this attention sees: full, window, chunk, or what an indexer picks; with
    compressed entries those and the window; without a causal mask all of them."""
    if not att.causal:
        return min(x for x in (seq_tokens, att.window, att.chunk) if x is not None)
    if att.compress_rate:
        behind = attention_pairs(seq_tokens / att.compress_rate, att.index_topk or None)
        return attention_pairs(seq_tokens, att.window) + behind
    if att.chunk is not None and att.chunk < seq_tokens:
        whole, rest = divmod(seq_tokens, att.chunk)
        return (whole * att.chunk**2 + rest**2) / (2 * seq_tokens)
    return attention_pairs(seq_tokens, att.index_topk or att.window)


def index_flop_per_token(att: AttentionSpec, hidden_dim: int, seq_tokens: int) -> tuple[float, float]:
    """(projections, scores of all earlier keys) of the indexer of sparse attention; nothing without one."""
    if not att.index_topk:
        return 0.0, 0.0
    if att.compress_rate:  # its projections are among those of the attention
        return 0.0, 2.0 * seq_tokens / att.compress_rate / 2 * att.index_heads * att.index_dim
    queries = (att.q_lora_rank or hidden_dim) * att.index_heads * att.index_dim
    projections = queries + hidden_dim * (att.index_dim + att.index_heads)
    return 2.0 * projections, 2.0 * seq_tokens / 2 * att.index_heads * att.index_dim


def mixer_core_flop_per_token(mixer: MixerSpec) -> float:
    """Forward FLOP of the core per token: the convolution, and the chunked scan as its algorithm computes it.

    Chunk of C tokens, state N x P a head. Linear attention and SSD (arXiv 2405.21060, section 6): scores of the chunk
    (C N, one for all heads of a group), their product with the values (C P), the state made and read (2 N P). The
    delta rule (arXiv 2412.06464, section 3.3) adds the keys' own scores (C N), two products with the inverted
    triangle (C N, C P) and the state's reading of the keys (N P). The selective scan of mamba1 works token by token:
    decay, update, readout, 7 N P as Megatron-LM counts it.
    """
    m = mixer
    conv = 2.0 * m.conv_kernel * m.conv_dim
    inner, heads = m.inner_dim, m.heads
    if m.kind == "short_conv":
        return conv
    if m.kind == "mamba1":
        steps = 2.0 * (inner * (m.rank + 2 * m.key_dim) + m.rank * inner)
        return conv + steps + 7.0 * m.key_dim * inner
    scores = m.chunk * m.key_dim * (heads if m.kind in ("gated_delta", "kda") else m.key_heads)
    flop = scores + m.chunk * inner + 2 * m.key_dim * inner
    if m.kind in ("gated_delta", "kda"):
        flop += 2 * m.chunk * m.key_dim * heads + m.chunk * inner + m.key_dim * inner
    return conv + 2.0 * flop


def mixer_flop_per_token(mixer: MixerSpec, hidden_dim: int) -> float:
    """Forward FLOP of a mixer per token: projections, gates, core."""
    gemm = hidden_dim * mixer.in_dim + mixer.inner_dim * hidden_dim
    if mixer.kind == "kda":
        gemm += mixer.rank * (2 * hidden_dim + mixer.inner_dim + mixer.keys_dim)
    return 2.0 * gemm + mixer_core_flop_per_token(mixer)


def layer_flop_per_token(layer: LayerSpec, hidden_dim: int, seq_tokens: int) -> float:
    """Forward FLOP of one layer per token."""
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
    elif att.kind == "shared_kv":
        gemm = shared_kv_gemm(att, d)
    else:
        gemm = d * (att.heads + att.kv_heads) * att.head_dim + d * att.kv_heads * att.v_head_dim
        gemm += att.heads * att.v_head_dim * d * (2 if att.output_gate else 1)
    core = core_pairs(att, seq_tokens) * att.heads * (att.head_dim + att.v_head_dim)
    other = sum(index_flop_per_token(att, d, seq_tokens))
    if layer.mixer is not None:
        other += mixer_flop_per_token(layer.mixer, d)
    other += layer.halves * connection_flop_per_token(layer.streams, d)
    other += 2.0 * layer.modulation * layer.halves * d * d / seq_tokens  # once a sequence
    mats = 3 if layer.gated else 2
    if layer.moe is None:
        ffn: float = mats * d * layer.ffn_dim
    else:
        moe = layer.moe
        row = moe.row_dim(d)
        ffn = mats * (moe.rows_per_token * row * moe.ffn_dim + d * (moe.shared_ffn_dim + moe.residual_ffn_dim))
        ffn += d * (moe.num_experts + moe.zero_experts) + 2 * d * moe.latent_dim
    return 2.0 * (gemm + core + ffn) + other


def train_flop_per_token(model: ModelSpec, seq_tokens: int, *, with_mtp: bool = False) -> float:
    """Model FLOP per trained token: 3 x forward of layers and head (no recompute)."""
    layers: Iterable[LayerSpec] = model.layers
    head = _head_flop_per_token(model, seq_tokens)
    forward = head + sum(layer_flop_per_token(x, model.hidden_dim, seq_tokens) for x in layers)
    if model.image is not None:
        forward += 2.0 * model.image.patch_dim * model.hidden_dim
    if with_mtp and model.mtp_layers:
        last = sum(layer_flop_per_token(x, model.hidden_dim, seq_tokens) for x in mtp_block(model))
        forward += model.mtp_layers * (last + head + 2.0 * 2 * model.hidden_dim**2)
    return 3.0 * forward


def _head_flop_per_token(model: ModelSpec, seq_tokens: int) -> float:
    """Forward FLOP per token behind the last layer: head over the vocabulary, or what stands in its place."""
    d, head = model.hidden_dim, model.head
    flop = collapse_flop_per_token(model.streams, d)
    if model.condition is not None:
        flop += 2.0 * FINAL_VECTORS * d * d / seq_tokens
    if head is None:
        return flop + 2.0 * d * model.vocab_size
    return flop + 2.0 * d * head.dim / (seq_tokens if head.pooled else 1)
