"""Rows and environments as the harness would write them, with times from forms that are known: what a fit must find."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from calibration.harness.rows import COLUMNS
from hwprofiles.forms.attention import AttentionForm
from hwprofiles.forms.gemm import GemmForm
from hwprofiles.forms.grouped import GroupedForm

PEAK, RATE, FLOOR_S, CLOCK = 5e14, 2e12, 3e-6, 0.8
GEMM = GemmForm(
    multiprocessors=100.0, element_bytes=2.0, result_bytes=2.0, start_s=3e-6, flop_per_s=0.9 * PEAK, bytes_per_s=RATE,
    tile_efficiency=0.88, small_efficiency=0.88, ramp_k=150.0, tail=0.5, two_waves=1.0, throttle=0.01, throttle_s=3e-3,
    cast_s=0.0, cache_elements=1e6,
)  # fmt: skip
CORE = AttentionForm(
    multiprocessors=100.0, floor_s=6e-6, pair_s=2.2e-6, tile_s=5e-6, head_s=1e-6, kv_tile_s=5e-6, sharpness=4.0,
    throttle=0.05, throttle_s=5e-3,
)  # fmt: skip
GROUPED = GroupedForm(
    operand_bytes=2.0, flop_per_s=0.85 * PEAK, bytes_per_s=0.9 * RATE, pad_rows=60.0, edge_n=40.0, edge_k=150.0,
    tail_tiles=50.0, traffic=1.1, sharpness=3.0, floor_s=8e-6, dgrad=1.1, wgrad=1.3,
)  # fmt: skip
RATIO = 2.5  # attention backward over forward
PASSES = {"forward": 1.0, "dgrad": 1.1, "wgrad": 1.25}


def row(family: str, op: str, time_s: float, sizes: dict[str, Any], **cells: Any) -> dict[str, str]:
    made = dict.fromkeys(COLUMNS, "") | {"family": family, "op": op, "dtype": "bf16", "pass": "forward"}
    made |= {"sizes": json.dumps(sizes, sort_keys=True, separators=(",", ":")), "status": "ok", "flop": "0"}
    made |= {"median_s": f"{time_s:.7g}", "device": "Test GPU", "driver": "1", "torch": "2.9", "cuda": "13"}
    made |= {"date": "2026-01-02T03:04:05+00:00", "command": "measure --device cuda", "bytes": "0"}
    return made | {key: str(value) for key, value in cells.items()}


def launch() -> list[dict[str, str]]:
    names = {"host_launch": 8e-6, "kernel_back_to_back": 2 * FLOOR_S, "graph_kernel": FLOOR_S}
    return [row("launch", op, time_s, {"queue": 500}) for op, time_s in names.items()]


def gemms() -> list[dict[str, str]]:
    found = []
    for m in (256, 1024, 4096):
        for n, k in ((1024, 1024), (1024, 4096), (4096, 1024), (4096, 4096)):
            for pass_, ratio in PASSES.items():
                sizes = {"forward": (m, n, k), "dgrad": (m, k, n), "wgrad": (n, k, m)}[pass_]
                time_s = ratio * float(GEMM.time_s(*sizes))
                found.append(row("gemm", "gemm", time_s, {"m": m, "n": n, "k": k}, **{"pass": pass_}))
    return found


def cores() -> list[dict[str, str]]:
    found = []
    for seq in (1024, 2048, 4096):
        for heads, kv in ((8, 1), (32, 4)):
            sizes = {"batch": 1, "causal": True, "heads": heads, "kv_heads": kv, "dqk": 128, "dv": 128, "seq": seq}
            time_s = float(CORE.time_s(heads, kv, seq))
            found.append(row("attention", "attention_flash", time_s, sizes))
            found.append(row("attention", "attention_flash", RATIO * time_s, sizes, **{"pass": "backward"}))
    return found


def experts() -> list[dict[str, str]]:
    found = []
    for groups in (4, 16):
        for n, k in ((2048, 1024), (1024, 2048)):
            for mean in (256, 1024):
                for over in (1.0, 2.0):
                    args = groups * mean, groups, n, k, over * mean
                    times = {"forward": GROUPED.product_s(*args), "wgrad": GROUPED.wgrad_s(*args)}
                    times["dgrad"] = GROUPED.dgrad_s(groups * mean, groups, k, n, over * mean)
                    sizes = {"groups": groups, "n": n, "k": k, "m": mean, "rows": groups * mean, "m_max": over * mean}
                    sizes["spread"] = "even" if over == 1.0 else "uneven"
                    for pass_, time_s in times.items():
                        found.append(row("grouped_gemm", "grouped_gemm", float(time_s), sizes, **{"pass": pass_}))
    return found


def kernel_s(nbytes: float) -> float:
    return FLOOR_S + nbytes / (0.5 * RATE)


def memory() -> list[dict[str, str]]:
    kinds = [("rmsnorm", "forward"), ("rmsnorm", "backward"), ("copy", "forward")]
    sizes = [2.0**power for power in (16, 20, 24, 28)]
    return [
        row("memory", op, kernel_s(nbytes), {"elements": nbytes}, bytes=nbytes, **{"pass": pass_})
        for op, pass_ in kinds
        for nbytes in sizes
    ]


def sustained() -> list[dict[str, str]]:
    found = []
    for kind, clock, seconds in (("burst", 1.0, 0.0), ("sustained", CLOCK, 8.0)):
        sizes = {"m": 8192, "n": 8192, "k": 8192, "seconds": seconds}
        flop = 2.0 * 8192**3
        found.append(row("sustained", f"gemm_{kind}", flop / PEAK / clock, sizes, flop=flop))
        copy = {"elements": 2**29, "seconds": seconds}
        found.append(
            row("sustained", f"copy_{kind}", 2.0**31 / RATE / (1.0 - (kind != "burst") / 10), copy, bytes=2**31)
        )
    return found


def exchange_s(op: str, ranks: int, nbytes: float) -> float:
    return 1e-5 * ranks + nbytes * (ranks - 1) / ranks / 1e11 * (2.0 if op == "all_reduce" else 1.0)


def collectives(ranks: int = 2) -> list[dict[str, str]]:
    found = []
    for op, dtype in (
        ("all_reduce", "fp32"),
        ("all_gather", "bf16"),
        ("reduce_scatter", "fp32"),
        ("all_to_all", "bf16"),
    ):
        for nbytes in (2**12, 2**16, 2**20, 2**24):
            off = nbytes * (ranks - 1) // ranks
            sizes = {"ranks": ranks, "bytes": nbytes, "bytes_max": nbytes, "bytes_off_max": off, "spread": "even"}
            found.append(row("collectives", op, exchange_s(op, ranks, nbytes), sizes, dtype=dtype))
    off = 3 * 2**17
    uneven = {"ranks": ranks, "bytes": 2**19, "bytes_max": 2 * off, "bytes_off_max": off, "spread": "uneven"}
    found.append(row("collectives", "all_to_all", exchange_s("", ranks, off * ranks / (ranks - 1)), uneven))
    for nbytes in (2**12, 2**30):
        sizes = {"ranks": ranks, "bytes": nbytes, "bytes_max": nbytes, "bytes_off_max": nbytes, "spread": "even"}
        found.append(row("collectives", "send_recv", 2e-6 + nbytes / 1e11, sizes))
    return found


EVERYTHING = (launch, gemms, cores, experts, memory, sustained)


def everything() -> list[dict[str, str]]:
    return [made for family in EVERYTHING for made in family()]


def write(folder: Path, rows: list[dict[str, str]], *, device: str = "Test GPU", **cells: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    env = {"device": device, "device_type": "cuda", "driver": "1", "torch": "2.9", "cuda": "13"}
    env |= {"mem_bytes": 8 * 2**30, "multiprocessors": 100, "power_limit_w": 500.0, "host_mem_bytes": 2**36, **cells}
    (folder / "environment.json").write_text(json.dumps(env), encoding="utf-8")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([made | {"device": device} for made in rows])
    return folder


def off(predicted: Any, truth: Any) -> float:
    """Largest relative error."""
    return float(np.max(np.abs(np.asarray(predicted) / np.asarray(truth) - 1.0)))
