"""Models from files: the example configs, own TOML models, and everything that can be wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from sim.families import load_model
from sim.families.hf import NOT_YET, READERS, read_config
from sim.families.toml_model import read_toml_model
from sim.model import ModelSpec, layer_params, total_params

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
PAIRS = {
    "llama-3-70b": "Llama3-70B",
    "mixtral-8x7b": "Mixtral-8x7B",
    "qwen3-235b-a22b": "Qwen3-235B-A22B",
    "deepseek-v3": "DeepSeek-V3",
    "gpt-oss-120b": "GPT-OSS-120B",
}


def config(name: str) -> dict[str, Any]:
    """A fresh copy of an example config."""
    data: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def read(data: dict[str, Any]) -> ModelSpec:
    """The model of a config held in memory."""
    return read_config(data, "test", "config.json")


def message(act: Callable[[], object]) -> str:
    """The UserError's text."""
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize(("file", "name"), PAIRS.items())
def test_example_configs_equal_the_catalogue(file: str, name: str) -> None:
    mine, theirs = load_model(CONFIGS / f"{file}.json"), load_model(name)
    for field in ("hidden_dim", "vocab_size", "mtp_layers", "tied_embeddings", "max_positions", "layers"):
        assert getattr(mine, field) == getattr(theirs, field)
    assert mine.name == file and mine.source.note == ""


def test_the_first_families_read() -> None:
    llama, qwen3 = config("llama-3-70b"), config("qwen3-235b-a22b")
    gpt2 = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024, "vocab_size": 50257}
    mpt = {"model_type": "mpt", "d_model": 4096, "n_layers": 32, "n_heads": 32, "expansion_ratio": 4,
           "max_seq_len": 2048, "vocab_size": 50432, "attn_config": {"alibi": True}}  # fmt: skip
    olmoe = llama | {"num_experts": 64, "num_experts_per_tok": 8}
    qwen2_moe = qwen3 | {"shared_expert_intermediate_size": 1024}
    cases: dict[str, dict[str, Any]] = {
        "llama": llama, "mistral": llama, "qwen2": llama, "nemotron": llama, "qwen3": qwen3, "gpt2": gpt2, "mpt": mpt,
        "mixtral": config("mixtral-8x7b"), "olmoe": olmoe, "qwen2_moe": qwen2_moe, "qwen3_moe": qwen3,
        "deepseek_v2": config("deepseek-v3"), "deepseek_v3": config("deepseek-v3"), "kimi_k2": config("deepseek-v3"),
        "gpt_oss": config("gpt-oss-120b"),
    }  # fmt: skip
    assert set(cases) <= set(READERS)  # the others: test_family_configs.py
    models = {kind: read(data | {"model_type": kind, "architectures": None}) for kind, data in cases.items()}
    assert total_params(models["gpt2"]) == 1_557_611_200  # GPT-2 XL, counted from its published tensors
    assert total_params(models["mpt"]) == 6_649_286_656  # MPT-7B, likewise
    assert models["nemotron"].layers[0].gated is False
    assert models["qwen2"].layers[0].attention.qkv_bias and not models["qwen2"].layers[0].attention.out_bias
    shared = models["qwen2_moe"].layers[0].moe
    assert shared is not None and shared.shared_ffn_dim == 1024 and shared.shared_gate
    v2 = models["deepseek_v2"].layers[-1].moe
    assert v2 is not None and v2.shared_ffn_dim == 2048


