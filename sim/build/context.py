"""What every op builder needs: token counts, dtypes and byte widths of one micro-batch on one rank.

Letters: T tokens of a micro-batch on one attention rank before tensor parallelism; D hidden.
All degree-dependent values may be numpy columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.specs import SoftwareProfile
from sim.model import ModelSpec
from sim.ops import Op, Pass
from sim.plan import Degrees
from sim.routing import Routing
from sim.workload import Workload

WITHIN = {"moe_act": "moe", "shared_experts": "moe"}  # modules that recompute of the MoE layer runs again too
ACT_BYTES = 2  # activations travel and rest in bf16
FP32_BYTES = 4
LOW_PRECISION = ("fp8", "fp8_block", "mxfp8", "nvfp4")
# HBM bytes one element costs when it is quantised: bf16 read, low-precision row-wise and column-wise
# (transposed) copies written; the maximum of per-tensor scaling comes out of the producing kernel, block scales
# (1/32 or 1/16 byte an element and copy) are written and re-ordered.
QUANT_BYTES = {"fp8": 4.0, "fp8_block": 4.06, "mxfp8": 4.25, "nvfp4": 3.5}
FP8_BYTES = 1.0
QUANT_KERNELS = {"fp8": 2, "fp8_block": 1, "mxfp8": 3, "nvfp4": 4}
SAVED_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.03, "mxfp8": 1.03, "nvfp4": 0.56}


@dataclass(frozen=True, kw_only=True)
class Context:
    """One micro-batch of one model under one plan (or a block of plans).

    over_mean: rows of the hottest rank over the mean where a layer is priced at a load of its own; None: as `routing`
    says of the mean layer.
    """

    model: ModelSpec
    workload: Workload
    plan: Degrees
    software: SoftwareProfile
    routing: Routing = Routing()
    over_mean: Any = None

    @property
    def tokens(self) -> Any:
        """T: tokens of a micro-batch on one attention rank (micro-batch x s / cp)."""
        return self.plan.micro_batch_seqs * self.workload.seq_tokens / self.plan.cp

    @property
    def rows(self) -> Any:
        """Tokens a rank holds outside tensor-parallel regions: T/tp under sequence parallelism."""
        if self.software.sequence_parallel:
            return self.tokens / self.plan.tp
        return self.tokens * np.ones_like(self.plan.tp)

    @property
    def group_tokens(self) -> Any:
        """Tokens that an expert-parallel group has between it in one micro-batch."""
        return self.exchanged_rows * self.plan.ep * self.plan.etp

    @property
    def tp_share(self) -> Any:
        """Ranks that divide the rows of an exchange between them: tp where all of a tensor-parallel group hold the
        same rows, exchange only their share (`tp_aware_dispatch`) and experts are not split (etp = 1); else 1."""
        if not self.software.tp_aware_dispatch or self.software.sequence_parallel:
            return 1
        return np.where(np.asarray(self.plan.etp) == 1, self.plan.tp, 1)

    @property
    def exchanged_rows(self) -> Any:
        """Tokens that one rank sends to experts; under sequence parallelism all that it holds."""
        return self.rows / self.tp_share

    @property
    def dtype(self) -> str:
        """Dtype of the large GEMMs; "bf16" stands for both 16-bit formats."""
        precision = self.workload.precision
        return "bf16" if precision == "fp16" else precision

    @property
    def offloaded_layers(self) -> int:
        """Whole layers of a virtual stage whose activations go to the host, by the profile or by the workload."""
        return max(self.software.activation_offload_layers, self.workload.offload.layers)

    @property
    def saved_width(self) -> float:
        """Bytes per element of a GEMM input kept for its weight gradient."""
        return SAVED_BYTES[self.dtype]

    def recomputes(self, module: str) -> bool:
        """Whether the backward pass runs this module's forward again, by itself or as a part of the MoE layer."""
        rec = self.plan.recompute
        return "full" in rec or (module != "" and (module in rec or WITHIN.get(module) in rec))

    def drops(self, module: str) -> bool:
        """Whether this module's output is given up until its recompute. Where the whole layer or MoE layer runs again,
        its backward holds all of it, so there nothing is dropped on top."""
        rec = self.plan.recompute
        return module in rec and "full" not in rec and WITHIN.get(module) not in rec


def memory_op(
    name: str, nbytes: Any, *, pass_: Pass = "forward", module: str = "", kernels: Any = 1, saved: Any = 0.0,
    kernel: str = "", kernel_bytes: Any = None,
) -> Op:  # fmt: skip
    """An elementwise or reduction kernel: `nbytes` through HBM; its measured class, and the bytes that one counts
    where they are not `nbytes`."""
    return Op(
        name=name, kind="memory", pass_=pass_, module=module, bytes=nbytes, kernels=kernels, saved_bytes=saved,
        kernel=kernel, kernel_bytes=nbytes if kernel_bytes is None else kernel_bytes,
    )  # fmt: skip


def quantise_bytes(ctx: Context, *, normed: bool = False) -> float:
    """HBM bytes of quantising one element; a maximum that is looked for in a pass of its own reads it once more.
    normed: it comes straight out of a norm."""
    if ctx.dtype != "fp8":
        return QUANT_BYTES[ctx.dtype]
    extra = ACT_BYTES if _amax_pass(ctx, normed=normed) else 0.0
    return QUANT_BYTES["fp8"] + extra - (0.0 if ctx.software.fp8_transpose else FP8_BYTES)


