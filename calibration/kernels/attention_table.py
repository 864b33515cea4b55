"""The measured table of an attention core from scattered points: form times interpolated residual.

The residual is the log of measured over form, in log(batch x heads) and log(seq): see `kriging`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from calibration.carry import monotone
from calibration.kernels.attention_form import form_s
from calibration.kernels.base import Floats
from calibration.kernels.kriging import krige
from hwprofiles.forms.attention import TABLE_DIMS, TABLE_GROUP, AttentionForm, Curve, core_s
from hwprofiles.interpolate import Grid

LENGTH = 2.0 * np.log(2.0)  # distance of logs at which the covariance has fallen to 1/e: two octaves
AHEAD = 4  # octaves of seq that a table goes beyond the measured ones
LEAST = (8.0, 128.0)  # a table spans at least a factor of two from here when few points were measured


def kind_of(points: pd.DataFrame) -> pd.Series:
    """`mla` (dqk not dv), `mha` (a kv head per head), `gqa` (four or more heads per kv head) or, between, `mixed`."""
    group = points.heads / points.kv_heads
    kinds = np.select([points.dqk != points.dv, group >= 4, group <= 1], ["mla", "gqa", "mha"], "mixed")
    return pd.Series(kinds, index=points.index)


def set_of(kind: str) -> str:
    """The parameter set of a kind of core."""
    return "mla" if kind == "mla" else "core"


def of_set(points: pd.DataFrame, name: str) -> pd.Series:
    """Which points belong to a parameter set."""
    mla: pd.Series = points.dqk != points.dv
    return mla if name == "mla" else ~mla


def levels(values: Floats, least: float) -> Floats:
    """The measured values and the powers of two between them, at least two."""
    low, high = (values.min(), values.max()) if len(values) else (least, least)
    octaves = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    found = np.unique(np.concatenate([values, octaves, [low]]))
    return found if len(found) > 1 else np.array([low, 2.0 * low])


def curve(points: pd.DataFrame, columns: Floats, kind: str, form: AttentionForm) -> Curve:
    """Table of a kind: rows on its measured batch x heads and the octaves between, `columns` of seq."""
    chosen = points[kind_of(points) == kind]
    bh = (chosen.batch * chosen.heads).to_numpy(dtype=float)
    rows = levels(bh, LEAST[0])
    mesh = np.stack([axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij")], axis=1)
    group = TABLE_GROUP[kind]
    time_s = form.time_s(mesh[:, 0], mesh[:, 0] / group if group else 0.0, mesh[:, 1], TABLE_DIMS[kind])
    if len(chosen):
        off = pd.DataFrame({"bh": bh, "seq": chosen.seq.to_numpy(dtype=float)})
        off["log"] = np.log(chosen.time_s.to_numpy(dtype=float) / form_s(form, chosen))
        cells = off.groupby(["bh", "seq"]).log.median().reset_index()
        known, residual = cells[["bh", "seq"]].to_numpy(dtype=float), cells["log"].to_numpy(dtype=float)
        time_s = time_s * np.exp(krige(np.log(mesh), np.log(known), residual, (LENGTH, LENGTH)))
    table = monotone(time_s.reshape(len(rows), len(columns)))
    grid = Grid(log_axes=(np.log(rows), np.log(columns)), log_time=np.log(table))
    return Curve(grid=grid, form=form, group=group, dims=TABLE_DIMS[kind])


def curves(points: pd.DataFrame, forms: Mapping[str, AttentionForm]) -> dict[str, Curve]:
    """Tables of all kinds; gqa and mha share the columns."""
    found = {}
    for kind in TABLE_GROUP:
        name = set_of(kind)
        seq = points.seq[of_set(points, name)].to_numpy(dtype=float)
        found[kind] = curve(points, columns_of(seq), kind, forms[name])
    return found


def columns_of(seq: Floats) -> Floats:
    """The measured lengths, the octaves between and `AHEAD` beyond: what is particular to the longest fades there."""
    found = levels(seq, LEAST[1])
    return np.concatenate([found, found[-1] * 2.0 ** np.arange(1, AHEAD + 1)])


def predicted_s(found: Mapping[str, Curve], points: pd.DataFrame) -> Floats:
    """Seconds that the cost model gives for the forward cores of `points`."""
    bh, seq = (points.batch * points.heads).to_numpy(dtype=float), points.seq.to_numpy(dtype=float)
    group, dims = (points.heads / points.kv_heads).to_numpy(dtype=float), (points.dqk + points.dv).to_numpy(dtype=float)
    latent = of_set(points, "mla").to_numpy()
    time_s = np.empty(len(points))
    for mask, is_latent in ((latent, True), (~latent, False)):
        if mask.any():
            time_s[mask] = core_s(found, bh[mask], group[mask], seq[mask], dims[mask], latent=is_latent)
    return time_s
