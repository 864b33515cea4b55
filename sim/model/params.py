"""Parameter counts of layers and models."""

from __future__ import annotations

from dataclasses import dataclass

from sim.model.compressed import shared_kv_params
from sim.model.image import FINAL_VECTORS, modulation_params
from sim.model.mixer import mixer_params
from sim.model.specs import AttentionSpec, LayerSpec, ModelSpec
from sim.model.streams import collapse_params, connection_params


@dataclass(frozen=True, kw_only=True)
class LayerParams:
    """Parameter counts of one layer, split by how parallelism divides them.

    attention (or mixer), dense, shared divide by tp; replicated (norms, router, latent and MLA down-projections) by 1;
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


def norm_params(dim: int, bias: bool) -> int:
    """Weights of one norm of a width."""
    return dim * (2 if bias else 1)


def layer_params(layer: LayerSpec, hidden_dim: int) -> LayerParams:
    """Parameter counts of one layer (weights of GEMMs, biases, norms, router)."""
    d = hidden_dim
    replicated = 0 if layer.modulation else layer.norms * norm_params(d, layer.norm_bias)
    replicated += layer.halves * connection_params(layer.streams, d)
    replicated += modulation_params(layer.modulation * layer.halves, d)
    attention, whole = _ATTENTION[layer.attention.kind](layer.attention, d)
    replicated += whole
    if layer.mixer is not None:
        mixer = mixer_params(layer.mixer, d)
        attention += mixer.split
        replicated += mixer.whole
    mats = 3 if layer.gated else 2
    ups = 2 if layer.gated else 1
    dense = shared = routed = 0
    if layer.moe is None:
        dense = mats * d * layer.ffn_dim
        if layer.ffn_bias:
            dense += ups * layer.ffn_dim + d
    else:
        moe = layer.moe
        row = moe.row_dim(d)
        routed = moe.num_experts * mats * row * moe.ffn_dim
        if moe.expert_bias:
            routed += moe.num_experts * (ups * moe.ffn_dim + row)
        shared = mats * d * (moe.shared_ffn_dim + moe.residual_ffn_dim)
        scored = moe.num_experts + moe.zero_experts
        replicated += d * scored + (scored if moe.router_bias else 0)
        if moe.shared_gate:
            replicated += d
        if moe.latent_dim:
            replicated += 2 * d * moe.latent_dim
        if moe.residual_ffn_dim:
            replicated += norm_params(d, layer.norm_bias)
    return LayerParams(attention=attention, dense=dense, shared=shared, replicated=replicated, routed=routed)


def _mla(att: AttentionSpec, d: int) -> tuple[int, int]:
    """(divided by tp, on every rank) of multi-head latent attention."""
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
    if att.index_topk:  # queries from their latent, one key with a LayerNorm, a weight per head
        down += (att.q_lora_rank or d) * att.index_heads * att.index_dim
        down += d * (att.index_dim + att.index_heads) + 2 * att.index_dim
    return weights + (d if att.out_bias else 0), down


def _gqa(att: AttentionSpec, d: int) -> tuple[int, int]:
    """(divided by tp, on every rank) of grouped-query attention; nothing for NO_ATTENTION."""
    qkv = (att.heads + att.kv_heads) * att.head_dim + att.kv_heads * att.v_head_dim
    if att.output_gate:
        qkv += att.heads * att.v_head_dim
    attention = d * qkv + att.heads * att.v_head_dim * d
    if att.qkv_bias:
        attention += qkv
    if att.out_bias:
        attention += d
    if att.sinks:
        attention += att.heads
    whole = 0
    if att.qk_norm:
        whole = (att.heads + att.kv_heads if att.qk_norm_joint else 2) * att.head_dim
    return attention, whole


_ATTENTION = {"gqa": _gqa, "none": _gqa, "mla": _mla, "shared_kv": shared_kv_params}


def input_params(model: ModelSpec) -> int:
    """What stands before the layers beside the table of the vocabulary, whole on every rank: learned positions, patch
    embedding, the condition's embedding."""
    d = model.hidden_dim
    parts = (part.params(d) for part in (model.image, model.condition) if part is not None)
    return model.max_positions * d + sum(parts)


def output_params(model: ModelSpec) -> int:
    """What stands behind the layers beside a head over the vocabulary, whole on every rank: a linear head, the last
    modulation, the last collapse of residual streams; not the final norm."""
    d = model.hidden_dim
    modulation = modulation_params(FINAL_VECTORS, d) if model.condition is not None else 0
    head = model.head.params(d) if model.head is not None else 0
    return collapse_params(model.streams, d) + modulation + head


def final_norm_params(model: ModelSpec) -> int:
    """Weights of the norm behind the last layer; none where it is modulated."""
    if model.condition is not None:
        return 0
    return norm_params(model.hidden_dim, any(layer.norm_bias for layer in model.layers[:1]))


def embedding_params(model: ModelSpec) -> int:
    """Input table, learned positions, output head (unless tied) and the final norm; what models without a vocabulary
    have in their place."""
    tables = 1 if model.tied_embeddings or model.head is not None else 2
    whole = input_params(model) + output_params(model) + final_norm_params(model)
    return tables * model.vocab_size * model.hidden_dim + whole


def total_params(model: ModelSpec) -> int:
    """All parameters, MTP blocks excluded (as model cards count them)."""
    return embedding_params(model) + sum(layer_params(x, model.hidden_dim).total for x in model.layers)


def active_params(model: ModelSpec) -> int:
    """Parameters one token uses: k of E routed experts (in the mean, with zero experts), everything else whole."""
    used = embedding_params(model)
    for layer in model.layers:
        p = layer_params(layer, model.hidden_dim)
        used += p.total - p.routed
        if layer.moe is not None:
            scored = layer.moe.num_experts + layer.moe.zero_experts
            used += p.routed * layer.moe.top_k // scored
    return used


def mtp_block(model: ModelSpec) -> tuple[LayerSpec, ...]:
    """The layers of one multi-token-prediction block: the last layer; where that holds one half only (hybrid models),
    the last attention block and the last FFN block."""
    last = model.layers[-1]
    if last.mixes and last.has_ffn:
        return (last,)
    mixing = [x for x in model.layers if x.attention.kind != "none"] or [x for x in model.layers if x.mixes]
    feeding = [x for x in model.layers if x.has_ffn]
    return (*mixing[-1:], *(x for x in feeding[-1:] if x is not mixing[-1]))
