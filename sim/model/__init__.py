"""The model: what is computed, as records, counts of parameters and FLOP; no plan, no hardware.

Letters used everywhere: D hidden_dim, V vocab_size, H heads, F ffn_dim, E num_experts, k top_k.
Readers of config files stand in `sim.families`.
"""

from sim.model.compressed import compressor_dim, down_columns, entries_seen, indexer_dim
from sim.model.flop import (
    attention_pairs,
    core_pairs,
    layer_flop_per_token,
    mixer_core_flop_per_token,
    mixer_flop_per_token,
    train_flop_per_token,
)
from sim.model.image import FINAL_VECTORS, ConditionSpec, HeadSpec, ImageSpec
from sim.model.mixer import MIXERS, MixerSpec, mixer_params
from sim.model.params import (
    LayerParams,
    active_params,
    embedding_params,
    final_norm_params,
    input_params,
    layer_params,
    mtp_block,
    output_params,
    total_params,
)
from sim.model.specs import NO_ATTENTION, AttentionSpec, LayerSpec, ModelSpec, MoESpec
from sim.model.streams import connection_flop_per_token

__all__ = [
    "FINAL_VECTORS",
    "MIXERS",
    "NO_ATTENTION",
    "AttentionSpec",
    "ConditionSpec",
    "HeadSpec",
    "ImageSpec",
    "LayerParams",
    "LayerSpec",
    "MixerSpec",
    "MoESpec",
    "ModelSpec",
    "active_params",
    "attention_pairs",
    "compressor_dim",
    "connection_flop_per_token",
    "core_pairs",
    "down_columns",
    "embedding_params",
    "entries_seen",
    "final_norm_params",
    "indexer_dim",
    "input_params",
    "layer_flop_per_token",
    "layer_params",
    "mixer_core_flop_per_token",
    "mixer_flop_per_token",
    "mixer_params",
    "mtp_block",
    "output_params",
    "total_params",
    "train_flop_per_token",
]
