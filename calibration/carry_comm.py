"""The communication half of `calibration.carry`: collectives, expert all-to-all, NICs.

What is written per device, where measured:

- collectives.csv: NCCL inside one NVLink domain, seconds per op, group size and buffer bytes;
- alltoall.csv: expert dispatch and combine kernels, seconds per shape and tokens per rank;
- alltoall_summary.csv: the bandwidth those reach on large batches, counted after deduplication;
- internode.csv: bandwidth and latency of NCCL across nodes, derived parameters and no rows of the
  source (some sources state no licence).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import lgamma
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Writer = Callable[[Path, Sequence[str], Sequence[Sequence[object]]], None]
MICRO = 1e-6
GIGA = 1e9
LARGE_TOKENS = 4096
MAX_SMS = 24
# Bytes per element as sent: fp8 and nvfp4 carry one scale per 128 (4 bytes) and per 16 (1 byte) elements.
PAYLOAD_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp8": 1.0 + 4 / 128, "nvfp4": 0.5 + 1 / 16}
A2A_COLUMNS = ["kind", "phase", "payload", "nodes", "ep", "hidden", "topk", "experts", "tokens", "time_s"]
BLUNT = ["kind", "phase", "payload", "nodes", "ep"]


def carry_collectives(silicon: Path, system: str, path: Path, write: Writer) -> None:
    """collectives.csv: best NCCL version per point (half precision), time not falling with bytes."""
    frame = pd.read_csv(silicon / "aic_nccl.csv")
    frame = frame[(frame.system == system) & (frame.nccl_dtype == "half")]
    wide = (frame.groupby(["op_name", "num_gpus", "bytes"]).latency_us.min() * MICRO).unstack("bytes")
    if wide.isna().to_numpy().any():
        raise ValueError(f"{system}: NCCL grid has holes")
    time_s = wide.to_numpy(dtype=float)
    up = np.maximum.accumulate(time_s, axis=1)
    down = np.flip(np.minimum.accumulate(np.flip(time_s, 1), axis=1), 1)
    both = np.sqrt(up * down)
    rows = [[op, int(n), *map(float, row)] for (op, n), row in zip(wide.index, both, strict=True)]
    write(path, ["op", "num_gpus", *[f"b{int(b)}_s" for b in wide.columns]], rows)


def expected_targets(groups: Floats, topk: Floats, experts: Floats) -> Floats:
    """Mean number of distinct groups (ranks or nodes) that `topk` different experts of a token lie in.

    Uniform routing without replacement: groups x (1 - C(E - E/g, k) / C(E, k)).
    """

    def miss(g: float, k: float, e: float) -> float:
        rest = e - e / g
        if rest < k:
            return 0.0
        return float(np.exp(lgamma(rest + 1) - lgamma(rest - k + 1) - lgamma(e + 1) + lgamma(e - k + 1)))

    share = np.array([miss(*args) for args in zip(groups, topk, experts, strict=True)])
    return groups * (1.0 - share)


def deepep_rows(silicon: Path, system: str) -> pd.DataFrame:
    """DeepEP normal kernels: best of the SM counts up to `MAX_SMS`; fp8 dispatch, bf16 combine."""
    frame = pd.read_csv(silicon / "aic_deepep_normal.csv")
    frame = frame[(frame.system == system) & (frame.dispatch_sms <= MAX_SMS)]
    parts = []
    for phase, payload in (("dispatch", "fp8"), ("combine", "bf16")):
        time_us = frame[f"{phase}_transmit_us"] + frame[f"{phase}_notify_us"]
        part = frame.assign(time_s=time_us * MICRO, kind="deepep_normal", phase=phase, payload=payload)
        parts.append(part.assign(ep=part.node_num * (4 if system == "gb200" else 8)))
    names = {"node_num": "nodes", "hidden_size": "hidden", "num_topk": "topk", "num_experts": "experts"}
    return pd.concat(parts).rename(columns={**names, "num_token": "tokens"})[A2A_COLUMNS]


def single_node_rows(silicon: Path, system: str) -> pd.DataFrame:
    """DeepEP high-throughput kernels driven by TensorRT-LLM, one node: bf16 (and nvfp4) payload."""
    frame = pd.read_csv(silicon / "aic_moe_a2a_single_node.csv")
    frame = frame[(frame.system == system) & (frame.comm_backend == "trtllm_deepep_ht")]
    payload = frame.comm_dtype.map({"bfloat16": "bf16", "nvfp4": "nvfp4"})
    payload = payload.where(frame.phase == "dispatch", "bf16")
    frame = frame.assign(kind="deepep_ht", payload=payload, time_s=frame.latency_us * MICRO)
    names = {"node_num": "nodes", "ep_size": "ep", "hidden_size": "hidden", "num_experts": "experts"}
    return frame.rename(columns={**names, "num_tokens": "tokens"})[A2A_COLUMNS]


def nvlink_rows(silicon: Path) -> pd.DataFrame:
    """TensorRT-LLM two-sided all-to-all over the NVL72 domain, bf16; prepare is part of the dispatch."""
    frame = pd.read_csv(silicon / "aic_trtllm_alltoall_gb200.csv")
    frame = frame[(frame.moe_dtype == "bfloat16") & (frame.kernel_source == "NVLinkTwoSided")]
    phase = frame.op_name.map(
        {"alltoall_prepare": "dispatch", "alltoall_dispatch": "dispatch", "alltoall_combine": "combine"}
    )
    frame = frame.assign(kind="nvlink", phase=phase, payload="bf16", nodes=1, time_s=frame.latency_us * MICRO)
    names = {"moe_ep_size": "ep", "hidden_size": "hidden", "num_experts": "experts", "num_tokens": "tokens"}
    frame = frame[frame.phase.notna()].rename(columns=names)
    return frame.groupby(A2A_COLUMNS[:-1]).time_s.sum().reset_index()


def carry_alltoall(silicon: Path, system: str, folder: Path, write: Writer) -> None:
    """alltoall.csv and its summary, where the device has any."""
    parts = [deepep_rows(silicon, system), single_node_rows(silicon, system)]
    if system == "gb200":
        parts.append(nvlink_rows(silicon))
    frame = pd.concat(parts)
    frame = frame[frame.tokens >= 64].groupby(A2A_COLUMNS[:-1]).time_s.min().reset_index()
    if frame.empty:
        return
    write(folder / "alltoall.csv", A2A_COLUMNS, frame.astype(object).to_numpy().tolist())
    across = frame.nodes > 1
    groups = np.where(across, frame.nodes, frame.ep).astype(float)
    targets = expected_targets(groups, frame.topk.to_numpy(float), frame.experts.to_numpy(float))
    sent = frame.tokens * frame.hidden * frame.payload.map(PAYLOAD_BYTES) * targets * (groups - 1) / groups
    frame = frame.assign(bytes_per_s=sent / frame.time_s, link=np.where(across, "nic", "nvlink"))
    wide = (frame.hidden >= 4096) & (frame.topk >= 4)
    large = frame[wide & (frame.tokens >= LARGE_TOKENS)].groupby([*BLUNT, "link"]).bytes_per_s
    small = frame[wide & (frame.tokens == frame.tokens.min())].groupby([*BLUNT, "link"]).time_s.median()
    rows = [
        [*key, float(part.median()), float(part.min()), float(part.max()), float(small.loc[key])] for key, part in large
    ]
    header = [*BLUNT, "link", "median_bytes_per_s", "low_bytes_per_s", "high_bytes_per_s", "small_time_s"]
    write(folder / "alltoall_summary.csv", header, rows)


def carry_internode(comm: Path, device: str, path: Path, write: Writer) -> None:
    """internode.csv: per cluster, op and node count, what NCCL reaches across nodes.

    bus_bytes_per_s: best bus bandwidth (nccl-tests convention). nic_bytes_per_s: bytes per second that
    one GPU's share of the NICs carries: a ring crosses a node boundary once per node, so bus / GPUs per
    node; an all-to-all sends (n - g) of its (n - 1) foreign parts outside; send-receive is counted as is.
    half_bytes: buffer at which half of the best is reached (empty if below the smallest measured).
    latency_s: time of the smallest messages, 16 KiB or less (empty where none was measured).
    """
    frame = pd.read_csv(comm / "comm_measurements.csv", low_memory=False)
    frame = frame[(frame.kind == "nccl_collective") & (frame.n_nodes > 1) & (frame.in_place == 0)]
    tag = frame.config_tag.fillna("")
    if device == "a100":
        proper = (frame.source == "argonne-lcf/alcf-nccl-tests") & (
            tag.str.match(r"polaris.*env_setup_[45]$") | tag.str.startswith("sophia")
        )
    elif device == "h100":
        wanted = tag.str.startswith("multi") | (frame.op == "sendrecv")
        proper = (frame.source == "xxrjun/nccl-tests-cluster") & wanted
    else:
        return
    frame = frame[proper].assign(cluster=tag[proper].str.split("|").str[0].str.replace(r"_G\d+$", "", regex=True))
    rows: list[list[object]] = []
    keys = ["cluster", "op", "n_nodes", "gpus_per_node"]
    for index, part in frame.astype({"n_nodes": int, "gpus_per_node": int}).groupby(keys):
        cluster, op = str(index[0]), str(index[1])
        nodes, per_node = int(str(index[2])), int(str(index[3]))
        curve = part.groupby("msg_bytes").agg(bus=("busbw_GBps", "median"), best=("time_us", "min")).sort_index()
        bus = float(curve.bus.max()) * GIGA
        gpus = nodes * per_node
        share = {"alltoall": (gpus - per_node) / (gpus - 1), "sendrecv": 1.0}.get(op, 1.0 / per_node)
        reached = curve.index[curve.bus >= curve.bus.max() / 2]
        half: object = float(reached[0]) if len(reached) and reached[0] > curve.index[0] else ""
        short = curve.best[curve.index <= 16384]
        latency: object = float(short.median()) * MICRO if len(short) else ""
        rows.append([cluster, op, nodes, per_node, bus, bus * share, half, latency])
    header = ["cluster", "op", "nodes", "gpus_per_node"]
    write(path, [*header, "bus_bytes_per_s", "nic_bytes_per_s", "half_bytes", "latency_s"], rows)


def carry_comm(silicon: Path, comm: Path, device: str, system: str, folder: Path, write: Writer) -> None:
    """All communication files of one device."""
    carry_collectives(silicon, system, folder / "collectives.csv", write)
    carry_alltoall(silicon, system, folder, write)
    carry_internode(comm, device, folder / "internode.csv", write)
