"""What closes a step on one stage: gradients and parameters over the data-parallel group, and checks of them.

Both travel in buckets, each a collective of its own: a ring over hundreds of ranks is waited for once per bucket, so
their number decides what small ones cost. Numbers or columns of plans.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, Context
from sim.cost.comm import CommTime
from sim.cost.footprint import dense_tensors, expert_tensors
from sim.cost.model import CostModel
from sim.cost.state import LocalParams, trained
from sim.mesh import group

# Megatron-core's bucket where none is set (distributed_data_parallel.py): this many parameters, more where a rank's
# share of one would be less than the second figure, so that a ring stays bound by bandwidth.
BUCKET_PARAMS = 40e6
BUCKET_PARAMS_PER_RANK = 1e6
# Host launches that nothing hides after each bucket that is checked: the host has waited for the norm, asks whether it
# is finite (kernel and copy back), starts the reduction (two calls) and the next backward kernel.
LAUNCHES_PER_CHECK = 5
END_TENSORS = 2  # of embedding and head together


def buckets(ctx: Context, count: Any, tensors: Any) -> Any:
    """Collectives that `count` parameters of a stage, in `tensors` tensors, travel in.

    Megatron-core cuts the first virtual stage and sends every other whole; without overlap there is one buffer. A
    bucket holds whole tensors. FSDP sends what it wraps, layers.
    """
    plan, software = ctx.plan, ctx.software
    if not software.dp_overlap_grad:
        return np.ones(())
    if software.buckets == "layer":
        return np.maximum(1.0, np.ceil((len(ctx.model.layers) + END_TENSORS) / np.asarray(plan.pp, float)))
    ranks = np.asarray(plan.dp * plan.cp, float)
    size = software.bucket_params or np.maximum(BUCKET_PARAMS, BUCKET_PARAMS_PER_RANK * ranks)
    vpp = np.asarray(plan.vpp, float)
    chunks = vpp if software.bucket_params else np.ones(())  # a size that was set holds for every virtual stage
    cut = chunks * np.ceil(np.asarray(count, float) / vpp / size) + vpp - chunks
    return np.maximum(1.0, np.minimum(cut, np.ceil(tensors)))


def stage_tensors(ctx: Context) -> tuple[Any, Any]:
    """(dense, expert) parameter tensors of a stage, as the mean over the pipeline."""
    pp = np.asarray(ctx.plan.pp, float)
    layers = ctx.model.layers
    experts = sum(expert_tensors(layer, 1) for layer in layers)
    return (sum(map(dense_tensors, layers)) + END_TENSORS) / pp, experts / np.asarray(ctx.plan.ep, float) / pp


def data_parallel(cost: CostModel, ctx: Context, params: LocalParams) -> tuple[CommTime, CommTime]:
    """(gradient reduction, parameter gather) of one stage, once per step.

    Dense parameters over data x context parallel, experts over expert data parallel, one after the other on the
    data-parallel stream. FSDP does both inside the layers instead.
    """
    plan, software = ctx.plan, ctx.software
    grad = gather = cost.comm.nothing(np.shape(np.asarray(plan.tp)))
    if plan.zero_stage == 3:
        return grad, gather
    param_width = 1.0 if software.fp8_param_gather and ctx.dtype != "bf16" else ACT_BYTES
    # Muon shares out whole matrices: each rank needs all of a gradient's sum
    scattered = plan.zero_stage >= 1 and ctx.workload.optimizer.name != "muon"
    kind, mine, tensors = "reduce_scatter" if scattered else "all_reduce", trained(ctx, params), stage_tensors(ctx)
    for axis, count, held in (("dp_cp", mine.dense, tensors[0]), ("edp", mine.routed, tensors[1])):
        grp = group(plan, axis, cost.cluster, cost.ranks)
        pieces = buckets(ctx, count, held)
        grad = grad + cost.comm.collective(kind, count * grad_width(ctx) / pieces, grp).times(pieces)
        if plan.zero_stage >= 1:
            gather = gather + cost.comm.collective("all_gather", count * param_width / pieces, grp).times(pieces)
    return grad, gather


def grad_width(ctx: Context) -> float:
    """Bytes of a gradient as it is reduced."""
    return FP32_BYTES if ctx.software.grad_dtype == "fp32" else ACT_BYTES


def check_s(cost: CostModel, ctx: Context, params: LocalParams) -> Any:
    """Seconds per step for asking, bucket by bucket, whether gradients are finite, before they are sent.

    A pass over the gradients, and for each bucket what the device waits while the host, which had to wait for the
    answer, launches on (Megatron-core's check_for_nan_in_grad).
    """
    if not ctx.software.grad_check:
        return np.zeros(np.shape(np.asarray(ctx.plan.tp)))
    mine, tensors = trained(ctx, params), stage_tensors(ctx)
    pieces = buckets(ctx, mine.dense, tensors[0])
    if ctx.model.is_moe:
        pieces = pieces + buckets(ctx, mine.routed, tensors[1])
    waits = pieces * LAUNCHES_PER_CHECK * cost.launch_s
    return waits + cost.compute.memory_s((mine.dense + mine.routed) * grad_width(ctx), 1)
