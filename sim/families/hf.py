"""Hugging Face config.json -> ModelSpec: finds the family by model_type and refuses what is not understood.

Published files and the spellings of transformers 5.x are both read. Sizes are never taken from class defaults; flags
that a family fixes may be absent, and what was assumed stands in the model's source note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hwprofiles.errors import UserError
from sim.families.architectures import contradicting_classes
from sim.families.compressed import read_deepseek_v4
from sim.families.dense import (
    read_gemma,
    read_gemma2,
    read_gemma3,
    read_gpt_neox,
    read_olmo2,
    read_opt,
    read_phi3,
)
from sim.families.hybrid import (
    read_bamba,
    read_granite_hybrid,
    read_jamba,
    read_kimi_linear,
    read_lfm2_moe,
    read_minimax,
    read_nemotron_h,
    read_qwen3_next,
)
from sim.families.llama import read_gpt2, read_llama, read_mpt, read_nemotron, read_qwen2, read_qwen3
from sim.families.moe import (
    read_deepseek,
    read_gpt_oss,
    read_mixtral,
    read_olmoe,
    read_qwen2_moe,
    read_qwen3_moe,
)
from sim.families.moe_more import (
    read_arctic,
    read_dbrx,
    read_dots1,
    read_ernie,
    read_glm4_moe,
    read_granitemoe,
    read_hunyuan,
    read_llama4,
    read_longcat,
    read_minimax_m2,
    read_phimoe,
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
    "ministral": read_llama,
    "gemma": read_gemma,
    "gemma2": read_gemma2,
    "gemma3_text": read_gemma3,
    "olmo2": read_olmo2,
    "phi3": read_phi3,
    "gpt_neox": read_gpt_neox,
    "opt": read_opt,
    "deepseek_v32": read_deepseek,
    "deepseek_v4": read_deepseek_v4,
    "glm_moe_dsa": read_deepseek,
    "qwen3_vl_moe_text": read_qwen3_moe,
    "llama4_text": read_llama4,
    "dbrx": read_dbrx,
    "granitemoe": read_granitemoe,
    "granitemoeshared": read_granitemoe,
    "glm4_moe": read_glm4_moe,
    "ernie4_5_moe": read_ernie,
    "minimax_m2": read_minimax_m2,
    "hunyuan_v1_moe": read_hunyuan,
    "phimoe": read_phimoe,
    "arctic": read_arctic,
    "dots1": read_dots1,
    "longcat_flash": read_longcat,
    "qwen3_next": read_qwen3_next,
    "qwen3_5_moe_text": read_qwen3_next,
    "granitemoehybrid": read_granite_hybrid,
    "bamba": read_bamba,
    "nemotron_h": read_nemotron_h,
    "jamba": read_jamba,
    "kimi_linear": read_kimi_linear,
    "lfm2_moe": read_lfm2_moe,
    "minimax": read_minimax,
}

# Other spellings of model_type: published files with code of their own, and wrappers that nest one language model.
SAME_AS: Mapping[str, str] = {
    "minimax_text_01": "minimax",
    "minimax_m1": "minimax",
    "hunyuan": "hunyuan_v1_moe",
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "mistral3": "mistral",
    "kimi_k25": "deepseek_v3",
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
    "DbrxForCausalLM": "dbrx",
    "OPTForCausalLM": "opt",
    "GPTNeoXForCausalLM": "gpt_neox",
    "ArcticForCausalLM": "arctic",
    "JambaForCausalLM": "jamba",
    "NemotronHForCausalLM": "nemotron_h",
    "Qwen3NextForCausalLM": "qwen3_next",
}

# Known, but with layers this simulator has no cost for yet.
NOT_YET: Mapping[str, str] = {
    "mamba": "a model of Mamba layers alone, without feed-forward halves",
    "mamba2": "a model of Mamba layers alone, without feed-forward halves",
}


def supported_text() -> str:
    """The supported model types, for messages."""
    return ", ".join(sorted(READERS))


def read_config(data: Mapping[str, object], name: str, where: str) -> ModelSpec:
    """A parsed config.json as a ModelSpec.

    `where` names the file in messages. Raises UserError listing every missing, malformed or contradictory key, or
    naming an architecture that is not supported.
    """
    known = (*READERS, *SAME_AS, *NOT_YET)
    classes = contradicting_classes(data, known, SAME_AS)
    inner = data.get("text_config")
    if isinstance(inner, Mapping) and not {"num_hidden_layers", "hidden_size"} <= set(data):
        # Multimodal files nest the language model; its own model_type (or, where absent, the outer one) decides.
        data = {**({"model_type": data["model_type"]} if "model_type" in data else {}), **inner}
        classes += contradicting_classes(data, known, SAME_AS)
    r = Reader(data, where)
    r.problems += classes
    kind = _model_type(data)
    if kind is None:
        raise UserError(
            f"missing key 'model_type': add it (supported: {supported_text()})",
            where=where,
        )
    kind = SAME_AS.get(kind, kind)
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
