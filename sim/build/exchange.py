"""How tokens travel to their experts: their width on the wire, the casts it takes, and rows a TP group shares out.

In 8 bits (`fp8_dispatch`) a row goes out as one byte an element with a scale per 128 of them; experts that run on such
blocks take the rows as they are, any other recipe gets them back in 16 bits. Results and gradients travel in 16 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprofiles.forms.dispatch import PAYLOAD_BYTES
from sim.build.context import ACT_BYTES, LOW_PRECISION, Context, collective, memory_op
from sim.ops import Op

# The recipe whose operands are the blocks of 128 that the rows arrive in.
BLOCKS_OF_DISPATCH = "fp8_block"


def payload(ctx: Context) -> str:
    """What a dispatch sends for 16 bits: key of `PAYLOAD_BYTES`."""
    return "fp8" if ctx.software.fp8_dispatch else "bf16"


def arrives_in(ctx: Context) -> str:
    """What the experts' side goes on with once rows have arrived: key of `PAYLOAD_BYTES`."""
    return payload(ctx) if ctx.dtype == BLOCKS_OF_DISPATCH else "bf16"


def cast_ops(ctx: Context, sent_rows: Any, received_rows: Any, dim: int) -> list[Op]:
    """Kernels that cast rows of `dim` elements before and after an 8-bit dispatch; none where nothing leaves the rank.

    The low-latency kernel casts as it sends: its measured times begin with 16-bit rows.
    """
    if payload(ctx) == "bf16":
        return []
    d, width = dim, ACT_BYTES + PAYLOAD_BYTES["fp8"]
    leaves = np.where(np.asarray(ctx.plan.ep) > 1, 1.0, 0.0)
    ops = []
    if ctx.software.dispatch_kernel == "normal":
        ops.append(memory_op("dispatch.quantise", sent_rows * d * width * leaves, module="moe", kernels=leaves))
    if arrives_in(ctx) == "bf16":
        ops.append(memory_op("dispatch.dequantise", received_rows * d * width * leaves, module="moe", kernels=leaves))
    return ops


def tp_gather_ops(ctx: Context, name: str, sent_bytes: Any) -> list[Op]:
    """What gives a tensor-parallel group its rows back: results after a combine, gradients after that of a dispatch.

    sent_bytes: of the shares that one rank exchanges.
    """
    share = ctx.tp_share
    if isinstance(share, int):
        return []
    nbytes = np.where(share > 1, sent_bytes * share, 0.0)
    if name == "combine":
        return [collective("combine.tp", "all_gather", "tp", nbytes, module="moe")]
    return [collective("dispatch.tp.bwd", "all_gather", "tp", nbytes, pass_="backward")]


def padding_ops(ctx: Context, name: str, elements: Any) -> list[Op]:
    """Rows of each local expert copied out to (or back from) a multiple that low-precision products take:
    Megatron-core's Fp8Padding around the experts. HybridEP writes them so; buffers of a capacity and padded routing
    need none."""
    software = ctx.software
    if ctx.dtype not in LOW_PRECISION or software.elementwise == "torch" or software.router_padding:
        return []
    if software.dispatcher == "hybridep" or software.capacity_factor is not None:
        return []
    moved = 2 * ACT_BYTES * elements
    return [
        memory_op(f"experts_{name}", moved, module="moe", kernel="permute"),
        memory_op(f"experts_{name}.bwd", moved, pass_="backward", kernel="permute"),
    ]
