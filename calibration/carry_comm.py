"""The communication half of `calibration.carry`: collectives and expert all-to-all.

What is written per device, where measured (across nodes: `calibration.carry_network`):

- collectives.csv: NCCL inside one NVLink domain, seconds per op, group size and buffer bytes;
- alltoall.csv: expert dispatch and combine kernels, seconds per shape, SMs and tokens per rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

Writer = Callable[[Path, Sequence[str], Sequence[Sequence[object]]], None]
MICRO = 1e-6
CONGESTED_NODES = 8
A2A_KEYS = ["kind", "phase", "payload", "flag", "nodes", "ep", "hidden", "topk", "experts", "sms"]


def carry_collectives(silicon: Path, system: str, path: Path, write: Writer, groups: Sequence[int] = ()) -> None:
    """collectives.csv: best NCCL version per point (half precision), time not falling with bytes.

    groups: sizes to keep; none: all.
    """
    frame = pd.read_csv(silicon / "aic_nccl.csv")
    frame = frame[(frame.system == system) & (frame.nccl_dtype == "half")]
    frame = frame[frame.num_gpus.isin(groups)] if groups else frame
    wide = (frame.groupby(["op_name", "num_gpus", "bytes"]).latency_us.min() * MICRO).unstack("bytes")
    if wide.isna().to_numpy().any():
        raise ValueError(f"{system}: NCCL grid has holes")
    time_s = wide.to_numpy(dtype=float)
    up = np.maximum.accumulate(time_s, axis=1)
    down = np.flip(np.minimum.accumulate(np.flip(time_s, 1), axis=1), 1)
    both = np.sqrt(up * down)
    rows = [[op, int(n), *map(float, row)] for (op, n), row in zip(wide.index, both, strict=True)]
    write(path, ["op", "num_gpus", *[f"b{int(b)}_s" for b in wide.columns]], rows)


def normal_rows(silicon: Path, system: str) -> pd.DataFrame:
    """DeepEP normal kernels by SMs: fp8 dispatch, bf16 combine, notification included.

    Several nodes were measured on one cluster, whose 8-node rows are flagged `congested` (they wait for the network
    in transfer and notification alike); `congested_transmit` holds the same rows without their notification.
    """
    frame = pd.read_csv(silicon / "aic_deepep_normal.csv")
    frame = frame[frame.system == system]
    parts = []
    for phase, payload in (("dispatch", "fp8"), ("combine", "bf16")):
        transmit, notify = frame[f"{phase}_transmit_us"], frame[f"{phase}_notify_us"]
        part = frame.assign(kind="normal", phase=phase, payload=payload, sms=frame[f"{phase}_sms"], flag="")
        clear = frame.node_num < CONGESTED_NODES
        parts.append(part[clear].assign(time_us=transmit + notify))
        parts.append(part[~clear].assign(time_us=transmit + notify, flag="congested"))
        parts.append(part[~clear].assign(time_us=transmit, flag="congested_transmit"))
    return _named(pd.concat(parts), system)


def low_latency_rows(silicon: Path, system: str) -> pd.DataFrame:
    """DeepEP low-latency kernels: fp8 dispatch, bf16 combine, on all SMs they find work for (sms 0)."""
    frame = pd.read_csv(silicon / "aic_deepep_low_latency.csv")
    frame = frame[frame.system == system].assign(kind="low_latency", sms=0, flag="")
    parts = [
        frame.assign(phase=phase, payload=payload, time_us=frame[f"{phase}_avg_t_us"])
        for phase, payload in (("dispatch", "fp8"), ("combine", "bf16"))
    ]
    return _named(pd.concat(parts), system)


def other_rows(silicon: Path, system: str) -> pd.DataFrame:
    """DeepEP normal kernels driven by TensorRT-LLM, one node, SMs not stated (0): bf16 and nvfp4 payload."""
    frame = pd.read_csv(silicon / "aic_moe_a2a_single_node.csv")
    frame = frame[(frame.system == system) & (frame.comm_backend == "trtllm_deepep_ht")]
    payload = frame.comm_dtype.map({"bfloat16": "bf16", "nvfp4": "nvfp4"}).where(frame.phase == "dispatch", "bf16")
    return _named(frame.assign(kind="normal_other", payload=payload, flag="", time_us=frame.latency_us), system)


def rack_rows(silicon: Path) -> pd.DataFrame:
    """TensorRT-LLM two-sided all-to-all over the NVL72 domain; prepare is part of the dispatch."""
    frame = pd.read_csv(silicon / "aic_trtllm_alltoall_gb200.csv")
    steps = {"alltoall_prepare": "dispatch", "alltoall_dispatch": "dispatch", "alltoall_combine": "combine"}
    frame = frame[(frame.kernel_source == "NVLinkTwoSided") & frame.op_name.isin(list(steps))]
    phase = frame.op_name.map(steps)
    payload = frame.moe_dtype.map({"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4"})
    frame = frame.assign(
        kind="rack", phase=phase, payload=payload.where(phase == "dispatch", "bf16"), nodes=1, sms=0, flag="",
        ep=frame.moe_ep_size, time_us=frame.latency_us,
    )  # fmt: skip
    rows = _named(frame, "gb200")
    # all steps of one setting together; combine was measured once per payload of the dispatch
    whole = rows.assign(source=frame.moe_dtype).groupby([*A2A_KEYS, "tokens", "source"]).time_s.sum()
    return whole.groupby([*A2A_KEYS, "tokens"]).min().reset_index()


def _named(frame: pd.DataFrame, system: str) -> pd.DataFrame:
    names = {
        "node_num": "nodes", "ep_size": "ep", "hidden_size": "hidden", "num_topk": "topk", "num_experts": "experts",
        "num_token": "tokens", "num_tokens": "tokens",
    }  # fmt: skip
    frame = frame.rename(columns=names)
    if "ep" not in frame:
        frame = frame.assign(ep=frame.nodes * (4 if system == "gb200" else 8))
    return frame.assign(time_s=frame.time_us * MICRO)[[*A2A_KEYS, "tokens", "time_s"]]


def carry_alltoall(silicon: Path, system: str, folder: Path, write: Writer) -> None:
    """alltoall.csv, where the device has any: a row per kernel, shape and SMs, a column per tokens of a rank."""
    parts = [normal_rows(silicon, system), low_latency_rows(silicon, system), other_rows(silicon, system)]
    if system == "gb200":
        parts.append(rack_rows(silicon))
    frame = pd.concat(parts)
    if frame.empty:
        return
    wide = frame.groupby([*A2A_KEYS, "tokens"]).time_s.min().unstack("tokens")
    times = [["" if np.isnan(x) else float(x) for x in row] for row in wide.to_numpy(dtype=float)]
    rows = [[*key, *row] for key, row in zip(wide.index, times, strict=True)]
    write(folder / "alltoall.csv", [*A2A_KEYS, *[f"t{int(n)}_s" for n in wide.columns]], rows)


def carry_comm(
    silicon: Path, system: str, folder: Path, write: Writer, *, groups: Sequence[int] = (), dispatch: bool = True
) -> None:
    """All communication files of one device; groups: sizes of collectives to keep; dispatch: alltoall.csv too."""
    carry_collectives(silicon, system, folder / "collectives.csv", write, groups)
    if dispatch:
        carry_alltoall(silicon, system, folder, write)
