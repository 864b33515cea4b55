"""Parameters of the attention form from measured points: least squares on log time, with a prior.

Lengths of a ramp alone do not say where it ends, so the parameters of a device are held near those of
other chips (in logarithms, the times in units of a tile pair, the tile pair as a share of the
matrix peak), as near as those agree among themselves.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from calibration.kernels.base import Floats
from hwprofiles.forms.attention import PAIR_DIMS, TILE, AttentionForm

SETS = ("core", "mla")  # kinds gqa and mha share one set of parameters: they differ by their kv heads
NAMES = ("efficiency", "floor_s", "tile", "head", "kv_tile", "sharpness", "throttle", "throttle_s")
MIN_SEQ = 256  # shorter sequences fill a tile or two: they say little about the rest
SHORT_WEIGHT = 0.2
OUTLIER = 0.1  # relative error beyond which a point counts linearly, not squared
STRUCTURE = 0.05  # relative error of the form itself, common to neighbouring points ...
INDEPENDENT = 10.0  # ... so that a table, however fine, weighs against the prior as about ten points
NARROWEST = 0.1  # least width of a prior: chips differ by that much even when few agree better


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What the form needs to know of a device."""

    multiprocessors: float
    peak_flop_per_s: float

    @property
    def unit_flop_per_s(self) -> float:
        """Peak of one multiprocessor."""
        return self.peak_flop_per_s / self.multiprocessors


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """Mean and standard deviation of the logarithms of `NAMES`."""

    mean: Floats
    width: Floats


def to_form(logs: Floats, chip: Chip) -> AttentionForm:
    """The form with these parameters on this chip."""
    value = dict(zip(NAMES, np.exp(logs).tolist(), strict=True))
    pair_s = 2.0 * TILE**2 * PAIR_DIMS / (value["efficiency"] * chip.unit_flop_per_s)
    return AttentionForm(
        multiprocessors=chip.multiprocessors,
        floor_s=value["floor_s"],
        pair_s=pair_s,
        tile_s=value["tile"] * pair_s,
        head_s=value["head"] * pair_s,
        kv_tile_s=value["kv_tile"] * pair_s,
        sharpness=1.0 + value["sharpness"],
        throttle=value["throttle"],
        throttle_s=value["throttle_s"],
    )


def form_s(form: AttentionForm, points: pd.DataFrame) -> Floats:
    """Seconds of the form at the sizes of `points`."""
    batch, heads, kv_heads, seq, dqk, dv = (
        points[name].to_numpy(dtype=float) for name in ("batch", "heads", "kv_heads", "seq", "dqk", "dv")
    )
    # keys and values that are expanded per head are part of what its tiles cost
    return form.time_s(batch * heads, np.where(dqk == dv, batch * kv_heads, 0.0), seq, dqk + dv)


def fit_logs(points: pd.DataFrame, chip: Chip, prior: Prior) -> Floats:
    """Logarithms of `NAMES` that fit the forward times of `points`; the prior where there are no points."""
    if points.empty:
        return prior.mean
    log_time = np.log(points.time_s.to_numpy(dtype=float))
    weight = np.where(points.seq.to_numpy() < MIN_SEQ, SHORT_WEIGHT, 1.0)
    pull = STRUCTURE * np.sqrt(max(len(points) / INDEPENDENT, 1.0)) / prior.width

    def residuals(logs: Floats) -> Floats:
        off = (np.log(form_s(to_form(logs, chip), points)) - log_time) * weight
        return np.concatenate([off, (logs - prior.mean) * pull])

    found = least_squares(residuals, prior.mean, loss="soft_l1", f_scale=OUTLIER, x_scale=prior.width, max_nfev=200)
    return np.asarray(found.x, dtype=np.float64)


@cache
def start() -> Mapping[str, Prior]:
    """The wide prior of `attention_start.toml`, by parameter set."""
    text = (resources.files("calibration") / "kernels" / "attention_start.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return {
        name: Prior(
            mean=np.log([data[name][key]["value"] for key in NAMES]),
            width=np.array([data[name][key]["width"] for key in NAMES]),
        )
        for name in SETS
    }


def pooled(fits: Sequence[Floats], wide: Prior) -> Prior:
    """Prior from the fits of other chips: their mean, their spread (never above that of `wide`)."""
    if not fits:
        return wide
    table = np.array(fits)
    spread = table.std(axis=0, ddof=1) if len(table) > 1 else wide.width
    # the mean of few is uncertain itself: the next one is spread sqrt(1 + 1/n) wider
    spread = np.clip(spread * np.sqrt(1.0 + 1.0 / len(table)), NARROWEST, wide.width)
    return Prior(mean=table.mean(axis=0), width=spread)
