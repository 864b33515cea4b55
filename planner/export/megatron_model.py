"""The model in Megatron-LM's flags: sizes and kinds of layers, as far as a model specification holds them."""

from __future__ import annotations

from itertools import groupby

from hwprofiles.errors import UserError
from planner.export.base import Handover, plain_text
from planner.export.megatron_training import Setting
from sim.model import AttentionSpec, LayerSpec, ModelSpec

UNIFORM = "megatron-uniform-layers"
KINDS = "megatron-layer-kinds"


def model_settings(asked: Handover) -> list[Setting]:
    """The model's flags. Raises UserError where layers are of a kind or differ in a way that no flag expresses."""
    model = asked.model
    layer = next((x for x in model.layers if x.moe is not None), model.layers[0])
    _refuse_kinds(model)
    _refuse_mixed(model)
    attention = next(x.attention for x in model.layers if x.mixer is None)
    dense = next((x.ffn_dim for x in model.layers if x.moe is None), 0)
    positions = max(asked.workload.seq_tokens, model.max_positions)
    pairs: list[tuple[str, object]] = [
        ("num_layers", len(model.layers)),
        ("hidden_size", model.hidden_dim),
        ("num_attention_heads", attention.heads),
        ("ffn_hidden_size", dense or (layer.moe.ffn_dim if layer.moe else layer.ffn_dim)),
        ("max_position_embeddings", positions),
        ("position_embedding_type", _positions(model)),
        ("normalization", "LayerNorm" if layer.norm_bias else "RMSNorm"),
        ("swiglu", layer.gated),
        ("disable_bias_linear", not (layer.ffn_bias or attention.out_bias)),
        ("untie_embeddings_and_output_weights", not model.tied_embeddings),
        ("vocab_size", model.vocab_size),
    ]
    pairs += _attention(model, attention)
    pairs += _mixers(model)
    pairs += _experts(model, layer)
    if model.mtp_layers and asked.workload.with_mtp:
        pairs.append(("mtp_num_layers", model.mtp_layers))
    return [Setting(key=key, value=value) for key, value in pairs]


def _unknown(layer: LayerSpec) -> list[str]:
    """What of a layer the flags of pretrain_gpt.py have no word for."""
    att, moe, mixer = layer.attention, layer.moe, layer.mixer
    found = {
        f"{mixer.kind if mixer else ''} mixers": mixer is not None and mixer.kind != "gated_delta",
        "blocks of one half": not (layer.mixes and layer.has_ffn),
        "attention in chunks": att.chunk is not None,
        "an indexer without latent attention": att.index_topk > 0 and att.kind != "mla",
        "keys and values in one tensor": att.kind == "shared_kv",
        "attention without a causal mask": not att.causal,
        "hyper-connections": layer.streams > 1,
        "layers modulated by a condition": layer.modulation > 0,
        "experts that choose tokens": moe is not None and moe.expert_choice,
        "norms behind the halves of a block": layer.extra_norms > 0,
        "halves of a block side by side": layer.parallel,
        "experts that do nothing": moe is not None and moe.zero_experts > 0,
        "a dense FFN beside the experts": moe is not None and moe.residual_ffn_dim > 0,
    }
    return [what for what, there in found.items() if there]


def _refuse_kinds(model: ModelSpec) -> None:
    unknown = dict.fromkeys(what for layer in model.layers for what in _unknown(layer))
    if not any(x.mixes and x.mixer is None for x in model.layers):
        unknown["no layer with attention"] = None
    if model.image is not None or model.head is not None:
        unknown["no vocabulary at one of its ends"] = None
    if unknown:
        raise UserError(
            f"{plain_text(model.name)} has {', '.join(unknown)}, which the flags of pretrain_gpt.py do not express; "
            "write its layers in a module specification of the trainer, or export to megatron-bridge with a recipe of "
            f"the model [rule {KINDS}: megatron-core 0.19.2 megatron/core/transformer/transformer_config.py]",
            where="megatron-lm",
        )


def _refuse_mixed(model: ModelSpec) -> None:
    def shape(x: LayerSpec) -> tuple[object, ...]:
        a = x.attention
        sizes = (a.kind, a.heads, a.kv_heads, a.head_dim, a.v_head_dim, a.q_lora_rank, a.kv_lora_rank)
        return (*sizes, a.index_heads, a.index_dim, a.index_topk, a.output_gate, x.gated)

    kinds = {shape(x) for x in model.layers if x.mixer is None}
    mixers = {x.mixer for x in model.layers if x.mixer is not None}
    experts = {x.moe for x in model.layers if x.moe is not None}
    dense = {x.ffn_dim for x in model.layers if x.moe is None}
    if len(kinds) > 1 or len(mixers) > 1 or len(experts) > 1 or len(dense) > 1:
        raise UserError(
            f"layers of {plain_text(model.name)} differ in more than dense and MoE, and flags give one size to all; "
            f"write its layers in a module specification of the trainer [rule {UNIFORM}: megatron-core 0.19.2 "
            "megatron/training/arguments.py]",
            where="megatron-lm",
        )


