"""The kernel families of a profile: fitted to a user's rows, scored, and written into the folder of tables.

Each function takes the rows and what is known of the chip, writes its files and returns what it did as a `Family`.
The formulas are those of `hwprofiles.forms`, which the cost model prices with.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.kernels import attention, collectives, gemm, grouped, grouped_harness, memory
from calibration.kernels.base import Errors, Floats, LeftOut, errors
from calibration.kernels.grouped_fit import SCORED_ROWS, Chip, alone_s, fit_named, form_of
from calibration.profile_rows import Measured
from hwprofiles.specs import DeviceSpec, Source

DENSE_DTYPES: Mapping[str, str] = {"fp8_row": "fp8"}  # a dtype of the harness -> the peak that bounds it


@dataclass(frozen=True, kw_only=True)
class Family:
    """What became of a family: errors in-sample by kind, left out, measured ranges, files with their sources.

    skipped: rows without a time, by reason, and measured ones that were not used. notes: anything else to know.
    """

    name: str
    cases: int
    in_sample: Mapping[str, Errors] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()
    domain: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    files: Mapping[str, Source] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


def peak_of(device: DeviceSpec, dtype: str) -> float | None:
    """Dense peak of a dtype of the harness; None where the device has none."""
    return device.peak_flop_per_s.get(DENSE_DTYPES.get(dtype, dtype))


def dense(measured: Measured, device: DeviceSpec, room: float, tables: Path) -> Family:
    """gemm.csv and gemm.toml. `room`: how far above the device's peak an endless GEMM may be."""
    points = gemm.points_of_rows(measured.of(gemm_family := "gemm"))
    forward = points[points.pass_ == "forward"]
    known, skipped = {}, dict(measured.left.get(gemm_family, {}))
    for dtype, part in forward.groupby("dtype"):
        peak = peak_of(device, str(dtype))
        if peak is None:
            skipped[f"no peak of {dtype} is known"] = len(part)
            continue
        chip = gemm.Chip(multiprocessors=device.num_sms, peak_flop_per_s=room * peak)
        known[str(dtype)] = gemm.Known(chip=chip, casts=False)
    fits = {dtype: gemm.fit(points, dtype, chip=chip, casts=casts) for dtype, (chip, casts) in known.items()}
    left = gemm.left_out(forward, known, device=measured.device)
    if len(known) == 1:  # then `all` says nothing more
        left = tuple(e for e in left if e.dtype_or_kind in known)
    rows = measured.of(gemm_family)
    note = "dgrad and wgrad were measured: passes." if all(f.passes for f in fits.values()) else ""
    fitted = measured.source("fitted", "Form of the dense GEMM", note, rows)
    (tables / "gemm.toml").write_text(gemm.text(fits, fitted, left), encoding="utf-8")
    _write_gemm(fits, tables / "gemm.csv")
    measured_note = "Seconds by n, k and m: measured points, brought onto a grid through the fitted form."
    return Family(
        name=gemm_family,
        cases=int(points.dtype.isin(list(fits)).sum()),
        in_sample={dtype: found.in_sample for dtype, found in fits.items()},
        left_out=left,
        domain={dtype: found.domain for dtype, found in fits.items()},
        files={"gemm": measured.source("measured", "Dense GEMM", measured_note, rows)},
        skipped=skipped,
        notes=_passes(fits),
    )


def _passes(fits: Mapping[str, gemm.GemmFit]) -> tuple[str, ...]:
    return tuple(
        f"{dtype}: {name} takes {ratio:.3f} of a forward product of its extents"
        for dtype, found in fits.items()
        for name, ratio in found.passes.items()
    )


