"""Carries measured kernel tables into `hwprofiles/measured/<device>/`, cleaned and compact.

    python -m calibration.carry SILICON_DIR KERNELS_DIR OUT

SILICON_DIR holds subsets of the AIConfigurator silicon tables, KERNELS_DIR a trace summary with
attention backward kernels. The run is deterministic: the same inputs give the same bytes. Latencies
come in microseconds and are stored in seconds with four significant digits.

Cleaning, all of it here so that the shipped files are what the simulator uses:

- single points: a GEMM whose log rate lies more than `DIP` below the median of its 3x3x3 neighbours
  takes that median (a collector hiccup, not a property of the kernel);
- a GB200 is never slower than a B200 (same chip, higher power limit): elementwise best rate;
- `mxfp8` (Blackwell) is the elementwise best of the per-tensor and the block-scaled fp8 kernels;
- time never falls when a size grows: geometric mean of the running maximum from small to large
  sizes and the running minimum from large to small, both monotone, so their mean is and the
  correction is not biased to either side.
"""

from __future__ import annotations

import csv
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.carry_comm import carry_comm
from calibration.carry_moe import carry_moe
from calibration.carry_ranks import carry_ranks

Floats = NDArray[np.float64]
SYSTEMS: Mapping[str, str] = {
    "a100": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
}
# Carried and fitted like the others, later: the priors of the attention form stay those of the devices above.
LATER: Mapping[str, str] = {"gb300": "gb300", "l40s": "l40s"}
ALL: Mapping[str, str] = {**SYSTEMS, **LATER}
DTYPES: Mapping[str, str] = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
BLACKWELL = ("b200", "gb200", "gb300")
KERNELS: Mapping[str, tuple[str, ...]] = {
    "a100": ("flash_attention", "vllm_flash_attn"),
    "h100": ("fa3", "vllm_flash_attn_fa3"),
    "h200": ("fa3", "vllm_flash_attn_fa3"),
    "b200": ("trtllm_mha", "torch_flow", "flashinfer", "vllm_flashinfer", "vllm_flashinfer_trtllmprefill"),
    "gb200": ("trtllm_mha", "torch_flow", "flashinfer", "vllm_flashinfer", "vllm_flashinfer_trtllmprefill"),
    "gb300": ("trtllm_mha", "torch_flow", "flashinfer", "vllm_flashinfer_trtllmprefill"),
    "l40s": ("torch_flow", "flashinfer", "vllm_flash_attn_fa2"),
}
# Groups whose collectives speak of the machine and not of the device are left out (eight L40S: 2 GB/s over one host).
GROUPS: Mapping[str, tuple[int, ...]] = {"l40s": (2,)}
DIP = 0.15
ROUNDING = 5e-3  # cleaning by less than this is not worth a row
MICRO = 1e-6


def neighbour_median(log_rate: Floats) -> Floats:
    """Median of the neighbours of every point (3 per axis, itself left out).

    Edges are continued by odd reflection, so a linear trend has no bias there.
    """
    margin = [(1, 1) if size > 1 else (0, 0) for size in log_rate.shape]
    padded = np.pad(log_rate, margin, "reflect", reflect_type="odd")
    window = tuple(3 if size > 1 else 1 for size in log_rate.shape)
    views = np.lib.stride_tricks.sliding_window_view(padded, window)
    flat = views.reshape(*log_rate.shape, -1)
    centre = flat.shape[-1] // 2
    median: Floats = np.median(np.delete(flat, centre, axis=-1), axis=-1)
    return median


def repair_dips(rate: Floats) -> tuple[Floats, int]:
    """Lift points more than `DIP` below their neighbours' median to it."""
    log_rate = np.log(rate)
    median = neighbour_median(log_rate)
    bad = log_rate < median + np.log1p(-DIP)
    return np.where(bad, np.exp(median), rate), int(bad.sum())


