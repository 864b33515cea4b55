"""Attention core: the form and tables of `hwprofiles.forms.attention` fitted to measured times, and their errors.

Truth is what was measured: the rows `attention_points.csv` of a shipped device (per point the fastest
training-like kernel), or forward rows of the harness. `left_out` refits form and table without the points it
then predicts. The prior of a shipped chip rests on the other chips only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.carry import SYSTEMS, write_csv
from calibration.kernels.attention_form import MIN_SEQ, SETS, Chip, Prior, fit_logs, pooled, start, to_form
from calibration.kernels.attention_table import curves, kind_of, of_set, predicted_s
from calibration.kernels.base import Errors, Floats, LeftOut, errors
from hwprofiles import catalogue
from hwprofiles.forms.attention import TABLE_GROUP, AttentionForm, Curve
from hwprofiles.specs import DeviceSpec, Source

FAMILY = "attention"
LEAVING_OUT = ("config", "batch_heads", "top_decade")
Mask = NDArray[np.bool_]
SIZES = ["batch", "heads", "kv_heads", "dqk", "dv", "seq"]
# Chips whose multiprocessors peak within this factor of each other are one design: no evidence for each other.
SAME_DESIGN = 1.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """Forms by parameter set, tables by kind, in-sample errors by kind, `domain` by parameter set (measured ranges).

    `backward` holds time over the forward by measured seq, per parameter set; empty where no backward was measured.
    """

    device: str
    forms: Mapping[str, AttentionForm]
    curves: Mapping[str, Curve]
    in_sample: Mapping[str, Errors]
    domain: Mapping[str, Mapping[str, tuple[float, float]]]
    backward: Mapping[str, Mapping[float, float]]


def points(folder: str) -> pd.DataFrame:
    """Measured forward cores of a shipped device: batch, heads, kv_heads, dqk, dv, seq, time_s, pass_, device."""
    path = resources.files("hwprofiles") / "measured" / folder / "attention_points.csv"
    with path.open(encoding="utf-8") as file:
        frame: pd.DataFrame = pd.read_csv(file)
    return frame.assign(pass_="forward", device=folder)


def points_of_rows(rows: Sequence[Mapping[str, str]], device: str) -> pd.DataFrame:
    """The same from harness rows: causal, 16 bit, per shape and pass the fastest backend that worked."""
    found = []
    for row in rows:
        if row["family"] != FAMILY or row["status"] != "ok" or row["dtype"] not in ("bf16", "fp16"):
            continue
        sizes = json.loads(row["sizes"])
        if sizes["causal"]:
            found.append(
                {**{name: sizes[name] for name in SIZES}, "time_s": float(row["median_s"]), "pass_": row["pass"]}
            )
    frame = pd.DataFrame(found, columns=[*SIZES, "time_s", "pass_"])
    return frame.groupby([*SIZES, "pass_"]).time_s.min().reset_index().assign(device=device)


def chip_of(device: DeviceSpec) -> Chip:
    """Multiprocessors and 16-bit matrix peak of a device."""
    return Chip(multiprocessors=float(device.num_sms), peak_flop_per_s=device.peak_flop_per_s["bf16"])


@cache
def _alone(folder: str, name: str) -> tuple[float, ...]:
    """Logs of the parameters of a shipped device from its own points and the wide start only."""
    frame = points(folder)
    return tuple(fit_logs(frame[of_set(frame, name)], chip_of(catalogue.device(folder)), start()[name]))


def priors(chip: Chip, *, blind: bool) -> dict[str, Prior]:
    """By parameter set, the prior of a chip from the shipped devices; `blind`: from those of other designs only."""
    chips = {folder: chip_of(catalogue.device(folder)) for folder in SYSTEMS}
    used = [
        folder
        for folder, other in chips.items()
        if not blind or abs(np.log(other.unit_flop_per_s / chip.unit_flop_per_s)) > np.log(SAME_DESIGN)
    ]
    return {name: pooled([np.array(_alone(folder, name)) for folder in used], start()[name]) for name in SETS}


def fit(frame: pd.DataFrame, device: DeviceSpec | None = None) -> Fitted:
    """Forms and tables of one device from its measured points, many or few.

    `device` is the machine; by default the shipped device the points name, whose prior is blind to it. A
    parameter set without a point departs from its prior as the other set does from its own. Raises
    ValueError where no forward was measured.
    """
    name = str(frame.device.iloc[0]) if len(frame) else ""
    chip = chip_of(device or catalogue.device(name))
    prior = priors(chip, blind=device is None)
    forward = frame[frame.pass_ == "forward"]
    if forward.empty:
        raise ValueError("no forward attention was measured: nothing to fit")
    forms, found = _fit(forward, chip, prior)
    predicted = predicted_s(found, forward)
    return Fitted(
        device=name,
        forms=forms,
        curves=found,
        in_sample={kind: e for kind, e in _errors(forward, predicted).items() if e is not None},
        domain={part: _domain(forward[of_set(forward, part)]) for part in SETS if of_set(forward, part).any()},
        backward=_backward(frame),
    )


def left_out(
    frame: pd.DataFrame, device: DeviceSpec | None = None, kinds: Sequence[str] = LEAVING_OUT
) -> tuple[LeftOut, ...]:
    """Errors at points left out of fit and table, by kind of core and of leaving out.

    `config`: each (heads, kv_heads, dqk) whole; `batch_heads`: each batch x heads whole; `top_decade`:
    all lengths above a tenth of the longest. Lengths of at least `MIN_SEQ` are scored.
    """
    forward = frame[frame.pass_ == "forward"].reset_index(drop=True)
    name = str(forward.device.iloc[0])
    chip = chip_of(device or catalogue.device(name))
    prior = priors(chip, blind=device is None)
    result: list[LeftOut] = []
    for kind in kinds:
        folds = [held for held in _folds(forward, kind) if not held.all()]
        if not folds:
            continue
        parts, predictions = [], []
        for held in folds:
            _, found = _fit(forward[~held], chip, prior)
            parts.append(forward[held])
            predictions.append(predicted_s(found, forward[held]))
        for core, found_errors in _errors(pd.concat(parts), np.concatenate(predictions)).items():
            if found_errors is not None:
                result.append(
                    LeftOut(kind=kind, device=name, family=FAMILY, dtype_or_kind=core, **asdict(found_errors))
                )
    return tuple(result)


def write(folder: str, fitted: Fitted, path: Path, source: Source, left: Sequence[LeftOut] = ()) -> None:
    """Write `fitted/kernels/<folder>/attention.toml` and `measured/<folder>/{attention,mla}.csv` under `path`."""
    target = path / "fitted" / "kernels" / folder
    target.mkdir(parents=True, exist_ok=True)
    (target / "attention.toml").write_text(text(fitted, source, left), encoding="utf-8")
    write_tables(fitted, path / "measured" / folder)


def write_tables(fitted: Fitted, tables: Path) -> None:
    """Write attention.csv and mla.csv into the folder `tables`."""
    tables.mkdir(parents=True, exist_ok=True)
    for name, kinds in (("attention", ("gqa", "mha")), ("mla", ("mla",))):
        grids = {kind: fitted.curves[kind].grid for kind in kinds}
        seqs = np.exp(grids[kinds[0]].log_axes[1])
        rows = [
            [kind, f"{bh:.10g}", *np.exp(line).tolist()]
            for kind, grid in grids.items()
            for bh, line in zip(np.exp(grid.log_axes[0]).tolist(), grid.log_time, strict=True)
        ]
        write_csv(tables / f"{name}.csv", ["kind", "bh", *[f"seq{seq:.10g}_s" for seq in seqs]], rows)


def text(fitted: Fitted, source: Source, left: Sequence[LeftOut] = ()) -> str:
    """The fitted numbers as attention.toml."""
    lines = ["# Written by calibration.kernels.attention; the form is hwprofiles/forms/attention.py.", "", "[source]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in asdict(source).items()]
    for part, form in fitted.forms.items():
        lines += ["", f"[attention.{part}] # seconds"]
        lines += [f"{key} = {value:.6g}" for key, value in asdict(form).items()]
        if part in fitted.domain:
            ranges = (f"{key} = [{low:g}, {high:g}]" for key, (low, high) in fitted.domain[part].items())
            lines += ["", f"[attention.domain.{part}]", *ranges]
    for part, ratios in fitted.backward.items():
        lines += ["", f"[attention.backward.{part}]", f"seq_tokens = {[float(f'{s:g}') for s in ratios]}"]
        lines += [f"ratio = {[float(f'{r:.4g}') for r in ratios.values()]}"]
    scores = [("nothing", kind, e) for kind, e in fitted.in_sample.items()]
    scores += [(e.kind, e.dtype_or_kind, Errors(cases=e.cases, median=e.median, p90=e.p90)) for e in left]
    for left_kind, kind, e in scores:
        lines += ["", "[[attention.errors]]", f'left_out = "{left_kind}"', f'kind = "{kind}"']
        lines += [f"cases = {e.cases}", f"median = {e.median:.4f}", f"p90 = {e.p90:.4f}"]
    return "\n".join(lines) + "\n"


def _fit(
    forward: pd.DataFrame, chip: Chip, prior: Mapping[str, Prior]
) -> tuple[dict[str, AttentionForm], dict[str, Curve]]:
    parts = {name: forward[of_set(forward, name)] for name in SETS}
    logs = {name: fit_logs(parts[name], chip, prior[name]) for name in SETS if len(parts[name])}
    for name, other in (SETS, SETS[::-1]):
        if name not in logs:
            logs[name] = prior[name].mean + logs[other] - prior[other].mean
    forms = {name: to_form(logs[name], chip) for name in SETS}
    return forms, curves(forward, forms)


def _errors(measured: pd.DataFrame, predicted: Floats) -> dict[str, Errors | None]:
    """By kind, and `core` for all but MLA; None where nothing of the kind is long enough."""
    kinds = kind_of(measured).to_numpy()
    scored = measured.seq.to_numpy() >= MIN_SEQ
    chosen = {"core": scored & (kinds != "mla"), **{kind: scored & (kinds == kind) for kind in TABLE_GROUP}}
    truth = measured.time_s.to_numpy(dtype=float)
    return {kind: errors(predicted[mask], truth[mask]) if mask.any() else None for kind, mask in chosen.items()}


def _folds(forward: pd.DataFrame, kind: str) -> list[Mask]:
    """The points held out together, one mask after the other, for a kind of `LEAVING_OUT`."""
    if kind == "top_decade":
        longest = forward.groupby(of_set(forward, "mla")).seq.transform("max")
        return [(forward.seq > longest / 10).to_numpy()]
    names = SIZES[1:4] if kind == "config" else ["size"]
    number = forward.assign(size=forward.batch * forward.heads).groupby(names).ngroup().to_numpy()
    return [number == one for one in np.unique(number)]


def _domain(forward: pd.DataFrame) -> dict[str, tuple[float, float]]:
    group = forward.heads / forward.kv_heads
    ranges = {"seq": forward.seq, "batch_heads": forward.batch * forward.heads, "heads_per_kv_head": group}
    return {key: (float(values.min()), float(values.max())) for key, values in ranges.items()}


def _backward(frame: pd.DataFrame) -> dict[str, dict[float, float]]:
    """Median of backward over forward at equal sizes, by parameter set and seq."""
    forward, backward = (frame[frame.pass_ == name] for name in ("forward", "backward"))
    both = forward.merge(backward, on=SIZES, suffixes=("", "_backward"))
    both["ratio"] = both.time_s_backward / both.time_s
    result = {}
    for name in SETS:
        part = both[of_set(both, name)]
        if len(part):
            ratio = part.groupby("seq").ratio.median()
            result[name] = dict(zip(ratio.index.astype(float), ratio.astype(float), strict=True))
    return result


def write_one(folder: str, path: Path) -> None:
    """Fit, score and write a shipped device under `path` (laid out as the package folder of hwprofiles)."""
    source = Source(
        kind="fitted",
        title="Form of the forward attention core, fitted to measured kernels of this device",
        where=f"calibration/kernels/attention.py over hwprofiles/measured/{folder}/attention_points.csv",
        date="2026-11-22",
        licence="Apache-2.0",
        note="Backward is not measured: see hwprofiles/measured/attention_core.toml.",
    )
    frame = points(folder)
    write(folder, fit(frame), path, source, left_out(frame))
