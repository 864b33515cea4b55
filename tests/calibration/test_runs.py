"""Cases of published runs: what is read, what a prediction may see, and how memory is scored."""

from __future__ import annotations

import csv
import random
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from calibration.case import Case, Unusable
from calibration.runs import read_cases, read_feasibility
from calibration.score import balanced_accuracy, cases_of, summary
from calibration.validate import Row, predict_file, row_json
from hwprofiles import catalogue
from hwprofiles.errors import UserError

PUBLISHED = Path(str(resources.files("calibration") / "published"))
ONE_NODE = PUBLISHED / "megatron_b200_one_node.csv"
MEASURED = ("measured_ms", "measured_peak_alloc_gib", "measured_peak_reserved_gib")
# What a row says of its measurement; all else is the prediction.
MEASURED_KEYS = ("measured", "error", "scored")
DENSE_LIMIT, MOE_LIMIT = 0.01, 0.02


@pytest.fixture(scope="module")
def one_node() -> list[Row]:
    return predict_file(ONE_NODE, keep=lambda case: case.measure == "peak_bytes")


def test_peak_memory_of_one_node_runs(one_node: list[Row]) -> None:
    peaks = [r for r in one_node if r.measure == "peak_bytes"]
    assert len(peaks) == 18
    for row in peaks:
        assert row.error is not None
        assert abs(row.error) < (MOE_LIMIT if "deepseek" in row.id else DENSE_LIMIT), (row.id, row.error)


def test_peaks_are_scored_apart_from_times(one_node: list[Row]) -> None:
    out = summary(one_node)
    assert out["peak_memory"]["rows"] == 18
    assert out["peak_memory"]["mape"] < 0.01
    assert out["all"] == {"cases": 0}


def test_feasibility_of_published_runs() -> None:
    rows = predict_file(PUBLISHED / "memory_feasibility.csv", keep=lambda case: case.measure == "fits")
    scored = [r for r in rows if r.measure == "fits" and r.scored and r.predicted is not None]
    assert len(scored) == 17 and sum(r.measured == 0.0 for r in scored) == 3
    # All that did fit are foretold. The three that did not are one hybrid model's on 80 GB: recompute of the attention
    # core alone is foretold to fail; with the experts' activations recomputed 70 and 72 GiB are predicted, where the
    # source reports 62 GB allocated (57.8 GiB) and still an out-of-memory error: what failed there is no steady peak.
    missed = {" ".join(r.id.split()[:2]) for r in scored if r.predicted != r.measured}
    assert missed == {"row 5", "row 6"}
    assert balanced_accuracy(scored)["balanced_accuracy"] == pytest.approx(2 / 3)


def test_an_allocator_failure_that_a_setting_cures_decides_nothing() -> None:
    row = {"model": "Llama3-8B", "gpu": "H100", "n_gpus": "8", "seq_len": "4096", "mbs": "1", "tp": "1", "pp": "1"}
    cured = "OOM (fragmentation), passes with expandable_segments"
    told = {"OOM": (0.0, True), cured: (0.0, False), "fits": (1.0, True)}
    for outcome, (fits, scored) in told.items():
        case = read_feasibility("x", {**row, "outcome": outcome, "peak_memory": ""})
        assert (case.measured, case.scored) == (fits, scored)


def test_peak_cells_and_their_units(tmp_path: Path) -> None:
    head = "source,model,gpu,n_gpus,seq_len,gbs,mbs,method,tp,pp,cp,ep,recompute,outcome,peak_memory\n"
    line = "s,Llama3-8B,H100,8,4096,8,1,,1,1,1,,none,fits,"
    for cell, want in (("10 GB", 10e9), ("10.5 GiB peak", 10.5 * 2**30), ("28.05% of 288 GB", None), ("", None)):
        path = tmp_path / "runs.csv"
        path.write_text(head + line + cell + "\n")
        peaks = [c.measured for c in read_cases(path) if isinstance(c, Case) and c.measure == "peak_bytes"]
        assert peaks == ([] if want is None else [pytest.approx(want)]), cell