def _positions(model: ModelSpec) -> str:
    if model.max_positions:
        return "learned_absolute"
    return "rope" if any(x.attention.rotary for x in model.layers if x.mixer is None) else "none"


def _attention(model: ModelSpec, a: AttentionSpec) -> list[tuple[str, object]]:
    out: list[tuple[str, object]] = []
    if a.kind == "mla":
        out.append(("multi_latent_attention", True))
        if a.q_lora_rank:
            out.append(("q_lora_rank", a.q_lora_rank))
        out += [
            ("kv_lora_rank", a.kv_lora_rank),
            ("qk_head_dim", a.qk_nope_dim),
            ("qk_pos_emb_head_dim", a.qk_rope_dim),
            ("v_head_dim", a.v_head_dim),
        ]
    else:
        out.append(("kv_channels", a.head_dim))
        if a.kv_heads != a.heads:
            out += [("group_query_attention", True), ("num_query_groups", a.kv_heads)]
    out += [("add_qkv_bias", a.qkv_bias), ("qk_layernorm", a.qk_norm)]
    if a.sinks:
        out.append(("softmax_type", "learnable"))
    if a.output_gate:
        out.append(("attention_output_gate", True))
    if a.index_topk:
        out.append(("experimental_attention_variant", "dsa"))
        out += [("dsa_indexer_n_heads", a.index_heads), ("dsa_indexer_head_dim", a.index_dim)]
        out += [("dsa_indexer_topk", a.index_topk), ("no_rope_fusion", True)]  # its fused rotary kernel is not for dsa
    windows = [x.attention.window for x in model.layers]
    sizes = {w for w in windows if w is not None}
    if len(sizes) == 1:
        out.append(("window_size", f"{sizes.pop()},0"))
        if None in windows:
            out.append(("window_attn_skip_freq", list_text([int(w is not None) for w in windows])))
    return out


def _mixers(model: ModelSpec) -> list[tuple[str, object]]:
    """Gated delta nets and the layers that have them; the only mixer beside attention that flags of a GPT hold."""
    mixer = next((x.mixer for x in model.layers if x.mixer is not None), None)
    if mixer is None:
        return []
    return [
        ("experimental_attention_variant", "gated_delta_net"),
        ("linear_attention_freq", list_text([int(x.mixer is not None) for x in model.layers])),
        ("linear_conv_kernel_dim", mixer.conv_kernel),
        ("linear_key_head_dim", mixer.key_dim),
        ("linear_value_head_dim", mixer.head_dim),
        ("linear_num_key_heads", mixer.key_heads),
        ("linear_num_value_heads", mixer.heads),
    ]


def _experts(model: ModelSpec, layer: LayerSpec) -> list[tuple[str, object]]:
    moe = layer.moe
    if moe is None:
        return []
    out: list[tuple[str, object]] = [
        ("num_experts", moe.num_experts),
        ("moe_ffn_hidden_size", moe.ffn_dim),
        ("moe_router_topk", moe.top_k),
    ]
    if moe.latent_dim:
        out.append(("moe_latent_size", moe.latent_dim))
    if moe.top_k == 1:
        out.append(("moe_router_pre_softmax", True))
    if moe.shared_ffn_dim:
        out.append(("moe_shared_expert_intermediate_size", moe.shared_ffn_dim))
        out.append(("moe_shared_expert_gate", moe.shared_gate))
    if moe.num_groups > 1:
        out += [("moe_router_num_groups", moe.num_groups), ("moe_router_group_topk", moe.top_k_groups)]
    pattern = [int(x.moe is not None) for x in model.layers]
    if 0 in pattern:
        out.append(("moe_layer_freq", list_text(pattern)))
    return out


def list_text(values: list[int]) -> str:
    """A list as the Python expression the flag takes, runs written as products.

    >>> list_text([0, 1, 1, 1])
    '([0]*1+[1]*3)'
    """
    return "(" + "+".join(f"[{value}]*{len(list(run))}" for value, run in groupby(values)) + ")"


def model_missing(asked: Handover) -> list[str]:
    """What a model specification does not hold or flags do not take."""
    out = [
        "tokenizer, data, learning rate, initialisation, rotary base, epsilon of norms: no part of a plan; give them "
        "after the script's name"
    ]
    if asked.model.is_moe:
        out.append("score function and balancing loss of the router: the trainer's defaults unless you give them")
    if any(x.attention.qk_norm_joint for x in asked.model.layers):
        out.append("the norm of queries and keys over all heads at once: the flag norms each head")
    windows = {x.attention.window for x in asked.model.layers} - {None}
    if len(windows) > 1:
        out.append("attention windows of several sizes: one flag holds one size")
    if any(x.attention.sinks for x in asked.model.layers) or any(
        x.moe and (x.moe.expert_bias or x.moe.clamped_activation) for x in asked.model.layers
    ):
        out.append("biases and clamped activation of experts: no flag; load the model's own specification")
    return out
