"""Grouped GEMM: measured points, fit, errors on what the fit has not seen, and the file it leaves behind.

Truth is every row of `hwprofiles/measured/<device>/moe.csv` and `moe_uneven.csv` as it was measured. Errors are stated
for at least `SCORED_ROWS` rows on the rank (m of the GEMM is its rows; `top_decade` leaves out rows above a
tenth of the most). The tables are fused layers; `grouped_harness` fits kernels that were measured alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.kernels.base import Errors, Floats, LeftOut, errors
from calibration.kernels.grouped_fit import SCORED_ROWS, Chip, LayerRest, fit_named, form_of, predicted_s, rest_of
from hwprofiles.catalogue import device
from hwprofiles.errors import UserError
from hwprofiles.forms.grouped import GroupedForm
from hwprofiles.specs import Source

FAMILY = "grouped_gemm"
# A setting is a fallback where it reads weights this much slower (log) than the fit at sizes that do little else.
SLOW = 0.25
FALLBACK_ROUNDS = 4  # the fit moves once the first are out, and may show more
STREAMING_ROWS = 32  # rows per expert up to which reading weights is all there is to do
STREAMING_TOKENS = 4  # fewer tokens touch too few experts to tell
LAYER = "layer"  # kind of the rows the form is fitted to: balanced, or on A100 the rows of one rank under a stated law
UNEVEN = ("stated", "eplb", "counted")
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class GroupedFit:
    """One dtype: fitted numbers, form, rest of the fused layer (None: kernels alone), error on its own rows."""

    named: Mapping[str, float]
    form: GroupedForm
    rest: LayerRest | None
    in_sample: Errors
    domain: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Fits of one device by dtype."""

    device: str
    by_dtype: Mapping[str, GroupedFit]


def chip_of(folder: str) -> Chip:
    """The chip of a measured device folder; the peak of a dtype is set by `peak`."""
    spec = device(folder)
    return Chip(
        multiprocessors=float(spec.num_sms),
        peak_flop_per_s=spec.peak_flop_per_s["bf16"],
        peak_bytes_per_s=spec.mem_bytes_per_s,
        floor_s=spec.launch_s,
    )


def _chip(folder: str, dtype: str) -> Chip:
    chip, spec = chip_of(folder), device(folder)
    return Chip(**{**vars(chip), "peak_flop_per_s": spec.peak_flop_per_s[dtype]})


def points(folder: str) -> pd.DataFrame:
    """Measured rows of a shipped device.

    Columns: device, kind, model, setting, dtype, hidden, ffn (of this rank), topk, groups (local experts), tokens, rows
    (of this rank), m_max (of the fullest local expert), time_s. Raises UserError for an unknown folder.
    """
    root = resources.files("hwprofiles") / "measured" / folder
    if not (root / "moe.csv").is_file():
        raise UserError(f"no measured MoE layers of {folder!r}: {root} has no moe.csv", where="measured")
    with (root / "moe.csv").open(encoding="utf-8") as file:
        layer = pd.read_csv(file)
    with (root / "moe_uneven.csv").open(encoding="utf-8") as file:
        uneven = pd.read_csv(file)
    rows = layer.tokens * layer.topk / layer.ep
    groups = layer.experts / layer.ep
    layer = layer.assign(
        kind=LAYER, model=_model(layer.hidden, layer.ffn), ffn=layer.ffn / layer.tp, rows=rows, groups=groups,
        setting="ep" + layer.ep.astype(str) + "/tp" + layer.tp.astype(str),
    )  # fmt: skip
    model = uneven.setting.str.split("/").str[0].where(uneven.kind == "counted", _model(uneven.hidden, uneven.ffn))
    columns = [
        "kind",
        "model",
        "setting",
        "dtype",
        "hidden",
        "ffn",
        "topk",
        "groups",
        "tokens",
        "rows",
        "m_max",
        "time_s",
    ]
    out = pd.concat([layer, uneven.assign(model=model)])[columns].reset_index(drop=True)
    # where the spread is not known it counts as even
    out["m_max"] = out.m_max.fillna(out.rows / np.minimum(out.groups, out.rows))
    out.insert(0, "device", folder)
    return out


