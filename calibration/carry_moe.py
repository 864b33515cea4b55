"""The expert half of `calibration.carry`: fused MoE layers of one GPU, with even and uneven rows.

- moe.csv: TensorRT-LLM's CUTLASS grouped GEMMs (DeepGEMM for fp8_block on Blackwell), the kernel nearest to what
  trainers run, balanced routing, every expert-parallel and expert-tensor-parallel size. On A100 that library was
  measured with skewed routing only: its rows on one rank (EP 1), whose number is known whatever the skew.
- moe_uneven.csv, by kind: `stated` (the same kernels under a stated power law, EP 1, so the rows are known and only
  their spread is not), `eplb` (wide expert parallelism, rank 0 timed, with and without load balancing) and `counted`
  (vLLM's Triton kernel with the load of every expert counted).

Nothing is cleaned: a time is what was measured. `m_max` are the rows of the fullest local expert (empty: all
alike). Where the source states only a law, it is what that law gives on average; see `stated_loads`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Writer = Callable[[Path, Sequence[str], Sequence[Sequence[object]]], None]
MICRO = 1e-6
DTYPES: Mapping[str, str] = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
LAYER = ["dtype", "hidden", "ffn", "topk", "experts", "ep", "tp", "tokens", "m_max"]
UNEVEN = ["kind", "setting", "dtype", "hidden", "ffn", "topk", "groups", "tokens", "rows", "m_max"]
STATED_TOKENS = (1024, 4096, 16384)  # thinned, as all three lie in the range that is scored
EPLB_TOKENS = tuple(2**i for i in range(8, 15))  # powers of two; fewer tokens leave single rows to a rank
COUNTED_STEP = 256  # of the 500 token counts per setting every one divisible by this, and powers of two below
COUNTED_ROWS = 128  # fewer rows lie far below the range that is scored
COUNTED: Mapping[str, str] = {"a100": "a800", "h100": "h800"}  # the same compute dies with slower NVLink
# The collector draws loads from a power law cut off at this share of the tokens, and puts the fullest rank first.
CUT = 0.8
DRAWS = 200
SEEN = 0.97  # above this share of tokens that touch a rank, their number no longer tells its rows


@cache
def stated_loads(alpha: float, tokens: int, experts: int, topk: int, ep: int) -> tuple[float, float]:
    """Rows of the fullest rank and of the fullest expert on it, medians over draws.

    Loads follow x^-alpha on 1 <= x <= CUT tokens, are scaled to tokens x topk rows and no expert takes a token
    twice. Deterministic.
    """
    rng = np.random.default_rng(0)
    power, top = 1.0 - alpha, max(CUT * tokens, 2.0)
    load = ((top**power - 1.0) * rng.random((DRAWS, experts)) + 1.0) ** (1.0 / power)
    load = np.minimum(load / load.sum(axis=1, keepdims=True) * tokens * topk, tokens)
    ranks = load.reshape(DRAWS, ep, -1)
    hottest = ranks[np.arange(DRAWS), ranks.sum(axis=2).argmax(axis=1)]
    return float(np.median(hottest.sum(axis=1))), float(np.median(hottest.max(axis=1)))


def layers(silicon: Path, device: str, system: str) -> pd.DataFrame:
    """Every row of the chosen kernels: LAYER columns but m_max, `alpha` (0: balanced), time_s."""
    frame = pd.read_csv(silicon / f"aic_moe_{system}.csv").merge(
        pd.read_csv(silicon / "aic_moe_shapes.csv"), on="model"
    )
    frame = frame[frame.src.str.startswith("trtllm") & (frame.kernel_source != "moe_torch_flow_min_latency")]
    alpha = frame.distribution.str.removeprefix("power_law_").replace("balanced", "0").astype(float)
    frame = frame.assign(alpha=alpha, dtype=frame.moe_dtype.map(DTYPES), time_s=frame.latency_us * MICRO)
    names = {"hidden_size": "hidden", "inter_size": "ffn", "num_experts": "experts", "num_tokens": "tokens"}
    frame = frame.rename(columns={**names, "moe_ep_size": "ep", "moe_tp_size": "tp"})
    keys = [name for name in LAYER if name != "m_max"]
    frame = frame[frame.dtype.notna()].groupby([*keys, "alpha"]).time_s.min().reset_index()
    return frame[(frame.alpha == 0.0) | (frame.ep == 1)]


def fullest(frame: pd.DataFrame) -> pd.Series:
    """m_max of rows under a stated law on one rank; empty where balanced."""
    columns = zip(frame.alpha, frame.tokens, frame.experts, frame.topk, strict=True)
    peaks = [
        "" if alpha == 0.0 else max(round(stated_loads(float(alpha), int(t), int(e), int(k), 1)[1]), 1)
        for alpha, t, e, k in columns
    ]
    return pd.Series(peaks, index=frame.index, dtype=object)


def stated_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the `stated` kind."""
    frame = frame[(frame.alpha > 0.0) & frame.tokens.isin(STATED_TOKENS)]
    setting = "power_law_" + frame.alpha.astype(str) + "/tp" + frame.tp.astype(str)
    frame = frame.assign(kind="stated", setting=setting, rows=frame.tokens * frame.topk, m_max=fullest(frame))
    return frame.assign(groups=frame.experts, ffn=frame.ffn / frame.tp)


