"""What is asked of the model: one training step of so many sequences of so many tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "fp16", "fp8", "fp8_block", "mxfp8", "nvfp4"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training step. `precision` is the dtype recipe of the large GEMMs.

    "fp16" moves and multiplies as "bf16" does (loss scaling costs nothing that counts) on devices that may have only
    the one; "fp8" is per-tensor scaling (delayed or current), "fp8_block" 128-blocks on Hopper,
    "mxfp8" 1x32 blocks and "nvfp4" on Blackwell; everything else runs in bf16.
    """

    kind: Literal["train"] = "train"
    seq_tokens: int
    global_batch_seqs: int
    precision: Precision = "bf16"
    optimizer: Literal["adam"] = "adam"
    with_mtp: bool = False
