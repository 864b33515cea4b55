"""Hugging Face config.json -> ModelSpec: finds the family by model_type and refuses what is not understood.

Published files and the spellings of transformers 5.x are both read. Sizes are never taken from class defaults; flags
that a family fixes may be absent, and what was assumed stands in the model's source note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hwprofiles.errors import UserError
from sim.families.llama import read_gpt2, read_llama, read_mpt, read_nemotron, read_qwen2, read_qwen3
from sim.families.moe import (
    read_deepseek,
    read_gpt_oss,
    read_mixtral,
    read_olmoe,
    read_qwen2_moe,
    read_qwen3_moe,
)
from sim.families.reader import Reader
from sim.model import ModelSpec

READERS: Mapping[str, Callable[[Reader, str], ModelSpec]] = {
    "llama": read_llama,
    "mistral": read_llama,
    "qwen2": read_qwen2,
    "qwen3": read_qwen3,
    "nemotron": read_nemotron,
    "gpt2": read_gpt2,
    "mpt": read_mpt,
    "mixtral": read_mixtral,
    "olmoe": read_olmoe,
    "qwen2_moe": read_qwen2_moe,
    "qwen3_moe": read_qwen3_moe,
    "deepseek_v2": read_deepseek,
    "deepseek_v3": read_deepseek,
    "kimi_k2": read_deepseek,
    "gpt_oss": read_gpt_oss,
}

# Older and derived files name only the class.
ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "NemotronForCausalLM": "nemotron",
    "GPT2LMHeadModel": "gpt2",
    "MPTForCausalLM": "mpt",
    "MixtralForCausalLM": "mixtral",
    "OlmoeForCausalLM": "olmoe",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "GptOssForCausalLM": "gpt_oss",
}

# Known, but with layers this simulator has no cost for yet.
NOT_YET: Mapping[str, str] = {
    "qwen3_next": "linear attention (Gated DeltaNet) layers",
    "qwen3_5_moe": "linear attention (Gated DeltaNet) layers",
    "qwen3_5_moe_text": "linear attention (Gated DeltaNet) layers",
    "kimi_linear": "linear attention layers",
    "minimax": "linear attention layers",
    "nemotron_h": "Mamba layers",
    "jamba": "Mamba layers",
    "bamba": "Mamba layers",
    "mamba": "Mamba layers",
    "mamba2": "Mamba layers",
    "granitemoehybrid": "Mamba layers",
    "llama4": "chunked attention",
    "llama4_text": "chunked attention",
    "deepseek_v32": "sparse attention (indexer)",
    "deepseek_v4": "sparse attention (indexer)",
    "glm_moe_dsa": "sparse attention (indexer)",
    "longcat_flash": "zero-computation experts",
    "ernie4_5_moe": "its own expert keys (the catalogue has ERNIE-4.5-300B-A47B)",
}


def supported_text() -> str:
    """The supported model types, for messages."""
    return ", ".join(sorted(READERS))


def read_config(data: Mapping[str, object], name: str, where: str) -> ModelSpec:
    """A parsed config.json as a ModelSpec.

    `where` names the file in messages. Raises UserError listing every missing, malformed or contradictory key, or
    naming an architecture that is not supported.
    """
    inner = data.get("text_config")
    if isinstance(inner, Mapping) and not {"num_hidden_layers", "hidden_size"} <= set(data):
        # Multimodal files nest the language model; its own model_type (or, where absent, the outer one) decides.
        data = {**({"model_type": data["model_type"]} if "model_type" in data else {}), **inner}
    r = Reader(data, where)
    kind = _model_type(data)
    if kind is None:
        raise UserError(
            f"missing key 'model_type': add it (supported: {supported_text()})",
            where=where,
        )
    if kind in NOT_YET:
        raise UserError(
            f"model_type {kind!r} is known but not supported yet: it needs {NOT_YET[kind]}. "
            f"Supported: {supported_text()}; other models can be written as TOML",
            where=where,
        )
    reader = READERS.get(kind)
    if reader is None:
        raise UserError(
            f"model_type {kind[:60]!r} is not supported. Supported: {supported_text()}; "
            "other models can be written as TOML (see sim/families/toml_model.py)",
            where=where,
        )
    return reader(r, name)


def _model_type(data: Mapping[str, object]) -> str | None:
    kind = data.get("model_type")
    if isinstance(kind, str) and kind:
        return kind
    architectures = data.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return ARCHITECTURES.get(architectures[0], architectures[0])
    return None
