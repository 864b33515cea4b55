"""Grouped GEMM from rows of the measuring harness: scattered kernels measured alone, forward and gradients."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.carry import write_csv
from calibration.kernels.base import Floats, errors
from calibration.kernels.grouped import Fitted, GroupedFit
from calibration.kernels.grouped_fit import Chip, alone_s, fit_named, form_of, start
from calibration.kernels.kriging import NUGGET, covariance
from hwprofiles.forms.grouped import GroupedForm, GroupedSurface
from hwprofiles.forms.grouped_residual import LENGTHS, Residual, log_sizes

KERNEL, LOOP = "grouped_gemm", "grouped_gemm_loop"
DTYPES: Mapping[str, str] = {"fp8_row": "fp8"}  # the harness names the scaling, the simulator the format
GRADIENTS = {"dgrad", "wgrad"}


def harness_points(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Measured grouped GEMMs of a harness file: dtype, pass_, groups, n, k, rows, m_max, time_s, device.

    Where a dtype has rows of the grouped kernel those count, otherwise the loop over experts that stands in for it.
    """
    found = []
    for row in rows:
        if row["op"] in (KERNEL, LOOP) and row["status"] == "ok":
            sizes = {key: float(value) for key, value in json.loads(row["sizes"]).items() if key != "spread"}
            dtype = DTYPES.get(row["dtype"], row["dtype"])
            named = {"op": row["op"], "dtype": dtype, "pass_": row["pass"], "time_s": float(row["median_s"])}
            found.append({"device": row["device"], **named, **{key: sizes[key] for key in SIZES}})
    frame = pd.DataFrame(found, columns=["device", "op", "dtype", "pass_", "time_s", *SIZES])
    has_kernel = frame.groupby("dtype").op.transform(lambda op: (op == KERNEL).any())
    return frame[(frame.op == KERNEL) | ~has_kernel.astype(bool)].reset_index(drop=True)


SIZES = ("groups", "n", "k", "rows", "m_max")


def chip_near(chip: Chip, dense_flop_per_s: float) -> Chip:
    """The chip with the peak that makes the fit begin at the best dense GEMM rate measured on it."""
    begin = start("kernel")
    share = float(np.exp(begin.centre[begin.names.index("flop_share")]))
    return replace(chip, peak_flop_per_s=dense_flop_per_s / share)


def fit_harness(measured: pd.DataFrame, chips: Mapping[str, Chip]) -> Fitted:
    """Fit every dtype of `harness_points` (at least one row) with its chip, see `chip_near`.

    Few rows are enough: what they do not tell stays where `grouped_start.toml` puts it. The backward pass counts as
    measured where both gradients were.
    """
    made = {}
    for dtype, part in measured.groupby("dtype"):
        chip = chips[str(dtype)]
        named = fit_named(part, chip, str(dtype))
        backward = "measured" if set(part.pass_) >= GRADIENTS else "assumed"
        form = with_residual(form_of(named, chip, str(dtype), backward=backward), part)
        made[str(dtype)] = GroupedFit(
            named=named,
            form=form,
            rest=None,
            in_sample=errors(alone_s(form, part), part.time_s.to_numpy(float)),
            domain={name: (float(part[name].min()), float(part[name].max())) for name in ("rows", "groups", "n", "k")},
        )
    return Fitted(device=str(measured.device.iloc[0]), by_dtype=made)


def _asked(part: pd.DataFrame, pass_: str) -> list[Floats]:
    """Rows, groups, n, k, m_max as the form takes them: n is the columns of a product's own result."""
    rows, groups, n, k, m_max = (part[name].to_numpy(float) for name in ("rows", "groups", "n", "k", "m_max"))
    return [rows, np.minimum(groups, rows), *((k, n) if pass_ == "dgrad" else (n, k)), m_max]


def with_residual(form: GroupedForm, measured: pd.DataFrame) -> GroupedSurface:
    """The form with what the measured points of each pass differ by from it, all but met at the points themselves."""
    found = {}
    for pass_, part in measured.groupby("pass_"):
        at = log_sizes(*_asked(part, str(pass_)))
        off = np.log(part.time_s.to_numpy(float) / alone_s(form, part))
        known = covariance(at, at, LENGTHS) + NUGGET * np.eye(len(at))
        weights: Floats = np.linalg.solve(known, off).astype(float)
        found[str(pass_)] = Residual(sizes=at, weights=weights)
    return GroupedSurface.of(form, found)


def write_residuals(fitted: Fitted, measured: pd.DataFrame, path: Path) -> None:
    """grouped.csv: the measured points, and the weight of each in the residual of its pass."""
    lines: list[list[object]] = []
    for dtype, found in fitted.by_dtype.items():
        assert isinstance(found.form, GroupedSurface)
        for pass_, residual in found.form.residual.items():
            part = measured[(measured.dtype == dtype) & (measured.pass_ == pass_)]
            sizes = zip(*_asked(part, pass_), strict=True)
            lines += [
                [dtype, pass_, *(f"{size:g}" for size in line), weight]
                for line, weight in zip(sizes, residual.weights.tolist(), strict=True)
            ]
    write_csv(path, ["dtype", "pass", "rows", "groups", "n", "k", "m_max", "weight"], lines)