def test_shuffled_measurements_leave_predictions_identical(tmp_path: Path) -> None:
    """Nothing measured reaches a prediction, filled cells included."""
    training = ("tokens_per_s_gpu", "step_time_s", "tok_s_gpu_norm", "tflops_gpu", "mfu_pct", "value_primary")
    for name, measured, column, kept_values in (
        ("megatron_b200_one_node.csv", MEASURED, "pp", {"2"}),
        ("training_runs.csv", training, "id", {"gt0003", "gt0007", "gt0361", "gt0797"}),
        ("memory_feasibility.csv", ("outcome", "peak_memory"), "n_gpus", {"8", "16", "32"}),
    ):
        with (PUBLISHED / name).open(encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if r[column] in kept_values]
        assert len(rows) >= 2, name
        shuffled = [dict(r) for r in rows]
        order = list(range(len(rows)))
        random.Random(7).shuffle(order)
        batches = {(r.get("gbs"), r["n_gpus"]) for r in rows} if "gbs" in rows[0] else {()}
        same = measured if len(batches) == 1 else [c for c in measured if c != "step_time_s"]
        for cells_of in measured:
            # a row whose columns disagree is refused, and a step of another batch is another rate
            for row, other in zip(shuffled, order, strict=True):
                row[cells_of] = rows[other][cells_of] if cells_of in same else ""
        assert shuffled != rows, name
        told = []
        for variant, table in enumerate((rows, shuffled)):
            path = tmp_path / f"{variant}-{name}"
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(table)
            kept = [r for r in predict_file(path) if r.measure != "peak_bytes"]
            told.append([{k: v for k, v in row_json(r).items() if k not in MEASURED_KEYS} for r in kept])
        assert told[0] == told[1], name


def test_cut_deepseek_models_keep_one_dense_layer_in_front() -> None:
    cases = [c for c in read_cases(ONE_NODE) if isinstance(c, Case)]
    for case in cases:
        if "deepseek" in case.id:
            assert [layer.moe is None for layer in case.model.layers] == [True, False, False, False], case.id
    heads = {c.model.layers[0].attention.kv_heads for c in cases if "405b" in c.id}
    assert heads == {16}  # the source's own configuration, not the released model's 8


def test_rows_that_leave_the_sequence_open_are_undetermined() -> None:
    rows = read_cases(PUBLISHED / "memory_feasibility.csv")
    bad = [r for r in rows if isinstance(r, Unusable)]
    assert bad and all("sequence length" in r.reason and r.status == "undetermined" for r in bad)


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("*.csv")), ids=lambda p: p.stem)
def test_no_published_row_is_unsupported(file: Path) -> None:
    assert [r.id for r in read_cases(file) if isinstance(r, Unusable) and r.status == "unsupported"] == []


def test_a_file_of_unknown_columns_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("model,gpu\nLlama3-8B,H100\n")
    with pytest.raises(UserError, match="n_gpus"):
        read_cases(path)


def test_one_case_per_key_is_the_median() -> None:
    rows = [
        Row(id=str(m), status="ok", measure="step_s", measured=m, predicted=2.0, error=2 / m - 1, scored=True, key="k")
        for m in (1.0, 2.0, 5.0)
    ]
    assert [(c.measured, c.error) for c in cases_of(rows)] == [(2.0, 0.0)]


def test_a_variant_named_beside_the_machine_is_the_machine() -> None:
    """torchtitan's H100 have 96 GB and a 500 W limit; eager and compiled runs of one key are two cases."""
    cases = [c for c in read_cases(PUBLISHED / "training_runs.csv") if isinstance(c, Case)]
    mine = [c for c in cases if c.group["source"].startswith("pytorch/torchtitan")]
    assert mine and {c.group["gpu"] for c in mine} == {"H100-96GB"}
    assert {c.known["recompute"] for c in mine} == {("operators",), ("full",)}
    pairs: dict[str, set[str]] = {}
    for case in mine:
        pairs.setdefault(case.weight_key, set()).add(case.software.name)
    assert all(len(names) == 1 for names in pairs.values())
    assert len({c.software.name for c in mine}) == 2