def monotone(time_s: Floats) -> Floats:
    """The nearest-in-logarithm table (one sided errors balanced) that never falls along any axis."""
    up, down = time_s, time_s
    for axis in range(time_s.ndim):
        up = np.maximum.accumulate(up, axis=axis)
        down = np.flip(np.minimum.accumulate(np.flip(down, axis), axis=axis), axis)
    return np.sqrt(up * down)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write rows; floats with four significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in rows])


def gemm_rates(silicon: Path, device: str) -> dict[str, pd.Series]:
    """Rate (m n k per second) by dtype, indexed by (m, n, k), as measured."""
    frame = pd.read_csv(silicon / f"aic_gemm_{ALL[device]}.csv")
    rates: dict[str, pd.Series] = {}
    for source_name, name in DTYPES.items():
        part = frame[frame.gemm_dtype == source_name]
        if part.empty:
            continue
        time_s = part.groupby(["m", "n", "k"]).latency_us.min().sort_index() * MICRO
        shape = tuple(len(level) for level in time_s.index.levels)  # type: ignore[attr-defined]
        if int(np.prod(shape)) != len(time_s):
            raise ValueError(f"{device} {name}: GEMM grid has holes")
        m, n, k = (time_s.index.get_level_values(i).to_numpy(dtype=float) for i in range(3))
        rates[name] = pd.Series(m * n * k / time_s.to_numpy(), index=time_s.index)
    return rates


def repaired_rates(rates: Mapping[str, pd.Series]) -> dict[str, pd.Series]:
    """The same with dips repaired."""
    out: dict[str, pd.Series] = {}
    for name, rate in rates.items():
        shape = tuple(len(level) for level in rate.index.levels)  # type: ignore[attr-defined]
        out[name] = pd.Series(repair_dips(rate.to_numpy().reshape(shape))[0].ravel(), index=rate.index)
    return out


def best_rates(rates: dict[str, dict[str, pd.Series]]) -> None:
    """GB200 at least as fast as B200, and `mxfp8` the better of the two fp8 kernels of Blackwell; in place."""
    for name, rate in rates["gb200"].items():
        rates["gb200"][name] = rate.combine(rates["b200"][name], max)
    for device in BLACKWELL:
        rates[device]["mxfp8"] = rates[device]["fp8"].combine(rates[device]["fp8_block"], max)


def carry_gemm(silicon: Path, out: Path) -> None:
    """gemm.csv of every device: one row per (dtype, n, k), one column of seconds per m.

    gemm_departures.csv lists what was measured wherever cleaning moved a time by more than its rounding.
    """
    measured = {device: gemm_rates(silicon, device) for device in ALL}
    rates = {device: repaired_rates(tables) for device, tables in measured.items()}
    best_rates(measured)
    best_rates(rates)
    for device, tables in rates.items():
        rows: list[list[object]] = []
        moved: list[list[object]] = []
        for name, rate in tables.items():
            levels = [np.unique(rate.index.get_level_values(i)) for i in range(3)]
            m, n, k = np.meshgrid(*[level.astype(float) for level in levels], indexing="ij")
            work = m * n * k
            time_s = monotone(work / rate.to_numpy().reshape(m.shape))
            for i, n_ in enumerate(levels[1]):
                for j, k_ in enumerate(levels[2]):
                    rows.append([name, int(n_), int(k_), *map(float, time_s[:, i, j])])
            raw = work / measured[device][name].to_numpy().reshape(m.shape)
            for at in np.argwhere(np.abs(raw / time_s - 1.0) > ROUNDING):
                place = tuple(int(i) for i in at)
                moved.append([name, *(int(axis[place]) for axis in (m, n, k)), float(raw[place])])
        m_values = tables["bf16"].index.get_level_values(0).unique().sort_values()
        write_csv(out / device / "gemm.csv", ["dtype", "n", "k", *[f"m{m}_s" for m in m_values]], rows)
        write_csv(out / device / "gemm_departures.csv", ["dtype", "m", "n", "k", "measured_s"], moved)