def _write_gemm(fits: Mapping[str, gemm.GemmFit], path: Path) -> None:
    """All dtypes in one table; a cell stays empty where a dtype was not measured at that m."""
    axes = {dtype: [np.round(np.exp(axis)).astype(int) for axis in f.surface.axes] for dtype, f in fits.items()}
    header = sorted({int(m) for m, _, _ in axes.values() for m in m})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dtype", "n", "k", *[f"m{m}_s" for m in header]])
        for dtype, found in fits.items():
            m_axis, n_axis, k_axis = axes[dtype]
            mesh = np.meshgrid(m_axis, n_axis, k_axis, indexing="ij")
            time_s = np.exp(found.surface.residual) * found.form.time_s(*mesh)
            place = {int(m): i for i, m in enumerate(m_axis)}
            for j, n in enumerate(n_axis):
                for i, k in enumerate(k_axis):
                    cells = [f"{time_s[place[m], j, i]:.6g}" if m in place else "" for m in header]
                    writer.writerow([dtype, n, k, *cells])


def cores(measured: Measured, device: DeviceSpec, tables: Path) -> Family:
    """attention.csv, mla.csv and attention.toml."""
    rows = measured.of(attention.FAMILY)
    points = attention.points_of_rows(rows, measured.device)
    found, left = attention.fit(points, device), attention.left_out(points, device)
    note = "" if found.backward else "Backward is not measured: see hwprofiles/measured/attention_core.toml."
    fitted = measured.source("fitted", "Form of the forward attention core", note, rows)
    (tables / "attention.toml").write_text(attention.text(found, fitted, left), encoding="utf-8")
    attention.write_tables(found, tables)
    table = measured.source("measured", "Attention core, causal, 16 bit", "Fitted form times measured residual.", rows)
    missing = [part for part in found.forms if part not in found.domain]
    notes = [f"{part}: no shape of this kind was measured, its form follows the other's" for part in missing]
    notes += [
        f"{part}: backward over forward " + ", ".join(f"{seq:g}: {ratio:.2f}" for seq, ratio in ratios.items())
        for part, ratios in found.backward.items()
    ]
    return Family(
        name=attention.FAMILY,
        cases=len(points),
        in_sample=found.in_sample,
        left_out=left,
        domain=found.domain,
        files={"attention": table, "mla": table},
        skipped=measured.left.get(attention.FAMILY, {}),
        notes=notes,
    )


def experts(measured: Measured, device: DeviceSpec, floor_s: float, tables: Path) -> Family:
    """grouped.toml and grouped.csv. Left out: every (n, k) in turn, and all uneven rows."""
    rows = measured.of(grouped.FAMILY)
    points = grouped_harness.harness_points(rows)
    dense_points = gemm.points_of_rows(measured.of("gemm"))
    base = Chip(
        multiprocessors=float(device.num_sms), peak_flop_per_s=1.0, peak_bytes_per_s=device.mem_bytes_per_s,
        floor_s=floor_s,
    )  # fmt: skip
    chips, skipped = {}, dict(measured.left.get(grouped.FAMILY, {}))
    for dtype, part in points.groupby("dtype"):
        alike = dense_points[dense_points.dtype.map(lambda name: grouped_harness.DTYPES.get(name, name)) == dtype]
        if alike.empty:
            skipped[f"no dense GEMM of {dtype} to set the rate of its chip"] = len(part)
            continue
        best = float((2.0 * alike.m * alike.n * alike.k / alike.time_s).max())
        chips[str(dtype)] = grouped_harness.chip_near(base, best)
    points = points[points.dtype.isin(list(chips))]
    found = grouped_harness.fit_harness(points, chips)
    left = tuple(e for dtype, part in points.groupby("dtype") for e in _experts_left(part, chips[str(dtype)]))
    fitted = measured.source("fitted", "Grouped GEMM, kernels measured alone", "", rows)
    note = "Measured sizes; weight: of the point in the residual of its pass (hwprofiles/forms/grouped_residual.py)."
    grouped_harness.write_residuals(found, points, tables / "grouped.csv")
    (tables / "grouped.toml").write_text(grouped.text(found, fitted, left), encoding="utf-8")
    backward = {dtype: f.form.backward for dtype, f in found.by_dtype.items()}
    return Family(
        name=grouped.FAMILY,
        cases=len(points),
        in_sample={dtype: f.in_sample for dtype, f in found.by_dtype.items()},
        left_out=left,
        domain={dtype: f.domain for dtype, f in found.by_dtype.items()},
        files={"grouped": measured.source("measured", "Grouped GEMM, kernels measured alone", note, rows)},
        skipped=skipped,
        notes=[f"{dtype}: backward {how}" for dtype, how in backward.items()],
    )


