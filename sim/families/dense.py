"""Further dense families: gemma 1 to 3, olmo2, phi3, gpt_neox, opt."""

from __future__ import annotations

from sim.families.common import assemble, read_gqa, read_trunk, uniform_windows, windows_from_layer_types
from sim.families.llama import mha
from sim.families.reader import Reader
from sim.model import ModelSpec


def _gemma(r: Reader, name: str, *, family: str, extra_norms: int, qk_norm: bool = False, every: int = 0) -> ModelSpec:
    """every: without layer_types each every-th layer is full and the others slide (0: all full)."""
    trunk = read_trunk(r, tied=True)
    windows: tuple[int | None, ...] = ()
    if every and r.has("layer_types"):
        windows = windows_from_layer_types(r, trunk.num_layers)
    elif every:
        window = r.size("sliding_window")
        step = r.size("sliding_window_pattern", "_sliding_window_pattern", default=every) or every
        windows = tuple(None if (i + 1) % step == 0 else window for i in range(trunk.num_layers))
    return assemble(
        r,
        trunk,
        family=family,
        name=name,
        attention=read_gqa(r, trunk, derive_head_dim=False, qk_norm=qk_norm),
        windows=windows,
        ffn_dim=r.size("intermediate_size"),
        extra_norms=extra_norms,
    )


def read_gemma(r: Reader, name: str) -> ModelSpec:
    """Gemma: head_dim of its own, gated FFN, one table for embedding and head."""
    return _gemma(r, name, family="gemma", extra_norms=0)


def read_gemma2(r: Reader, name: str) -> ModelSpec:
    """Gemma 2: every other layer slides, a norm on both sides of each half."""
    return _gemma(r, name, family="gemma2", extra_norms=2, every=2)


def read_gemma3(r: Reader, name: str) -> ModelSpec:
    """Gemma 3 (text): five sliding layers to a full one, norms as Gemma 2 and on query and key."""
    return _gemma(r, name, family="gemma3", extra_norms=2, qk_norm=True, every=6)


def read_olmo2(r: Reader, name: str) -> ModelSpec:
    """OLMo 2: norms behind the halves instead of in front, and over all heads of query and key."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=True, qk_norm=True, qk_norm_joint=True)
    return assemble(r, trunk, family="olmo2", name=name, attention=attention, ffn_dim=r.size("intermediate_size"))


def read_phi3(r: Reader, name: str) -> ModelSpec:
    """Phi-3: Llama's layer with joint projections, a window on every layer where sliding_window is set."""
    trunk = read_trunk(r)
    attention = read_gqa(r, trunk, derive_head_dim=True, qkv_bias=False, out_bias=False)
    windows = uniform_windows(r, trunk.num_layers)
    return assemble(
        r, trunk, family="phi3", name=name, attention=attention, windows=windows, ffn_dim=r.size("intermediate_size")
    )


def read_gpt_neox(r: Reader, name: str) -> ModelSpec:
    """GPT-NeoX and Pythia: multi-head with rotary, biases, LayerNorm, both halves from the same input."""
    trunk = read_trunk(r)
    heads = r.size("num_attention_heads")
    bias = r.flag("attention_bias", default=True, assume=True)
    return assemble(
        r,
        trunk,
        family="gpt_neox",
        name=name,
        attention=mha(r, trunk, heads, bias=bias, rotary=True),
        ffn_dim=r.size("intermediate_size"),
        gated=False,
        ffn_bias=True,
        norm_bias=True,
        parallel=r.flag("use_parallel_residual", default=True, assume=True),
    )


def read_opt(r: Reader, name: str) -> ModelSpec:
    """OPT: GPT-3's layer; the table of positions holds two rows more than max_position_embeddings."""
    trunk = read_trunk(r, tied=True)
    heads = r.size("num_attention_heads")
    projected = r.size("word_embed_proj_dim", default=trunk.hidden_dim)
    if projected != trunk.hidden_dim:
        r.problems.append(f"word_embed_proj_dim {projected} differs from hidden_size {trunk.hidden_dim}: not supported")
    if not r.flag("do_layer_norm_before", default=True):
        r.problems.append("do_layer_norm_before = false is not supported: norms stand in front of the halves")
    bias = r.flag("enable_bias", default=True)
    positions = r.size("max_position_embeddings")
    return assemble(
        r,
        trunk,
        family="opt",
        name=name,
        attention=mha(r, trunk, heads, bias=bias, rotary=False),
        ffn_dim=r.size("ffn_dim"),
        gated=False,
        ffn_bias=bias,
        norm_bias=True,
        max_positions=positions + 2 if positions else 0,
    )
