"""Collectives inside one node: the measured table by op, ranks and bytes, and what an uneven all-to-all rests on.

Truth are the even rows `collectives` of the harness whose ranks share a node. An uneven all-to-all is predicted as the
even one in which every rank exchanges what the most loaded one does; its error says how good that is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.carry import write_csv
from calibration.kernels.base import Errors, Floats, LeftOut, errors

FAMILY = "collectives"
# Op of the harness -> (op of the table, dtype that is kept where several were measured: gradients are summed in fp32).
OPS: Mapping[str, tuple[str, str]] = {
    "all_reduce": ("all_reduce", "fp32"),
    "all_gather": ("all_gather", "bf16"),
    "reduce_scatter": ("reduce_scatter", "fp32"),
    "all_to_all": ("alltoall", "bf16"),
    "send_recv": ("send_recv", "bf16"),
}
P2P = "send_recv"


def points_of_rows(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Collective rows of the harness: op, ranks, bytes, bytes_off_max, spread, nodes, time_s."""
    found = []
    for row in rows:
        if row["family"] != FAMILY or row["op"] not in OPS:
            continue
        op, dtype = OPS[row["op"]]
        if row["dtype"] == dtype:
            sizes = json.loads(row["sizes"])
            nodes = int(json.loads(row["observed"] or "{}").get("nodes", 1))
            numbers = [sizes[name] for name in ("ranks", "bytes", "bytes_off_max", "spread")]
            found.append((op, *numbers, nodes, float(row["median_s"])))
    columns = ["op", "ranks", "bytes", "bytes_off_max", "spread", "nodes", "time_s"]
    return pd.DataFrame(found, columns=columns)


def table(points: pd.DataFrame) -> pd.DataFrame:
    """Seconds by (op, ranks) and bytes (columns), from even rows of one node; empty where there are none.

    The columns are the sizes of all ops; where an op lacks one, its neighbours are interpolated (log-log), or beyond
    its last size held at their rate.
    """
    even = points[(points.spread == "even") & (points.op != P2P)]
    if even.empty:
        return pd.DataFrame()
    # buffers are cut to what the ranks divide: sizes that differ by a few elements are one column
    columns = np.unique(np.round(np.log2(even.bytes.to_numpy(dtype=float)), 3))
    lines = {}
    for (op, ranks), part in even.groupby(["op", "ranks"]):
        lines[op, ranks] = _at(part.bytes.to_numpy(dtype=float), part.time_s.to_numpy(dtype=float), 2.0**columns)
    return pd.DataFrame.from_dict(lines, orient="index", columns=np.round(2.0**columns)).sort_index()


def _at(sizes: Floats, times: Floats, asked: Floats) -> Floats:
    order = np.argsort(sizes)
    sizes, times = sizes[order], times[order]
    inside = np.exp(np.interp(np.log(asked), np.log(sizes), np.log(times)))
    result: Floats = inside * np.maximum(asked / sizes[-1], 1.0)
    return result


def left_out(points: pd.DataFrame, device: str) -> tuple[LeftOut, ...]:
    """Errors with each size of an op left out (`size`), and of uneven all-to-alls (`uneven`)."""
    found: dict[str, list[tuple[float, float]]] = {"size": [], "uneven": []}
    even = points[points.spread == "even"]
    for _, part in even.groupby(["op", "ranks"]):
        ordered = part.sort_values("bytes")
        sizes, times = ordered.bytes.to_numpy(dtype=float), ordered.time_s.to_numpy(dtype=float)
        for i in range(1, len(sizes) - 1):
            kept = np.arange(len(sizes)) != i
            found["size"].append((float(_at(sizes[kept], times[kept], sizes[i : i + 1])[0]), float(times[i])))
    uneven = points[points.spread != "even"]
    for row in uneven.itertuples():
        alike = even[(even.op == row.op) & (even.ranks == row.ranks)]
        if len(alike) > 1:
            at = np.array([float(row.bytes_off_max)])  # type: ignore[arg-type]
            time_s = _at(alike.bytes_off_max.to_numpy(dtype=float), alike.time_s.to_numpy(dtype=float), at)
            found["uneven"].append((float(time_s[0]), float(row.time_s)))  # type: ignore[arg-type]
    return tuple(
        LeftOut(kind=kind, device=device, family=FAMILY, dtype_or_kind="all", **vars(_errors(pairs)))
        for kind, pairs in found.items()
        if pairs
    )


def _errors(pairs: list[tuple[float, float]]) -> Errors:
    predicted, measured = np.array(pairs).T
    return errors(predicted, measured)


def write_table(made: pd.DataFrame, path: Path) -> None:
    """collectives.csv."""
    header = ["op", "num_gpus", *[f"b{size:.10g}_s" for size in made.columns]]
    write_csv(path, header, [[op, f"{ranks:g}", *map(float, line)] for (op, ranks), line in zip(
        made.index, made.to_numpy(), strict=True)])  # fmt: skip
