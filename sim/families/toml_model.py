"""Own models as TOML. Keys (sizes are whole numbers; `=` shows the default, no default = required):

    name, hidden_dim, vocab_size      text, size, size
    num_layers                        required unless [[layers]] is given; then it must agree with it
    layer_cycles = 1                  the [[layers]] runs are gone through this many times (alternating patterns)
    tied_embeddings = false           one table for embedding and head
    max_positions = 0                 rows of a learned position table (0 = none)
    norm_bias = false                 LayerNorm with bias (GPT) instead of RMSNorm
    mtp_layers = 0                    extra multi-token-prediction blocks after the last layer
    family = "custom"
    extra_norms = 0                   norms per layer beyond one in front of each half (sandwich norms)
    parallel = false                  both halves of a layer read the same input
    residual_streams = 1              residual streams that hyper-connections mix around each half
    block_pattern                     instead of [[layers]]: one letter a block, M mixer, * attention, E experts,
                                      - dense FFN; such blocks hold nothing else

    [attention]  kind = "gqa" ("mla"), heads, kv_heads, head_dim, v_head_dim = head_dim, window (none), and the flags
                 qkv_bias, out_bias, qk_norm, qk_norm_joint, sinks, output_gate = false, rotary = true; chunk (none),
                 index_topk, index_heads, index_dim = 0, causal = true.
                 mla: qk_nope_dim, qk_rope_dim, kv_lora_rank, v_head_dim required, q_lora_rank = 0 (queries not
                 compressed); head_dim and kv_heads follow.
                 shared_kv: q_lora_rank, out_groups, out_rank required, compress_rate = 0, compress_overlap = false,
                 qk_rope_dim = head_dim.
    [mixer]      kind (mamba1, mamba2, gated_delta, kda, lightning, short_conv), heads, head_dim, key_heads = 1,
                 key_dim, conv_kernel = 0, chunk = 64, rank = 0, flags conv_bias, proj_bias, inner_norms = false
    [ffn]        dim (needed when any layer is dense), gated = true (also for experts), bias = false
    [moe]        num_experts, top_k, ffn_dim, shared_ffn_dim = 0 (total width of shared experts), num_groups = 1,
                 top_k_groups = 1, zero_experts, latent_dim, residual_ffn_dim = 0, and the flags shared_gate,
                 router_bias, expert_bias, clamped_activation, hash_routed, expert_choice = false
    [image]      instead of vocab_size: size, patch, channels, extra_tokens = 0
    [head]       kind = "vocabulary" ("linear", "none"), dim (linear), pooled = false
    [condition]  frequencies, classes = 0, vectors = 3 (of each half of a layer)
    [[layers]]   runs of equal layers, in order: repeat = 1, moe = true when [moe] is given (false = dense),
                 window and chunk (override the attention's; 0 = full), compress_rate, compress_overlap (override),
                 indexer = true, hash_routed; layers = [...] (runs, gone through `repeat` times); mixer = false (the
                 mixer instead of attention), attention, ffn = true (false: the layer has no such half). Without any
                 run all layers are equal.
    [source]     mandatory: kind (measured, datasheet, published, documentation, user, assumed, fitted), title, where,
                 date; licence, note optional

Unknown keys are errors. Catalogue files hold several models as [[model]], with [defaults] merged under each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args, get_type_hints

from hwprofiles.specs import Source
from sim.families.reader import Reader
from sim.families.toml_image import read_condition, read_head, read_image, read_vocabulary
from sim.families.toml_layers import Parts, read_layers
from sim.model import MIXERS, NO_ATTENTION, AttentionSpec, LayerSpec, MixerSpec, ModelSpec, MoESpec

_KINDS: tuple[str, ...] = get_args(get_type_hints(Source)["kind"])
# Read by the catalogue, allowed beside a model.
CATALOGUE_KEYS = ("aliases", "public_total_params", "public_active_params", "counts_source", "active_counts")


def merged(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`over` laid on `base`; sub-tables merge key by key."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return out


def read_toml_model(data: Mapping[str, object], where: str) -> ModelSpec:
    """A parsed TOML table as a ModelSpec. Raises UserError listing every problem, unknown keys included."""
    r = Reader(data, where)
    r.used.update(CATALOGUE_KEYS)
    ffn, ffn_given = r.table("ffn"), "ffn" in data
    image = read_image(r)
    condition, modulation = read_condition(r)
    base = LayerSpec(
        attention=_attention(r),
        ffn_dim=ffn.size("dim", default=0),
        gated=ffn.flag("gated", default=True),
        ffn_bias=ffn.flag("bias", default=False),
        norm_bias=r.flag("norm_bias", default=False),
        extra_norms=r.size("extra_norms", low=0, high=8, default=0),
        parallel=r.flag("parallel", default=False),
        streams=r.size("residual_streams", high=64, default=1) or 1,
        modulation=modulation,
    )
    if ffn_given:
        ffn.unknown_keys()
    moe = _moe(r)
    parts = Parts(base=base, moe=moe, mixer=_mixer(r))
    layers = read_layers(r, parts)
    if parts.any_dense and not ffn.has("dim"):
        ffn_where = "[ffn] " if ffn_given else ""
        r.problems.append(f"{ffn_where}missing key 'ffn.dim': some layers are dense, give their FFN width")
    model = ModelSpec(
        name=r.text("name"),
        hidden_dim=r.size("hidden_dim"),
        vocab_size=read_vocabulary(r, image),
        layers=layers,
        mtp_layers=r.size("mtp_layers", low=0, high=64, default=0),
        tied_embeddings=r.flag("tied_embeddings", default=False),
        max_positions=r.size("max_positions", low=0, default=0),
        family=r.text("family", default="custom"),
        image=image,
        head=read_head(r),
        condition=condition,
        source=_source(r),
    )
    r.unknown_keys()
    return r.finish(model)


def _source(r: Reader) -> Source:
    if "source" not in r.data:
        r.missing(("source",), 'add a [source] table with kind, title, where, date (your own model: kind = "user")')
    s = r.table("source")
    if "source" not in r.data:
        return Source(kind="user", title="", where="", date="")
    kind = s.text("kind", one_of=_KINDS) or "user"
    source = Source(
        kind=cast(Any, kind),  # one of _KINDS, checked above
        title=s.text("title"),
        where=s.text("where"),
        date=s.text("date"),
        licence=s.text("licence", default="not stated"),
        note=s.text("note", default=""),
    )
    s.unknown_keys()
    return source


def _attention(r: Reader) -> AttentionSpec:
    if "attention" not in r.data and "mixer" in r.data:
        return NO_ATTENTION
    if "attention" not in r.data:
        r.missing(("attention",), "add an [attention] table with heads, kv_heads, head_dim")
        return AttentionSpec(heads=0, kv_heads=0, head_dim=0, v_head_dim=0)
    a = r.table("attention")
    kind = a.text("kind", default="gqa", one_of=("gqa", "mla", "shared_kv")) or "gqa"
    mla, shared = kind == "mla", kind == "shared_kv"
    heads = a.size("heads")
    if shared:
        nope, kv_heads, head_dim = 0, a.size("kv_heads", default=1), a.size("head_dim")
        v_head_dim, rope = head_dim, a.size("qk_rope_dim", low=0, default=head_dim)
    elif mla:
        nope, rope = a.size("qk_nope_dim"), a.size("qk_rope_dim")
        kv_heads, head_dim = a.size("kv_heads", default=heads), a.size("head_dim", default=nope + rope)
        v_head_dim = a.size("v_head_dim")
        if heads and kv_heads != heads:
            a.problems.append(f"kv_heads {kv_heads} must equal heads {heads} with kind mla: leave it out")
    else:
        nope = rope = 0
        kv_heads, head_dim = a.size("kv_heads"), a.size("head_dim")
        v_head_dim = a.size("v_head_dim", default=head_dim)
    spec = AttentionSpec(
        kind=cast(Any, kind),  # one of those above, checked
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        q_lora_rank=a.size("q_lora_rank") if shared else a.size("q_lora_rank", low=0, default=0) if mla else 0,
        kv_lora_rank=a.size("kv_lora_rank") if mla else 0,
        qk_nope_dim=nope,
        qk_rope_dim=rope,
        window=a.size("window") if a.has("window") else None,
        qkv_bias=a.flag("qkv_bias", default=False),
        out_bias=a.flag("out_bias", default=False),
        qk_norm=a.flag("qk_norm", default=False),
        sinks=a.flag("sinks", default=False),
        rotary=a.flag("rotary", default=True),
        chunk=a.size("chunk") if a.has("chunk") else None,
        output_gate=a.flag("output_gate", default=False),
        qk_norm_joint=a.flag("qk_norm_joint", default=False),
        index_heads=a.size("index_heads", low=0, default=0),
        index_dim=a.size("index_dim", low=0, default=0),
        index_topk=a.size("index_topk", low=0, default=0),
        causal=a.flag("causal", default=True),
        compress_rate=a.size("compress_rate", low=0, default=0),
        compress_overlap=a.flag("compress_overlap", default=False),
        out_groups=a.size("out_groups") if shared else 1,
        out_rank=a.size("out_rank") if shared else 0,
    )
    a.used.update(("window", "chunk"))
    a.unknown_keys()
    return spec


def _moe(r: Reader) -> MoESpec | None:
    m = r.table("moe")
    if "moe" not in r.data:
        return None
    spec = MoESpec(
        num_experts=m.size("num_experts"),
        top_k=m.size("top_k"),
        ffn_dim=m.size("ffn_dim"),
        shared_ffn_dim=m.size("shared_ffn_dim", low=0, default=0),
        shared_gate=m.flag("shared_gate", default=False),
        num_groups=m.size("num_groups", default=1),
        top_k_groups=m.size("top_k_groups", default=1),
        router_bias=m.flag("router_bias", default=False),
        expert_bias=m.flag("expert_bias", default=False),
        clamped_activation=m.flag("clamped_activation", default=False),
        zero_experts=m.size("zero_experts", low=0, default=0),
        latent_dim=m.size("latent_dim", low=0, default=0),
        residual_ffn_dim=m.size("residual_ffn_dim", low=0, default=0),
        hash_routed=m.flag("hash_routed", default=False),
        expert_choice=m.flag("expert_choice", default=False),
    )
    m.unknown_keys()
    return spec


def _mixer(r: Reader) -> MixerSpec | None:
    m = r.table("mixer")
    if "mixer" not in r.data:
        return None
    kind = m.text("kind", one_of=MIXERS)
    spec = MixerSpec(
        kind=cast(Any, kind or MIXERS[0]),  # one of MIXERS, checked above
        heads=m.size("heads", default=1 if kind in ("mamba1", "short_conv") else None),
        head_dim=m.size("head_dim"),
        key_heads=m.size("key_heads", default=1),
        key_dim=m.size("key_dim", default=0 if kind == "short_conv" else None, low=0),
        conv_kernel=m.size("conv_kernel", low=0, default=0),
        chunk=m.size("chunk", default=64),
        rank=m.size("rank", low=0, default=0),
        conv_bias=m.flag("conv_bias", default=False),
        proj_bias=m.flag("proj_bias", default=False),
        inner_norms=m.flag("inner_norms", default=False),
    )
    m.unknown_keys()
    return spec
