"""Mixture-of-Experts families: mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v2/v3 (and kimi_k2), gpt_oss."""

from __future__ import annotations

from sim.families.common import (
    Trunk,
    assemble,
    layer_kinds,
    qwen_moe_layers,
    qwen_windows,
    read_gqa,
    read_trunk,
    uniform_windows,
    windows_from_layer_types,
)
from sim.families.reader import Reader
from sim.model import AttentionSpec, ModelSpec, MoESpec

SPARSE_ATTENTION = ("deepseek_v32", "glm_moe_dsa")


def read_mixtral(r: Reader, name: str) -> ModelSpec:
    """Mixtral: every layer holds experts of the width of the dense FFN."""
    trunk = read_trunk(r)
    moe = MoESpec(
        num_experts=r.size("num_local_experts", "num_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("intermediate_size"),
    )
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=False, out_bias=False)
    windows = uniform_windows(r, trunk.num_layers)
    return assemble(r, trunk, family="mixtral", name=name, attention=attention, windows=windows, moe=moe)


def read_olmoe(r: Reader, name: str) -> ModelSpec:
    """OLMoE: as mixtral with norms on query and key; the expert width is intermediate_size."""
    trunk = read_trunk(r)
    moe = MoESpec(
        num_experts=r.size("num_experts", "num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("intermediate_size"),
    )
    attention = read_gqa(r, trunk, derive_head_dim=True, qk_norm=True, qk_norm_joint=True)
    return assemble(r, trunk, family="olmoe", name=name, attention=attention, moe=moe)


def _read_qwen_moe(
    r: Reader, name: str, *, family: str, trunk: Trunk, attention: AttentionSpec, shared: int
) -> ModelSpec:
    moe = MoESpec(
        num_experts=r.size("num_experts", "num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=r.size("moe_intermediate_size"),
        shared_ffn_dim=shared,
        shared_gate=shared > 0,
    )
    moe_layers = qwen_moe_layers(r, trunk.num_layers)
    return assemble(
        r,
        trunk,
        family=family,
        name=name,
        attention=attention,
        windows=qwen_windows(r, trunk.num_layers),
        moe=moe,
        moe_layers=moe_layers,
        ffn_dim=0 if all(moe_layers) else r.size("intermediate_size"),
    )


def read_qwen2_moe(r: Reader, name: str) -> ModelSpec:
    """Qwen1.5/Qwen2 MoE: QKV biases and one gated shared expert."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=True, out_bias=False)
    shared = r.size("shared_expert_intermediate_size", low=0)
    return _read_qwen_moe(r, name, family="qwen2_moe", trunk=trunk, attention=attention, shared=shared)


def read_qwen3_moe(r: Reader, name: str) -> ModelSpec:
    """Qwen3 MoE: query and key norms, head_dim of its own, no shared expert."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=False, qk_norm=True)
    return _read_qwen_moe(r, name, family="qwen3_moe", trunk=trunk, attention=attention, shared=0)


def read_mla(r: Reader) -> AttentionSpec:
    """Multi-head latent attention, with the indexer of sparse attention where index_topk is given."""
    heads = r.size("num_attention_heads")
    nope, rope = r.size("qk_nope_head_dim"), r.size("qk_rope_head_dim")
    # Published files write null for "queries are not compressed": the key must stand, its value may be null.
    if "q_lora_rank" not in r.data:
        r.missing(("q_lora_rank",), "add it; null means that queries are not compressed")
    bias = r.flag("attention_bias", default=False)
    sparse = r.has("index_topk") or r.data.get("model_type") in SPARSE_ATTENTION
    return AttentionSpec(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=nope + rope,
        v_head_dim=r.size("v_head_dim"),
        q_lora_rank=r.size("q_lora_rank", low=0, default=0),
        kv_lora_rank=r.size("kv_lora_rank"),
        qk_nope_dim=nope,
        qk_rope_dim=rope,
        qkv_bias=bias,
        out_bias=bias,
        index_topk=r.size("index_topk") if sparse else 0,
        index_heads=r.size("index_n_heads") if sparse else 0,
        index_dim=r.size("index_head_dim") if sparse else 0,
    )


def first_dense_layers(r: Reader, num_layers: int) -> tuple[bool, ...]:
    """mlp_layer_types (dense | sparse) where present, else first_k_dense_replace and moe_layer_freq."""
    if r.has("mlp_layer_types"):
        kinds = r.texts("mlp_layer_types")
        if num_layers and len(kinds) != num_layers:
            r.problems.append(f"mlp_layer_types has {len(kinds)} entries but num_hidden_layers is {num_layers}")
            return (True,) * num_layers
        for kind in sorted(set(kinds) - {"dense", "sparse"}):
            r.problems.append(f"mlp_layer_types holds {kind[:40]!r}; supported: dense, sparse")
        return tuple(kind == "sparse" for kind in kinds)
    first = r.size("first_k_dense_replace", low=0, hint="add it, or mlp_layer_types")
    freq = r.size("moe_layer_freq", default=1) or 1
    if num_layers and first > num_layers:
        r.problems.append(f"first_k_dense_replace {first} is more than num_hidden_layers {num_layers}")
    return tuple(i >= first and i % freq == 0 for i in range(num_layers))


def read_deepseek(r: Reader, name: str) -> ModelSpec:
    """DeepSeek-V2 and V3, Kimi K2: MLA, shared experts, dense first layers, expert groups, MTP blocks."""
    trunk = read_trunk(r)
    attention = read_mla(r)
    width = r.size("moe_intermediate_size")
    if "n_shared_experts" not in r.data:
        r.missing(("n_shared_experts",), "add it; null or 0 means no shared expert")
    shared = r.size("n_shared_experts", low=0, high=1024, default=0)
    # transformers: only the "noaux_tc" router carries a correction bias per expert; V3 has no other router.
    v3 = r.data.get("model_type") in {"deepseek_v3", "kimi_k2", *SPARSE_ATTENTION}
    bias = r.text("topk_method", default="noaux_tc" if v3 else "greedy") == "noaux_tc"
    moe = MoESpec(
        num_experts=r.size("n_routed_experts", "num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=width,
        shared_ffn_dim=shared * width,
        num_groups=r.size("n_group", default=1),
        top_k_groups=r.size("topk_group", default=1),
        router_bias=bias,
    )
    moe_layers = first_dense_layers(r, trunk.num_layers)
    if r.has("layer_types"):  # all alike in these families, whatever the list calls it
        layer_kinds(r, trunk.num_layers, {"indexed_attention": "", "full_attention": ""})
    if r.has("indexer_types"):  # every layer has an indexer of its own
        layer_kinds(r, trunk.num_layers, {"full": ""}, "indexer_types")
    if r.has("topk_group") and "n_group" not in r.data:
        r.missing(("n_group",), "topk_group is given")
    return assemble(
        r,
        trunk,
        family="deepseek",
        name=name,
        attention=attention,
        moe=moe,
        moe_layers=moe_layers,
        ffn_dim=0 if all(moe_layers) else r.size("intermediate_size"),
        mtp_layers=_mtp_layers(r, v3=v3),
    )


def _mtp_layers(r: Reader, *, v3: bool) -> int:
    """Multi-token-prediction blocks; V2 has none, and a V3 file without the key is taken as none, on record."""
    if v3 and not r.has("num_nextn_predict_layers"):
        r.assumed.append("num_nextn_predict_layers = 0")
    return r.size("num_nextn_predict_layers", low=0, high=64, default=0)


def read_gpt_oss(r: Reader, name: str) -> ModelSpec:
    """gpt-oss: alternating windows, sinks, biases in attention, router and experts, clamped activation."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=False, sinks=True)
    if not r.has("layer_types"):
        r.missing(("layer_types",), "list sliding_attention or full_attention for every layer")
        windows: tuple[int | None, ...] = ()
    else:
        windows = windows_from_layer_types(r, trunk.num_layers)
    moe = MoESpec(
        num_experts=r.size("num_local_experts", "num_experts"),
        top_k=r.size("num_experts_per_tok", "experts_per_token"),
        ffn_dim=r.size("intermediate_size"),
        router_bias=True,
        expert_bias=True,
        clamped_activation=True,
    )
    return assemble(r, trunk, family="gpt_oss", name=name, attention=attention, windows=windows, moe=moe)