def eplb_rows(silicon: Path, system: str) -> pd.DataFrame:
    """Rows of the `eplb` kind. tokens = those that touch rank 0.

    Its rows are not recorded. Of the choices that can fall on the rank (topk, or its experts where those are
    fewer) a token makes none with (1 - s)^choices, which gives the share s from the tokens seen, and choices x s
    rows for each; where nearly all were seen: the mean with load balancing, else the fullest rank of the law. How they
    spread over its experts is not known: taken as even.
    """
    frame = pd.read_csv(silicon / "aic_wideep_moe_eplb.csv")
    frame = frame[(frame.system == system) & frame.num_tokens.isin(EPLB_TOKENS)]
    if frame.empty:
        return frame
    return pd.DataFrame([_eplb_row(row) for row in frame.to_dict("records")])


def _eplb_row(row: Mapping[Hashable, Any]) -> dict[str, object]:
    tokens, touching, topk, ep = (int(row[key]) for key in ("num_tokens", "rank0_num_tokens", "topk", "moe_ep_size"))
    experts, slots = int(row["num_experts"]), int(row["num_slots"])
    balanced = str(row["op_name"]).endswith("_eplb")
    alpha = float(str(row["distribution"]).removeprefix("power_law_").removesuffix("_eplb"))
    hot_rank, _ = stated_loads(alpha, tokens, experts, topk, ep)
    total, seen = tokens * topk, touching / tokens
    groups = slots // ep
    choices = min(topk, groups)
    guess = total / ep if balanced else hot_rank
    rows = tokens * choices * (1.0 - (1.0 - seen) ** (1.0 / choices)) if seen < SEEN else guess
    rows = min(max(rows, touching), touching * topk)
    return {
        "kind": "eplb", "setting": f"ep{ep}/{row['distribution']}/{slots}", "dtype": DTYPES[row["moe_dtype"]],
        "hidden": row["hidden_size"], "ffn": row["inter_size"], "topk": topk, "groups": groups, "tokens": touching,
        "rows": round(rows), "m_max": "", "time_s": float(row["latency_us"]) * MICRO,
    }  # fmt: skip


def counted_rows(silicon: Path, device: str) -> pd.DataFrame:
    """Rows of the `counted` kind: every row of the chosen token counts, loads as counted by the source."""
    frame = pd.read_csv(silicon / "frontier_moe.csv")
    frame = frame[(frame.device == COUNTED[device]) & (frame.total_routed_tokens >= COUNTED_ROWS)]
    frame = frame[frame.max_load_ratio > 0]
    small = frame.num_tokens < COUNTED_STEP
    power = np.exp2(np.round(np.log2(frame.num_tokens))) == frame.num_tokens
    frame = frame[np.where(small, power, frame.num_tokens % COUNTED_STEP == 0)]
    tp, local = frame.num_tensor_parallel_workers, frame.num_experts_per_device
    mean = frame.total_routed_tokens / local
    setting = frame.model_tag + "/" + local.astype(str) + "/tp" + tp.astype(str)
    frame = frame.assign(kind="counted", setting=setting, dtype="bf16", hidden=frame.hidden_dim)
    frame = frame.assign(
        ffn=frame.expert_hidden_dim / tp, topk=frame.router_topk, groups=local, tokens=frame.num_tokens
    )
    frame = frame.assign(rows=frame.total_routed_tokens, m_max=(mean * frame.max_load_ratio).round().astype(int))
    return frame.assign(time_s=frame.grouped_gemm_us * MICRO)


def carry_moe(silicon: Path, device: str, system: str, folder: Path, write: Writer) -> None:
    """moe.csv and moe_uneven.csv of one device."""
    frame = layers(silicon, device, system)
    even = frame if device == "a100" else frame[frame.alpha == 0.0]
    even = even.assign(m_max=fullest(even))
    write(folder / "moe.csv", [*LAYER, "time_s"], even[[*LAYER, "time_s"]].astype(object).to_numpy().tolist())
    parts = [eplb_rows(silicon, system)]
    if device != "a100":  # there the stated laws are all there is, in moe.csv
        parts.append(stated_rows(frame))
    if device in COUNTED:
        parts.append(counted_rows(silicon, device))
    whole = dict.fromkeys(UNEVEN[3:-1], int)
    parts = [part[[*UNEVEN, "time_s"]].sort_values(UNEVEN).astype(whole) for part in parts if len(part)]
    rows = pd.concat([part.astype(object) for part in parts]).to_numpy().tolist()
    write(folder / "moe_uneven.csv", [*UNEVEN, "time_s"], rows)