def _model(hidden: pd.Series, ffn: pd.Series) -> pd.Series:
    return hidden.astype(int).astype(str) + "x" + ffn.astype(int).astype(str)


def fit(measured: pd.DataFrame) -> Fitted:
    """Fit every dtype of one device to its `layer` rows (see `points`)."""
    folder = str(measured.device.iloc[0])
    made = {}
    for dtype, part in _layers(measured):
        chip = _chip(folder, dtype)
        named = fit_named(part[~fallback(part, chip, dtype)], chip, dtype)
        scored = _scored(part)
        made[dtype] = GroupedFit(
            named=named,
            form=form_of(named, chip, dtype),
            rest=rest_of(named, chip),
            in_sample=errors(predicted_s(named, chip, dtype, scored), scored.time_s.to_numpy(float)),
            domain={
                name: (float(part[name].min()), float(part[name].max())) for name in ("rows", "groups", "hidden", "ffn")
            },
        )
    return Fitted(device=folder, by_dtype=made)


def fallback(part: pd.DataFrame, chip: Chip, dtype: str) -> Mask:
    """Rows of settings (model, ep, tp) that ran a slow fallback kernel; they are scored but not fitted.

    Tuners choose a kernel once per setting and sometimes fail, at every size. It is told from rows below the scored
    range: few rows per expert, where all kernels do is read weights, and the setting is `SLOW` behind the others.
    """
    streams = ((part.rows <= STREAMING_ROWS * part.groups) & (part.tokens >= STREAMING_TOKENS)).to_numpy()
    setting = (part.model + "/" + part.setting).to_numpy()
    slow: Mask = np.zeros(len(part), dtype=bool)
    for _ in range(FALLBACK_ROUNDS):
        late = -np.log1p(_without(part, slow, chip, dtype))
        median = pd.Series(late[streams]).groupby(setting[streams]).median()
        found: Mask = np.isin(setting, median.index[median > SLOW])
        if (found == slow).all():
            break
        slow = found
    return slow


def left_out(measured: pd.DataFrame) -> tuple[LeftOut, ...]:
    """Errors on rows that the fit had not seen.

    Kinds: `model` (whole models, one after the other), `model_steady` (of these those without `fallback`),
    `model_full_experts` (of these those with `SCORED_ROWS` rows
    per expert), `top_decade` (rows above a tenth of the most), `top_decade_tokens`; then of uneven rows
    `uneven_stated` (nothing uneven was fitted), `uneven_setting` (whole settings of wide expert parallelism) and
    `uneven_counted` (whole settings, where loads were counted).
    """
    folder = str(measured.device.iloc[0])
    out: list[LeftOut] = []

    def note(kind: str, dtype: str, off: Floats) -> None:
        if len(off):
            found = errors(1.0 + off, np.ones(len(off)))
            out.append(LeftOut(kind=kind, device=folder, family=FAMILY, dtype_or_kind=dtype, **vars(found)))

    for dtype, part in _layers(measured):
        chip = _chip(folder, dtype)
        slow = fallback(part, chip, dtype)
        scored = part.rows.to_numpy(float) >= SCORED_ROWS
        off = _without_each(part, part.model, chip, dtype, slow=slow)
        note("model", dtype, off[scored])
        note("model_steady", dtype, off[scored & ~slow])
        note("model_full_experts", dtype, off[part.rows.to_numpy(float) >= SCORED_ROWS * part.groups.to_numpy(float)])
        for kind, size in (("top_decade", part.rows), ("top_decade_tokens", part.tokens)):
            top = size.to_numpy(float) > size.max() / 10.0
            note(kind, dtype, _without(part, top | slow, chip, dtype)[top & scored])
        near = fit_named(part[~slow], chip, dtype)
        stated = _scored(measured[(measured.kind == "stated") & (measured.dtype == dtype)])
        note("uneven_stated", dtype, _off(near, chip, dtype, stated))
        for kind, name in (("eplb", "uneven_setting"), ("counted", "uneven_counted")):
            rows = _scored(measured[(measured.kind == kind) & (measured.dtype == dtype)])
            if len(rows):
                note(name, dtype, _without_each(rows, rows.setting, chip, dtype, near))
    return tuple(out)


