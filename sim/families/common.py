"""Parts that several Hugging Face families share: sizes, plain attention, windows, which layers hold experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hwprofiles.specs import Source
from sim.families.reader import MAX_LAYERS, Reader
from sim.model import AttentionSpec, LayerSpec, ModelSpec, MoESpec


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Sizes every family has."""

    hidden_dim: int
    num_layers: int
    vocab_size: int
    tied_embeddings: bool


def read_trunk(r: Reader, *, tied: bool = False) -> Trunk:
    """hidden_size, num_hidden_layers, vocab_size, tie_word_embeddings (`tied` is the class's default, on record)."""
    return Trunk(
        hidden_dim=r.size("hidden_size"),
        num_layers=r.size("num_hidden_layers", high=MAX_LAYERS),
        vocab_size=r.size("vocab_size"),
        tied_embeddings=r.flag("tie_word_embeddings", default=tied, assume=True),
    )


def read_gqa(
    r: Reader,
    trunk: Trunk,
    *,
    derive_head_dim: bool,
    qkv_bias: bool | None = None,
    out_bias: bool | None = None,
    qk_norm: bool = False,
    qk_norm_joint: bool = False,
    sinks: bool = False,
) -> AttentionSpec:
    """Grouped-query attention from the usual keys.

    A bias given as None follows `attention_bias`. With `derive_head_dim` an absent head_dim is hidden_size / heads
    (the definition in that family); elsewhere it must be stated because the family decouples the two.
    """
    heads = r.size("num_attention_heads")
    kv_heads = r.size("num_key_value_heads", hint="add it; multi-head attention: as many as num_attention_heads")
    derived: int | None = None
    if derive_head_dim and not r.has("head_dim") and heads and trunk.hidden_dim:
        if trunk.hidden_dim % heads:
            r.problems.append(f"hidden_size {trunk.hidden_dim} is not a multiple of {heads} heads: state head_dim")
        derived = max(1, trunk.hidden_dim // heads)
    elif derive_head_dim and not r.has("head_dim"):
        derived = 1  # the sizes it derives from are already reported
    head_dim = r.size("head_dim", default=derived)
    bias = r.flag("attention_bias", default=False) if qkv_bias is None or out_bias is None else False
    return AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        qkv_bias=bias if qkv_bias is None else qkv_bias,
        out_bias=bias if out_bias is None else out_bias,
        qk_norm=qk_norm,
        qk_norm_joint=qk_norm_joint,
        sinks=sinks,
    )


def layer_kinds(r: Reader, num_layers: int, kinds: Mapping[str, str], key: str = "layer_types") -> tuple[str, ...]:
    """One kind per layer from a list of names; `kinds` maps the spellings a family knows to their meaning."""
    names = r.texts(key)
    if not r.has(key):
        r.missing((key,), f"list {' or '.join(sorted(kinds))} for every layer")
        return ()
    if num_layers and len(names) != num_layers:
        r.problems.append(f"{key} has {len(names)} entries but num_hidden_layers is {num_layers}: correct one")
        return ()
    for name in sorted(set(names) - set(kinds)):
        r.problems.append(f"{key} holds {name[:40]!r}, which is not supported; supported: {', '.join(sorted(kinds))}")
    return tuple(kinds.get(name, "") for name in names)


def windows_from_layer_types(r: Reader, num_layers: int) -> tuple[int | None, ...]:
    """One window per layer from layer_types (full_attention | sliding_attention) and sliding_window."""
    kinds = r.texts("layer_types")
    if num_layers and len(kinds) != num_layers:
        r.problems.append(f"layer_types has {len(kinds)} entries but num_hidden_layers is {num_layers}: correct one")
        return (None,) * num_layers
    for kind in sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        r.problems.append(
            f"layer_types holds {kind[:40]!r}, which is not supported yet; supported: full_attention, sliding_attention"
        )
    window = r.size("sliding_window") if "sliding_attention" in kinds else None
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def uniform_windows(r: Reader, num_layers: int) -> tuple[int | None, ...]:
    """The Mistral rule: layer_types where present, else sliding_window (null = none) on every layer."""
    if r.has("layer_types"):
        return windows_from_layer_types(r, num_layers)
    window = r.size("sliding_window") if r.has("sliding_window") else None
    return (window,) * num_layers


def qwen_windows(r: Reader, num_layers: int) -> tuple[int | None, ...]:
    """The Qwen rule: layer_types where present, else windows from layer max_window_layers if use_sliding_window."""
    if r.has("layer_types"):
        return windows_from_layer_types(r, num_layers)
    if not r.flag("use_sliding_window", default=False):
        return (None,) * num_layers
    window, first = r.size("sliding_window"), r.size("max_window_layers", low=0)
    return tuple(window if i >= first else None for i in range(num_layers))


def qwen_moe_layers(r: Reader, num_layers: int) -> tuple[bool, ...]:
    """Which layers hold experts: every decoder_sparse_step-th, except those in mlp_only_layers."""
    step = r.size("decoder_sparse_step", default=1) or 1
    dense = set(r.sizes("mlp_only_layers"))
    if num_layers and any(i >= num_layers for i in dense):
        r.problems.append(f"mlp_only_layers names layer {max(dense)} but num_hidden_layers is {num_layers}")
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(num_layers))


def assemble(
    r: Reader,
    trunk: Trunk,
    *,
    family: str,
    name: str,
    attention: AttentionSpec,
    windows: Sequence[int | None] = (),
    moe: MoESpec | None = None,
    moe_layers: Sequence[bool] = (),
    ffn_dim: int = 0,
    gated: bool = True,
    ffn_bias: bool = False,
    norm_bias: bool = False,
    mtp_layers: int = 0,
    max_positions: int = 0,
    extra_norms: int = 0,
    parallel: bool = False,
) -> ModelSpec:
    """The model from its parts, checked; raises UserError with everything the reader noted."""
    layers = []
    for i in range(trunk.num_layers):
        has_moe = moe is not None and (bool(moe_layers[i]) if i < len(moe_layers) else True)
        window = windows[i] if i < len(windows) else None
        layers.append(
            LayerSpec(
                attention=attention if window is None else replace(attention, window=window),
                ffn_dim=0 if has_moe else ffn_dim,
                moe=moe if has_moe else None,
                gated=gated,
                ffn_bias=ffn_bias,
                norm_bias=norm_bias,
                extra_norms=extra_norms,
                parallel=parallel,
            )
        )
    return finish_model(
        r, trunk, family=family, name=name, layers=layers, mtp_layers=mtp_layers, max_positions=max_positions
    )


def finish_model(
    r: Reader,
    trunk: Trunk,
    *,
    family: str,
    name: str,
    layers: Sequence[LayerSpec],
    mtp_layers: int = 0,
    max_positions: int = 0,
) -> ModelSpec:
    """The model of ready layers, checked; raises UserError with everything the reader noted."""
    note = f"not stated in the file, assumed: {', '.join(r.assumed)}" if r.assumed else ""
    source = Source(kind="user", title=f"{family} config.json", where=r.where, date="not stated", note=note)
    return r.finish(
        ModelSpec(
            name=name,
            hidden_dim=trunk.hidden_dim,
            vocab_size=trunk.vocab_size,
            layers=tuple(layers),
            mtp_layers=mtp_layers,
            tied_embeddings=trunk.tied_embeddings,
            max_positions=max_positions,
            family=family,
            source=source,
        )
    )