def test_newer_spellings_read_the_same() -> None:
    data = config("qwen3-235b-a22b")
    new = {k: v for k, v in data.items() if k not in {"num_experts", "rope_theta", "rope_scaling", "torch_dtype"}}
    new |= {"num_local_experts": 128, "dtype": "bfloat16", "rope_parameters": {"rope_type": "default"}}
    assert read(new) == read(data)
    v3 = config("deepseek-v3")
    new = {k: v for k, v in v3.items() if k != "first_k_dense_replace"}
    assert read(new | {"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 58}) == read(v3)
    assert read({"model_type": "wrapper", "text_config": v3}) == read(v3)
    assert read({k: v for k, v in v3.items() if k != "model_type"}).layers == read(v3).layers


def test_dense_layers_and_windows_where_the_config_puts_them() -> None:
    qwen = read(config("qwen3-235b-a22b") | {"decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert [i for i, x in enumerate(qwen.layers) if x.moe is not None] == list(range(3, 94, 2))
    assert qwen.layers[0].ffn_dim == 12288
    mixtral = read(config("mixtral-8x7b") | {"sliding_window": 4096})
    assert {x.attention.window for x in mixtral.layers} == {4096}
    window = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 90}
    late = read(config("qwen3-235b-a22b") | window)
    assert [x.attention.window for x in late.layers] == [None] * 90 + [512] * 4


def test_assumed_flags_are_on_record() -> None:
    data = config("llama-3-70b")
    del data["tie_word_embeddings"]
    assert "tie_word_embeddings = false" in read(data).source.note


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("llama-3-70b", ["hidden_size", "num_key_value_heads", "intermediate_size", "vocab_size", "num_hidden_layers"]),
        ("mixtral-8x7b", ["num_local_experts", "num_experts_per_tok", "num_attention_heads"]),
        ("qwen3-235b-a22b", ["num_experts", "moe_intermediate_size", "head_dim"]),
        ("deepseek-v3", ["q_lora_rank", "kv_lora_rank", "n_shared_experts", "first_k_dense_replace", "v_head_dim"]),
        ("gpt-oss-120b", ["layer_types", "head_dim", "num_local_experts"]),
    ],
)
def test_all_missing_keys_are_named_at_once(file: str, keys: list[str]) -> None:
    data = {k: v for k, v in config(file).items() if k not in keys}
    text = message(lambda: read(data))
    for key in keys:
        assert f"missing key '{key}'" in text
    assert text.count("missing key") == len(keys)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("gpt-oss-120b", {"layer_types": ["full_attention"] * 35}, "layer_types has 35 entries"),
        ("gpt-oss-120b", {"layer_types": ["linear_attention"] * 36}, "linear_attention"),
        ("gpt-oss-120b", {"sliding_window": None}, "missing key 'sliding_window'"),
        ("gpt-oss-120b", {"experts_per_token": 5}, "contradicts"),
        ("llama-3-70b", {"num_key_value_heads": 7}, "not a multiple of 7"),
        ("llama-3-70b", {"num_key_value_heads": None}, "missing key 'num_key_value_heads'"),
        ("llama-3-70b", {"num_attention_heads": 24, "num_key_value_heads": 8}, "state head_dim"),
        ("llama-3-70b", {"hidden_size": float("nan")}, "hidden_size = nan must be a whole number"),
        ("llama-3-70b", {"hidden_size": -1}, "must lie between"),
        ("llama-3-70b", {"hidden_size": "8192"}, "must be a whole number"),
        ("llama-3-70b", {"hidden_size": True}, "must be a whole number"),
        ("llama-3-70b", {"num_hidden_layers": 10**9}, "must lie between"),
        ("llama-3-70b", {"tie_word_embeddings": "no"}, "must be true or false"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "top-k 9 is more than the 8 experts"),
        ("mixtral-8x7b", {"num_experts_per_tok": 0}, "must lie between"),
        ("qwen3-235b-a22b", {"mlp_only_layers": [94]}, "mlp_only_layers names layer 94"),
        ("qwen3-235b-a22b", {"mlp_only_layers": "0"}, "list of whole numbers"),
        ("deepseek-v3", {"n_group": 7}, "do not divide into 7 groups"),
        ("deepseek-v3", {"topk_group": 9}, "top-k groups 9"),
        ("deepseek-v3", {"n_group": 256, "topk_group": 4}, "does not fit"),
        ("deepseek-v3", {"first_k_dense_replace": 62}, "first_k_dense_replace 62"),
        ("deepseek-v3", {"mlp_layer_types": ["dense"]}, "mlp_layer_types has 1"),
        ("deepseek-v3", {"model_type": "nonsense"}, "'nonsense' is not supported. Supported: arctic, bamba"),
        ("deepseek-v3", {"model_type": "qwen3_next"}, "missing key 'linear_num_value_heads'"),
        ("deepseek-v3", {"model_type": "nemotron_h"}, "missing key 'layers_block_type'"),
        ("deepseek-v3", {"model_type": "deepseek_v4"}, "missing key 'hc_mult'"),
        ("deepseek-v3", {"model_type": None, "architectures": None}, "missing key 'model_type'"),
    ],
)
def test_contradictions_and_malformed_values(file: str, change: dict[str, Any], words: str) -> None:
    assert words in message(lambda: read(config(file) | change))


def test_several_problems_come_together() -> None:
    change = {"hidden_size": "x", "num_experts_per_tok": 99, "vocab_size": -2}
    text = message(lambda: read(config("mixtral-8x7b") | change))
    assert "hidden_size" in text and "top-k 99" in text and "vocab_size" in text


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"\x89PNG\x00\x01\xff", "binary"),
        ("config.json", b"\xff\xfe\x00", "binary"),
        ("config.json", b"", "not valid JSON"),
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[1, 2]", "not an object"),
        ("config.json", b'"text"', "not an object"),
        ("config.json", b"[" * 200_000, "not valid JSON"),
        ("config.json", b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ("config.json", b" " * 10_000_000, "too large"),
        ("model.toml", b"= 3", "not valid TOML"),
        ("model.toml", b"", "missing key 'name'"),
    ],
)
def test_bad_files(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    text = message(lambda: load_model(str(path)))
    assert words in text and str(path) in text and len(text) < 3000


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert "does not exist" in message(lambda: load_model(str(tmp_path / "config.json")))
    assert "cannot read" in message(lambda: load_model(str(tmp_path)))  # a folder without config.json
    (tmp_path / "config.json").write_text(json.dumps(config("mixtral-8x7b")))
    assert load_model(str(tmp_path)).name == tmp_path.name


def test_a_folder_goes_before_the_catalogue_name_it_bears(tmp_path: Path) -> None:
    folder = tmp_path / "DeepSeek-V3"
    assert "no model named" in message(lambda: load_model(str(folder)))  # a path that is not there is no catalogue name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config("deepseek-v3") | {"num_nextn_predict_layers": 0}))
    assert load_model(str(folder)).mtp_layers == 0
    assert load_model("DeepSeek-V3").mtp_layers == 1


def test_a_flood_of_problems_is_cut_to_a_screen() -> None:
    text = message(lambda: read(config("gpt-oss-120b") | {"layer_types": [f"kind{i}" for i in range(36)]}))
    assert len(text.splitlines()) == 31 and "and 6 more problems" in text


OWN = """
name = "mine"
hidden_dim = 1024
vocab_size = 32000
mtp_layers = 1
[attention]
heads = 16
kv_heads = 4
head_dim = 64
[ffn]
dim = 4096
[moe]
num_experts = 16
top_k = 2
ffn_dim = 512
shared_ffn_dim = 512
[[layers]]
repeat = 2
moe = false
[[layers]]
repeat = 3
window = 256
[source]
kind = "user"
title = "a model of mine"
where = "here"
date = "2025-01-01"
"""


def own(tmp_path: Path, old: str = "", new: str = "") -> ModelSpec:
    """The TOML model above, one piece of it replaced."""
    assert old in OWN
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace(old, new) if old else OWN, encoding="utf-8")
    return load_model(path)


