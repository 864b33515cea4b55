"""Measured kernels and collectives of a device: what the cost model prices compute with.

`tables(folder)` reads the files of a device (`hwprofiles.folders`: shipped, or of a user's profile) once and returns
a frozen `KernelTables`. Its methods take numbers or numpy arrays (broadcast together) and return float64 seconds. The
files are cleaned where they are made (`python -m calibration.carry`); here they are only interpolated, so a value at
a grid point is the value in the file.
"""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from hwprofiles.folders import SOURCES, fitted_file, is_own, measured_file
from hwprofiles.forms.attention import TABLE_DIMS, TABLE_GROUP, AttentionForm, Curve, core_s
from hwprofiles.forms.gemm import GemmForm, GemmSurface
from hwprofiles.forms.memory import MemoryCurve
from hwprofiles.interpolate import Grid
from hwprofiles.specs import Source

FLAT_RATE = {"128": 1.0}  # head_dim factors of a device that none are stated for: the same rate at all
Provenance = Literal["measured", "interpolated", "extrapolated", "assumed"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelTables:
    """The measured tables of one device (`device`: its name or folder). `sources` says where each file came from.

    gemm_passes: by dtype, time of dgrad and wgrad over a forward product of the same extents, where measured. memory:
    by kernel class and pass; empty on the shipped devices. scaled: name of the device that these tables, or some of
    them, were scaled to (`hwprofiles.scaling`); empty where they are as measured. links: folders whose fitted
    collectives and dispatch kernels describe its links, nearest first; empty: its own.
    """

    device: str
    gemm: Mapping[str, GemmSurface]
    gemm_passes: Mapping[str, Mapping[str, float]]
    memory: Mapping[tuple[str, str], MemoryCurve]
    attention: Mapping[str, Curve]
    head_dim_rate: Mapping[int, float]
    backward: Mapping[str, Mapping[str, Any]]
    collectives: Mapping[str, Grid]
    moe: Mapping[str, NDArray[Any]]
    sources: Mapping[str, Source] = field(default_factory=dict)
    scaled: str = ""
    links: tuple[str, ...] = ()

    def dtypes(self) -> tuple[str, ...]:
        """GEMM dtypes with a table."""
        return tuple(self.gemm)

    def gemm_s(self, m: Any, n: Any, k: Any, dtype: str, *, cast: bool = False) -> tuple[Any, Provenance]:
        """Seconds of `C[m,n] = A[m,k] B[k,n]`, and `interpolated` or `extrapolated` (worst of the inputs).

        The fitted form of `hwprofiles.forms.gemm` times the residual measured around these sizes: at a grid point
        the measured time, far outside the grid the form. The low-precision calls were measured with the cast of
        A in front; it is left out unless `cast`, because a layer that casts its operands counts that itself.
        No rows (m = 0) take no time. Raises UserError for a dtype without a table.
        """
        surface = self.gemm.get(dtype)
        if surface is None:
            have = ", ".join(self.gemm)
            raise UserError(
                f"no GEMM table for dtype '{dtype}' on {self.scaled or self.device}; use one of: {have}", where="dtype"
            )
        sizes = [np.maximum(np.asarray(x, dtype=np.float64), 1.0) for x in (m, n, k)]
        time_s, inside = surface.time_s(*sizes, cast=cast)
        return np.where(np.asarray(m) > 0, time_s, 0.0)[()], "interpolated" if inside else "extrapolated"

    def gemm_pass(self, dtype: str, pass_: str) -> tuple[float, Provenance]:
        """Time of a backward product (`dgrad`, `wgrad`) over `gemm_s` of its own extents, and what that rests on.

        1, assumed, where the device's backward products were not measured.
        """
        ratio = self.gemm_passes.get(dtype, {}).get(pass_)
        return (1.0, "assumed") if ratio is None else (ratio, "measured")

    def memory_s(self, kernel: str, pass_: str, bytes_: Any) -> Any | None:
        """Seconds of a memory-bound kernel class that must move `bytes_`; None where it was not measured.

        `kernel` and `pass_` are op and pass of the harness's memory rows (rmsnorm, forward). See `MemoryCurve`.
        """
        curve = self.memory.get((kernel, pass_))
        return None if curve is None else curve.seconds(bytes_)[()]

    def attention_s(
        self, batch: Any, seq: Any, heads: Any, kv_heads: Any, dqk: Any, dv: Any, flop: Any = None, *,
        products_only: bool = False,
    ) -> Any:  # fmt: skip
        """Seconds of the forward attention core (FlashAttention class kernels, bf16, this device).

        The measured curves of `forms.attention` at (batch x heads, seq), of a causal prefill: a core whose
        dqk is not its dv is MLA's, another lies between multi-head and grouped. `flop` other than the
        causal batch heads seq^2 (dqk + dv) takes as much longer (windows, full attention: twice, a
        context-parallel share). The rate factor of a head dimension (`attention_core.toml`) acts on the
        matrix products; `products_only` leaves it out, and with it what exponentials cost a short head beyond the
        table's. Outside the table time goes as the fitted form.
        """
        batch, seq, heads, kv = (np.asarray(x, dtype=np.float64) for x in (batch, seq, heads, kv_heads))
        bh, dims = batch * heads, np.asarray(dqk, dtype=np.float64) + np.asarray(dv, dtype=np.float64)
        factor = np.ones(()) if products_only else self._rate(dims)
        latent = bool(np.all(np.asarray(dqk) != np.asarray(dv)))
        group = heads / np.maximum(kv, 1e-9)
        work = bh * seq * seq * dims
        time_s = core_s(self.attention, bh, group, seq, dims / factor, latent=latent)
        # nothing to do takes no time
        return (time_s * ((work if flop is None else flop) / np.maximum(work, 1e-9)))[()]

    def _rate(self, dims: Any) -> Any:
        """Rate of a head of `dims` dqk + dv over one of 256."""
        known = sorted(self.head_dim_rate)
        return np.interp(np.log(np.maximum(dims / 2.0, 1.0)), np.log(known), [self.head_dim_rate[d] for d in known])

    def attention_exponentials_s(self, op_s: Any, **sizes: Any) -> Any:
        """The part of a forward core's seconds that is a short head's exponentials beyond those of the table's head.

        A core makes one exponential per score, whatever the head: at half the head dimension each stands beside half
        the products. Their number is the same in both passes and in every kernel. Zero where a device's own backward
        was measured: there the ratio holds it.
        """
        if "measured_seq" in self.backward["core"] or np.all(self._rate(sizes["dqk"] + sizes["dv"]) == 1.0):
            return 0.0
        return op_s - self.attention_s(**sizes, products_only=True)

    def mla_s(self, batch: Any, seq: Any, heads: Any, flop: Any = None) -> Any:
        """Seconds of DeepSeek's MLA core forward (dqk 192, dv 128, bf16); `flop` as in `attention_s`."""
        return self.attention_s(batch, seq, heads, heads, 192, 128, flop)

    def attention_backward_ratio(self, seq: Any, mla: bool, *, fa2: bool = False) -> tuple[Any, Provenance]:
        """Time of the backward core over the forward core, and what that rests on. fa2: the kernel is FlashAttention 2.

        Where the device's own backward was measured (`measured_seq`, `measured_ratio` of `backward`) the
        ratio is interpolated in log(seq), held outside: `measured` between its lengths. Otherwise that of
        `attention_core.toml`: `measured` on the device and at the length it was measured at. Else `assumed`.
        """
        entry = self.backward["mla" if mla else "core"]
        length = np.asarray(seq, dtype=np.float64)
        if "measured_seq" in entry:
            known = np.asarray(entry["measured_seq"])
            ratio = np.interp(np.log(np.maximum(length, 1.0)), np.log(known), entry["measured_ratio"])
            inside = bool(np.all((length >= known[0]) & (length <= known[-1])))
            return ratio[()], "measured" if inside else "assumed"
        measured = entry.get("measured_on") == self.device and bool(np.all(length == entry["seq_tokens"]))
        return float(entry.get("fa2", entry["ratio"]) if fa2 else entry["ratio"]), "measured" if measured else "assumed"

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
            have = ", ".join(self.collectives) or "none (moecast calibrate measure --family collectives, then fit)"
            raise UserError(f"no table for collective '{op}' on {self.device}; there are: {have}", where="op")
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
        rests_on: Provenance = "interpolated" if inside else "extrapolated"
        if self.sources["collectives"].kind == "assumed":
            rests_on = "assumed"
        return np.where((n > 1.0) & (size > 0.0), time_s, 0.0)[()], rests_on

    def moe_rows(self) -> dict[str, NDArray[Any]]:
        """Grouped expert compute: dtype, hidden, ffn, topk, experts, ep, tokens (of the group), time_s."""
        return dict(self.moe)


def _rows(folder: str, name: str) -> tuple[list[str], list[list[str]]]:
    lines = list(csv.reader(io.StringIO(measured_file(folder, name).read_text(encoding="utf-8"))))
    return lines[0], lines[1:]


def _between(text: str, prefix: str, suffix: str) -> float:
    return float(text.removeprefix(prefix).removesuffix(suffix))


def _gemm(folder: str, forms: Mapping[str, Any]) -> dict[str, GemmSurface]:
    header, rows = _rows(folder, "gemm.csv")
    m = np.log([_between(name, "m", "_s") for name in header[3:]])
    surfaces: dict[str, GemmSurface] = {}
    for dtype in dict.fromkeys(row[0] for row in rows):
        part = [row for row in rows if row[0] == dtype]
        n, k = (np.unique([float(row[i]) for row in part]) for i in (1, 2))
        # a dtype need not have been measured at every m of the header
        there = [i for i in range(len(m)) if part[0][3 + i]]
        table = np.log(np.array([[row[3 + i] for i in there] for row in part], dtype=np.float64))
        log_time = np.moveaxis(table.reshape(len(n), len(k), len(there)), 2, 0)
        grid = Grid(log_axes=(m[there], np.log(n), np.log(k)), log_time=np.ascontiguousarray(log_time))
        # The tables are cleaned of dips, and with them of what a library loses just above one wave.
        surfaces[dtype] = GemmSurface.of(replace(GemmForm(**forms[dtype]["form"]), two_waves=1.0), grid)
    return surfaces


def _curves(folder: str, name: str, unit: str) -> dict[str, Grid]:
    """One grid per kind (first column): rows by the second column, columns `<unit><size>_s`; {} if there is no file."""
    if not measured_file(folder, name).is_file():
        return {}
    header, rows = _rows(folder, name)
    size = np.log([_between(column, unit, "_s") for column in header[2:]])
    grids: dict[str, Grid] = {}
    for kind in dict.fromkeys(row[0] for row in rows):
        part = [row for row in rows if row[0] == kind]
        first = np.log([float(row[1]) for row in part])
        log_time = np.log(np.array([row[2:] for row in part], dtype=np.float64))
        grids[kind] = Grid(log_axes=(first, size), log_time=log_time)
    return grids


def _columns(folder: str, name: str) -> dict[str, NDArray[Any]]:
    """A file as columns: text where a cell is not a number (an empty cell is nan); {} if there is no file."""
    if not measured_file(folder, name).is_file():
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


def _memory(folder: str) -> dict[tuple[str, str], MemoryCurve]:
    """By class and pass; the row of 0 bytes is the floor."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    if measured_file(folder, "memory.csv").is_file():
        for kernel, pass_, nbytes, time_s in _rows(folder, "memory.csv")[1]:
            found.setdefault((kernel, pass_), []).append((float(nbytes), float(time_s)))
    curves = {}
    for key, pairs in found.items():
        (_, floor_s), *rest = sorted(pairs)
        sizes, times = np.array(rest).T
        curves[key] = MemoryCurve(floor_s=floor_s, bytes=sizes, time_s=times)
    return curves


def _attention(folder: str, fitted: Mapping[str, Any]) -> dict[str, Curve]:
    """Tables of the forward core by kind, each continued by the fitted form of its parameter set."""
    grids = {**_curves(folder, "attention.csv", "seq"), **_curves(folder, "mla.csv", "seq")}
    forms = {name: AttentionForm(**fitted[name]) for name in ("core", "mla")}
    return {
        kind: Curve(
            grid=grids[kind],
            form=forms["mla" if kind == "mla" else "core"],
            group=TABLE_GROUP[kind],
            dims=TABLE_DIMS[kind],
        )
        for kind in grids
    }


def _backward(core: Mapping[str, Any], fitted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Backward over forward: `attention_core.toml`, and the device's own measured ratios where it has any."""
    own = fitted.get("backward", {})
    return {
        name: {
            **entry,
            **({"measured_seq": own[name]["seq_tokens"], "measured_ratio": own[name]["ratio"]} if name in own else {}),
        }
        for name, entry in core["backward"].items()
    }


def _fitted(folder: str, family: str) -> dict[str, Any]:
    return tomllib.loads(fitted_file(folder, f"{family}.toml").read_text(encoding="utf-8"))


@cache
def tables(folder: str) -> KernelTables:
    """The tables of a measured device (read once): a name of `hwprofiles/measured`, or a user's folder.

    Raises UserError for an unknown name, and for a folder whose files are missing or damaged.
    """
    if not is_own(folder):
        root = resources.files("hwprofiles") / "measured"
        if not measured_file(folder, "gemm.csv").is_file():
            have = ", ".join(sorted(entry.name for entry in root.iterdir() if (entry / "gemm.csv").is_file()))
            raise UserError(f"no measured tables '{folder}'; there are: {have}", where="measured")
        return _read(folder)
    try:
        read = _read(folder)
        lacking = [kind for kind in ("gqa", "mha") if kind not in read.attention]
        if lacking:
            raise ValueError(f"attention.csv has no rows of {', '.join(lacking)}")
        return read
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"cannot be read as tables of a device ({type(error).__name__}: {error}); write the folder anew with "
            "`moecast calibrate fit`",
            where=folder,
        ) from None


def _read(folder: str) -> KernelTables:
    described = tomllib.loads(measured_file(folder, SOURCES).read_text(encoding="utf-8"))
    sources = {name: Source(**entry["source"]) for name, entry in described.items()}
    shared = resources.files("hwprofiles") / "measured" / "attention_core.toml"
    core = tomllib.loads(shared.read_text(encoding="utf-8"))
    sources["attention_core"] = Source(**core["source"])
    fitted = {name: _fitted(folder, name) for name in ("gemm", "attention")}
    sources |= {f"{name}_form": Source(**form["source"]) for name, form in fitted.items()}
    return KernelTables(
        device=folder,
        gemm=_gemm(folder, fitted["gemm"]["gemm"]),
        gemm_passes={dtype: entry.get("passes", {}) for dtype, entry in fitted["gemm"]["gemm"].items()},
        memory=_memory(folder),
        attention=_attention(folder, fitted["attention"]["attention"]),
        head_dim_rate={int(d): float(rate) for d, rate in core["head_dim_rate"].get(folder, FLAT_RATE).items()},
        backward=_backward(core, fitted["attention"]["attention"]),
        collectives=_curves(folder, "collectives.csv", "b"),
        moe=_columns(folder, "moe.csv"),
        sources=sources,
    )
