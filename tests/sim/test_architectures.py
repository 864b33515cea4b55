"""A config.json whose classes are not of its model_type is refused; wrappers and known pairs are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.errors import UserError
from sim.families.architectures import contradicting_classes, type_of_class
from sim.families.hf import ARCHITECTURES, READERS, SAME_AS, read_config
from sim.model import ModelSpec

LINES = (Path(__file__).parents[1] / "data" / "family_configs.jsonl").read_text(encoding="utf-8").splitlines()[1:]
CONFIGS: dict[str, dict[str, Any]] = {row["name"]: row["config"] for row in map(json.loads, LINES)}
KNOWN = (*READERS, *SAME_AS)


def read(name: str, **changes: Any) -> ModelSpec:
    return read_config(CONFIGS[name] | changes, "test", "config.json")


def test_a_class_of_another_type_is_refused_beside_everything_else() -> None:
    with pytest.raises(UserError) as caught:
        read("Mixtral-8x7B", architectures=["Qwen3MoeForCausalLM"], vocab_size=-1)
    text = str(caught.value)
    assert "architectures names Qwen3MoeForCausalLM, a class of qwen3_moe, but model_type is 'mixtral'" in text
    assert "vocab_size" in text


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("Mixtral-8x7B", "MistralForCausalLM"), ("DeepSeek-V3.2", "DeepseekV3ForCausalLM"),
        ("Qwen3-Next-80B-A3B", "Qwen3ForCausalLM"), ("GLM-4.5", "GlmMoeDsaForCausalLM"),
        ("granitemoeshared-small", "GraniteMoeForCausalLM"), ("DeepSeek-V4-Flash", "DeepseekV3ForCausalLM"),
        ("Gemma3-27B", "Gemma2ForCausalLM"), ("Llama4-Maverick", "LlamaForCausalLM"), ("GPT-2", "OPTForCausalLM"),
    ],
)  # fmt: skip
def test_neighbours_are_told_apart(name: str, wrong: str) -> None:
    with pytest.raises(UserError, match="architectures names"):
        read(name, architectures=[wrong])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("kimi_k2", "DeepseekV3ForCausalLM"), ("mistral", "LlamaForCausalLM"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("gemma3_text", "Gemma3ForCausalLM"), ("llama4", "Llama4ForConditionalGeneration"), ("gpt2", "GPT2LMHeadModel"),
        ("mistral3", "Mistral3ForConditionalGeneration"), ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
        ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"), ("llama", "LlamaForSequenceClassification"),
        ("llama", "LLaMAForCausalLM"), ("mpt", "MPTForCausalLM"), ("kimi_k25", "KimiK25ForConditionalGeneration"),
        ("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM"), ("minimax_m1", "MiniMaxM1ForCausalLM"), ("dbrx", "DbrxModel"),
        ("ernie4_5_moe", "Ernie4_5_MoeForCausalLM"), ("phimoe", "PhiMoEForCausalLM"), ("llava", "LlamaForCausalLM"),
        ("llama", "AuthorsOwnForCausalLM"),
    ],
)  # fmt: skip
def test_published_pairs_are_read(kind: str, name: str) -> None:
    """As public files have them; a type or a class that is not known contradicts nothing."""
    assert contradicting_classes({"model_type": kind, "architectures": [name]}, KNOWN, SAME_AS) == []


@pytest.mark.parametrize(("name", "kind"), sorted(ARCHITECTURES.items()))
def test_every_class_that_stands_for_a_type_is_of_it(name: str, kind: str) -> None:
    assert type_of_class(name, KNOWN) == kind


def test_a_nested_language_model_is_checked_too() -> None:
    inner = CONFIGS["Llama-4 nested"]["text_config"]
    assert read("Llama-4 nested", architectures=["Llama4ForConditionalGeneration"]).layers
    with pytest.raises(UserError, match="MixtralForCausalLM"):
        read("Llama-4 nested", text_config=inner | {"architectures": ["MixtralForCausalLM"]})


@pytest.mark.parametrize("value", [None, "LlamaForCausalLM", [], [3], {}])
def test_anything_else_in_the_place_of_classes_is_left_alone(value: object) -> None:
    assert read("Mixtral-8x7B", architectures=value).layers