def test_one_node_times_of_vtrain_are_sums_and_several_node_times_are_not() -> None:
    """Times of the same hidden size, micro-batch and degrees: four constants give all rows, to rounding."""
    with (PUBLISHED / "vtrain_measured_single.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    groups: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
    for row in rows:
        batches = int(row["global_batch"]) / (int(row["micro_batch"]) * int(row["dp"]))
        key = tuple(row[name] for name in ("hidden", "micro_batch", "tp", "dp", "pp"))
        point = (float(row["layers"]), batches, float(row["measured_iter_ms"]))
        groups.setdefault(key, []).append(point)
    exact = 0
    for points in groups.values():
        layers, batches, time_ms = np.array(points).T
        terms = np.stack([layers * batches, batches, layers, np.ones_like(layers)], axis=1)
        if len(points) <= np.linalg.matrix_rank(terms):
            continue
        found = terms @ np.linalg.lstsq(terms, time_ms, rcond=None)[0]
        exact += bool(np.max(np.abs(found / time_ms - 1.0)) < 1e-9)
    assert exact >= 60


def test_traced_layers_of_vtrain_recompute_nothing() -> None:
    """Products and least traffic of a layer at datasheet peaks: 82 % of its time with full recompute, 60 % without."""
    with (PUBLISHED / "vtrain_measured_single.csv").open(encoding="utf-8") as lines:
        table = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    profile = {"hidden": "2048", "micro_batch": "4", "tp": "1", "dp": "2", "pp": "1"}
    rows = [row for row in table if profile.items() <= row.items()]
    columns = ("layers", "global_batch", "measured_iter_ms")
    layers, batch, time_ms = (np.array([float(row[c]) for row in rows]) for c in columns)
    batches = batch / 8
    terms = np.stack([layers * batches, batches, layers, np.ones_like(layers)], axis=1)
    layer_s = 1e-3 * float(np.linalg.lstsq(terms, time_ms, rcond=None)[0][0])
    device = catalogue.device("A100")
    tokens, hidden, heads, seq = 4 * 1024, 2048, 16, 1024
    forward = 2.0 * tokens * (12 * hidden**2 + 2 * seq * hidden)
    scores, inner, rows_bytes = tokens * seq * heads, 4 * tokens * hidden, tokens * hidden

    def peak_s(again: int) -> float:
        # softmax and dropout over the scores, the activation, two norms and two residual adds with dropout
        first = 9.0 * scores + 4.0 * inner + 2.0 * (4.0 + 7.0) * rows_bytes
        back = 11.0 * scores + 6.0 * inner + 2.0 * (6.0 + 5.0) * rows_bytes
        moved = (1 + again) * first + back
        return (3 + again) * forward / device.peak_flop_per_s["fp16"] + moved / device.mem_bytes_per_s

    assert 0.8 < peak_s(1) / layer_s < 0.85
    assert 0.55 < peak_s(0) / layer_s < 0.65


def test_traced_layers_of_vtrain_are_read_as_such() -> None:
    cases = [c for c in read_cases(PUBLISHED / "vtrain_measured_single.csv") if isinstance(c, Case)]
    assert {c.known["recompute"] for c in cases} == {()}
    assert {c.model.vocab_size for c in cases} == {50_257}
    assert all(c.software.traced and not c.software.padded_vocab for c in cases)
    several = [c for c in read_cases(PUBLISHED / "vtrain_measured_multi.csv") if isinstance(c, Case)]
    assert {c.known["recompute"] for c in several} == {("full",)}
    assert not any(c.software.traced for c in several)
