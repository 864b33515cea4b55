"""Low-rank adapters (LoRA, arXiv 2106.09685): frozen weights lose their gradients, targets gain two thin products.

A pass over the finished ops of a layer, so that it holds for every kind of layer. A frozen product keeps its forward
and its input gradient; its input is kept for the backward pass only where an adapter reads it, in 16 bits.
Y = X W + X A B, A of k x r, B of r x n. Under tensor parallelism as in Megatron-Bridge: beside a column-parallel
product A is cut along r and its result gathered; beside a row-parallel one A is cut along k and summed, B cut along n
and gathered. Experts have a pair each ("experts"), or one pair for all that live on a rank ("experts_shared").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, LOW_PRECISION, SAVED_BYTES, Context, collective, memory_op
from sim.ops import Op, Pass

# Forward product -> (target, how tensor parallelism cuts it).
TARGETS = {
    "qkv": ("linear_qkv", "column"), "q_down": ("linear_qkv", "whole"), "kv_down": ("linear_qkv", "whole"),
    "q_up": ("linear_qkv", "column"), "q_proj": ("linear_qkv", "column"), "kv_up": ("linear_qkv", "column"),
    "attn_out": ("linear_proj", "row"), "fc1": ("linear_fc1", "column"), "fc2": ("linear_fc2", "row"),
    "shared_fc1": ("linear_fc1", "column"), "shared_fc2": ("linear_fc2", "row"), }  # fmt: skip
EXPERTS = ("experts1", "experts2")
PRODUCTS = ("gemm", "grouped_gemm")
# What only a gradient of weights or biases needs, beside the products of pass "wgrad".
GRADIENT_OPS = (".accumulate", ".bias_grad")
EMBEDDING_GRADIENT = ("embedding.bwd", "embedding.tp.bwd")


def with_adapters(ctx: Context, ops: list[Op]) -> list[Op]:
    """The ops with weights frozen and adapters on the targets; unchanged where weights are trained."""
    lora = ctx.workload.lora
    if lora is None:
        return ops
    shared = any(op.name == "shared_fc1" for op in ops) and "linear_fc1" in lora.targets
    forward = {op.name: op for op in ops if op.pass_ == "forward" and op.kind in PRODUCTS}
    out: list[Op] = []
    for op in ops:
        if op.pass_ == "wgrad" or op.name.endswith(GRADIENT_OPS) or op.name in EMBEDDING_GRADIENT:
            continue
        target = adapted(ctx, op.name)
        if op.pass_ == "forward" and op.kind in PRODUCTS:
            kept = op.saved_bytes if target or (shared and op.name == "router") else 0.0 * op.saved_bytes
            if op.dtype in LOW_PRECISION:
                kept = kept * (ACT_BYTES / SAVED_BYTES[op.dtype])
            out.append(replace(op, saved_bytes=kept))
            if target:
                out += _forward(ctx, op, target)
            continue
        out.append(op)
        base = op.name.removesuffix(".dgrad")
        if base != op.name and adapted(ctx, base):
            out += _backward(ctx, forward[base], adapted(ctx, base))
    return out


def adapted(ctx: Context, name: str) -> str:
    """How the product of this name is cut where it has an adapter; "" where it has none."""
    lora = ctx.workload.lora
    if lora is None:
        return ""
    if name in EXPERTS:
        return "shared" if "experts_shared" in lora.targets else "whole" if "experts" in lora.targets else ""
    target, cut = TARGETS.get(name, ("", ""))
    return cut if target in lora.targets else ""


def adapter_params(ctx: Context, ops: Iterable[Op]) -> tuple[Any, Any]:
    """(dense, routed) adapter parameters that a rank holds beside these products."""
    held = {"gemm": 0.0 * np.asarray(ctx.plan.tp, float), "grouped_gemm": 0.0 * np.asarray(ctx.plan.tp, float)}
    for op in ops:
        cut = adapted(ctx, op.name) if op.pass_ == "forward" and op.kind in PRODUCTS else ""
        if cut:
            inner, outer, rank = _widths(ctx, op, cut)
            count = 1.0 if cut == "shared" else op.groups
            held[op.kind] = held[op.kind] + count * (op.k * inner + rank * outer)
    return held["gemm"], held["grouped_gemm"]


def _widths(ctx: Context, op: Op, cut: str) -> tuple[Any, Any, Any]:
    """(columns of A, columns of B, r) on a rank."""
    assert ctx.workload.lora is not None
    rank, tp = float(ctx.workload.lora.rank), np.asarray(ctx.plan.tp, float)
    inner = np.maximum(1.0, rank / tp) if cut == "column" else rank
    return inner, op.n / tp if cut == "row" else op.n, rank


def _product(op: Op, suffix: str, pass_: Pass, dims: tuple[Any, Any, Any], kept: Any = 0.0) -> Op:
    """A product of the adapter beside `op`, in 16 bits; of experts one per group."""
    m, n, k = dims
    return replace(
        op, name=f"{op.name}.{suffix}", pass_=pass_, dtype="bf16", m=m, n=n, k=k, flop=2.0 * m * n * k * op.groups,
        bytes=0.0, saved_bytes=kept, m_max=None if op.m_max is None else op.m_max * (m / op.m),
        module=op.module if pass_ == "forward" else "",
    )  # fmt: skip


def _alone(op: Op) -> Op:
    """All rows of a grouped product as those of one."""
    return replace(op, kind="gemm", m=op.m * op.groups, groups=1, m_max=None, experts=0.0, fused=False)


def _forward(ctx: Context, op: Op, cut: str) -> list[Op]:
    """X A, its gathering or summing, (X A) B, and the sum with what the frozen product gave."""
    op = _alone(op) if cut == "shared" else op
    inner, outer, rank = _widths(ctx, op, cut)
    rows = op.m * op.groups
    middle = rows * rank * ACT_BYTES
    out = [_product(op, "lora_a", "forward", (op.m, inner, op.k))]
    if cut in ("column", "row"):
        kind = "all_gather" if cut == "column" else "all_reduce"
        out.append(collective(f"{op.name}.lora_a.tp", kind, "tp", middle, module=op.module))
    out.append(_product(op, "lora_b", "forward", (op.m, outer, rank), kept=middle))
    if cut == "row":
        out.append(collective(f"{op.name}.lora_b.tp", "all_gather", "tp", rows * op.n * ACT_BYTES, module=op.module))
    out.append(memory_op(f"{op.name}.lora_sum", 3.0 * ACT_BYTES * rows * op.n, module=op.module))
    return [replace(x, scope=op.scope) for x in out]


def _backward(ctx: Context, op: Op, cut: str) -> list[Op]:
    """Gradients of (X A) B: of X A, of X (added to that of the frozen product), and of both factors."""
    op = _alone(op) if cut == "shared" else op
    inner, outer, rank = _widths(ctx, op, cut)
    rows = op.m * op.groups
    out = [_product(op, "lora_b.dgrad", "backward", (op.m, rank, outer))]
    if cut in ("column", "row"):
        kind = "reduce_scatter" if cut == "column" else "all_reduce"
        out.append(collective(f"{op.name}.lora.tp.bwd", kind, "tp", rows * rank * ACT_BYTES, pass_="backward"))
    out.append(_product(op, "lora_a.dgrad", "backward", (op.m, op.k, inner)))
    out.append(memory_op(f"{op.name}.lora_sum.bwd", 3.0 * ACT_BYTES * rows * op.k, pass_="backward"))
    for name, k, n in (("lora_b.wgrad", rank, outer), ("lora_a.wgrad", op.k, inner)):
        out.append(_product(op, name, "wgrad", (n, k, op.m)))
        out.append(memory_op(f"{op.name}.{name}.sum", 2.0 * FP32_BYTES * n * k * op.groups, pass_="wgrad"))
    return [replace(x, scope=op.scope) for x in out]
