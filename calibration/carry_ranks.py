"""The power-law half of `calibration.carry`: fused MoE layers of the fullest of several expert-parallel ranks.

moe_ranks.csv, one row per (dtype, model, ep, tokens, alpha): time_s under routing drawn from a power law of exponent
alpha, even_s of the same kernels, model, rank and tokens under balanced routing. TensorRT-LLM only, whose
balanced rows fall with ep as they must. Nothing is cleaned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from calibration.carry_moe import DTYPES, MICRO

Writer = Callable[[Path, Sequence[str], Sequence[Sequence[object]]], None]
KEYS = ["dtype", "hidden", "ffn", "topk", "experts", "ep", "tokens"]
SIZES = (8, 32, 64)
TOKENS = (1024, 4096, 16384)


def ranks(silicon: Path, system: str) -> pd.DataFrame:
    """Rows of moe_ranks.csv of one system."""
    frame = pd.read_csv(silicon / f"aic_moe_{system}.csv").merge(
        pd.read_csv(silicon / "aic_moe_shapes.csv"), on="model"
    )
    frame = frame[frame.src.str.startswith("trtllm") & (frame.kernel_source != "moe_torch_flow_min_latency")]
    frame = frame[(frame.moe_tp_size == 1) & frame.moe_ep_size.isin(SIZES) & frame.num_tokens.isin(TOKENS)]
    alpha = frame.distribution.str.removeprefix("power_law_").replace("balanced", "0").astype(float)
    frame = frame.assign(alpha=alpha, dtype=frame.moe_dtype.map(DTYPES), time_s=frame.latency_us * MICRO)
    names = {"hidden_size": "hidden", "inter_size": "ffn", "num_experts": "experts", "num_tokens": "tokens"}
    frame = frame.rename(columns={**names, "moe_ep_size": "ep"})
    frame = frame[frame.dtype.notna()].groupby([*KEYS, "alpha"]).time_s.min().reset_index()
    even = frame[frame.alpha == 0.0].rename(columns={"time_s": "even_s"}).drop(columns="alpha")
    uneven: pd.DataFrame = frame[frame.alpha > 0.0].merge(even, on=KEYS)
    return uneven[[*KEYS, "alpha", "time_s", "even_s"]].sort_values([*KEYS, "alpha"])


def carry_ranks(silicon: Path, system: str, folder: Path, write: Writer) -> None:
    """moe_ranks.csv of one device; none where nothing was measured under both kinds of routing."""
    frame = ranks(silicon, system)
    if len(frame):
        write(folder / "moe_ranks.csv", list(frame.columns), frame.astype(object).to_numpy().tolist())
