"""Grouped GEMM against measurements: the bar on what was left out, the files, and a user's scattered rows."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.kernels.base import errors
from calibration.kernels.grouped import LAYER, chip_of, fit, left_out, points, write
from calibration.kernels.grouped_fit import SCORED_ROWS, LayerRest, layer_s
from calibration.kernels.grouped_harness import chip_near, fit_harness, harness_points
from hwprofiles.forms.grouped import GroupedForm, grouped_forms

DEVICES = ("a100", "h100", "h200", "b200", "gb200")
MEDIAN, P90, UNEVEN = 0.06, 0.18, 0.10
MISSED = {"h200": 0.104}  # rank 0's rows are not recorded there; the accuracy page says "no"
# Kernels of these ran at half speed in a third of the settings: held to the bar without those (`model_steady`).
FALLBACK = {"nvfp4"}


def shipped(folder: str) -> dict[str, Any]:
    path = resources.files("hwprofiles") / "fitted" / "kernels" / folder / "grouped.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", DEVICES)
def test_the_shipped_form_meets_the_measured_layers(folder: str) -> None:
    """Recorded errors are those of the shipped numbers, and the left-out ones are within the bar."""
    measured, data = points(folder), shipped(folder)
    for dtype, form in grouped_forms(folder).items():
        section = data[dtype]
        part = measured[(measured.kind == LAYER) & (measured.dtype == dtype) & (measured.rows >= SCORED_ROWS)]
        found = errors(layer_s(form, LayerRest(**section["layer"]), part), part.time_s.to_numpy(float))
        recorded = section["errors"]
        assert found.cases == recorded["in_sample"]["cases"]
        assert found.median == pytest.approx(recorded["in_sample"]["median"], abs=1e-3)
        for kind in ("model_steady",) if dtype in FALLBACK else ("model", "model_full_experts", "top_decade"):
            assert recorded[kind]["median"] <= MEDIAN and recorded[kind]["p90"] <= P90, (dtype, kind, recorded[kind])
        for kind in {"uneven_setting", "uneven_counted"} & set(recorded):
            assert recorded[kind]["median"] <= MISSED.get(folder, UNEVEN)


def test_left_out_errors_are_reproduced() -> None:
    measured = points("gb200")
    measured = measured[(measured.kind == LAYER) & (measured.dtype == "fp8")]
    recorded = shipped("gb200")["fp8"]["errors"]
    for entry in left_out(measured):
        assert entry.median == pytest.approx(recorded[entry.kind]["median"], abs=1e-3), entry.kind
        assert entry.family == "grouped_gemm" and entry.device == "gb200" and entry.dtype_or_kind == "fp8"


def test_spread_explains_part_of_what_uneven_rows_cost() -> None:
    """Kernels fitted to balanced rows only: under a stated law the spread of the form halves their bias or better."""
    measured, data = points("h100"), shipped("h100")["fp8_block"]
    form, rest = grouped_forms("h100")["fp8_block"], LayerRest(**data["layer"])
    rows = measured[(measured.kind == "stated") & (measured.dtype == "fp8_block")]
    even = rows.assign(m_max=rows.rows / rows.groups)
    time_s = rows.time_s.to_numpy(float)
    bias = [float(np.median(layer_s(form, rest, part) / time_s - 1.0)) for part in (even, rows)]
    assert bias[0] < -0.04 and abs(bias[1]) < 0.5 * abs(bias[0])


def test_written_file_reads_back(tmp_path: Path) -> None:
    measured = points("a100")
    fitted = fit(measured)
    path = tmp_path / "a100" / "grouped.toml"
    write("a100", fitted, path, date="2026-11-22")
    section = tomllib.loads(path.read_text(encoding="utf-8"))["bf16"]
    form = {k: v for k, v in vars(fitted.by_dtype["bf16"].form).items() if k != "domain"}
    for name, value in form.items():
        assert section[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5))
    assert grouped_forms("a100")["bf16"].flop_per_s == pytest.approx(section["flop_per_s"], rel=1e-3)


TRUTH = GroupedForm(
    operand_bytes=2.0, flop_per_s=6e14, bytes_per_s=2.5e12, pad_rows=60.0, edge_n=40.0, edge_k=150.0, tail_tiles=66.0,
    traffic=1.1, sharpness=3.0, floor_s=8e-6, dgrad=1.1, wgrad=1.3,
)  # fmt: skip


def harness_rows(op: str, *, count: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(1)
    out = []
    for i in range(count):
        pass_ = ("forward", "dgrad", "wgrad")[i % 3]
        groups, mean = int(rng.choice([1, 4, 8, 32])), int(rng.choice([64, 512, 2048]))
        n, k = ((3072, 2048), (4096, 1536), (2048, 768))[int(rng.integers(3))]
        rows, peak = groups * mean, mean * int(rng.choice([1, 3]))
        args = (rows, groups, k, n, peak) if pass_ == "dgrad" else (rows, groups, n, k, peak)
        name = {"forward": "product_s", "dgrad": "dgrad_s", "wgrad": "wgrad_s"}[pass_]
        time_s = float(getattr(TRUTH, name)(*args)) * float(np.exp(rng.normal(0.0, 0.02)))
        sizes = {"groups": groups, "m": mean, "n": n, "k": k, "m_max": peak, "rows": rows, "spread": "uneven"}
        out.append(
            {"op": op, "dtype": "bf16", "pass": pass_, "status": "ok", "sizes": json.dumps(sizes), "device": "mine",
             "median_s": f"{time_s:.7g}"}
        )  # fmt: skip
    return out


def test_scattered_rows_of_a_harness_are_enough() -> None:
    """48 noisy rows recover a known kernel within a few percent where it was not measured, gradients included."""
    rows = [*harness_rows("grouped_gemm", count=48), *harness_rows("grouped_gemm_loop", count=3)]
    measured = harness_points(rows)
    assert set(measured.op) == {"grouped_gemm"} and len(measured) == 48
    chip = chip_near(chip_of("h100"), 6.5e14)
    made = fit_harness(measured, {"bf16": chip}).by_dtype["bf16"]
    assert made.form.backward == "measured" and made.in_sample.median < 0.03
    for name in ("product_s", "dgrad_s", "wgrad_s"):
        unseen = (16384.0, 16.0, 2880.0, 2880.0, 2000.0)
        assert float(getattr(made.form, name)(*unseen)) == pytest.approx(float(getattr(TRUTH, name)(*unseen)), rel=0.08)


def test_a_machine_without_a_grouped_kernel_is_fitted_to_its_loop() -> None:
    measured = harness_points(harness_rows("grouped_gemm_loop", count=12))
    forward = measured[measured.pass_ == "forward"]
    made = fit_harness(forward, {"bf16": chip_near(chip_of("h100"), 6.5e14)}).by_dtype["bf16"]
    assert made.form.backward == "assumed" and made.in_sample.median < 0.1
