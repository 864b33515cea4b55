"""Further Mixture-of-Experts families with attention in every layer: llama4, dbrx, granitemoe, glm4_moe, ernie4_5_moe,
minimax_m2, hunyuan, phimoe, arctic, dots1, longcat_flash."""

from __future__ import annotations

from dataclasses import replace

from sim.families.common import (
    Trunk,
    assemble,
    finish_model,
    layer_kinds,
    read_gqa,
    read_trunk,
    uniform_windows,
    windows_from_layer_types,
)
from sim.families.moe import first_dense_layers, read_mla
from sim.families.reader import MAX_LAYERS, Reader
from sim.model import AttentionSpec, LayerSpec, ModelSpec, MoESpec


def read_llama4(r: Reader, name: str) -> ModelSpec:
    """Llama 4 (text): one shared expert of the routed experts' width, chunked attention but on every fourth layer."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=False)
    width = r.size("intermediate_size")
    moe = MoESpec(
        num_experts=r.size("num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=width,
        shared_ffn_dim=width,
    )
    if r.has("moe_layers"):
        sparse = set(r.sizes("moe_layers"))
        if trunk.num_layers and any(i >= trunk.num_layers for i in sparse):
            r.problems.append(f"moe_layers names layer {max(sparse)} but num_hidden_layers is {trunk.num_layers}")
    else:
        step = r.size("interleave_moe_layer_step") or 1
        sparse = set(range(step - 1, trunk.num_layers, step))
    dense_width = r.size("intermediate_size_mlp") if len(sparse) < trunk.num_layers else 0
    chunk = r.size("attention_chunk_size") if r.has("attention_chunk_size") else None
    turns = r.sizes("no_rope_layers")
    if turns and trunk.num_layers and len(turns) != trunk.num_layers:
        r.problems.append(f"no_rope_layers has {len(turns)} entries but num_hidden_layers is {trunk.num_layers}")
    if r.has("layer_types"):
        names = {"chunked_attention": "chunked", "full_attention": "full"}
        chunked = [kind == "chunked" for kind in layer_kinds(r, trunk.num_layers, names)]
    else:
        every = r.size("no_rope_layer_interval", default=4) or 4
        chunked = [bool(x) for x in turns] or [(i + 1) % every != 0 for i in range(trunk.num_layers)]
    layers = []
    for i in range(trunk.num_layers):
        local = chunk is not None and i < len(chunked) and chunked[i]
        att = replace(attention, chunk=chunk) if local else attention
        layers.append(
            LayerSpec(attention=att, moe=moe) if i in sparse else LayerSpec(attention=att, ffn_dim=dense_width)
        )
    return finish_model(r, trunk, family="llama4", name=name, layers=layers)


def read_dbrx(r: Reader, name: str) -> ModelSpec:
    """DBRX: sizes of attention and experts in sub-tables, LayerNorm."""
    trunk = Trunk(
        hidden_dim=r.size("d_model", "hidden_size"),
        num_layers=r.size("n_layers", "num_hidden_layers", high=MAX_LAYERS),
        vocab_size=r.size("vocab_size"),
        tied_embeddings=r.flag("tie_word_embeddings", default=False, assume=True),
    )
    heads = r.size("n_heads", "num_attention_heads")
    if heads and trunk.hidden_dim % heads:
        r.problems.append(f"d_model {trunk.hidden_dim} is not a multiple of n_heads {heads}: correct one of them")
    head_dim = max(1, trunk.hidden_dim // heads) if heads else 1
    ffn = r.table("ffn_config")
    attention = AttentionSpec(
        heads=heads, kv_heads=r.table("attn_config").size("kv_n_heads"), head_dim=head_dim, v_head_dim=head_dim
    )
    moe = MoESpec(
        num_experts=ffn.size("moe_num_experts"), top_k=ffn.size("moe_top_k"), ffn_dim=ffn.size("ffn_hidden_size")
    )
    return assemble(r, trunk, family="dbrx", name=name, attention=attention, moe=moe)


def read_granitemoe(r: Reader, name: str) -> ModelSpec:
    """Granite MoE, with a shared expert where shared_intermediate_size is given."""
    trunk = read_trunk(r)
    moe = MoESpec(
        num_experts=r.size("num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("intermediate_size"),
        shared_ffn_dim=r.size("shared_intermediate_size", low=0, default=0),
    )
    attention = read_gqa(r, trunk, derive_head_dim=True)
    return assemble(r, trunk, family="granitemoe", name=name, attention=attention, moe=moe)


def _shared_moe(r: Reader, *, router_bias: bool = True) -> MoESpec:
    """Experts under DeepSeek's keys: n_routed_experts, moe_intermediate_size, n_shared_experts of that width each."""
    width = r.size("moe_intermediate_size")
    if "n_shared_experts" not in r.data:
        r.missing(("n_shared_experts",), "add it; null or 0 means no shared expert")
    return MoESpec(
        num_experts=r.size("n_routed_experts", "num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=width,
        shared_ffn_dim=r.size("n_shared_experts", low=0, high=1024, default=0) * width,
        num_groups=r.size("n_group", default=1),
        top_k_groups=r.size("topk_group", default=1),
        router_bias=router_bias,
    )


def _first_dense(r: Reader, name: str, family: str, attention: AttentionSpec, trunk: Trunk) -> ModelSpec:
    moe_layers = first_dense_layers(r, trunk.num_layers)
    windows = windows_from_layer_types(r, trunk.num_layers) if r.has("layer_types") else ()
    return assemble(
        r,
        trunk,
        family=family,
        name=name,
        attention=attention,
        windows=windows,
        moe=_shared_moe(r),
        moe_layers=moe_layers,
        ffn_dim=0 if all(moe_layers) else r.size("intermediate_size"),
        mtp_layers=r.size("num_nextn_predict_layers", low=0, high=64, default=0),
    )


def read_glm4_moe(r: Reader, name: str) -> ModelSpec:
    """GLM-4.5: query, key and value biases, optional norms on query and key, DeepSeek's router and shared expert."""
    trunk = read_trunk(r)
    bias = r.flag("attention_bias", default=False)
    qk_norm = r.flag("use_qk_norm", default=False)
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=bias, out_bias=False, qk_norm=qk_norm)
    return _first_dense(r, name, "glm4_moe", attention, trunk)


