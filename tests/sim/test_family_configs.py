"""Configs of every family as the transformers package writes them: read whole, counted right, refused when cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.errors import UserError
from sim.families import load_model
from sim.families.hf import READERS, SAME_AS, read_config
from sim.families.reader import Reader
from sim.model import MIXERS, ModelSpec, total_params

LINES = (Path(__file__).parents[1] / "data" / "family_configs.jsonl").read_text(encoding="utf-8").splitlines()[1:]
GOLDEN: dict[str, dict[str, Any]] = {row["name"]: row for row in map(json.loads, LINES)}
# Families whose files are not the transformers package's own, or that test_model_files.py reads.
ELSEWHERE = {"arctic", "kimi_k2", "llama", "qwen2", "qwen3", "mpt", "qwen2_moe", "qwen3_moe", "deepseek_v2",
             "qwen3_vl_moe_text"}  # fmt: skip


def config(name: str) -> dict[str, Any]:
    """A fresh copy of a golden config."""
    return dict(json.loads(json.dumps(GOLDEN[name]["config"])))


def read(data: dict[str, Any]) -> ModelSpec:
    return read_config(data, "test", "config.json")


def kind_of(data: dict[str, Any]) -> str:
    return SAME_AS.get(data["model_type"], data["model_type"])


def buffers(model: ModelSpec) -> int:
    """Correction biases of routers, which are buffers there and parameters here; gpt_oss and ERNIE learn them."""
    if model.family in ("gpt_oss", "ernie4_5_moe"):
        return 0
    moes = [x.moe for x in model.layers if x.moe is not None and x.moe.router_bias]
    return sum(moe.num_experts + moe.zero_experts for moe in moes)


def test_every_family_has_a_golden_config() -> None:
    assert {kind_of(row["config"]) for row in GOLDEN.values()} | ELSEWHERE == set(READERS)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_parameters_are_those_of_the_modules(name: str) -> None:
    """Exactly; only the bias of Phi-3.5-MoE's head is not counted, and LongCat's zero experts have no weights, for
    which that release allocates gates and ups all the same."""
    model, want = read(config(name)), GOLDEN[name]["params"]
    if name == "DBRX":
        assert want is None and total_params(model) == pytest.approx(132e9, rel=0.005)
        return
    if name == "Phi-3.5-MoE":
        want -= model.vocab_size
    if name == "LongCat-Flash":
        moes = [x.moe for x in model.layers if x.moe is not None]
        want -= sum(moe.zero_experts * 2 * model.hidden_dim * moe.ffn_dim for moe in moes)
    assert total_params(model) - buffers(model) == want


NOT_SIZES = {"model_type", "text_config"}


def needed(name: str) -> list[str]:
    """Keys without which the config is refused."""
    data = config(name)
    data = data.get("text_config", data)
    out = []
    for key in data:
        if key in NOT_SIZES:
            continue
        try:
            read({k: v for k, v in data.items() if k != key})
        except UserError as error:
            assert key in str(error), f"{name}: without {key} the message is {error}"
            out.append(key)
    return out


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_truncated_config_is_refused_with_the_keys_name(name: str) -> None:
    keys = needed(name)
    assert len(keys) >= 5
    assert {"vocab_size"} <= set(keys)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_no_list_per_layer_may_be_shorter_than_the_model(name: str) -> None:
    data = config(name)
    data = data.get("text_config", data)
    count = data.get("num_hidden_layers")
    for key, value in data.items():
        if isinstance(value, list) and len(value) == count and key != "moe_layers":
            with pytest.raises(UserError) as caught:
                read(data | {key: value[:-1]})
            assert key in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("Qwen3-Next-80B-A3B", {"layer_types": ["nothing"] * 48}, "layer_types holds 'nothing'"),
        ("Qwen3-Next-80B-A3B", {"linear_num_key_heads": 15}, "not a multiple of 15 key heads"),
        ("Granite-4.0-H-Tiny", {"mamba_d_head": 32}, "mamba_n_heads 48 x mamba_d_head 32"),
        ("Nemotron-3-Super", {"layers_block_type": ["mamba", "quux"]}, "layers_block_type holds 'quux'"),
        ("Nemotron-3-Super", {"num_experts_per_tok": 600}, "top-k 600 is more than the 512 experts"),
        ("LongCat-Flash", {"zero_expert_num": None}, "missing key 'zero_expert_num'"),
        ("LongCat-Flash", {"zero_expert_type": "constant"}, "zero_expert_type"),
        ("Hunyuan-A13B", {"use_cla": True}, "use_cla"),
        ("Hunyuan-A13B", {"moe_topk": [8] * 31 + [4]}, "moe_topk differs from layer to layer"),
        ("OPT-6.7B", {"word_embed_proj_dim": 512}, "word_embed_proj_dim 512"),
        ("OPT-6.7B", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("LFM2-8B-A1B", {"num_dense_layers": 25}, "num_dense_layers 25"),
        ("ERNIE-4.5-21B-A3B", {"moe_layer_end_index": 28}, "moe_layer_end_index 28"),
        ("Llama4-Maverick", {"moe_layers": [48]}, "moe_layers names layer 48"),
        ("Bamba-9B", {"attn_layer_indices": [40]}, "attn_layer_indices names layer 40"),
        ("DBRX", {"n_heads": 47}, "not a multiple of n_heads 47"),
        ("GLM-5", {"index_topk": None}, "missing key 'index_topk'"),
        ("GLM-4.5", {"first_k_dense_replace": 93}, "first_k_dense_replace 93"),
        ("Kimi-Linear-48B-A3B", {"mlp_layer_types": ["dense"] * 3}, "mlp_layer_types has 3 entries"),
        ("DeepSeek-V4-Flash", {"layer_types": ["full_attention"] * 43}, "layer_types holds 'full_attention'"),
        ("DeepSeek-V4-Flash", {"layer_types": None, "compress_ratios": [8] * 43}, "compress_ratios holds 8"),
        ("DeepSeek-V4-Flash", {"layer_types": None, "compress_ratios": [0] * 45}, "compress_ratios has 45 entries"),
        ("DeepSeek-V4-Flash", {"num_key_value_heads": 8}, "num_key_value_heads must be 1"),
        ("DeepSeek-V4-Flash", {"o_groups": 7}, "do not divide into 7 groups"),
        ("DeepSeek-V4-Flash", {"compress_rates": {"compressed_sparse_attention": 4}}, "heavily_compressed_attention"),
        ("DeepSeek-V4-Flash", {"qk_rope_head_dim": None, "partial_rotary_factor": 2}, "partial_rotary_factor"),
        ("DeepSeek-V4-Flash", {"mlp_layer_types": None, "num_hash_layers": 44}, "num_hash_layers 44"),
    ],
)
def test_contradictions_are_refused(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(config(name) | change)
    assert words in str(caught.value)


def test_published_spellings_read_the_same() -> None:
    """Files of the authors' own code name some things otherwise."""
    ours = config("Nemotron-Nano-9B-v2")
    letters = {"linear_attention": "M", "full_attention": "*", "moe": "E", "mlp": "-"}
    pattern = "".join(letters[x] for x in ours.pop("layers_block_type"))
    again = read(ours | {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)})
    assert again.layers == read(config("Nemotron-Nano-9B-v2")).layers
    minimax = config("MiniMax-Text-01")
    turns = [int(x == "full_attention") for x in minimax.pop("layer_types")]
    assert (
        read(minimax | {"attn_type_list": turns, "model_type": "minimax_m1"}).layers
        == read(config("MiniMax-Text-01")).layers
    )
    granite = config("Granite-4.0-H-Tiny")
    old = ["mamba" if x == "linear_attention" else "attention" for x in granite["layer_types"]]
    assert read(granite | {"layer_types": old}).layers == read(granite).layers
    hunyuan = config("Hunyuan-A13B") | {"moe_topk": [8] * 32, "num_shared_expert": [1] * 32, "model_type": "hunyuan"}
    assert read(hunyuan | {"moe_intermediate_size": [3072] * 32}).layers == read(config("Hunyuan-A13B")).layers
    kimi = config("Kimi-Linear-48B-A3B")
    full = [i + 1 for i, x in enumerate(kimi.pop("layer_types")) if x == "full_attention"]
    own = {"full_attn_layers": full, "num_heads": 32, "head_dim": 128, "short_conv_kernel_size": 4}
    assert read(kimi | {"linear_attn_config": own}).layers == read(config("Kimi-Linear-48B-A3B")).layers


