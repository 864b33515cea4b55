"""Measured kernels and collectives of a device: what the cost model prices compute with.

`tables(folder)` reads `hwprofiles/measured/<folder>/` once and returns a frozen `KernelTables`. Its
methods take numbers or numpy arrays (broadcast together) and return float64 seconds. The files are
cleaned where they are made (`python -m calibration.carry`); here they are only interpolated, so a
value at a grid point is the value in the file.
"""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from hwprofiles.interpolate import Floats, Grid
from hwprofiles.specs import Source

Provenance = Literal["measured", "interpolated", "extrapolated", "assumed"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelTables:
    """The measured tables of one device. `sources` says where each file came from."""

    device: str
    gemm: Mapping[str, Grid]
    attention: Mapping[str, Grid]
    head_dim_rate: Mapping[int, float]
    backward: Mapping[str, Mapping[str, Any]]
    collectives: Mapping[str, Grid]
    moe: Mapping[str, NDArray[Any]]
    alltoall: Mapping[str, NDArray[Any]]
    alltoall_summary: Mapping[str, NDArray[Any]]
    internode: Mapping[str, NDArray[Any]]
    sources: Mapping[str, Source] = field(default_factory=dict)

    def dtypes(self) -> tuple[str, ...]:
        """GEMM dtypes with a table."""
        return tuple(self.gemm)

    def gemm_s(self, m: Any, n: Any, k: Any, dtype: str) -> tuple[Any, Provenance]:
        """Seconds of `C[m,n] = A[m,k] B[k,n]`, and `interpolated` or `extrapolated` (worst of the inputs).

        Inside the grid log(time) is interpolated trilinearly in the logs of m, n and k (the same as
        interpolating the log of the rate). Above it the rate of the edge is held: time grows with
        the FLOPs. Below it time falls from the edge only by the bytes the operands lose,
        (mk + kn + mn) over the same at the edge: a thin GEMM fills no more tiles and is bound by
        what it reads. Time never falls when a size grows. No rows (m = 0) take no time.
        Raises UserError for a dtype without a table.
        """
        grid = self.gemm.get(dtype)
        if grid is None:
            have = ", ".join(self.gemm)
            raise UserError(f"no GEMM table for dtype '{dtype}' on {self.device}; use one of: {have}", where="dtype")
        size = tuple(np.maximum(np.asarray(x, dtype=np.float64), 1e-9) for x in (m, n, k))
        logs = tuple(np.broadcast_arrays(*(np.log(x) for x in size)))
        if grid.inside(*logs):
            return grid.time_s(*logs)[()], "interpolated"
        edge = grid.clamp(*logs)
        above = np.exp(sum(np.maximum(x - e, 0.0) for x, e in zip(logs, edge, strict=True)))
        low = _operand(*(np.exp(np.minimum(x, e)) for x, e in zip(logs, edge, strict=True)))
        time_s = grid.time_s(*edge) * above * (low / _operand(*(np.exp(e) for e in edge)))
        return np.where(np.asarray(m) > 0, time_s, 0.0)[()], "extrapolated"

    def attention_s(
        self, batch: Any, seq: Any, heads: Any, kv_heads: Any, dqk: Any, dv: Any, flop: Any = None
    ) -> Any:
        """Seconds of the forward attention core (FlashAttention class kernels, bf16, this device).

        The measured curve gives FLOP/s of a causal prefill with head_dim 128 at (seq,
        batch x heads); it is divided into `flop`, by default the causal batch heads seq^2 (dqk + dv).
        Pass `flop` for windows, full attention (twice the default) or a context-parallel share.
        Between one and four heads per kv head the two curves are interpolated. Other head
        dimensions take the rate factor of `attention_core.toml`. Above the grid the rate is held; below,
        see `_core_rate`. A head of dqk 192 and dv 128 is MLA's: `mla_s`.
        """
        batch, seq, heads, kv = (np.asarray(x, dtype=np.float64) for x in (batch, seq, heads, kv_heads))
        share = np.clip(np.log2(np.maximum(heads / np.maximum(kv, 1e-9), 1.0)) / 2.0, 0.0, 1.0)
        rate = _core_rate(self.attention["gqa"], batch * heads, seq, 256.0)
        if np.any(share < 1.0):
            rate = rate**share * _core_rate(self.attention["mha"], batch * heads, seq, 256.0) ** (1.0 - share)
        dims = np.asarray(dqk, dtype=np.float64) + np.asarray(dv, dtype=np.float64)
        known = sorted(self.head_dim_rate)
        factor = np.interp(np.log(np.maximum(dims / 2.0, 1.0)), np.log(known), [self.head_dim_rate[d] for d in known])
        work = batch * heads * seq**2 * dims if flop is None else np.asarray(flop, dtype=np.float64)
        return (work / (rate * factor))[()]

    def mla_s(self, batch: Any, seq: Any, heads: Any, flop: Any = None) -> Any:
        """Seconds of DeepSeek's MLA core forward (dqk 192, dv 128, bf16); `flop` as in `attention_s`."""
        batch, seq, heads = (np.asarray(x, dtype=np.float64) for x in (batch, seq, heads))
        work = batch * heads * seq**2 * 320.0 if flop is None else np.asarray(flop, dtype=np.float64)
        return (work / _core_rate(self.attention["mla"], batch * heads, seq, 320.0))[()]

    def attention_backward_ratio(self, seq: Any, mla: bool) -> tuple[float, Provenance]:
        """Time of the backward core over the forward core (`attention_core.toml`), and what that rests on.

        `measured` on the device and at the length `seq` it was measured at, `assumed` anywhere else.
        """
        entry = self.backward["mla" if mla else "core"]
        measured = entry.get("measured_on") == self.device and bool(np.all(np.asarray(seq) == entry["seq_tokens"]))
        return float(entry["ratio"]), "measured" if measured else "assumed"

    def collective_s(self, op: str, num_gpus: Any, bytes_: Any) -> tuple[Any, Provenance]:
        """Seconds of an NCCL collective inside one NVLink domain, and what that rests on.

        `op`: all_reduce, all_gather, reduce_scatter, alltoall. `bytes_` is the nccl-tests size, the
        full buffer (gathered, or before scattering). Log-log interpolation in bytes and in the group
        size between the measured 2, 4 and 8; beyond the largest buffer the bus bandwidth is held; a
        group of one takes no time. Larger groups than measured (NVL72): the bus bandwidth of the
        largest is held, so time grows with (n-1)/n, and its start-up time grows with log2 n.
        """
        grid = self.collectives.get(op)
        if grid is None:
            raise UserError(f"no table for collective '{op}'; use one of: {', '.join(self.collectives)}", where="op")
        n, size = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (num_gpus, bytes_)))
        log_n, log_b = np.log(np.maximum(n, 1.0)), np.log(np.maximum(size, 1e-9))
        edge_n, edge_b = grid.clamp(log_n, log_b)
        top = np.exp(edge_n)
        time_s = grid.time_s(edge_n, edge_b) * np.exp(np.maximum(log_b - edge_b, 0.0))
        wider = log_n > edge_n + 1e-9
        if wider.any():
            start_s = grid.time_s(edge_n, np.full_like(edge_b, grid.log_axes[1][0]))
            wire = (1.0 - 1.0 / np.exp(log_n)) / (1.0 - 1.0 / top)
            time_s = np.where(wider, time_s * wire + start_s * (log_n / edge_n - 1.0), time_s)
        low_n = bool(np.all((n <= 1.0) | (n >= np.exp(grid.log_axes[0][0]) - 1e-9)))
        inside = low_n and not wider.any() and bool(np.all(log_b <= grid.log_axes[1][-1] + 1e-9))
        return np.where((n > 1.0) & (size > 0.0), time_s, 0.0)[()], "interpolated" if inside else "extrapolated"

    def a2a_table(self, kind: str) -> dict[str, NDArray[Any]]:
        """Rows of alltoall.csv of one `kind` (deepep_normal, deepep_ht, nvlink) as columns.

        Columns: phase, payload, nodes, ep, hidden, topk, experts, tokens (per rank), time_s. Empty
        where the device has none.
        """
        if not self.alltoall:
            return {}
        chosen = self.alltoall["kind"] == kind
        return {name: column[chosen] for name, column in self.alltoall.items() if name != "kind"}

    def moe_rows(self) -> dict[str, NDArray[Any]]:
        """Grouped expert compute: dtype, hidden, ffn, topk, experts, ep, tokens (of the group), time_s."""
        return dict(self.moe)


