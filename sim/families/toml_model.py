"""Own models as TOML. Keys (sizes are whole numbers; `=` shows the default, no default = required):

    name, hidden_dim, vocab_size      text, size, size
    num_layers                        required unless [[layers]] is given; then it must agree with it
    layer_cycles = 1                  the [[layers]] runs are gone through this many times (alternating patterns)
    tied_embeddings = false           one table for embedding and head
    max_positions = 0                 rows of a learned position table (0 = none)
    norm_bias = false                 LayerNorm with bias (GPT) instead of RMSNorm
    mtp_layers = 0                    extra multi-token-prediction blocks after the last layer
    family = "custom"

    [attention]  kind = "gqa" ("mla"), heads, kv_heads, head_dim, v_head_dim = head_dim, window (none), and the flags
                 qkv_bias, out_bias, qk_norm, sinks = false, rotary = true.
                 mla: qk_nope_dim, qk_rope_dim, kv_lora_rank, v_head_dim required, q_lora_rank = 0 (queries not
                 compressed); head_dim and kv_heads follow.
    [ffn]        dim (needed when any layer is dense), gated = true (also for experts), bias = false
    [moe]        num_experts, top_k, ffn_dim, shared_ffn_dim = 0 (total width of shared experts), num_groups = 1,
                 top_k_groups = 1, and the flags shared_gate, router_bias, expert_bias, clamped_activation = false
    [[layers]]   runs of equal layers, in order: repeat = 1, moe = true when [moe] is given (false = dense),
                 window (overrides the attention's; 0 = full). Without any run all layers are equal.
    [source]     mandatory: kind (measured, datasheet, published, documentation, user, assumed, fitted), title, where,
                 date; licence, note optional

Unknown keys are errors. Catalogue files hold several models as [[model]], with [defaults] merged under each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args, get_type_hints

from hwprofiles.specs import Source
from sim.families.reader import MAX_LAYERS, Reader
from sim.model import AttentionSpec, LayerSpec, ModelSpec, MoESpec

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
    base = LayerSpec(
        attention=_attention(r),
        ffn_dim=ffn.size("dim", default=0),
        gated=ffn.flag("gated", default=True),
        ffn_bias=ffn.flag("bias", default=False),
        norm_bias=r.flag("norm_bias", default=False),
    )
    if ffn_given:
        ffn.unknown_keys()
    moe = _moe(r)
    layers = _layers(r, base, moe)
    if any(x.moe is None for x in layers) and not ffn.has("dim"):
        ffn_where = "[ffn] " if ffn_given else ""
        r.problems.append(f"{ffn_where}missing key 'ffn.dim': some layers are dense, give their FFN width")
    model = ModelSpec(
        name=r.text("name"),
        hidden_dim=r.size("hidden_dim"),
        vocab_size=r.size("vocab_size"),
        layers=layers,
        mtp_layers=r.size("mtp_layers", low=0, high=64, default=0),
        tied_embeddings=r.flag("tied_embeddings", default=False),
        max_positions=r.size("max_positions", low=0, default=0),
        family=r.text("family", default="custom"),
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
    if "attention" not in r.data:
        r.missing(("attention",), "add an [attention] table with heads, kv_heads, head_dim")
        return AttentionSpec(heads=0, kv_heads=0, head_dim=0, v_head_dim=0)
    a = r.table("attention")
    mla = a.text("kind", default="gqa", one_of=("gqa", "mla")) == "mla"
    heads = a.size("heads")
    if mla:
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
        kind="mla" if mla else "gqa",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        q_lora_rank=a.size("q_lora_rank", low=0, default=0) if mla else 0,
        kv_lora_rank=a.size("kv_lora_rank") if mla else 0,
        qk_nope_dim=nope,
        qk_rope_dim=rope,
        window=a.size("window") if a.has("window") else None,
        qkv_bias=a.flag("qkv_bias", default=False),
        out_bias=a.flag("out_bias", default=False),
        qk_norm=a.flag("qk_norm", default=False),
        sinks=a.flag("sinks", default=False),
        rotary=a.flag("rotary", default=True),
    )
    a.used.add("window")
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
    )
    m.unknown_keys()
    return spec


def _layers(r: Reader, base: LayerSpec, moe: MoESpec | None) -> tuple[LayerSpec, ...]:
    runs = r.data.get("layers")
    r.used.add("layers")
    cycles = r.size("layer_cycles", high=MAX_LAYERS, default=1)
    if runs is None:
        count = r.size("num_layers", high=MAX_LAYERS)
        return (_layer(base, moe, None),) * count
    if not isinstance(runs, list) or not runs or not all(isinstance(x, Mapping) for x in runs):
        r.problems.append("layers must be a list of [[layers]] tables, at least one")
        return ()
    out: list[LayerSpec] = []
    for number, run in enumerate(runs[:MAX_LAYERS], 1):
        sub = Reader(run, r.where)
        repeat = sub.size("repeat", high=MAX_LAYERS, default=1)
        has_moe = sub.flag("moe", default=moe is not None)
        window = sub.size("window", low=0) if sub.has("window") else None
        sub.used.add("window")
        if has_moe and moe is None:
            sub.problems.append("moe = true needs a [moe] table")
        sub.unknown_keys()
        r.problems.extend(f"[[layers]] {number}: {p}" for p in sub.problems)
        if len(out) + repeat <= MAX_LAYERS:
            out += [_layer(base, moe if has_moe else None, window)] * repeat
    if len(out) * cycles > MAX_LAYERS:
        r.problems.append(f"more than {MAX_LAYERS} layers: lower repeat or layer_cycles")
        return ()
    layers = tuple(out) * cycles
    if r.has("num_layers") and r.size("num_layers", high=MAX_LAYERS) not in (0, len(layers)):
        r.problems.append(f"num_layers = {r.data['num_layers']} but the [[layers]] runs make {len(layers)}: drop one")
    r.used.add("num_layers")
    return layers


def _layer(base: LayerSpec, moe: MoESpec | None, window: int | None) -> LayerSpec:
    layer = base if moe is None else replace(base, moe=moe, ffn_dim=0, ffn_bias=False)
    if window is not None:
        layer = replace(layer, attention=replace(layer.attention, window=window or None))
    return layer
