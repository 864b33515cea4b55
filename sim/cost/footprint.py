"""Memory on a rank, by tag: weights, gradients, optimizer, activations, workspace.

Attention, dense MLP and shared experts divide by tp; norms, router and MLA down-projections by 1;
routed experts by ep x etp; optimizer state over data x context parallel (experts: expert data
parallel). All functions take numbers or columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, LOW_PRECISION, Context
from sim.build.layer import local_layer_params

ADAM_BYTES = 12  # fp32 master, first and second moment


@dataclass(frozen=True, kw_only=True)
class LocalParams:
    """Parameters a rank of one pipeline stage holds before data-parallel sharding."""

    dense: Any
    routed: Any

    def __add__(self, other: LocalParams) -> LocalParams:
        return LocalParams(dense=self.dense + other.dense, routed=self.routed + other.routed)

    def times(self, count: Any) -> LocalParams:
        """`count` copies."""
        return LocalParams(dense=self.dense * count, routed=self.routed * count)


def kind_params(ctx: Context) -> tuple[LocalParams, ...]:
    """Local parameters of one layer of each kind."""
    kinds, _ = ctx.model.layer_kinds()
    return tuple(LocalParams(dense=d, routed=r) for d, r in (local_layer_params(ctx, layer) for layer in kinds))


def end_params(ctx: Context, *, embedding: bool, head: bool) -> LocalParams:
    """Embedding (and learned positions) on the first stage; norm, head and MTP blocks on the last."""
    model, tp = ctx.model, ctx.plan.tp
    d = model.hidden_dim
    table = model.vocab_size * d / tp
    dense = 0.0 * np.asarray(tp, float)
    routed = 0.0 * np.asarray(tp, float)
    if embedding:
        dense = dense + table + model.max_positions * d
    if head:
        shared = model.tied_embeddings and embedding
        dense = dense + (0.0 if shared else table) + d
        if ctx.workload.with_mtp and model.mtp_layers:
            extra_dense, extra_routed = local_layer_params(ctx, model.layers[-1])
            second_table = 0.0 if embedding else table  # the block looks tokens up again on its own stage
            dense = dense + model.mtp_layers * (extra_dense + 2 * d * d + 3 * d) + second_table
            routed = routed + model.mtp_layers * extra_routed
    return LocalParams(dense=dense, routed=routed)


def static_bytes(ctx: Context, params: LocalParams) -> dict[str, Any]:
    """Bytes held through the whole step: weights, gradients, optimizer state.

    Distributed optimizer (ZeRO-1) shards the state; stage 2 the gradients too; stage 3 everything.
    Low-precision recipes hold row- and column-wise copies of the weights unless parameters are
    gathered in that precision already.
    """
    plan, software = ctx.plan, ctx.software
    dp = np.asarray(plan.dp * plan.cp, float)
    edp = np.asarray(plan.edp, float)
    stage = plan.zero_stage
    shard_state = (dp, edp) if stage >= 1 else (np.ones(()), np.ones(()))
    shard_grad = (dp, edp) if stage >= 2 else (np.ones(()), np.ones(()))
    shard_weight = (dp, edp) if stage >= 3 else (np.ones(()), np.ones(()))
    weight = float(ACT_BYTES)
    if ctx.dtype in LOW_PRECISION:
        weight = 2.0 if software.fp8_param_gather else ACT_BYTES + 2.0
    grad = FP32_BYTES if software.grad_dtype == "fp32" else ACT_BYTES
    return {
        "weights": params.dense * weight / shard_weight[0] + params.routed * weight / shard_weight[1],
        "gradients": params.dense * grad / shard_grad[0] + params.routed * grad / shard_grad[1],
        "optimizer": params.dense * ADAM_BYTES / shard_state[0] + params.routed * ADAM_BYTES / shard_state[1],
    }


def in_flight(schedule: str, pp: Any, vpp: Any, stage: int, micro_batches: Any) -> Any:
    """Chunks of activations a stage holds at its peak.

    1F1B: min(m, pp - stage). Interleaved: min(m v, 2 (pp - stage - 1) + (v - 1) pp + 1), chunks being 1/v of
    a stage (Narayanan et al., arXiv 2104.04473). GPipe: all m v.
    """
    m = np.asarray(micro_batches)
    if schedule == "gpipe":
        return m * vpp
    interleaved = np.minimum(m * vpp, 2 * (pp - stage - 1) + (vpp - 1) * pp + 1)
    return np.where(np.asarray(vpp) > 1, interleaved, np.minimum(m, pp - stage))