def _experts_left(part: pd.DataFrame, chip: Chip) -> list[LeftOut]:
    dtype, truth = str(part.dtype.iloc[0]), part.time_s.to_numpy(dtype=float)
    scored = part.rows.to_numpy(dtype=float) >= SCORED_ROWS

    def without(held: grouped.Mask) -> Floats:
        named = fit_named(part[~held], chip, dtype)
        form = grouped_harness.with_residual(form_of(named, chip, dtype), part[~held])
        return alone_s(form, part[held])

    shape = part.groupby(["n", "k"]).ngroup().to_numpy()
    uneven = (part.m_max > np.ceil(part.rows / part.groups)).to_numpy()
    splits = {"pair": [shape == i for i in np.unique(shape)], "uneven": [uneven]}
    out = []
    for kind, masks in splits.items():
        pairs = [
            np.stack([without(held), truth[held]])[:, scored[held]] for held in masks if held.any() and not held.all()
        ]
        both = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0))
        if both.shape[1]:
            e = errors(*both)
            name = str(part.device.iloc[0])
            out.append(LeftOut(kind=kind, device=name, family=grouped.FAMILY, dtype_or_kind=dtype, **vars(e)))
    return out


def memory_bound(measured: Measured, floor_s: float, tables: Path) -> Family:
    """memory.csv."""
    rows = measured.of(memory.FAMILY)
    points = memory.points_of_rows(rows)
    curves = memory.fit(points, floor_s)
    memory.write_table(curves, tables / "memory.csv")
    note = (
        "Seconds by the bytes an op must move; the row of 0 bytes is the shortest kernel. Made to rise with the bytes."
    )
    domain = {
        f"{kernel} {pass_}": {"bytes": (float(c.bytes[0]), float(c.bytes[-1]))} for (kernel, pass_), c in curves.items()
    }
    return Family(
        name=memory.FAMILY,
        cases=len(points),
        in_sample={"all": memory.in_sample(curves, points)},
        left_out=memory.left_out(points, floor_s, measured.device),
        domain=domain,
        files={"memory": measured.source("measured", "Memory-bound kernels", note, rows)},
        skipped=measured.left.get(memory.FAMILY, {}),
    )


def between_ranks(measured: Measured, points: pd.DataFrame, tables: Path) -> Family:
    """collectives.csv, from rows of one node."""
    rows = measured.of(collectives.FAMILY)
    inside = points[points.nodes == 1]
    made = collectives.table(inside)
    collectives.write_table(made, tables / "collectives.csv")
    note = "Seconds per op, ranks and buffer bytes (the full buffer); the slowest rank; all-reduce of fp32."
    skipped = dict(measured.left.get(collectives.FAMILY, {}))
    if len(inside) < len(points):
        skipped["over several nodes: only send_recv counts, for the link between nodes"] = len(points) - len(inside)
    if len(points) < len(rows):
        skipped["a second dtype of the same op"] = len(rows) - len(points)
    ranges = {
        str(op): {name: (float(part[name].min()), float(part[name].max())) for name in ("ranks", "bytes")}
        for op, part in inside.groupby("op")
    }
    return Family(
        name=collectives.FAMILY,
        cases=len(inside),
        left_out=collectives.left_out(inside, measured.device),
        domain=ranges,
        files={"collectives": measured.source("measured", "Collectives inside one node", note, rows)},
        skipped=skipped,
        notes=["uneven: an all-to-all goes by the bytes that its most loaded rank exchanges with others"],
    )
