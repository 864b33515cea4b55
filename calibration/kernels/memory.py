"""Memory-bound kernel classes: measured seconds against the bytes an op must move, and their errors.

Truth are the rows `memory` of the harness. Shapes of equal bytes count as one size: the class is a function of its
bytes, and what that does not tell stands in the errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.carry import monotone, write_csv
from calibration.kernels.base import Errors, Floats, LeftOut, errors
from hwprofiles.forms.memory import MemoryCurve

FAMILY = "memory"
COLUMNS = ["kernel", "pass", "bytes", "time_s"]
Curves = dict[tuple[str, str], MemoryCurve]


def points_of_rows(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Memory rows of the harness: kernel, pass, bytes, time_s; one line per shape."""
    found = [
        (row["op"], row["pass"], float(row["bytes"]), float(row["median_s"]))
        for row in rows
        if row["family"] == FAMILY and row["status"] == "ok"
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def fit(points: pd.DataFrame, floor_s: float) -> Curves:
    """One curve per class and pass: the median of the logs per size, made to rise with the bytes.

    `floor_s`: shortest kernel of the device.
    """
    curves: Curves = {}
    for (kernel, pass_), part in points.groupby(["kernel", "pass"]):
        log_time = np.log(part.time_s).groupby(part.bytes).median()
        times = monotone(np.exp(log_time.to_numpy(dtype=float)))
        sizes = log_time.index.to_numpy(dtype=float)
        curves[str(kernel), str(pass_)] = MemoryCurve(floor_s=min(floor_s, float(times[0])), bytes=sizes, time_s=times)
    return curves


def predicted_s(curves: Curves, points: pd.DataFrame) -> Floats:
    """Seconds of the curves at `points`."""
    asked = zip(points.kernel, points["pass"], points.bytes, strict=True)
    return np.array([float(curves[kernel, pass_].seconds(nbytes)) for kernel, pass_, nbytes in asked])


def in_sample(curves: Curves, points: pd.DataFrame) -> Errors:
    """Errors at the points that the curves were made of."""
    return errors(predicted_s(curves, points), points.time_s.to_numpy(dtype=float))


def left_out(points: pd.DataFrame, floor_s: float, device: str) -> tuple[LeftOut, ...]:
    """Errors with each size of each class left out in turn, apart for those inside and at the ends of the range."""
    found: dict[str, list[Floats]] = {"size": [], "end_size": []}
    for _, part in points.groupby(["kernel", "pass"]):
        sizes = np.unique(part.bytes)
        for size in sizes if len(sizes) > 2 else ():
            held = part.bytes == size
            kind = "end_size" if size in (sizes[0], sizes[-1]) else "size"
            asked = part[held]
            truth = asked.time_s.to_numpy(dtype=float)
            found[kind].append(np.stack([predicted_s(fit(part[~held], floor_s), asked), truth]))
    out = []
    for kind, parts in found.items():
        if parts:
            e = errors(*np.concatenate(parts, axis=1))
            out.append(LeftOut(kind=kind, device=device, family=FAMILY, dtype_or_kind="all", **vars(e)))
    return tuple(out)


def write_table(curves: Curves, path: Path) -> None:
    """memory.csv: the curves, and the floor of each as its row of 0 bytes."""
    rows: list[list[object]] = []
    for (kernel, pass_), curve in sorted(curves.items()):
        rows.append([kernel, pass_, "0", curve.floor_s])
        pairs = zip(curve.bytes.tolist(), curve.time_s.tolist(), strict=True)
        rows += [[kernel, pass_, f"{nbytes:.10g}", time_s] for nbytes, time_s in pairs]
    write_csv(path, COLUMNS, rows)
