"""Which ops keep what a module of the fine-grained offload names: its input, as Megatron-LM counts it."""

from __future__ import annotations

from functools import cache

# The core's queries, keys and values; its output is the input of the projection, one tensor with it in 16 bits.
MODULE_OPS: dict[str, tuple[str, ...]] = {
    "attn_norm": ("attn_norm.residual", "attn_norm"),
    "qkv_linear": ("qkv", "q_down", "kv_down", "latent", "q_up", "kv_up"),
    "core_attn": ("core_io",),
    "attn_proj": ("attn_out",),
    "mlp_norm": ("ffn_norm.residual", "ffn_norm", "moe_norm.residual", "moe_norm"),
    "expert_fc1": ("experts1",),
    "moe_act": ("experts_act",),
}


@cache
def offloaded_ops(modules: tuple[str, ...]) -> frozenset[str]:
    """Names of the forward ops whose saved bytes go to the host."""
    return frozenset(name for module in modules for name in MODULE_OPS[module])