def read_dots1(r: Reader, name: str) -> ModelSpec:
    """dots.llm1: norms on query and key, DeepSeek's router and shared experts."""
    trunk = read_trunk(r)
    return _first_dense(r, name, "dots1", read_gqa(r, trunk, derive_head_dim=True, qk_norm=True), trunk)


def read_ernie(r: Reader, name: str) -> ModelSpec:
    """ERNIE 4.5: experts from moe_layer_start_index to moe_layer_end_index, every moe_layer_interval-th layer."""
    trunk = read_trunk(r, tied=True)
    bias = r.flag("use_bias", default=False)
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=bias, out_bias=bias)
    width = r.size("moe_intermediate_size")
    moe = MoESpec(
        num_experts=r.size("moe_num_experts", "num_experts"),
        top_k=r.size("moe_k", "num_experts_per_tok"),
        ffn_dim=width,
        shared_ffn_dim=r.size("moe_num_shared_experts", low=0, default=0) * width,
        router_bias=True,
        expert_bias=bias,
    )
    first = r.size("moe_layer_start_index", low=0)
    last = r.size("moe_layer_end_index", low=0, default=max(0, trunk.num_layers - 1))
    step = r.size("moe_layer_interval", default=1) or 1
    if trunk.num_layers and last >= trunk.num_layers:
        r.problems.append(f"moe_layer_end_index {last} is not below num_hidden_layers {trunk.num_layers}")
    sparse = [first <= i <= last and (i + 1) % step == 0 for i in range(trunk.num_layers)]
    return assemble(
        r,
        trunk,
        family="ernie4_5_moe",
        name=name,
        attention=attention,
        moe=moe,
        moe_layers=sparse,
        ffn_dim=0 if all(sparse) else r.size("intermediate_size"),
        ffn_bias=bias,
        mtp_layers=r.size("num_nextn_predict_layers", low=0, high=64, default=0),
    )


