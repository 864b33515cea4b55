"""deepseek_v4: one shared key-value tensor, compressed entries behind a window, hyper-connections, hash-routed layers.

Files of the release give a compress ratio per layer (0, 4 or 128, one more for each prediction block) and the number of
hash-routed layers; the transformers package gives both as lists of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sim.families.common import finish_model, layer_kinds, read_trunk
from sim.families.reader import Reader
from sim.model import AttentionSpec, LayerSpec, ModelSpec, MoESpec

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
RATIOS: Mapping[int, str] = {0: SLIDING, 4: SPARSE, 128: HEAVY}
OLD_RATES: Mapping[str, str] = {SPARSE: "compress_rate_csa", HEAVY: "compress_rate_hca"}


def read_deepseek_v4(r: Reader, name: str) -> ModelSpec:
    """DeepSeek-V4. A prediction block is counted as the last layer; its own has the window alone."""
    trunk = read_trunk(r)
    kinds = _attention_kinds(r, trunk.num_layers)
    attentions = _attentions(r, set(kinds))
    hashed = _hash_layers(r, trunk.num_layers)
    moe = _experts(r)
    streams = r.size("hc_mult", high=64)
    layers = [
        LayerSpec(
            attention=attentions.get(kind, attentions[SLIDING]),  # a kind unknown is on record
            moe=replace(moe, hash_routed=True, router_bias=False) if by_hash else moe,
            streams=max(1, streams),
        )
        for kind, by_hash in zip(kinds, hashed, strict=False)
    ]
    return finish_model(r, trunk, family="deepseek_v4", name=name, layers=layers, mtp_layers=_mtp_layers(r))


def _attention_kinds(r: Reader, num_layers: int) -> tuple[str, ...]:
    if r.has("layer_types"):
        return layer_kinds(r, num_layers, {kind: kind for kind in RATIOS.values()})
    if not r.has("compress_ratios"):
        r.missing(
            ("layer_types", "compress_ratios"), "list the kind of attention, or the compress ratio, of every layer"
        )
        return ()
    ratios = r.sizes("compress_ratios")
    mtp = r.size("num_nextn_predict_layers", low=0, high=64, default=0)
    if num_layers and not num_layers <= len(ratios) <= num_layers + mtp:
        r.problems.append(
            f"compress_ratios has {len(ratios)} entries but num_hidden_layers is {num_layers} (and "
            f"num_nextn_predict_layers {mtp}): correct one"
        )
        return ()
    for ratio in sorted(set(ratios) - set(RATIOS)):
        r.problems.append(f"compress_ratios holds {ratio}; supported: {', '.join(map(str, RATIOS))}")
    return tuple(RATIOS.get(ratio, SLIDING) for ratio in ratios[:num_layers])


def _attentions(r: Reader, kinds: set[str]) -> dict[str, AttentionSpec]:
    heads, dim = r.size("num_attention_heads"), r.size("head_dim")
    if r.size("num_key_value_heads", default=1) != 1:
        r.problems.append("num_key_value_heads must be 1: all heads share one tensor of keys and values")
    window = AttentionSpec(
        kind="shared_kv",
        heads=heads,
        kv_heads=1,
        head_dim=dim,
        v_head_dim=dim,
        q_lora_rank=r.size("q_lora_rank"),
        qk_rope_dim=_rotated_dim(r, dim),
        window=r.size("sliding_window"),
        sinks=True,
        out_groups=r.size("o_groups"),
        out_rank=r.size("o_lora_rank"),
    )
    out = dict.fromkeys(RATIOS.values(), window)
    if SPARSE in kinds:
        out[SPARSE] = replace(
            window,
            compress_rate=_rate(r, SPARSE),
            compress_overlap=True,
            index_topk=r.size("index_topk"),
            index_heads=r.size("index_n_heads"),
            index_dim=r.size("index_head_dim"),
        )
    if HEAVY in kinds:
        out[HEAVY] = replace(window, compress_rate=_rate(r, HEAVY))
    return out


def _rotated_dim(r: Reader, head_dim: int) -> int:
    """qk_rope_head_dim, or partial_rotary_factor of a head."""
    if r.has("qk_rope_head_dim"):
        return r.size("qk_rope_head_dim", low=0)
    share = r.data.get("partial_rotary_factor")
    if share is None:
        r.missing(("qk_rope_head_dim", "partial_rotary_factor"))
        return 0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        r.problems.append(f"partial_rotary_factor = {str(share)[:40]} must be a number from 0 to 1")
        return 0
    return int(head_dim * share)


def _rate(r: Reader, kind: str) -> int:
    """Tokens a compressed entry of a kind stands for."""
    if r.has("compress_ratios") and not r.has("layer_types"):
        return next(ratio for ratio, of in RATIOS.items() if of == kind)
    if r.has(OLD_RATES[kind]):
        return r.size(OLD_RATES[kind])
    if not r.has("compress_rates"):
        r.missing(("compress_rates", OLD_RATES[kind]), f"say how many tokens an entry of {kind} stands for")
        return 0
    return r.table("compress_rates").size(kind)


def _hash_layers(r: Reader, num_layers: int) -> tuple[bool, ...]:
    """Which layers send a token where a table says."""
    if r.has("mlp_layer_types"):
        return tuple(
            x == "hash" for x in layer_kinds(r, num_layers, {"hash_moe": "hash", "moe": ""}, "mlp_layer_types")
        )
    if not r.has("num_hash_layers"):
        r.missing(
            ("mlp_layer_types", "num_hash_layers"), "list hash_moe or moe for every layer, or count the first ones"
        )
        return ()
    count = r.size("num_hash_layers", low=0)
    if num_layers and count > num_layers:
        r.problems.append(f"num_hash_layers {count} is more than num_hidden_layers {num_layers}")
    return tuple(i < count for i in range(num_layers))


def _experts(r: Reader) -> MoESpec:
    width = r.size("moe_intermediate_size")
    return MoESpec(
        num_experts=r.size("n_routed_experts", "num_local_experts"),
        top_k=r.size("num_experts_per_tok"),
        ffn_dim=width,
        shared_ffn_dim=r.size("n_shared_experts", low=0, high=1024) * width,
        router_bias=True,
    )


def _mtp_layers(r: Reader) -> int:
    if not r.has("num_nextn_predict_layers"):
        r.assumed.append("num_nextn_predict_layers = 0")
    return r.size("num_nextn_predict_layers", low=0, high=64, default=0)
