"""Carries measured kernel tables into `hwprofiles/measured/<device>/`, cleaned and compact.

    python -m calibration.carry SILICON_DIR COMM_DIR KERNELS_DIR OUT

SILICON_DIR holds subsets of the AIConfigurator silicon tables, COMM_DIR nccl-tests logs of
clusters, KERNELS_DIR a trace summary with attention backward kernels. The run is deterministic: the
same inputs give the same bytes. Latencies come in microseconds and are stored in seconds with four
significant digits.

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

Floats = NDArray[np.float64]
SYSTEMS: Mapping[str, str] = {
    "a100": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "gb200": "gb200",
}
DTYPES: Mapping[str, str] = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
BLACKWELL = ("b200", "gb200")
KERNELS: Mapping[str, tuple[str, ...]] = {
    "a100": ("flash_attention", "vllm_flash_attn"),
    "h100": ("fa3", "vllm_flash_attn_fa3"),
    "h200": ("fa3", "vllm_flash_attn_fa3"),
    "b200": ("trtllm_mha", "torch_flow", "flashinfer", "vllm_flashinfer", "vllm_flashinfer_trtllmprefill"),
    "gb200": ("trtllm_mha", "torch_flow", "flashinfer", "vllm_flashinfer", "vllm_flashinfer_trtllmprefill"),
}
DIP = 0.15
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


def repair_dips(rate: Floats, *, spikes: bool = False) -> tuple[Floats, int]:
    """Lift points more than `DIP` below their neighbours' median to it; with `spikes` lower those above too."""
    log_rate = np.log(rate)
    median = neighbour_median(log_rate)
    bad = log_rate < median + np.log1p(-DIP)
    if spikes:
        bad |= log_rate > median - np.log1p(-DIP)
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
    """Rate (m n k per second) by dtype, indexed by (m, n, k), dips repaired."""
    frame = pd.read_csv(silicon / f"aic_gemm_{SYSTEMS[device]}.csv")
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
        rate = (m * n * k / time_s.to_numpy()).reshape(shape)
        repaired, _ = repair_dips(rate)
        rates[name] = pd.Series(repaired.ravel(), index=time_s.index)
    return rates


def carry_gemm(silicon: Path, out: Path) -> None:
    """gemm.csv of every device: one row per (dtype, n, k), one column of seconds per m."""
    rates = {device: gemm_rates(silicon, device) for device in SYSTEMS}
    for name, rate in rates["gb200"].items():
        rates["gb200"][name] = rate.combine(rates["b200"][name], max)
    for device in BLACKWELL:
        rates[device]["mxfp8"] = rates[device]["fp8"].combine(rates[device]["fp8_block"], max)
    for device, tables in rates.items():
        rows: list[list[object]] = []
        for name, rate in tables.items():
            levels = [np.unique(rate.index.get_level_values(i)) for i in range(3)]
            m, n, k = np.meshgrid(*[level.astype(float) for level in levels], indexing="ij")
            time_s = monotone(m * n * k / rate.to_numpy().reshape(m.shape))
            for i, n_ in enumerate(levels[1]):
                for j, k_ in enumerate(levels[2]):
                    rows.append([name, int(n_), int(k_), *map(float, time_s[:, i, j])])
        m_values = tables["bf16"].index.get_level_values(0).unique().sort_values()
        write_csv(out / device / "gemm.csv", ["dtype", "n", "k", *[f"m{m}_s" for m in m_values]], rows)


def time_table(points: pd.Series, head_dims: float, bh: Sequence[int]) -> pd.DataFrame:
    """Seconds on the (`bh`, seq) grid from causal FLOP/s, spikes and dips repaired, monotone.

    Holes (shapes that did not fit in memory) hold the rate of the next smaller bh, which is
    saturated there. `head_dims` is dqk + dv of the measured core.
    """
    wide = points.groupby(["bh", "seq"]).median().unstack("seq").reindex(list(bh)).ffill(axis=0).bfill(axis=0)
    rate, _ = repair_dips(wide.to_numpy(dtype=float), spikes=True)
    flop = head_dims * wide.index.to_numpy(dtype=float)[:, None] * wide.columns.to_numpy(dtype=float) ** 2
    return pd.DataFrame(monotone(flop / rate), index=wide.index, columns=wide.columns)


