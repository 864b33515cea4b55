"""The model: what is computed, as records, counts of parameters and FLOP; no plan, no hardware.

Letters used everywhere: D hidden_dim, V vocab_size, H heads, F ffn_dim, E num_experts, k top_k.
Readers of config files stand in `sim.families`.
"""

from sim.model.flop import (
    attention_pairs,
    core_pairs,
    layer_flop_per_token,
    mixer_core_flop_per_token,
    mixer_flop_per_token,
    train_flop_per_token,
)
from sim.model.mixer import MIXERS, MixerSpec, mixer_params
from sim.model.params import LayerParams, active_params, embedding_params, layer_params, mtp_block, total_params
from sim.model.specs import NO_ATTENTION, AttentionSpec, LayerSpec, ModelSpec, MoESpec

__all__ = [
    "MIXERS",
    "NO_ATTENTION",
    "AttentionSpec",
    "LayerParams",
    "LayerSpec",
    "MixerSpec",
    "MoESpec",
    "ModelSpec",
    "active_params",
    "attention_pairs",
    "core_pairs",
    "embedding_params",
    "layer_flop_per_token",
    "layer_params",
    "mixer_core_flop_per_token",
    "mixer_flop_per_token",
    "mixer_params",
    "mtp_block",
    "total_params",
    "train_flop_per_token",
]