def read_minimax_m2(r: Reader, name: str) -> ModelSpec:
    """MiniMax-M2: full attention, one norm over all heads of query and key, a bias per expert in the router."""
    trunk = read_trunk(r)
    attention = read_gqa(
        r, trunk, derive_head_dim=False, qkv_bias=False, out_bias=False, qk_norm=True, qk_norm_joint=True
    )
    moe = MoESpec(
        num_experts=r.size("num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("intermediate_size"),
        router_bias=True,
    )
    return assemble(r, trunk, family="minimax_m2", name=name, attention=attention, moe=moe)


def _same_everywhere(r: Reader, key: str, *, default: int | None = None, low: int = 1) -> int:
    """A size, or a list with one entry per layer that are all equal."""
    value = r.data.get(key)
    if isinstance(value, list) and value and all(x == value[0] for x in value):
        sub = Reader({key: value[0]}, r.where)
        out = sub.size(key, low=low)
        r.used.add(key)
        r.problems.extend(sub.problems)
        return out
    if isinstance(value, list):
        r.problems.append(f"{key} differs from layer to layer: not supported; write the model as TOML")
        return 0
    return r.size(key, low=low, default=default)


def read_hunyuan(r: Reader, name: str) -> ModelSpec:
    """Hunyuan MoE: a shared expert, norms on query and key; sizes may stand as per-layer lists."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=True, qk_norm=r.flag("use_qk_norm", default=True))
    if r.flag("use_cla", default=False):
        r.problems.append("use_cla = true (keys shared between layers) is not supported")
    width = _same_everywhere(r, "moe_intermediate_size") if r.has("moe_intermediate_size") else 0
    width = width or r.size("intermediate_size")
    moe = MoESpec(
        num_experts=_same_everywhere(r, "num_experts"),
        top_k=_same_everywhere(r, "moe_topk"),
        ffn_dim=width,
        shared_ffn_dim=_same_everywhere(r, "num_shared_expert", default=1, low=0) * width,
    )
    return assemble(r, trunk, family="hunyuan_moe", name=name, attention=attention, moe=moe)


def read_phimoe(r: Reader, name: str) -> ModelSpec:
    """Phi-3.5-MoE: biases in attention, LayerNorm, top-2 of experts without a shared one."""
    trunk = read_trunk(r)
    moe = MoESpec(
        num_experts=r.size("num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("intermediate_size"),
    )
    attention = read_gqa(r, trunk, derive_head_dim=True)
    windows = uniform_windows(r, trunk.num_layers)
    return assemble(r, trunk, family="phimoe", name=name, attention=attention, windows=windows, moe=moe, norm_bias=True)


def read_arctic(r: Reader, name: str) -> ModelSpec:
    """Arctic: a dense FFN of width hidden_size beside the experts of every moe_layer_frequency-th layer."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=True)
    residual = r.flag("parallel_attn_mlp_res", "use_residual", default=True, assume=True)
    width = r.size("intermediate_size")
    moe = MoESpec(
        num_experts=r.size("num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=width,
        residual_ffn_dim=trunk.hidden_dim if residual else 0,
    )
    step = r.size("moe_layer_frequency", default=1) or 1
    sparse = [(i + 1) % step == 0 for i in range(trunk.num_layers)]
    return assemble(
        r, trunk, family="arctic", name=name, attention=attention, moe=moe, moe_layers=sparse, ffn_dim=width
    )


def read_longcat(r: Reader, name: str) -> ModelSpec:
    """LongCat-Flash: a layer is two blocks of MLA and a dense FFN; the experts stand beside the first FFN, and some
    of them do nothing. `num_layers` counts the pairs."""
    trunk = Trunk(
        hidden_dim=r.size("hidden_size"),
        num_layers=r.size("num_layers", "num_hidden_layers", high=MAX_LAYERS // 2),
        vocab_size=r.size("vocab_size"),
        tied_embeddings=r.flag("tie_word_embeddings", default=False, assume=True),
    )
    attention = read_mla(r)
    if r.has("zero_expert_type") and r.data["zero_expert_type"] != "identity":
        r.problems.append("zero_expert_type must be 'identity': other zero experts are not supported")
    width = r.size("ffn_hidden_size")
    moe = MoESpec(
        num_experts=r.size("n_routed_experts"),
        top_k=r.size("moe_topk", "num_experts_per_tok"),
        ffn_dim=r.size("expert_ffn_hidden_size", "moe_intermediate_size"),
        zero_experts=r.size("zero_expert_num", low=0),
        shared_ffn_dim=width,  # the first dense FFN reads the experts' input and is added beside them
        router_bias=True,
    )
    pair = (LayerSpec(attention=attention, moe=moe), LayerSpec(attention=attention, ffn_dim=width))
    return finish_model(
        r,
        trunk,
        family="longcat_flash",
        name=name,
        layers=pair * trunk.num_layers,
        mtp_layers=r.size("num_nextn_predict_layers", low=0, high=64, default=0),
    )
