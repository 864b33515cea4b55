"""Models given by their dimensions: a table row (the columns of a run file), or a plain GPT of given sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from hwprofiles.specs import Source
from sim.families.reader import MAX_LAYERS, Reader
from sim.model import AttentionSpec, LayerSpec, ModelSpec, MoESpec

# fmt: off
_INT_COLUMNS = (
    "layers", "hidden", "vocab", "heads", "kv_heads", "head_dim", "q_lora_rank", "kv_lora_rank", "qk_nope_dim",
    "qk_rope_dim", "v_head_dim", "ffn_dense", "experts", "top_k", "moe_ffn", "shared_expert_ffn_total",
    "first_dense_layers", "gated_mlp", "mtp_layers",
)
# fmt: on
_NOT_A_ROW = re.compile(r"hybrid|mamba|linear|deltanet|chunk", re.IGNORECASE)
_WINDOW = re.compile(r"alternating.*window\s+(\d+)", re.IGNORECASE)


def _numbers(row: Mapping[str, object], r: Reader) -> dict[str, object]:
    """Cells as whole numbers: CSV gives text, a table tool may give floats with NaN for an empty cell."""
    out: dict[str, object] = {}
    for column in _INT_COLUMNS:
        cell = row.get(column)
        if cell is None or (isinstance(cell, str) and cell.strip().casefold() in {"", "nan", "none"}) or cell != cell:
            continue
        try:
            number = float(str(cell))
            whole = int(number)
        except (ValueError, OverflowError):
            whole, number = 0, 0.5
        if whole != number:
            r.problems.append(f"column {column} = {str(cell)[:40]!r} must be a whole number")
        else:
            out[column] = whole
    return out


def model_from_dims(row: Mapping[str, object], *, where: str = "model dimensions") -> ModelSpec:
    """The model of a row with the columns of a model table (text or numbers; empty = not stated).

    Required: layers, hidden, heads, vocab, and ffn_dense (dense layers) or experts, top_k, moe_ffn. head_dim defaults
    to hidden / heads, kv_heads to heads, gated_mlp to 1 (0 brings GPT-style biases and LayerNorm), counts to 0. Raises
    UserError listing every missing or contradictory column, and for attention kinds a row cannot describe.
    """
    text = str(row.get("attention") or "")
    first = Reader({}, where)
    numbers = _numbers(row, first)
    r = Reader(numbers, where)
    r.problems = first.problems
    if _NOT_A_ROW.search(text):
        r.fail(
            f"attention {text[:80]!r} cannot be given as a table row (MHA, GQA, MLA, alternating windows can): "
            "name the model, or write it as TOML"
        )
    hidden, heads = r.size("hidden"), r.size("heads")
    num_layers = r.size("layers", high=MAX_LAYERS)
    gated = r.size("gated_mlp", low=0, high=1, default=1) == 1
    mla = r.size("kv_lora_rank", low=0, default=0) > 0 or text.strip().upper().startswith("MLA")
    attention = _attention(r, text, hidden, heads, mla=mla, gpt=not gated)
    experts = r.size("experts", low=0, default=0)
    first_dense = r.size("first_dense_layers", low=0, default=0)
    moe = None
    if experts:
        moe = MoESpec(
            num_experts=experts,
            top_k=r.size("top_k"),
            ffn_dim=r.size("moe_ffn"),
            shared_ffn_dim=r.size("shared_expert_ffn_total", low=0, default=0),
        )
        if num_layers and first_dense > num_layers:
            r.problems.append(f"first_dense_layers {first_dense} is more than the {num_layers} layers there are")
    any_dense = not experts or first_dense > 0
    width = r.size("ffn_dense") if any_dense else 0
    dense = LayerSpec(attention=attention, ffn_dim=width, gated=gated, ffn_bias=not gated, norm_bias=not gated)
    sparse = LayerSpec(attention=attention, moe=moe, gated=gated, norm_bias=not gated)
    window = _WINDOW.search(text)
    layers = []
    for i in range(num_layers):
        layer = dense if moe is None or i < first_dense else sparse
        if window and i % 2 == 0:
            layer = _windowed(layer, int(window.group(1)))
        layers.append(layer)
    return r.finish(
        ModelSpec(
            name=str(row.get("model") or "custom"),
            hidden_dim=hidden,
            vocab_size=r.size("vocab"),
            layers=tuple(layers),
            mtp_layers=r.size("mtp_layers", low=0, high=64, default=0),
            family="dims",
            source=Source(
                kind="user",
                title="dimensions given with the run",
                where=where,
                date="not stated",
                note="assumed from dimensions: untied embeddings; biases and LayerNorm only where the FFN has no gate",
            ),
        )
    )


def _attention(r: Reader, text: str, hidden: int, heads: int, *, mla: bool, gpt: bool) -> AttentionSpec:
    if mla:
        nope, rope = r.size("qk_nope_dim"), r.size("qk_rope_dim")
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
        )
    if not r.has("head_dim") and hidden and heads and hidden % heads:
        r.problems.append(f"hidden {hidden} is not a multiple of {heads} heads: state head_dim")
    derived = max(1, hidden // heads) if hidden and heads else 1
    head_dim = r.size("head_dim", default=derived)
    return AttentionSpec(
        heads=heads,
        kv_heads=r.size("kv_heads", default=heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        qkv_bias=gpt,
        out_bias=gpt,
        sinks="sinks" in text.casefold(),
        rotary="learned pos" not in text.casefold(),
    )


def _windowed(layer: LayerSpec, window: int) -> LayerSpec:
    return replace(layer, attention=replace(layer.attention, window=max(1, window)))


def gpt_model(
    *, name: str, hidden_dim: int, heads: int, num_layers: int, vocab_size: int, max_positions: int, source: Source
) -> ModelSpec:
    """A GPT-3 style dense model: multi-head attention, FFN of 4 x hidden, biases, tied embeddings, learned positions.

    The shape of Megatron-LM's GPT benchmarks (arXiv 2104.04473, section 5.1). Raises UserError on impossible sizes.
    """
    sizes = {
        "hidden": hidden_dim,
        "heads": heads,
        "layers": num_layers,
        "vocab": vocab_size,
        "max_positions": max_positions,
    }
    r = Reader(sizes, name)
    hidden, count = r.size("hidden"), r.size("heads")
    if hidden and count and hidden % count:
        r.problems.append(f"hidden {hidden} is not a multiple of {count} heads: correct one of them")
    head_dim = max(1, hidden // count) if hidden and count else 1
    attention = AttentionSpec(
        heads=count,
        kv_heads=count,
        head_dim=head_dim,
        v_head_dim=head_dim,
        qkv_bias=True,
        out_bias=True,
        rotary=False,
    )
    layer = LayerSpec(attention=attention, ffn_dim=4 * hidden, gated=False, ffn_bias=True, norm_bias=True)
    return r.finish(
        ModelSpec(
            name=name,
            hidden_dim=hidden,
            vocab_size=r.size("vocab"),
            layers=(layer,) * r.size("layers", high=MAX_LAYERS),
            tied_embeddings=True,
            max_positions=r.size("max_positions", low=0),
            family="gpt",
            source=source,
        )
    )