def _operand(m: Floats, n: Floats, k: Floats) -> Floats:
    return m * k + k * n + m * n


def _core_rate(grid: Grid, bh: Floats, seq: Floats, dims: float) -> Floats:
    """Achieved causal FLOP/s at (batch x heads, seq).

    Above the grid: the rate of the edge. Shorter sequences: time falls only with the bytes, which
    are proportional to seq. Fewer heads than measured: the rate falls along the slope of the first
    two rows, between 0 (the device is still full) and 1 (every head takes the same time).
    """
    log_bh, log_seq = np.broadcast_arrays(np.log(np.maximum(bh, 1e-9)), np.log(np.maximum(seq, 1e-9)))
    rows, columns = grid.log_axes
    edge_bh, edge_seq = grid.clamp(log_bh, log_seq)
    time_s = grid.time_s(edge_bh, edge_seq)
    log_rate = np.log(dims) + edge_bh + 2.0 * edge_seq - np.log(time_s) + np.minimum(log_seq - columns[0], 0.0)
    few = np.minimum(log_bh - rows[0], 0.0)
    if np.any(few < 0.0):
        first = grid.time_s(np.full_like(edge_seq, rows[0]), edge_seq)
        second = grid.time_s(np.full_like(edge_seq, rows[1]), edge_seq)
        log_rate = log_rate + few * np.clip(1.0 - np.log(second / first) / (rows[1] - rows[0]), 0.0, 1.0)
    rate: Floats = np.exp(log_rate)
    return rate