def amax_kernels(ctx: Context, *, normed: bool = False) -> int:
    """Kernels more or less than where the maximum comes out of the producing kernel and is turned into a scale: one
    more for a pass of its own; none for the scale where it is made of the history of earlier steps."""
    if ctx.dtype != "fp8":
        return 0
    return -1 if ctx.software.fp8_amax == "history" else int(_amax_pass(ctx, normed=normed))


def _amax_pass(ctx: Context, *, normed: bool) -> bool:
    return ctx.software.fp8_amax == "pass" or (ctx.software.fp8_amax == "norm" and not normed)


def quantise(
    ctx: Context, name: str, elements: Any, *, pass_: Pass, module: str = "", kernels: float = 1, normed: bool = False
) -> list[Op]:
    """Cast of a GEMM operand to the low-precision recipe; nothing in bf16."""
    if ctx.dtype not in LOW_PRECISION:
        return []
    nbytes = elements * quantise_bytes(ctx, normed=normed)
    kernels = kernels * (QUANT_KERNELS[ctx.dtype] + amax_kernels(ctx, normed=normed))
    return [memory_op(f"{name}.quantise", nbytes, pass_=pass_, module=module, kernels=kernels)]


def accumulate_bytes(ctx: Context, elements: Any) -> Any:
    """HBM bytes of adding a weight gradient to its main gradient, beyond the 16-bit write that a measured GEMM
    of the same shape contains: the buffer is read and written. Nothing where a kernel of its own adds it."""
    if not ctx.software.fused_grad_accumulation:
        return 0.0
    grad = FP32_BYTES if ctx.software.grad_dtype == "fp32" else ACT_BYTES
    return (2.0 * grad - ACT_BYTES) * elements


def accumulate_ops(ctx: Context, name: str, elements: Any) -> list[Op]:
    """The kernel that adds a 16-bit weight gradient to its main gradient; none where the GEMM adds it."""
    if ctx.software.fused_grad_accumulation:
        return []
    grad = FP32_BYTES if ctx.software.grad_dtype == "fp32" else ACT_BYTES
    nbytes = (2.0 * grad + ACT_BYTES) * elements
    return [memory_op(f"{name}.accumulate", nbytes, pass_="wgrad", kernel="grad_accumulate")]


def linear(
    ctx: Context, name: str, *, m: Any, n: Any, k: Any, module: str = "", dtype: str | None = None, saved: Any = 0.0,
    wgrad: bool = True, bias: bool = False, row_bytes: Any = 0, normed: bool = False,
) -> list[Op]:  # fmt: skip
    """A linear layer C[m,n] = A[m,k] W[k,n]: forward, dgrad (m,k,n) and wgrad (n,k reduced over m).

    The weight gradient accumulates into a main-gradient buffer (read + write), which bounds it
    by memory when m is small. `saved`: bytes of the input kept for wgrad. `bias`: it has one, whose gradient is the
    column sum of the output's gradient: a kernel of its own unless the software has it made on the way.
    `row_bytes`: of the output where nothing pads it; all three products read or write it. `normed`: its input comes
    straight out of a norm.
    """
    kind = dtype or ctx.dtype
    low = kind in LOW_PRECISION
    ops: list[Op] = []
    if low:
        ops += quantise(ctx, name, m * k, pass_="forward", module=module, normed=normed)
    flop = 2.0 * m * n * k
    common: dict[str, Any] = {"kind": "gemm", "dtype": kind, "flop": flop, "row_bytes": row_bytes}
    ops.append(Op(name=name, module=module, m=m, n=n, k=k, saved_bytes=saved, **common))
    if low:
        ops += quantise(ctx, f"{name}.dy", m * n, pass_="backward")
    ops.append(Op(name=f"{name}.dgrad", pass_="backward", m=m, n=k, k=n, **common))
    if wgrad:
        nbytes = accumulate_bytes(ctx, n * k)
        ops.append(Op(name=f"{name}.wgrad", pass_="wgrad", m=n, n=k, k=m, bytes=nbytes, **common))
        ops += accumulate_ops(ctx, name, n * k)
    if bias and not ctx.software.fused_bias_grad:
        ops.append(memory_op(f"{name}.bias_grad", ACT_BYTES * m * n, pass_="backward"))
    return ops


def collective(
    name: str, kind: Any, axis: str, nbytes: Any, *, pass_: Pass = "forward", module: str = "", overlap: str = "",
    kernels: Any = 1, n: Any = 0, groups: Any = 1, dtype: str = "bf16",
) -> Op:  # fmt: skip
    """Communication of `nbytes` (nccl-tests size of one rank's full buffer) over a group axis."""
    return Op(
        name=name, kind="collective", pass_=pass_, module=module, collective=kind, axis=axis, bytes=nbytes,
        overlap=overlap, kernels=kernels, n=n, groups=groups, dtype=dtype,
    )  # fmt: skip


def scoped(scope: str, ops: list[Op]) -> list[Op]:
    """Mark ops that did not name a capture scope of their own."""
    return [op if op.scope else _at(op, scope) for op in ops]


def _at(op: Op, scope: str) -> Op:
    """The op in a scope: `dataclasses.replace` for one field, without running the constructor over thirty. Every op of
    every priced layer comes through here, a sixth of the time of screening."""
    twin = object.__new__(Op)
    twin.__dict__.update(op.__dict__, scope=scope)
    return twin
