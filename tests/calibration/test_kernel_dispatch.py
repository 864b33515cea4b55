"""Dispatch and combine kernels: the shipped fit against every measured row, and that a fit finds what it was given."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.kernels import dispatch
from calibration.kernels.dispatch_fit import fit_named, fit_nic, predicted_s
from hwprofiles.errors import UserError
from hwprofiles.folders import fitted_file
from hwprofiles.forms.dispatch import FILE, MODES, dispatch_forms

BAR = 0.12
KERNELS = [(device, *kernel) for device in dispatch.DEVICES for kernel in dispatch_forms(device)]


def numbers(folder: str, mode: str, phase: str) -> dict[str, object]:
    entry: dict[str, object] = tomllib.loads(fitted_file(folder, FILE).read_text(encoding="utf-8"))[mode][phase]
    return entry


@pytest.mark.parametrize(("folder", "mode", "phase"), KERNELS)
def test_shipped_form_meets_the_measured_rows(folder: str, mode: str, phase: str) -> None:
    """The file's numbers, applied to the shipped rows, give the errors that the file states; all within the bar."""
    named = numbers(folder, mode, phase)
    rows = dispatch.points(folder)
    rows = rows[(rows.kind == mode) & (rows.phase == phase) & (rows.flag == "")]
    rows = rows[rows.tokens >= (1 if mode == "low_latency" else dispatch.SCORED_TOKENS)]
    off = np.abs(predicted_s(mode, named, rows) / rows.time_s.to_numpy() - 1)
    stated = named["errors"]
    assert isinstance(stated, dict)
    assert len(rows) == stated["in_sample"]["cases"]
    assert float(np.median(off)) == pytest.approx(stated["in_sample"]["median"], abs=2e-4)
    kinds = [k for k in stated if k.startswith(("hidden", "tokens", "top_decade", "in_sample"))]
    assert kinds and all(stated[kind]["median"] <= BAR for kind in kinds)


@pytest.mark.parametrize("phase", ["dispatch", "combine"])
def test_congested_rows_are_one_slower_network(phase: str) -> None:
    """8 nodes of the one multi-node source: a single lower NIC rate explains transfer and notification together."""
    named = numbers("h100", "normal", phase)
    errors, flagged = named["errors"], named["flagged"]
    assert isinstance(errors, dict) and isinstance(flagged, dict) and isinstance(named["across"], dict)
    assert errors["congested"]["median"] < 0.05 and errors["congested_tokens"]["median"] < 0.05
    assert errors["congested_as_clear"]["median"] > 0.3
    assert flagged["congested"] < named["across"]["nic_bytes_per_s"] / 2
    assert "congested" not in vars(dispatch_forms("h100")["normal", phase].across)


def test_rates_stay_below_their_links() -> None:
    for folder, mode, phase in KERNELS:
        form = dispatch_forms(folder)[mode, phase]
        assert form.nvlink_bytes_per_s <= dispatch.chip_of(folder).nvlink_bytes_per_s * (
            1 + 1e-5
        )  # six digits are written


@pytest.mark.parametrize("mode", sorted(MODES))
def test_fit_returns_the_times_it_was_given(mode: str) -> None:
    """Times made by a form are met again by a fit of it, on rows that were left out of the fit."""
    folder = "gb200" if mode == "rack" else "h100"
    rows = dispatch.points(folder)
    rows = rows[(rows.kind == mode) & (rows.phase == "combine") & (rows.flag == "")].reset_index(drop=True)
    known = numbers(folder, mode, "combine")
    rows["time_s"] = predicted_s(mode, known, rows)
    seen = np.arange(len(rows)) % 3 > 0
    named = fit_named(mode, rows[seen], dispatch.chip_of(folder))
    off = np.abs(predicted_s(mode, named, rows[~seen]) / rows.time_s.to_numpy()[~seen] - 1)
    assert float(np.median(off)) < 0.01 and float(off.max()) < 0.1


def test_fit_nic_finds_a_slower_network() -> None:
    known = numbers("h100", "normal", "dispatch")
    across = known["across"]
    assert isinstance(across, dict)
    slow = {**known, "across": {**across, "nic_bytes_per_s": 1.3e10}}
    rows = dispatch.points("h100")
    rows = rows[(rows.kind == "normal") & (rows.phase == "dispatch") & (rows.flag == "congested")]
    rows = rows.assign(time_s=predicted_s("normal", slow, rows))
    assert fit_nic("normal", known, rows) == pytest.approx(1.3e10, rel=1e-3)


def test_points_know_what_is_distrusted() -> None:
    rows = dispatch.points("h100")
    normal = rows[rows.kind == "normal"]
    assert set(normal[normal.nodes == 8].flag) == {"congested", "congested_transmit"}
    assert set(normal[normal.nodes < 8].flag) == {""}
    assert set(normal[normal.nodes == 8].group_limit) == {dispatch.GROUP_LIMIT}
    with pytest.raises(UserError, match="a100"):
        dispatch.points("a100")


def test_write_is_read_back(tmp_path: Path) -> None:
    rows = dispatch.points("h200")
    rows = rows[(rows.kind == "low_latency") & (rows.hidden == 7168)]
    fitted = dispatch.fit(rows)
    dispatch.write(fitted, tmp_path / FILE, left=dispatch.left_out(rows, fitted), date="2026-11-22")
    (tmp_path / "source.toml").write_text("", encoding="utf-8")
    read = dispatch_forms(tmp_path.as_posix())
    assert set(read) == {("low_latency", "dispatch"), ("low_latency", "combine")}
    for kernel, found in fitted.by_kernel.items():
        for name, value in vars(replace(found.form, across=None)).items():
            if name != "across":
                assert vars(read[kernel])[name] == pytest.approx(value, rel=1e-5)
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / FILE).write_text(text.split("[source]")[0], encoding="utf-8")
    with pytest.raises(UserError, match="source"):
        dispatch_forms((tmp_path / "bare").as_posix())