def _root() -> Any:
    return resources.files("hwprofiles") / "measured"


def _folder(name: str) -> Any:
    root = _root()
    if not (root / name / "source.toml").is_file():
        have = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))
        raise UserError(f"no measured tables '{name}'; there are: {have}", where="measured")
    return root / name


def _rows(folder: Any, name: str) -> tuple[list[str], list[list[str]]]:
    lines = list(csv.reader(io.StringIO((folder / name).read_text(encoding="utf-8"))))
    return lines[0], lines[1:]


def _between(text: str, prefix: str, suffix: str) -> float:
    return float(text.removeprefix(prefix).removesuffix(suffix))


def _gemm(folder: Any) -> dict[str, Grid]:
    header, rows = _rows(folder, "gemm.csv")
    m = np.log([_between(name, "m", "_s") for name in header[3:]])
    grids: dict[str, Grid] = {}
    for dtype in dict.fromkeys(row[0] for row in rows):
        part = [row for row in rows if row[0] == dtype]
        n, k = (np.unique([float(row[i]) for row in part]) for i in (1, 2))
        table = np.log(np.array([row[3:] for row in part], dtype=np.float64))
        log_time = np.moveaxis(table.reshape(len(n), len(k), len(m)), 2, 0)
        grids[dtype] = Grid(log_axes=(m, np.log(n), np.log(k)), log_time=np.ascontiguousarray(log_time))
    return grids


def _curves(folder: Any, name: str, unit: str) -> dict[str, Grid]:
    """One grid per kind (first column): rows by the second column, columns `<unit><size>_s`."""
    header, rows = _rows(folder, name)
    size = np.log([_between(column, unit, "_s") for column in header[2:]])
    grids: dict[str, Grid] = {}
    for kind in dict.fromkeys(row[0] for row in rows):
        part = [row for row in rows if row[0] == kind]
        first = np.log([float(row[1]) for row in part])
        log_time = np.log(np.array([row[2:] for row in part], dtype=np.float64))
        grids[kind] = Grid(log_axes=(first, size), log_time=log_time)
    return grids


def _columns(folder: Any, name: str) -> dict[str, NDArray[Any]]:
    """A file as columns: text where a cell is not a number (an empty cell is nan); {} if there is no file."""
    if not (folder / name).is_file():
        return {}
    header, rows = _rows(folder, name)
    columns: dict[str, NDArray[Any]] = {}
    for index, title in enumerate(header):
        cells = [row[index] for row in rows]
        try:
            columns[title] = np.array([float(cell) if cell else np.nan for cell in cells])
        except ValueError:
            columns[title] = np.array(cells)
    return columns


@cache
def tables(folder: str) -> KernelTables:
    """The tables of `hwprofiles/measured/<folder>` (read once). Raises UserError for an unknown folder."""
    path = _folder(folder)
    described = tomllib.loads((path / "source.toml").read_text(encoding="utf-8"))
    sources = {name: Source(**entry["source"]) for name, entry in described.items()}
    core = tomllib.loads((_root() / "attention_core.toml").read_text(encoding="utf-8"))
    sources["attention_core"] = Source(**core["source"])
    return KernelTables(
        device=folder,
        gemm=_gemm(path),
        attention={**_curves(path, "attention.csv", "seq"), **_curves(path, "mla.csv", "seq")},
        head_dim_rate={int(d): float(rate) for d, rate in core["head_dim_rate"][folder].items()},
        backward=core["backward"],
        collectives=_curves(path, "collectives.csv", "b"),
        moe=_columns(path, "moe.csv"),
        alltoall=_columns(path, "alltoall.csv"),
        alltoall_summary=_columns(path, "alltoall_summary.csv"),
        internode=_columns(path, "internode.csv"),
        sources=sources,
    )
