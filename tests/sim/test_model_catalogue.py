"""The catalogue: every model loads, parameter counts meet the published ones, FLOP meet the analytic table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from sim.families import load_model, model_from_dims, model_names, public_counts, table
from sim.model import ModelSpec, active_params, attention_pairs, total_params, train_flop_per_token

DATA = Path(__file__).parents[1] / "data" / "flop_per_token.csv"
COUNTED = [name for name in model_names() if public_counts(name) is not None]
WITH_ACTIVE = [name for name in COUNTED if (c := public_counts(name)) is not None and c.active_params]


def flop_rows() -> list[dict[str, str]]:
    """Rows of the analytic FLOP table."""
    lines = [x for x in DATA.read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    return list(csv.DictReader(lines))


FULL = [row for row in flop_rows() if row["window_layers"] == "0"]
WINDOWED = [row for row in flop_rows() if row["window_layers"] != "0"]


def test_the_tables_cover_what_they_should() -> None:
    assert len(FULL) >= 65 and len(WINDOWED) == 2
    assert len(COUNTED) >= 25 and len(WITH_ACTIVE) >= 6


@pytest.mark.parametrize("name", COUNTED)
def test_total_parameters_meet_the_published_count(name: str) -> None:
    counts = public_counts(name)
    assert counts is not None and len(counts.source) > 10
    assert total_params(load_model(name)) == pytest.approx(counts.total_params, rel=0.005)


def counted_as_published(model: ModelSpec, how: str) -> int:
    """Active parameters under the convention of the published figure."""
    table = model.vocab_size * model.hidden_dim
    left_out = {"all": 0, "without input embedding": table, "without embedding and head": 2 * table}
    return active_params(model) - left_out[how]


@pytest.mark.parametrize("name", WITH_ACTIVE)
def test_active_parameters_meet_the_published_count(name: str) -> None:
    counts = public_counts(name)
    assert counts is not None
    ours = counted_as_published(load_model(name), counts.active_counts)
    assert ours == pytest.approx(counts.active_params, rel=0.005)


@pytest.mark.parametrize("row", FULL, ids=lambda row: row["model"])
def test_training_flop_meet_the_analytic_table(row: dict[str, str]) -> None:
    ours = train_flop_per_token(load_model(row["model"]), 4096)
    assert ours == pytest.approx(float(row["train_gflop_per_token"]) * 1e9, rel=0.01)


@pytest.mark.parametrize("row", WINDOWED, ids=lambda row: row["model"])
def test_windowed_layers_differ_from_the_table_by_the_keys_not_seen(row: dict[str, str]) -> None:
    name = row["model"] + ("-mlperf" if row["vocab"] == "128256" else "")
    model = load_model(name)
    att = model.layers[0].attention
    assert att.window == 128 and model.layers[1].attention.window is None
    unseen = 4096 / 2 - attention_pairs(4096, 128)
    missing = 3 * int(row["window_layers"]) * 2.0 * unseen * att.heads * (att.head_dim + att.v_head_dim)
    ours = train_flop_per_token(model, 4096) + missing
    assert ours == pytest.approx(float(row["train_gflop_per_token"]) * 1e9, rel=0.001)


@pytest.mark.parametrize(("seq", "window"), [(7, 3), (256, 128), (4096, 128), (128, 128), (64, 128)])
def test_attention_pairs_is_the_mean_over_queries(seq: int, window: int) -> None:
    exact = sum(min(i, window) for i in range(1, seq + 1)) / seq
    assert attention_pairs(seq, window) == pytest.approx(exact, abs=0.51)  # the diagonal's half, as in s/2


def test_mtp_adds_a_layer_a_head_and_a_projection() -> None:
    model = load_model("DeepSeek-V3")
    extra = train_flop_per_token(model, 4096, with_mtp=True) - train_flop_per_token(model, 4096)
    gemms = 187_107_328 - 1536 - 512 + 9 * 3 * 7168 * 2048 + 7168 * 256 + 7168 * 129280 + 2 * 7168 * 7168
    core = 2048 * 128 * (192 + 128)
    assert extra == pytest.approx(6.0 * (gemms + core), rel=1e-9)


@pytest.mark.parametrize("name", model_names())
def test_every_catalogue_model_loads_with_a_source(name: str) -> None:
    model = load_model(name)
    assert model.name == name and len(model.layers) > 1
    assert model.source.title and re.match(r"20\d\d", model.source.date)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("deepseek-ai/DeepSeek-V3", "DeepSeek-V3"),
        ("deepseek-v3", "DeepSeek-V3"),
        ("qwen3-235b", "Qwen3-235B-A22B"),
        ("QWEN/qwen3-30b-a3b", "Qwen3-30B-A3B"),
        ("mixtral 8x7b", "Mixtral-8x7B"),
        ("meta-llama/Llama-3.1-405B", "Llama3.1-405B"),
        ("openai/gpt-oss-20b", "GPT-OSS-20B"),
        ("turing_530b", "GPT-530B-seqpar"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert load_model(alias).name == name


def test_layers_of_mixed_models() -> None:
    v3 = load_model("DeepSeek-V3")
    assert [layer.moe is None for layer in v3.layers] == [True] * 3 + [False] * 58
    assert v3.layers[0].ffn_dim == 18432 and v3.mtp_layers == 1
    every_other = load_model("GPT-1.3B-MoE-128")
    assert [layer.moe is None for layer in every_other.layers] == [True, False] * 12


def test_a_model_by_dimensions_equals_the_catalogue() -> None:
    row = {
        "model": "mine", "layers": "61", "hidden": "7168", "heads": "128", "kv_heads": "128", "head_dim": "128",
        "ffn_dense": "18432", "experts": "256", "top_k": "8", "moe_ffn": "2048", "shared_expert_ffn_total": "2048",
        "first_dense_layers": "3", "vocab": "129280", "attention": "MLA", "q_lora_rank": "1536", "kv_lora_rank": "512",
        "qk_nope_dim": "128", "qk_rope_dim": "64", "v_head_dim": "128", "gated_mlp": "1", "mtp_layers": "1",
    }  # fmt: skip
    mine, theirs = model_from_dims(row), load_model("DeepSeek-V3")
    assert mine.mtp_layers == 1 and mine.name == "mine"
    assert train_flop_per_token(mine, 4096) == train_flop_per_token(theirs, 4096)
    assert total_params(mine) == total_params(theirs) - 58 * 256  # the row does not tell of router biases


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, ["'layers'", "'hidden'", "'heads'", "'vocab'", "'ffn_dense'"]),
        ({"layers": "4", "hidden": "100", "heads": "3", "vocab": "9", "ffn_dense": "8"}, ["not a multiple"]),
        ({"layers": "4.5", "hidden": "x", "heads": "inf", "vocab": "-3"}, ["layers", "hidden", "heads", "vocab"]),
        ({"attention": "hybrid: 3 Gated DeltaNet : 1 gated attention"}, ["cannot be given as a table row"]),
        ({"layers": 2, "hidden": 64, "heads": 4, "vocab": 9, "experts": 4, "top_k": 5, "moe_ffn": 8}, ["top-k 5"]),
        ({"layers": 2, "hidden": 64, "heads": 4, "vocab": 9, "attention": "MLA", "ffn_dense": 8}, ["'kv_lora_rank'"]),
    ],
)
def test_bad_dimensions(row: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        model_from_dims(row)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["Nemotron-3-Ultra", "nvidia/Nemotron-3.5-Lightning", "MegaScale-352B-MoE"])
def test_known_models_that_are_not_supported_say_so(name: str) -> None:
    with pytest.raises(UserError, match="known but not supported yet"):
        load_model(name)


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(UserError, match=r"did you mean .*DeepSeek-V3"):
        load_model("deepsek-v3")
    with pytest.raises(UserError, match="show models"):
        load_model("\0" * 5000)


def test_the_page_of_models_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
    assert page.read_text(encoding="utf-8") == table.page()


def test_at_least_forty_models_meet_a_published_count() -> None:
    cited = [name for name in COUNTED if (c := public_counts(name)) is not None and "transformers" not in c.source]
    assert len(cited) >= 40