def attention_points(silicon: Path, device: str) -> pd.DataFrame:
    """Best training-like kernel per point: batch, heads, kv_heads, dqk, dv, seq and microseconds."""
    frame = pd.read_csv(silicon / "aic_attention_context_bf16.csv")
    keep = (frame.system == ALL[device]) & frame.kernel_source.isin(KERNELS[device]) & (frame.step == 0)
    frame = frame[keep & (frame.head_dim == 128)]
    return _best(frame.assign(kv_heads=frame.num_key_value_heads, dqk=128, dv=128))


def mla_points(silicon: Path, device: str) -> pd.DataFrame:
    """The same of the MLA context core (dqk 192, dv 128), bf16 cache; lengths of at least a tile."""
    frame = pd.read_csv(silicon / "aic_mla.csv")
    keep = (frame.system == ALL[device]) & (frame.phase == "context") & (frame.kv_cache_dtype == "bfloat16")
    frame = frame[keep & (frame.step == 0) & (frame.isl >= 128)]
    return _best(frame.assign(kv_heads=frame.num_heads, dqk=192, dv=128))


def _best(frame: pd.DataFrame) -> pd.DataFrame:
    named = frame.rename(columns={"batch_size": "batch", "num_heads": "heads", "isl": "seq"})
    sizes = ["batch", "heads", "kv_heads", "dqk", "dv", "seq"]
    return named.groupby(sizes).latency_us.min().reset_index()


def carry_attention(silicon: Path, out: Path) -> None:
    """attention_points.csv: forward cores as measured; `calibration.kernels.attention` makes the tables of them."""
    for device in ALL:
        both = pd.concat([attention_points(silicon, device), mla_points(silicon, device)])
        sizes = both.columns.drop("latency_us")
        rows = [
            [*map(int, size), float(us) * MICRO]
            for size, us in zip(both[sizes].to_numpy(), both.latency_us, strict=True)
        ]
        write_csv(out / device / "attention_points.csv", [*sizes, "time_s"], rows)


def write_sources(folder: Path) -> None:
    """source.toml: the sections of `carry_sources.toml` whose files are in this folder."""
    text = (Path(__file__).parent / "carry_sources.toml").read_text(encoding="utf-8")
    lines = ["# Written by calibration.carry; edit calibration/carry_sources.toml instead."]
    for name, entry in tomllib.loads(text).items():
        files = [file for file in entry["files"] if (folder / file).is_file()]
        if files:
            lines += ["", f"[{name}]", f"files = {json.dumps(files)}", f"[{name}.source]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in entry["source"].items()]
    (folder / "source.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_backward(kernels: Path, out: Path) -> None:
    """Raise if `attention_core.toml` (written by hand) disagrees with the trace it quotes for MLA backward."""
    trace = pd.read_csv(kernels / "deepseek_profile_summary.csv")
    total_us = trace[trace.section == "category"].set_index("name").total_us
    ratio = float(total_us["compute.attention_bwd"] / total_us["compute.attention_fwd"])
    core = tomllib.loads((out / "attention_core.toml").read_text(encoding="utf-8"))["backward"]
    quoted = core["mla"]["ratio"]
    if abs(quoted / ratio - 1.0) > 0.01:
        raise ValueError(f"attention_core.toml says {quoted} for MLA backward over forward, the trace {ratio:.3f}")


def main(arguments: Sequence[str]) -> int:
    """Regenerate every table; returns the exit code."""
    if len(arguments) != 3:
        sys.stderr.write("usage: python -m calibration.carry SILICON_DIR KERNELS_DIR OUT\n")
        return 2
    silicon, kernels, out = map(Path, arguments)
    for device in ALL:
        (out / device).mkdir(parents=True, exist_ok=True)
    carry_gemm(silicon, out)
    carry_attention(silicon, out)
    for device, system in ALL.items():
        carry_comm(silicon, system, out / device, write_csv, groups=GROUPS.get(device, ()), dispatch=device in SYSTEMS)
        if (silicon / f"aic_moe_{system}.csv").is_file():
            carry_moe(silicon, device, system, out / device, write_csv)
            carry_ranks(silicon, system, out / device, write_csv)
        write_sources(out / device)
    check_backward(kernels, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