def test_own_toml_model(tmp_path: Path) -> None:
    model = own(tmp_path)
    assert [x.moe is None for x in model.layers] == [True, True, False, False, False]
    assert [x.attention.window for x in model.layers] == [None, None, 256, 256, 256]
    sparse = layer_params(model.layers[2], 1024)
    assert (sparse.routed, sparse.shared) == (16 * 3 * 1024 * 512, 3 * 1024 * 512)
    assert sparse.attention == 1024 * (16 + 2 * 4) * 64 + 16 * 64 * 1024
    assert sparse.replicated == 2 * 1024 + 16 * 1024
    assert len(own(tmp_path, "mtp_layers = 1", "layer_cycles = 4").layers) == 20


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('[source]\nkind = "user"', '[origin]\nkind = "user"', ["missing key 'source'", "unknown key 'origin'"]),
        ('title = "a model of mine"\n', "", ["[source] missing key 'title'"]),
        ('kind = "user"', 'kind = "guess"', ["must be one of"]),
        ("hidden_dim = 1024", "hidden_dimm = 1024", ["missing key 'hidden_dim'", "unknown key 'hidden_dimm'"]),
        ("kv_heads = 4", "kv_heads = 5", ["not a multiple of 5"]),
        ("kv_heads = 4", "kv_heads = nan", ["must be a whole number"]),
        ("heads = 16\nkv_heads = 4", 'kind = "mla"\nheads = 16', ["'qk_nope_dim'", "'kv_lora_rank'", "'v_head_dim'"]),
        ("top_k = 2", "top_k = 17", ["top-k 17"]),
        ("dim = 4096", "", ["missing key 'ffn.dim'"]),
        ("mtp_layers = 1", "num_layers = 6", ["num_layers = 6", "make 5"]),
        ("mtp_layers = 1", "layer_cycles = 9000", ["more than 10000 layers"]),
        ("repeat = 2", "repeat = 0", ["[[layers]] 1: repeat"]),
        ("repeat = 2", "repeats = 2", ["[[layers]] 1: unknown key 'repeats'"]),
    ],
)
def test_bad_toml_models(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    text = message(lambda: own(tmp_path, old, new))
    for word in words:
        assert word in text


KEYS = sorted({key for name in PAIRS for key in config(name)} | {"text_config", "mlp_layer_types", "attn_config"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted({*READERS, *NOT_YET, "?"})),
    base=st.sampled_from(sorted(PAIRS)),
    change=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6),
    drop=st.sets(st.sampled_from(KEYS), max_size=4),
)
def test_no_config_raises_anything_but_a_user_error(
    kind: str, base: str, change: dict[str, Any], drop: set[str]
) -> None:
    data = {k: v for k, v in (config(base) | {"model_type": kind} | change).items() if k not in drop}
    try:
        model = read(data)
    except UserError as error:
        assert error.problems and all(len(p) < 900 for p in error.problems)
    else:
        assert total_params(model) > 0


TOML_KEYS = ["name", "hidden_dim", "vocab_size", "num_layers", "layer_cycles", "attention", "ffn", "moe", "layers",
             "source", "heads", "kv_heads", "head_dim", "kind", "window", "repeat", "dim", "top_k"]  # fmt: skip
TOML = st.recursive(
    st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=5) | st.sampled_from(["mla", "gqa"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TOML_KEYS), inner, max_size=5),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(data=st.dictionaries(st.sampled_from(TOML_KEYS), TOML, max_size=9))
def test_no_toml_raises_anything_but_a_user_error(data: dict[str, Any]) -> None:
    with pytest.raises(UserError):  # random tables never hold a whole [source]
        read_toml_model(data, "own.toml")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60), suffix=st.sampled_from([".json", ".toml", ".bin"]))
def test_no_file_raises_anything_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load_model(path)
