"""Hybrid families, whose layers differ in how they mix tokens: qwen3_next and qwen3_5_moe, granitemoehybrid, bamba,
nemotron_h, jamba, kimi_linear, lfm2_moe, minimax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sim.families.common import Trunk, finish_model, layer_kinds, qwen_moe_layers, read_gqa, read_trunk
from sim.families.moe import first_dense_layers, read_mla
from sim.families.reader import MAX_LAYERS, Reader
from sim.model import AttentionSpec, LayerSpec, MixerSpec, ModelSpec, MoESpec

MIXED: Mapping[str, str] = {
    "linear_attention": "mixer",
    "mamba": "mixer",
    "conv": "mixer",
    "full_attention": "attention",
    "attention": "attention",
}
DELTA_CHUNK = 64  # tokens of a chunk in the published kernels of the delta rule
PATTERN = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}


def _mixed(kinds: Sequence[str], layer: LayerSpec, i: int, attention: AttentionSpec, mixer: MixerSpec) -> LayerSpec:
    """The layer with what its kind mixes tokens by."""
    if i < len(kinds) and kinds[i] == "mixer":
        return replace(layer, mixer=mixer)
    return replace(layer, attention=attention)


def _delta_net(r: Reader) -> MixerSpec:
    return MixerSpec(
        kind="gated_delta",
        heads=r.size("linear_num_value_heads"),
        head_dim=r.size("linear_value_head_dim"),
        key_heads=r.size("linear_num_key_heads"),
        key_dim=r.size("linear_key_head_dim"),
        conv_kernel=r.size("linear_conv_kernel_dim"),
        chunk=DELTA_CHUNK,
    )


def read_qwen3_next(r: Reader, name: str) -> ModelSpec:
    """Qwen3-Next and Qwen3.5 MoE: gated delta nets, gated attention on every fourth layer, a gated shared expert."""
    trunk = read_trunk(r)
    attention = replace(read_gqa(r, trunk, derive_head_dim=False, qk_norm=True), output_gate=True)
    mixer = _delta_net(r)
    if r.has("layer_types"):
        kinds = layer_kinds(r, trunk.num_layers, MIXED)
    else:
        every = r.size("full_attention_interval", default=4) or 4
        kinds = tuple("attention" if (i + 1) % every == 0 else "mixer" for i in range(trunk.num_layers))
    moe = MoESpec(
        num_experts=r.size("num_experts", "num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("moe_intermediate_size"),
        shared_ffn_dim=r.size("shared_expert_intermediate_size", low=0),
        shared_gate=True,
    )
    sparse = qwen_moe_layers(r, trunk.num_layers)
    width = 0 if all(sparse) else r.size("intermediate_size")
    layers = [
        _mixed(kinds, LayerSpec(moe=moe) if has else LayerSpec(ffn_dim=width), i, attention, mixer)
        for i, has in enumerate(sparse)
    ]
    return finish_model(r, trunk, family="qwen3_next", name=name, layers=layers)


def _mamba2(r: Reader, trunk: Trunk) -> MixerSpec:
    """State-space mixer under the keys of Bamba and Granite; its inner width is mamba_expand x hidden_size."""
    heads, dim = r.size("mamba_n_heads"), r.size("mamba_d_head")
    expand = r.size("mamba_expand", default=2)
    if heads and dim and trunk.hidden_dim and heads * dim != expand * trunk.hidden_dim:
        r.problems.append(
            f"mamba_n_heads {heads} x mamba_d_head {dim} must be mamba_expand {expand} x hidden_size {trunk.hidden_dim}"
        )
    return MixerSpec(
        kind="mamba2",
        heads=heads,
        head_dim=dim,
        key_heads=r.size("mamba_n_groups"),
        key_dim=r.size("mamba_d_state"),
        conv_kernel=r.size("mamba_d_conv"),
        chunk=r.size("mamba_chunk_size", default=256),
        conv_bias=r.flag("mamba_conv_bias", default=True),
        proj_bias=r.flag("mamba_proj_bias", default=False),
    )


def read_granite_hybrid(r: Reader, name: str) -> ModelSpec:
    """Granite 4.0 hybrid: Mamba-2 or attention by layer_types; experts with a shared one, or the shared FFN alone."""
    trunk = read_trunk(r)
    attention, mixer = read_gqa(r, trunk, derive_head_dim=True), _mamba2(r, trunk)
    kinds = layer_kinds(r, trunk.num_layers, MIXED)
    experts = r.size("num_local_experts", low=0)
    shared = r.size("shared_intermediate_size", low=0)
    layer = LayerSpec(ffn_dim=shared)
    if experts:
        top_k, width = r.size("num_experts_per_tok"), r.size("intermediate_size")
        layer = LayerSpec(moe=MoESpec(num_experts=experts, top_k=top_k, ffn_dim=width, shared_ffn_dim=shared))
    layers = [_mixed(kinds, layer, i, attention, mixer) for i in range(trunk.num_layers)]
    return finish_model(r, trunk, family="granitemoehybrid", name=name, layers=layers)


def read_bamba(r: Reader, name: str) -> ModelSpec:
    """Bamba: Mamba-2 but for the layers attn_layer_indices names, a dense FFN on each."""
    trunk = read_trunk(r)
    attention, mixer = read_gqa(r, trunk, derive_head_dim=True), _mamba2(r, trunk)
    full = set(r.sizes("attn_layer_indices"))
    if trunk.num_layers and any(i >= trunk.num_layers for i in full):
        r.problems.append(f"attn_layer_indices names layer {max(full)} but num_hidden_layers is {trunk.num_layers}")
    kinds = ["attention" if i in full else "mixer" for i in range(trunk.num_layers)]
    layer = LayerSpec(ffn_dim=r.size("intermediate_size"), ffn_bias=r.flag("mlp_bias", default=False))
    layers = [_mixed(kinds, layer, i, attention, mixer) for i in range(trunk.num_layers)]
    return finish_model(r, trunk, family="bamba", name=name, layers=layers)


def _nemotron_blocks(r: Reader) -> tuple[str, ...]:
    """Kinds of the blocks: layers_block_type, or the letters of hybrid_override_pattern."""
    names = {**MIXED, "moe": "moe", "mlp": "mlp"}
    if r.has("layers_block_type", "layer_types"):
        key = "layers_block_type" if r.has("layers_block_type") else "layer_types"
        return layer_kinds(r, r.size("num_hidden_layers", low=0, high=MAX_LAYERS, default=0), names, key)
    if not r.has("hybrid_override_pattern"):
        r.missing(("layers_block_type", "hybrid_override_pattern"), "list the kind of every block")
        return ()
    pattern = r.text("hybrid_override_pattern")
    wrong = sorted(set(pattern) - set(PATTERN))
    if wrong:
        r.problems.append(f"hybrid_override_pattern holds {''.join(wrong)[:20]!r}; letters: {' '.join(PATTERN)}")
    count = r.size("num_hidden_layers", high=MAX_LAYERS, default=len(pattern))
    if count and count != len(pattern):
        r.problems.append(f"hybrid_override_pattern has {len(pattern)} letters but num_hidden_layers is {count}")
    return tuple(names[PATTERN[x]] for x in pattern if x in PATTERN)


def read_nemotron_h(r: Reader, name: str) -> ModelSpec:
    """Nemotron-H, Nano 2 and Nemotron 3: blocks of one half each (Mamba-2, attention, experts, FFN), squared ReLU."""
    kinds = _nemotron_blocks(r)
    trunk = Trunk(
        hidden_dim=r.size("hidden_size"),
        num_layers=len(kinds),
        vocab_size=r.size("vocab_size"),
        tied_embeddings=r.flag("tie_word_embeddings", default=False, assume=True),
    )
    bias = r.flag("mlp_bias", default=False)
    parts: dict[str, LayerSpec] = {}
    if "mixer" in kinds:
        mixer = MixerSpec(
            kind="mamba2",
            heads=r.size("mamba_num_heads"),
            head_dim=r.size("mamba_head_dim"),
            key_heads=r.size("n_groups"),
            key_dim=r.size("ssm_state_size"),
            conv_kernel=r.size("conv_kernel"),
            chunk=r.size("chunk_size", default=128),
            conv_bias=r.flag("use_conv_bias", default=True),
            proj_bias=r.flag("mamba_proj_bias", default=False),
        )
        parts["mixer"] = LayerSpec(mixer=mixer, gated=False)
    if "attention" in kinds:
        parts["attention"] = LayerSpec(
            attention=replace(read_gqa(r, trunk, derive_head_dim=False), rotary=False), gated=False
        )
    if "mlp" in kinds:
        parts["mlp"] = LayerSpec(ffn_dim=r.size("intermediate_size"), gated=False, ffn_bias=bias)
    if "moe" in kinds:
        count = r.size("n_shared_experts", low=0, default=1)
        width = r.size("moe_shared_expert_intermediate_size", low=0) if count else 0
        moe = MoESpec(
            num_experts=r.size("n_routed_experts"),
            top_k=r.size("num_experts_per_tok"),
            ffn_dim=r.size("moe_intermediate_size"),
            shared_ffn_dim=width * count,
            num_groups=r.size("n_group", default=1),
            top_k_groups=r.size("topk_group", default=1),
            router_bias=True,
            latent_dim=r.size("moe_latent_size", low=0, default=0),
        )
        parts["moe"] = LayerSpec(moe=moe, gated=False)
    layers = [parts[kind] for kind in kinds if kind in parts]
    mtp = r.size("num_nextn_predict_layers", low=0, high=64, default=0)
    return finish_model(r, trunk, family="nemotron_h", name=name, layers=layers, mtp_layers=mtp)


def read_jamba(r: Reader, name: str) -> ModelSpec:
    """Jamba: Mamba-1 but for one layer of each attn_layer_period, experts on one of each expert_layer_period."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=False, out_bias=False)
    rank: int = -(-trunk.hidden_dim // 16) if r.data.get("mamba_dt_rank") == "auto" else r.size("mamba_dt_rank")
    mixer = MixerSpec(
        kind="mamba1",
        heads=1,
        head_dim=max(1, r.size("mamba_expand") * trunk.hidden_dim),
        key_dim=r.size("mamba_d_state"),
        conv_kernel=r.size("mamba_d_conv"),
        rank=rank,
        conv_bias=r.flag("mamba_conv_bias", default=True),
        proj_bias=r.flag("mamba_proj_bias", default=False),
        inner_norms=True,
    )
    period, offset = r.size("attn_layer_period") or 1, r.size("attn_layer_offset", low=0)
    kinds = ["attention" if i % period == offset else "mixer" for i in range(trunk.num_layers)]
    width = r.size("intermediate_size")
    experts = r.size("num_experts")
    every, first = r.size("expert_layer_period") or 1, r.size("expert_layer_offset", low=0)
    moe = MoESpec(num_experts=experts, top_k=r.size("num_experts_per_tok"), ffn_dim=width)
    layers = []
    for i in range(trunk.num_layers):
        has = experts > 1 and i % every == first
        layer = LayerSpec(moe=moe) if has else LayerSpec(ffn_dim=width)
        layers.append(_mixed(kinds, layer, i, attention, mixer))
    return finish_model(r, trunk, family="jamba", name=name, layers=layers)


def read_kimi_linear(r: Reader, name: str) -> ModelSpec:
    """Kimi Linear: delta attention with a decay per channel, MLA without rotary on every fourth layer."""
    trunk = read_trunk(r)
    attention = replace(read_mla(r), rotary=False)
    old = r.table("linear_attn_config") if r.has("linear_attn_config") else None
    heads = old.size("num_heads") if old else r.size("linear_num_heads")
    dim = old.size("head_dim") if old else r.size("linear_head_dim")
    taps = old.size("short_conv_kernel_size") if old else r.size("linear_conv_kernel_dim")
    mixer = MixerSpec(
        kind="kda", heads=heads, head_dim=dim, key_heads=max(1, heads), key_dim=dim, conv_kernel=taps, rank=dim,
        chunk=DELTA_CHUNK,
    )  # fmt: skip
    if old:  # the published file counts its layers from 1
        full = {i - 1 for i in old.sizes("full_attn_layers")}
        kinds = tuple("attention" if i in full else "mixer" for i in range(trunk.num_layers))
    else:
        kinds = layer_kinds(r, trunk.num_layers, MIXED)
    width = r.size("moe_intermediate_size")
    moe = MoESpec(
        num_experts=r.size("num_experts"),
        top_k=r.size("num_experts_per_token", "num_experts_per_tok"),
        ffn_dim=width,
        shared_ffn_dim=r.size("num_shared_experts", low=0) * width,
        num_groups=r.size("num_expert_group", default=1),
        top_k_groups=r.size("topk_group", default=1),
        router_bias=True,
    )
    sparse = first_dense_layers(r, trunk.num_layers)
    dense = 0 if all(sparse) else r.size("intermediate_size")
    layers = [
        _mixed(kinds, LayerSpec(moe=moe) if has else LayerSpec(ffn_dim=dense), i, attention, mixer)
        for i, has in enumerate(sparse)
    ]
    return finish_model(r, trunk, family="kimi_linear", name=name, layers=layers)


def read_lfm2_moe(r: Reader, name: str) -> ModelSpec:
    """LFM2 MoE: short gated convolutions and attention with norms on query and key, dense first layers."""
    trunk = read_trunk(r, tied=True)
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=False, out_bias=False, qk_norm=True)
    bias = r.flag("conv_bias", default=False)
    mixer = MixerSpec(
        kind="short_conv", heads=1, head_dim=max(1, trunk.hidden_dim), conv_kernel=r.size("conv_L_cache"),
        conv_bias=bias, proj_bias=bias,
    )  # fmt: skip
    kinds = layer_kinds(r, trunk.num_layers, MIXED)
    first = r.size("num_dense_layers", low=0)
    if trunk.num_layers and first > trunk.num_layers:
        r.problems.append(f"num_dense_layers {first} is more than num_hidden_layers {trunk.num_layers}")
    moe = MoESpec(
        num_experts=r.size("num_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("moe_intermediate_size"),
        router_bias=r.flag("use_expert_bias", default=True),
    )
    dense = r.size("intermediate_size") if first else 0
    layers = [
        _mixed(kinds, LayerSpec(ffn_dim=dense) if i < first else LayerSpec(moe=moe), i, attention, mixer)
        for i in range(trunk.num_layers)
    ]
    return finish_model(r, trunk, family="lfm2_moe", name=name, layers=layers)


def read_minimax(r: Reader, name: str) -> ModelSpec:
    """MiniMax-Text-01 and M1: lightning attention, softmax attention on every eighth layer, experts on all."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=False, out_bias=False)
    mixer = MixerSpec(
        kind="lightning", heads=attention.heads, head_dim=attention.head_dim, key_heads=attention.heads,
        key_dim=attention.head_dim, chunk=r.size("block_size", default=256),
    )  # fmt: skip
    if r.has("attn_type_list") and not r.has("layer_types"):
        turns = r.sizes("attn_type_list", high=1)
        kinds = tuple("attention" if x else "mixer" for x in turns)
        if trunk.num_layers and len(turns) != trunk.num_layers:
            r.problems.append(f"attn_type_list has {len(turns)} entries but num_hidden_layers is {trunk.num_layers}")
    else:
        kinds = layer_kinds(r, trunk.num_layers, MIXED)
    moe = MoESpec(
        num_experts=r.size("num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("intermediate_size"),
    )
    layers = [_mixed(kinds, LayerSpec(moe=moe), i, attention, mixer) for i in range(trunk.num_layers)]
    return finish_model(r, trunk, family="minimax", name=name, layers=layers)