def attention_points(silicon: Path, device: str) -> pd.DataFrame:
    """Best training-like kernel per point: causal FLOP/s by batch, heads, group (heads per kv head), seq."""
    frame = pd.read_csv(silicon / "aic_attention_context_bf16.csv")
    keep = (frame.system == SYSTEMS[device]) & frame.kernel_source.isin(KERNELS[device]) & (frame.step == 0)
    frame = frame[keep & (frame.head_dim == 128)].rename(columns={"isl": "seq"})
    flop = 2.0 * frame.batch_size * frame.num_heads * frame.head_dim * frame.seq.astype(float) ** 2
    group = frame.num_heads // frame.num_key_value_heads
    frame = frame.assign(rate=flop / (frame.latency_us * MICRO), bh=frame.batch_size * frame.num_heads, group=group)
    keys = ["batch_size", "num_heads", "group", "bh", "seq"]
    return frame.groupby(keys).rate.max().reset_index()


def mla_points(silicon: Path, device: str) -> pd.Series:
    """MLA context core (dqk 192, dv 128), bf16 cache: causal FLOP/s by (bh, seq)."""
    frame = pd.read_csv(silicon / "aic_mla.csv")
    keep = (frame.system == SYSTEMS[device]) & (frame.phase == "context") & (frame.kv_cache_dtype == "bfloat16")
    frame = frame[keep & (frame.step == 0) & (frame.isl >= 128)].rename(columns={"isl": "seq"})
    bh = frame.batch_size * frame.num_heads
    flop = bh * frame.seq.astype(float) ** 2 * (192 + 128)
    frame = frame.assign(rate=flop / (frame.latency_us * MICRO), bh=bh)
    return frame.groupby(["batch_size", "num_heads", "bh", "seq"]).rate.max()


def carry_attention(silicon: Path, out: Path) -> None:
    """attention.csv (kinds `gqa`: 4 or more heads per kv head, `mha`: one) and mla.csv."""
    tables: dict[str, dict[str, pd.DataFrame]] = {"gqa": {}, "mha": {}, "mla": {}}
    for device in SYSTEMS:
        points = attention_points(silicon, device)
        bh = sorted(points[points.group >= 4].bh.unique())
        for kind, chosen in (("gqa", points.group >= 4), ("mha", points.group == 1)):
            tables[kind][device] = time_table(points[chosen].set_index(["bh", "seq"]).rate, 256.0, bh)
        latent = mla_points(silicon, device).droplevel(["batch_size", "num_heads"])
        tables["mla"][device] = time_table(latent, 320.0, sorted(set(latent.index.get_level_values("bh"))))
    for by_device in tables.values():
        by_device["gb200"] = by_device["gb200"].combine(by_device["b200"], np.fmin)
    for device in SYSTEMS:
        tables["mha"][device] = tables["mha"][device].combine(tables["gqa"][device], np.fmax)
        for name, kinds in (("attention", ("gqa", "mha")), ("mla", ("mla",))):
            columns = tables[kinds[0]][device].columns
            rows = [
                [kind, int(bh), *map(float, row)]
                for kind in kinds
                for bh, row in zip(tables[kind][device].index, tables[kind][device].to_numpy(), strict=True)
            ]
            write_csv(out / device / f"{name}.csv", ["kind", "bh", *[f"seq{s}_s" for s in columns]], rows)


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
    if len(arguments) != 4:
        sys.stderr.write("usage: python -m calibration.carry SILICON_DIR COMM_DIR KERNELS_DIR OUT\n")
        return 2
    silicon, comm, kernels, out = map(Path, arguments)
    for device in SYSTEMS:
        (out / device).mkdir(parents=True, exist_ok=True)
    carry_gemm(silicon, out)
    carry_attention(silicon, out)
    for device, system in SYSTEMS.items():
        carry_comm(silicon, comm, device, system, out / device, write_csv)
        write_sources(out / device)
    check_backward(kernels, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
