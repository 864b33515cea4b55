"""Attention fit: shipped files reproduce themselves and meet their bar; scattered rows of a machine are enough."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hwprofiles
from calibration.kernels import attention
from calibration.kernels.attention_form import MIN_SEQ, SETS, Prior, form_s, pooled, start
from calibration.kernels.attention_table import columns_of, kind_of, levels, predicted_s
from calibration.kernels.base import errors
from hwprofiles import catalogue
from hwprofiles.forms.attention import AttentionForm
from hwprofiles.measured import tables
from hwprofiles.specs import Source

ROOT = Path(hwprofiles.__file__).parent
DEVICES = ("a100", "h100", "h200", "b200", "gb200")
MEDIAN, P90 = 0.06, 0.18
SOURCE = Source(kind="fitted", title="t", where="w", date="d")
# A machine slower and less efficient than any shipped one.
MACHINE = replace(catalogue.device("a100"), name="mine", num_sms=16, peak_flop_per_s={"bf16": 1e12})
TRUE = AttentionForm(
    multiprocessors=16, floor_s=4e-5, pair_s=4e-4, tile_s=6e-4, head_s=3e-4, kv_tile_s=1e-3,
    sharpness=1.6, throttle=1e-3, throttle_s=1.0,
)  # fmt: skip


@cache
def shipped(device: str) -> dict[str, Any]:
    text = (ROOT / "fitted" / "kernels" / device / "attention.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["attention"]
    return found


def stated(device: str, left_out: str) -> dict[str, dict[str, float]]:
    return {e["kind"]: e for e in shipped(device)["errors"] if e["left_out"] == left_out}


def scattered(count: int, *, mla: bool, seed: int = 1) -> pd.DataFrame:
    """Rows of `MACHINE` whose truth is `TRUE`, with 1 % noise; backward is three times forward plus seq / 4096."""
    rng = np.random.default_rng(seed)
    heads = rng.choice([8, 16, 32], count)
    frame = pd.DataFrame(
        {"batch": rng.choice([1, 2, 4], count), "heads": heads, "seq": 2 ** rng.integers(8, 14, count)}
    )
    frame["kv_heads"] = heads if mla else heads // rng.choice([1, 4, 8], count)
    frame = frame.assign(dqk=192 if mla else 128, dv=128, device="mine", pass_="forward").drop_duplicates()
    frame["time_s"] = form_s(TRUE, frame) * np.exp(rng.normal(0.0, 0.01, len(frame)))
    back = frame.assign(pass_="backward", time_s=frame.time_s * (3.0 + frame.seq / 4096))
    return pd.concat([frame, back], ignore_index=True)


@pytest.mark.parametrize("device", DEVICES)
def test_the_cost_model_has_the_stated_error_on_the_measured_rows(device: str) -> None:
    frame, t = attention.points(device), tables(device)
    mla = frame.dqk != frame.dv
    core, latent = frame[~mla & (frame.seq >= MIN_SEQ)], frame[mla & (frame.seq >= MIN_SEQ)]
    predicted = {
        "core": t.attention_s(core.batch, core.seq, core.heads, core.kv_heads, 128, 128),
        "mla": t.mla_s(latent.batch, latent.seq, latent.heads),
    }
    for kind, part in (("core", core), ("mla", latent)):
        found, said = errors(predicted[kind], part.time_s.to_numpy()), stated(device, "nothing")[kind]
        assert found.cases == said["cases"] and found.median <= MEDIAN and found.p90 <= P90
        # the tables are shipped with four digits
        assert (found.median, found.p90) == pytest.approx((said["median"], said["p90"]), abs=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_stated_left_out_errors_meet_the_bar(device: str) -> None:
    for left_out in attention.LEAVING_OUT:
        for kind in ("core", "gqa", "mla"):
            said = stated(device, left_out)[kind]
            assert said["median"] <= MEDIAN and said["p90"] <= P90 and said["cases"] >= 50, (left_out, kind)


def test_the_top_decade_left_out_is_as_stated() -> None:
    for found in attention.left_out(attention.points("h100"), kinds=("top_decade",)):
        said = stated("h100", "top_decade")[found.dtype_or_kind]
        assert found.cases == said["cases"] and found.median == pytest.approx(said["median"], abs=1e-3)


def test_leaving_out_holds_every_point_once() -> None:
    frame = attention.points("a100")
    for kind in ("config", "batch_heads"):
        assert np.all(sum(mask.astype(int) for mask in attention._folds(frame, kind)) == 1)
    (top,) = attention._folds(frame, "top_decade")
    assert frame.seq[~top].max() <= 16384 / 10 < frame.seq[top].min()


def test_refit_gives_the_shipped_files(tmp_path: Path) -> None:
    fitted = attention.fit(attention.points("b200"))
    attention.write("b200", fitted, tmp_path, SOURCE)
    for name in ("attention.csv", "mla.csv"):
        ours = (tmp_path / "measured" / "b200" / name).read_text(encoding="utf-8")
        assert ours == (ROOT / "measured" / "b200" / name).read_text(encoding="utf-8")
    written = tomllib.loads((tmp_path / "fitted/kernels/b200/attention.toml").read_text(encoding="utf-8"))["attention"]
    for part in SETS:
        assert written[part] == pytest.approx(shipped("b200")[part], rel=1e-4)
        assert written["domain"][part] == shipped("b200")["domain"][part]
    assert "backward" not in written


def test_scattered_rows_of_a_machine_are_enough() -> None:
    fitted = attention.fit(scattered(24, mla=False), MACHINE)
    unseen = scattered(60, mla=False, seed=2)
    unseen = unseen[unseen.pass_ == "forward"]
    found = errors(predicted_s(fitted.curves, unseen), unseen.time_s.to_numpy())
    assert found.median < 0.06 and found.p90 < 0.18
    for seq, ratio in fitted.backward["core"].items():
        assert ratio == pytest.approx(3.0 + seq / 4096)
    assert "mla" not in fitted.domain and "mla" not in fitted.backward
    # never measured, so it departs from what is usual as the measured core does
    prior = attention.priors(attention.chip_of(MACHINE), blind=False)
    usual = np.exp(prior["core"].mean[0] - prior["mla"].mean[0])
    assert fitted.forms["mla"].pair_s / fitted.forms["core"].pair_s == pytest.approx(usual)


def test_one_row_and_no_row() -> None:
    one = scattered(1, mla=True)
    fitted = attention.fit(one, MACHINE)
    assert fitted.in_sample["mla"].median < 0.1 and np.isfinite(fitted.curves["gqa"].time_s(32.0, 4096.0))
    with pytest.raises(ValueError, match="no forward"):
        attention.fit(one[one.pass_ == "backward"], MACHINE)


def test_tiny_rows_of_a_cpu_give_a_usable_model() -> None:
    sizes = [(1, 32, 4, 2, 16, 16), (1, 32, 2, 2, 24, 16), (2, 64, 2, 2, 16, 16)]
    rows = [dict(zip(("batch", "seq", "heads", "kv_heads", "dqk", "dv"), size, strict=True)) for size in sizes]
    frame = pd.DataFrame(rows).assign(time_s=[3e-4, 2e-4, 4e-4], pass_="forward", device="mine")
    fitted = attention.fit(frame, replace(MACHINE, num_sms=2))
    assert fitted.in_sample == {}  # all shorter than what is scored
    predicted = predicted_s(fitted.curves, frame)
    np.testing.assert_allclose(predicted, frame.time_s, rtol=0.5)
    for curve in fitted.curves.values():
        time_s = curve.time_s(8.0, 2.0 ** np.arange(5, 18))
        assert np.all(np.diff(time_s) >= 0) and time_s[-1] > 100 * time_s[0]


def test_measured_backward_is_written_and_read_back(tmp_path: Path) -> None:
    fitted = attention.fit(scattered(12, mla=True), MACHINE)
    attention.write("mine", fitted, tmp_path, SOURCE)
    text = (tmp_path / "fitted" / "kernels" / "mine" / "attention.toml").read_text(encoding="utf-8")
    back = tomllib.loads(text)["attention"]["backward"]["mla"]
    np.testing.assert_allclose(back["ratio"], 3.0 + np.array(back["seq_tokens"]) / 4096, rtol=1e-3)


def test_points_of_harness_rows() -> None:
    sizes = {"batch": 1, "seq": 512, "heads": 8, "kv_heads": 2, "dqk": 64, "dv": 64, "causal": True}

    def row(median: str, **changes: Any) -> dict[str, str]:
        made = {"family": "attention", "status": "ok", "dtype": "bf16", "pass": "forward", "sizes": json.dumps(sizes)}
        return made | {"median_s": median} | changes

    full = json.dumps(sizes | {"causal": False})
    rows = [
        row("2e-5"), row("1e-5"), row("3e-5", **{"pass": "backward"}), row("", status="skipped: not supported"),
        row("1e-9", sizes=full), row("1e-9", family="gemm"), row("1e-9", dtype="fp32"),
    ]  # fmt: skip
    frame = attention.points_of_rows(rows, "mine")
    assert dict(zip(frame.pass_, frame.time_s, strict=True)) == {"forward": 1e-5, "backward": 3e-5}
    assert list(kind_of(frame)) == ["gqa", "gqa"]
    assert attention.points_of_rows([], "mine").empty


def test_grid_levels() -> None:
    np.testing.assert_array_equal(levels(np.array([128.0, 512.0, 600.0]), 1.0), [128, 256, 512, 600])
    np.testing.assert_array_equal(levels(np.array([12.0]), 1.0), [12, 24])
    assert columns_of(np.array([128.0, 1024.0]))[-1] == 1024 * 16


def test_a_prior_is_as_wide_as_others_disagree() -> None:
    wide = Prior(mean=np.zeros(2), width=np.array([1.0, 1.0]))
    assert pooled([], wide) is wide
    both = pooled([np.array([0.0, 0.0]), np.array([0.0, 9.0])], wide)
    np.testing.assert_allclose(both.mean, [0.0, 4.5])
    np.testing.assert_allclose(both.width, [0.1, 1.0])  # never certain, never wider than the start
    assert set(start()) == set(SETS)