def write(folder: str, fitted: Fitted, path: Path, *, left: tuple[LeftOut, ...] = (), date: str) -> None:
    """grouped.toml of a shipped device."""
    measured = "fused MoE layers" if any(found.rest for found in fitted.by_dtype.values()) else "grouped GEMM kernels"
    source = Source(
        kind="fitted",
        title=f"Grouped GEMM fitted to measured {measured} of {folder}",
        where=f"calibration/kernels/grouped.py over hwprofiles/measured/{folder}/moe.csv",
        date=date,
        licence="Apache-2.0",
        note="Burst clocks, as the measurements. Seconds, bytes and FLOP.",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(fitted, source, left), encoding="utf-8")


def text(fitted: Fitted, source: Source, left: Iterable[LeftOut] = ()) -> str:
    """The fitted numbers as grouped.toml: a section per dtype with form, rest of the fused layer, errors and domain."""
    left = tuple(left)
    names = [field.name for field in fields(GroupedForm) if field.name != "domain"]  # written apart, below
    lines = ["# Written by calibration.kernels.grouped; see hwprofiles/forms/grouped.py for what each number does."]
    for dtype, found in fitted.by_dtype.items():
        lines += ["", f"[{dtype}]"] + [_line(name, getattr(found.form, name)) for name in names]
        if found.rest is not None:
            lines += [f"[{dtype}.layer] # of a fused serving layer, not part of a trainer's grouped GEMM"]
            lines += [_line(name, value) for name, value in vars(found.rest).items()]
        lines += [f"[{dtype}.domain]"] + [f"{k} = [{low:.6g}, {high:.6g}]" for k, (low, high) in found.domain.items()]
        lines += [f"[{dtype}.errors] # relative: cases, median, 90th percentile"]
        lines += [_errors("in_sample", found.in_sample)]
        lines += [_errors(entry.kind, entry) for entry in left if entry.dtype_or_kind == dtype]
    lines += ["", "[source]", *(f"{key} = {json.dumps(value)}" for key, value in asdict(source).items())]
    return "\n".join(lines) + "\n"


def _line(name: str, value: float | str) -> str:
    return f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value:.6g}"


def _errors(name: str, found: Errors | LeftOut) -> str:
    return f"{name} = {{ cases = {found.cases}, median = {found.median:.4f}, p90 = {found.p90:.4f} }}"


def _layers(measured: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for dtype, part in measured[measured.kind == LAYER].groupby("dtype"):
        yield str(dtype), part


def _scored(part: pd.DataFrame) -> pd.DataFrame:
    return part[part.rows >= SCORED_ROWS]


def _off(named: Mapping[str, float], chip: Chip, dtype: str, rows: pd.DataFrame) -> Floats:
    if not len(rows):
        return np.zeros(0)
    off: Floats = predicted_s(named, chip, dtype, rows) / rows.time_s.to_numpy(float) - 1.0
    return off


def _without(part: pd.DataFrame, out: Mask, chip: Chip, dtype: str, near: Mapping[str, float] | None = None) -> Floats:
    """Relative errors of all rows under a fit without the rows `out`."""
    return _off(fit_named(part[~out], chip, dtype, near=near), chip, dtype, part)


def _without_each(
    part: pd.DataFrame,
    label: pd.Series,
    chip: Chip,
    dtype: str,
    near: Mapping[str, float] | None = None,
    *,
    slow: Mask | None = None,
) -> Floats:
    """Relative errors, those of every label under the fit to all others (rows `slow` never fitted)."""
    off = np.zeros(len(part))
    for name in sorted(label.unique()):
        out = (label == name).to_numpy()
        never = out if slow is None else out | slow
        off[out] = _without(part, never, chip, dtype, near)[out]
    return off