def test_the_file_of_the_deepseek_v4_release_reads_the_same() -> None:
    """It gives a ratio per layer, one more for the prediction block, and counts the hash-routed layers."""
    theirs = config("DeepSeek-V4-Flash")
    for key in ("layer_types", "mlp_layer_types", "compress_rates", "partial_rotary_factor"):
        del theirs[key]
    theirs |= {"compress_ratios": [0, 0, *[4, 128] * 20, 4, 0], "num_hash_layers": 3}
    assert read(theirs).layers == read(config("DeepSeek-V4-Flash")).layers


def test_arctic_reads() -> None:
    keys = {
        "hidden_size": 7168, "num_hidden_layers": 35, "num_attention_heads": 56, "num_key_value_heads": 8,
        "intermediate_size": 4864, "num_local_experts": 128, "num_experts_per_tok": 2, "vocab_size": 32000,
    }  # fmt: skip
    assert read({"model_type": "arctic", **keys}).layers == load_model("Arctic-480B").layers


@pytest.mark.parametrize(
    ("name", "catalogue"),
    [
        *((name, None) for name in ("Llama4-Maverick", "Nemotron-Nano-9B-v2", "Kimi-K2", "OLMoE-1B-7B", "Gemma2-9B")),
        ("gpt-oss-120b", "GPT-OSS-120B"),
        ("DeepSeek-V4-Flash", None),
        ("DeepSeek-V4-Pro", None),
        ("ERNIE-4.5-21B-A3B", None),
    ],
)
def test_the_catalogue_holds_the_same_model(name: str, catalogue: str | None) -> None:
    mine, theirs = read(config(name)), load_model(catalogue or name)
    assert total_params(mine) == total_params(theirs)
    assert mine.layers[-1].moe == theirs.layers[-1].moe and len(mine.layers) == len(theirs.layers)


def test_every_mixer_kind_occurs() -> None:
    seen = {x.mixer.kind for name in GOLDEN for x in read(config(name)).layers if x.mixer is not None}
    assert seen == set(MIXERS)


def test_reader_wants_the_same_value_from_two_spellings() -> None:
    r = Reader({"num_experts": 8, "num_local_experts": 4}, "here")
    r.size("num_experts", "num_local_experts")
    assert "contradicts" in r.problems[0]
