"""Dense families: llama and mistral, qwen2 and qwen3, nemotron, and the GPT line (gpt2, mpt)."""

from __future__ import annotations

from sim.families.common import Trunk, assemble, qwen_windows, read_gqa, read_trunk, uniform_windows
from sim.families.reader import MAX_LAYERS, Reader
from sim.model import AttentionSpec, ModelSpec


def read_llama(r: Reader, name: str) -> ModelSpec:
    """Llama 2/3 and dense Mistral: gated FFN, RMSNorm, optional biases and sliding window."""
    trunk = read_trunk(r)
    return assemble(
        r,
        trunk,
        family="llama",
        name=name,
        attention=read_gqa(r, trunk, derive_head_dim=True),
        windows=uniform_windows(r, trunk.num_layers),
        ffn_dim=r.size("intermediate_size"),
        ffn_bias=r.flag("mlp_bias", default=False),
    )


def read_qwen2(r: Reader, name: str) -> ModelSpec:
    """Qwen2 and Qwen2.5 dense: biases on query, key and value, none on the output."""
    trunk = read_trunk(r)
    return assemble(
        r,
        trunk,
        family="qwen2",
        name=name,
        attention=read_gqa(r, trunk, derive_head_dim=True, qkv_bias=True, out_bias=False),
        windows=qwen_windows(r, trunk.num_layers),
        ffn_dim=r.size("intermediate_size"),
    )


def read_qwen3(r: Reader, name: str) -> ModelSpec:
    """Qwen3 dense: norms on query and key, head_dim of its own."""
    trunk = read_trunk(r)
    return assemble(
        r,
        trunk,
        family="qwen3",
        name=name,
        attention=read_gqa(r, trunk, derive_head_dim=False, qk_norm=True),
        windows=qwen_windows(r, trunk.num_layers),
        ffn_dim=r.size("intermediate_size"),
    )


def read_nemotron(r: Reader, name: str) -> ModelSpec:
    """Nemotron-4 dense: squared ReLU without a gate, LayerNorm with bias."""
    trunk = read_trunk(r)
    return assemble(
        r,
        trunk,
        family="nemotron",
        name=name,
        attention=read_gqa(r, trunk, derive_head_dim=True),
        ffn_dim=r.size("intermediate_size"),
        gated=False,
        ffn_bias=r.flag("mlp_bias", default=False),
        norm_bias=True,
    )


def mha(r: Reader, trunk: Trunk, heads: int, *, bias: bool, rotary: bool) -> AttentionSpec:
    """Multi-head attention of hidden_size / heads per head."""
    if heads and trunk.hidden_dim % heads:
        r.problems.append(f"hidden size {trunk.hidden_dim} is not a multiple of {heads} heads: correct one of them")
    dim = max(1, trunk.hidden_dim // heads) if heads else 1
    return AttentionSpec(
        heads=heads, kv_heads=heads, head_dim=dim, v_head_dim=dim, qkv_bias=bias, out_bias=bias, rotary=rotary
    )


def read_gpt2(r: Reader, name: str) -> ModelSpec:
    """GPT-2 and GPT-3 style: multi-head, learned positions, biases everywhere; n_inner null means 4 x n_embd."""
    trunk = Trunk(
        hidden_dim=r.size("n_embd", "hidden_size"),
        num_layers=r.size("n_layer", "num_hidden_layers", high=MAX_LAYERS),
        vocab_size=r.size("vocab_size"),
        tied_embeddings=r.flag("tie_word_embeddings", default=True, assume=True),
    )
    heads = r.size("n_head", "num_attention_heads")
    return assemble(
        r,
        trunk,
        family="gpt2",
        name=name,
        attention=mha(r, trunk, heads, bias=True, rotary=False),
        ffn_dim=r.size("n_inner", default=4 * trunk.hidden_dim),
        gated=False,
        ffn_bias=True,
        norm_bias=True,
        max_positions=r.size("n_positions", "max_position_embeddings"),
    )


def read_mpt(r: Reader, name: str) -> ModelSpec:
    """MPT: multi-head, plain FFN of expansion_ratio x d_model, learned positions unless attn_config.alibi."""
    trunk = Trunk(
        hidden_dim=r.size("d_model", "hidden_size"),
        num_layers=r.size("n_layers", "num_hidden_layers", high=MAX_LAYERS),
        vocab_size=r.size("vocab_size"),
        tied_embeddings=r.flag("tie_word_embeddings", default=True, assume=True),
    )
    heads = r.size("n_heads", "num_attention_heads")
    bias = not r.flag("no_bias", default=True, assume=True)
    alibi = r.table("attn_config").flag("alibi", default=False)
    return assemble(
        r,
        trunk,
        family="mpt",
        name=name,
        attention=mha(r, trunk, heads, bias=bias, rotary=False),
        ffn_dim=r.size("expansion_ratio", high=1024) * trunk.hidden_dim,
        gated=False,
        ffn_bias=bias,
        norm_bias=bias,
        max_positions=0 if alibi else r.size("max_seq_len"),
    )
