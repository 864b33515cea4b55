"""What the layers of a family rest on: shares add up, every device has its class, cores without a table are said so."""

from __future__ import annotations

from collections import Counter

import pytest

from calibration.coverage_families import KERNELS, class_lines, classes, families, layer_words, rests, rows, shares
from hwprofiles import catalogue
from sim.families import load_model

NO_TABLE = KERNELS[-1]


def test_every_device_is_in_one_class() -> None:
    counted = Counter(name for names in classes().values() for name in names)
    assert counted == Counter(catalogue.names("devices"))
    for words, names in classes().items():
        assert words[-2:] == ("datasheet", "assumed")
        for name in names:
            whole = bool(catalogue.device(name).scaled_from) and not catalogue.device(name).measured
            assert whole == (words[0] == "scaled")
    assert all(name in "\n".join(class_lines()) for name in catalogue.names("devices"))


@pytest.mark.parametrize("model", ["Llama3.2-1B", "OLMoE-1B-7B", "Bamba-9B", "LFM2-8B-A1B", "DeepSeek-V3.2"])
def test_shares_of_a_model(model: str) -> None:
    spec = load_model(model)
    found = shares(spec)
    assert sum(found.values()) == pytest.approx(1.0)
    assert (found["grouped GEMM"] > 0.0) == spec.is_moe
    assert found["gemm"] > 0.0 and found["attention"] > 0.0 and found["memory-bound"] > 0.0
    mixes = any(layer.mixer is not None and layer.mixer.kind != "short_conv" for layer in spec.layers)
    assert (found[NO_TABLE] > 0.0) == (mixes or any(layer.attention.index_topk for layer in spec.layers))


def test_words_of_what_time_rests_on() -> None:
    parts = dict(zip(KERNELS, (0.5, 0.2, 0.1, 0.15, 0.05), strict=True))
    own = ("measured", "measured", "scaled", "datasheet", "assumed")
    assert rests(parts, own) == "measured 70, scaled 10, datasheet 15, assumed 5"
    assert rests(parts, ("scaled", "scaled", "scaled", "datasheet", "assumed")) == "scaled 80, datasheet 15, assumed 5"


def test_a_row_for_every_family_and_a_column_for_every_class() -> None:
    header, table = rows()
    assert [row[0] for row in table] == sorted(families())
    assert all(len(row) == len(header) for row in table) and len(header) == 3 + len(KERNELS) + len(classes())
    jamba = dict.fromkeys(w for layer in load_model("Jamba-v0.1").layers for w in layer_words(layer))
    assert set(jamba) == {"mamba1", "full attention", "experts", "dense FFN"}
