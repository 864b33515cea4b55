"""Parameters of a grouped GEMM from measured times: least squares on their logarithms, held by `grouped_start.toml`.

Two kinds of points: fused layers (both GEMMs of the experts and what a serving kernel does around them) and
kernels measured alone. The GEMM part is the same form, so that a layer measured as a whole still tells what
a trainer's grouped GEMM costs; the rest of the layer (`LayerRest`) serves the comparison with those measurements only.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from calibration.kernels.base import Floats
from hwprofiles.forms.grouped import GroupedForm, operand_bytes

ELEMENT_BYTES = 2.0  # that passes are counted in
SCORED_ROWS = 256  # rows of a rank from which errors are stated
SMALL_WEIGHT = 0.1  # residuals below count this much: they show floors and little else
NOISE = 0.05  # relative; where the loss turns from squares to absolute values, as single settings are off by factors


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What is known of a device before anything is fitted; fitted rates may not exceed the peaks."""

    multiprocessors: float
    peak_flop_per_s: float
    peak_bytes_per_s: float
    floor_s: float


@dataclass(frozen=True, kw_only=True)
class LayerRest:
    """What a fused MoE layer costs besides its two grouped GEMMs (seconds, or seconds per unit named)."""

    fixed_s: float
    row_element_s: float
    ffn_element_s: float
    token_element_s: float
    row_s: float
    slot_s: float

    def time_s(self, points: pd.DataFrame) -> Floats:
        """Seconds for rows, tokens, topk, hidden and ffn of `points`."""
        rows, tokens = points.rows.to_numpy(float), points.tokens.to_numpy(float)
        hidden, ffn = points.hidden.to_numpy(float), points.ffn.to_numpy(float)
        time_s: Floats = (
            self.fixed_s
            + rows * (hidden * self.row_element_s + ffn * self.ffn_element_s + self.row_s)
            + tokens * (hidden * self.token_element_s + points.topk.to_numpy(float) * self.slot_s)
        )
        return time_s


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Names, centres, widths and limits (all but names in natural logarithms) of the fitted numbers."""

    names: tuple[str, ...]
    centre: Floats
    width: Floats
    low: Floats
    high: Floats


@cache
def start(*tables: str) -> Start:
    """The numbers of the named tables of `grouped_start.toml`."""
    path = resources.files("calibration") / "kernels" / "grouped_start.toml"
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    entries = {name: entry for table in tables for name, entry in data[table].items()}
    column = {key: np.array([entry[key] for entry in entries.values()]) for key in ("value", "width", "low", "high")}
    return Start(
        names=tuple(entries), centre=np.log(column["value"]), width=column["width"], low=np.log(column["low"]),
        high=np.log(column["high"]),
    )  # fmt: skip


def form_of(named: Mapping[str, float], chip: Chip, dtype: str, *, backward: str = "assumed") -> GroupedForm:
    """The form with these fitted numbers."""
    return GroupedForm(
        operand_bytes=operand_bytes(dtype),
        flop_per_s=chip.peak_flop_per_s * named["flop_share"],
        bytes_per_s=chip.peak_bytes_per_s * named["bytes_share"],
        tail_tiles=chip.multiprocessors * named["tail_waves"],
        floor_s=named.get("floor_s", chip.floor_s),
        dgrad=named.get("dgrad", 1.0),
        wgrad=named.get("wgrad", 1.0),
        backward=backward,
        pad_rows=named["pad_rows"],
        edge_n=named["edge_n"],
        edge_k=named["edge_k"],
        traffic=named["traffic"],
        sharpness=named["sharpness"],
    )


def rest_of(named: Mapping[str, float], chip: Chip) -> LayerRest:
    """The rest of a layer with these fitted numbers."""
    element_s = ELEMENT_BYTES / chip.peak_bytes_per_s
    return LayerRest(
        fixed_s=named["fixed_s"],
        row_element_s=named["row_passes"] * element_s,
        ffn_element_s=named["ffn_passes"] * element_s,
        token_element_s=named["token_passes"] * element_s,
        row_s=named["row_passes"] * named["row_elements"] * element_s,
        slot_s=named["slot_bytes"] / chip.peak_bytes_per_s,
    )


def layer_s(form: GroupedForm, rest: LayerRest, points: pd.DataFrame) -> Floats:
    """Seconds of a fused layer: gate and up in one GEMM, down in another, and the rest."""
    rows, groups, peak = (points[name].to_numpy(float) for name in ("rows", "groups", "m_max"))
    groups = np.minimum(groups, rows)  # an expert without rows reads no weights
    hidden, ffn = points.hidden.to_numpy(float), points.ffn.to_numpy(float)
    gemms = form.product_s(rows, groups, 2.0 * ffn, hidden, peak) + form.product_s(rows, groups, hidden, ffn, peak)
    total: Floats = gemms + rest.time_s(points)
    return total


def alone_s(form: GroupedForm, points: pd.DataFrame) -> Floats:
    """Seconds of kernels measured alone, by `pass_`: forward, dgrad, wgrad (n and k are those of the weight)."""
    columns = ("rows", "groups", "n", "k", "m_max")
    rows, groups, n, k, peak = (points[name].to_numpy(float) for name in columns)
    groups = np.minimum(groups, rows)
    forward = form.product_s(rows, groups, n, k, peak)
    dgrad = form.dgrad_s(rows, groups, k, n, peak)
    wgrad = form.wgrad_s(rows, groups, n, k, peak)
    pass_ = points.pass_.to_numpy()
    time_s: Floats = np.where(pass_ == "forward", forward, np.where(pass_ == "dgrad", dgrad, wgrad))
    return time_s


def predicted_s(named: Mapping[str, float], chip: Chip, dtype: str, points: pd.DataFrame) -> Floats:
    """Seconds of `points`: fused layers where they have a column `ffn`, kernels alone otherwise."""
    form = form_of(named, chip, dtype)
    return layer_s(form, rest_of(named, chip), points) if "ffn" in points else alone_s(form, points)


def fit_named(
    points: pd.DataFrame, chip: Chip, dtype: str, *, near: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The fitted numbers of one device and dtype; `near`: a neighbouring fit to start from and stay close to."""
    begin = start("kernel", "layer" if "ffn" in points else "alone")
    centre = begin.centre if near is None else np.log([near[name] for name in begin.names])
    time_s = points.time_s.to_numpy(float)
    weight = np.where(points.rows.to_numpy(float) >= SCORED_ROWS, 1.0, SMALL_WEIGHT)
    if not len(points):
        return dict(zip(begin.names, np.exp(centre), strict=True))

    def residuals(logs: Floats) -> Floats:
        named = dict(zip(begin.names, np.exp(logs), strict=True))
        off = weight * np.log(predicted_s(named, chip, dtype, points) / time_s) / NOISE
        return np.concatenate([off, (logs - centre) / begin.width])

    room = 1e-6
    first = np.clip(centre, begin.low + room, begin.high - room)
    found = least_squares(residuals, first, bounds=(begin.low, begin.high), loss="soft_l1", max_nfev=200).x
    return dict(zip(begin.names, (float(x) for x in np.exp(found)), strict=True))
