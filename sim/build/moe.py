"""MoE ops of one layer: router, permute, dispatch, experts, combine, shared experts.

Expert parallelism does not divide the rows a rank dispatches: every rank sends its own
rows x top-k and, when balanced, receives as many (EP groups are formed out of data-parallel ranks).
Expert tensor parallelism multiplies the received rows by etp (gather) and divides the width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprofiles.forms.dispatch import PAYLOAD_BYTES
from sim.build.attention import gather_ops, gradient_sum_ops, norm_ops, scatter_ops
from sim.build.context import (
    ACT_BYTES,
    FP32_BYTES,
    LOW_PRECISION,
    Context,
    accumulate_bytes,
    accumulate_ops,
    amax_kernels,
    collective,
    memory_op,
    quantise_bytes,
    scoped,
)
from sim.build.exchange import arrives_in, cast_ops, padding_ops, payload, tp_gather_ops
from sim.build.ffn import activation_ops, dense_ffn_ops, mlp_ops
from sim.build.latent import latent_ops
from sim.model import MoESpec
from sim.ops import Op, Pass

# Elementwise kernels of the router (scores, top-k, masks, probabilities, auxiliary loss, counts):
# forward and backward, before router fusion, as the op list of Megatron-LM's router reads.
ROUTER_KERNELS = (14, 16)
ROUTER_PASSES = 12
# Where a table says the experts: score function, look-up and gather of the k, their sum and quotient; mirrored.
HASH_ROUTER_KERNELS = (6, 5)
HASH_ROUTER_PASSES = 4
# Passes over the fp32 intermediate of an unfused clamped SwiGLU (bias, chunk, two clamps, scale, sigmoid,
# products, routing weight), forward and backward, counted from its elementwise definition.
EAGER_CLAMP_PASSES = (18, 40)
# Host steps per local expert around each of its GEMMs in the unfused loop: views of rows and output, workspace, launch,
# gradient hook and accumulation of the expert's own weight.
EXPERT_STEPS = 6
# Small kernels per local expert and operand of the unfused low-precision path: maximum, scale and cast with
# transpose (per-tensor); cast plus re-ordering of the block scales of both operands of the two GEMMs it feeds.
EXPERT_QUANT_KERNELS = {"fp8": 4, "fp8_block": 2, "mxfp8": 5, "nvfp4": 6}


INDEX_BYTES = 8  # torch sorts rows by 64-bit indices; three of them wait for the backward pass
INDICES = 3
SORT_KERNELS = 16  # two sorts of a few passes each, counts, sums, casts
TORCH_ROUTER_KERNELS = (5, 7)  # cast, softmax, top-k, sum, quotient


COUNT_BYTES = 4  # of the rows for one expert, as they go ahead


def received_rows(ctx: Context, moe: MoESpec) -> Any:
    """Routed rows the hottest rank works on after dispatch: k x rows x what it holds over the mean."""
    return ctx.exchanged_rows * moe.rows_per_token * hottest_over_mean(ctx, moe)


def hottest_over_mean(ctx: Context, moe: MoESpec) -> Any:
    """Rows of the hottest rank over the mean sent, for the tokens that an expert-parallel group has between it.

    A capacity without popularity behind it: full buffers. With it: what experts keep, min(load, capacity).
    """
    if moe.expert_choice:
        return 1.0
    if ctx.over_mean is not None:
        return ctx.over_mean
    factor = ctx.software.capacity_factor
    if factor is not None and not ctx.routing.loads:
        return factor
    return ctx.routing.max_over_mean_for(
        ctx.plan.ep, ctx.group_tokens, num_experts=moe.num_experts, top_k=moe.top_k, capacity_factor=factor
    )


def fullest_over_mean(ctx: Context, moe: MoESpec) -> Any:
    """Rows of the fullest expert of the hottest rank over that rank's mean. Full buffers are equal, and so is what
    experts choose."""
    factor = ctx.software.capacity_factor
    if moe.expert_choice:
        return 1.0
    if factor is not None and not ctx.routing.loads:
        return 1.0
    return ctx.routing.fullest_over_mean_for(
        ctx.plan.ep, ctx.group_tokens, num_experts=moe.num_experts, top_k=moe.top_k, capacity_factor=factor
    )


def moe_ops(ctx: Context, moe: MoESpec, *, gated: bool) -> list[Op]:
    """The whole MoE half of a layer, forward first, then backward."""
    d = ctx.model.hidden_dim
    ops = scoped("moe_router", norm_ops(ctx, "moe_norm") + _router(ctx, moe))
    ops += latent_ops(ctx, moe, down=True)
    ops += scoped("moe_preprocess", _permute(ctx, moe))
    padded = received_rows(ctx, moe) * ctx.plan.etp * moe.row_dim(d)
    ops += _exchange(ctx, moe, "dispatch") + padding_ops(ctx, "pad", padded)
    ops += _experts(ctx, moe, gated=gated) + padding_ops(ctx, "unpad", padded)
    ops += _exchange(ctx, moe, "combine")
    ops += _unpermute(ctx, moe)
    ops += latent_ops(ctx, moe, down=False)
    if moe.residual_ffn_dim:
        ops += dense_ffn_ops(ctx, moe.residual_ffn_dim, gated=gated)
    if moe.shared_ffn_dim:
        shared = "shared_experts"
        ops += gather_ops(ctx, "shared", d)
        # its input is the router's input, already kept there
        ops += mlp_ops(ctx, "shared_fc", moe.shared_ffn_dim, gated=gated, module=shared, saved_in=0.0)
        ops += scatter_ops(ctx, "shared", d)
    return scoped("experts", ops)


def _router(ctx: Context, moe: MoESpec) -> list[Op]:
    """Router GEMM (rows x E, kept in bf16/fp32 whatever the recipe), scores, top-k, auxiliary loss; a table that is
    looked up instead of the last two in hash-routed layers."""
    d, rows, e = ctx.model.hidden_dim, ctx.rows, moe.num_experts + moe.zero_experts
    whole = "moe" in ctx.plan.recompute  # recompute of the MoE layer starts from its input, which is kept
    scores = rows * e * FP32_BYTES
    normed = 0.0 if ctx.drops("layernorm") else rows * d * ACT_BYTES
    flop = 2.0 * rows * e * d
    fwd, bwd = TORCH_ROUTER_KERNELS if ctx.software.elementwise == "torch" else ROUTER_KERNELS
    passes, kernel = ROUTER_PASSES, "router"
    if moe.hash_routed:
        (fwd, bwd), passes, kernel = HASH_ROUTER_KERNELS, HASH_ROUTER_PASSES, ""
    kept = scores if ctx.software.elementwise == "torch" else 2 * scores
    return [
        *([memory_op("moe_input", 0.0, kernels=0, saved=normed)] if whole else []),
        Op(name="router", kind="gemm", module="moe", m=rows, n=e, k=d, flop=flop, saved_bytes=0.0 if whole else normed),
        memory_op(
            "router_topk", passes * scores, module="moe", kernels=fwd, saved=kept,
            kernel=kernel, kernel_bytes=scores,
        ),
        memory_op(
            "router_topk.bwd", passes * scores, pass_="backward", kernels=bwd,
            kernel=kernel, kernel_bytes=2 * scores,
        ),
        Op(name="router.dgrad", kind="gemm", pass_="backward", m=rows, n=d, k=e, flop=flop),
        Op(name="router.wgrad", kind="gemm", pass_="wgrad", m=e, n=d, k=rows, flop=flop),
        *accumulate_ops(ctx, "router", e * d),
        *gradient_sum_ops(ctx, "router", rows * d),
    ]  # fmt: skip


def _fused_dispatch(ctx: Context) -> bool:
    return ctx.software.dispatcher in ("deepep", "hybridep")


def _permute(ctx: Context, moe: MoESpec) -> list[Op]:
    """Group rows by destination before dispatch; all-to-all dispatchers sort again by local expert.

    Kernels that dispatch by token (DeepEP, HybridEP) skip the first permutation; HybridEP writes rows
    sorted by expert and skips the second too.
    """
    d = moe.row_dim(ctx.model.hidden_dim)
    sent = ctx.rows * moe.rows_per_token * d * ACT_BYTES
    got = received_rows(ctx, moe) * d * ACT_BYTES
    many_local = _sorted_again(ctx, moe)
    kernels = 3 if ctx.software.permute_fusion else 10
    moved = ctx.rows * d * ACT_BYTES + sent
    ops = _row_order_ops(ctx, moe)
    for pass_ in ("forward", "backward"):
        suffix = "" if pass_ == "forward" else ".bwd"
        module = "moe" if pass_ == "forward" else ""
        if not _fused_dispatch(ctx):
            ops.append(
                memory_op(
                    f"permute{suffix}", 2 * sent, pass_=_pass(pass_), module=module, kernels=kernels,
                    kernel="permute", kernel_bytes=moved,
                )
            )  # fmt: skip
        if ctx.software.dispatcher != "hybridep":
            ops.append(
                memory_op(
                    f"sort_by_expert{suffix}", 2 * got * many_local, pass_=_pass(pass_), module=module, kernels=kernels,
                    kernel="permute",
                )
            )  # fmt: skip
    return ops


def _row_order_ops(ctx: Context, moe: MoESpec) -> list[Op]:
    """Indices of the rows in plain torch: sorted by expert and back, once more where rows have arrived."""
    if ctx.software.elementwise != "torch":
        return []
    sent = ctx.rows * moe.rows_per_token
    again = received_rows(ctx, moe) * np.where(np.asarray(ctx.plan.ep) > 1, 1.0, 0.0)
    return [
        memory_op(
            name, INDICES * INDEX_BYTES * rows, module="moe", kernels=SORT_KERNELS * np.sign(rows),
            saved=INDICES * INDEX_BYTES * rows, kernel="sort_rows", kernel_bytes=2 * INDEX_BYTES * rows,
        )
        for name, rows in (("row_order", sent), ("row_order.received", again))
    ]  # fmt: skip


def _sorted_again(ctx: Context, moe: MoESpec) -> Any:
    """1 where received rows are sorted by local expert, else 0."""
    many_local = np.where(np.asarray(moe.num_experts / ctx.plan.ep) > 1, 1.0, 0.0)
    if ctx.software.plain_dispatch:
        many_local = many_local * np.where(np.asarray(ctx.plan.ep) > 1, 1.0, 0.0)
    return many_local


def _unpermute(ctx: Context, moe: MoESpec) -> list[Op]:
    """Sort back and add up the k rows of a token with their weights."""
    d = moe.row_dim(ctx.model.hidden_dim)
    sent = ctx.rows * moe.rows_per_token * d * ACT_BYTES
    got = received_rows(ctx, moe) * d * ACT_BYTES
    many_local = _sorted_again(ctx, moe)
    out = ctx.rows * d * ACT_BYTES
    # plain torch keeps the rows for the gradient of their weights
    kept = sent if ctx.software.elementwise == "torch" else 0.0
    kernels = 2 if ctx.software.permute_fusion else 8
    ops: list[Op] = []
    for pass_ in ("forward", "backward"):
        suffix = "" if pass_ == "forward" else ".bwd"
        module = "moe" if pass_ == "forward" else ""
        if ctx.software.dispatcher != "hybridep":
            ops.append(
                memory_op(
                    f"sort_back{suffix}", 2 * got * many_local, pass_=_pass(pass_), module=module, kernels=kernels,
                    kernel="permute",
                )
            )  # fmt: skip
        if not _fused_dispatch(ctx):
            forward = pass_ == "forward"
            ops.append(
                memory_op(
                    f"unpermute{suffix}", sent + out, pass_=_pass(pass_), module=module, kernels=kernels,
                    saved=kept if forward else 0.0, kernel="unpermute",
                    kernel_bytes=sent + out if forward else 2 * sent + out,
                )
            )  # fmt: skip
    return ops


def _pass(name: str) -> Pass:
    return "forward" if name == "forward" else "backward"


def _exchange(ctx: Context, moe: MoESpec, name: str) -> list[Op]:
    """Dispatch or combine: all-to-all over ep of k x rows x D, mirrored in the backward pass; then the
    expert-tensor-parallel gather (dispatch) or reduce-scatter (combine). Only the forward dispatch may be in 8 bits.

    The all-gather dispatcher (Megatron-core's `MoEAllGatherTokenDispatcher`) brings every row of the group to every
    rank, whoever its experts are, and scatters the sums back: (ep - 1) x rows x D, the same under uneven experts.
    """
    d = moe.row_dim(ctx.model.hidden_dim)
    sent = ctx.exchanged_rows * moe.rows_per_token
    everyone = ctx.software.dispatcher == "allgather"
    nbytes = sent * d * ACT_BYTES * hottest_over_mean(ctx, moe)
    if everyone:
        nbytes = ctx.exchanged_rows * d * ACT_BYTES * ctx.plan.ep
    narrow = PAYLOAD_BYTES[payload(ctx)] / ACT_BYTES if name == "dispatch" else 1.0
    gathered = nbytes * ctx.plan.etp
    kept = PAYLOAD_BYTES[arrives_in(ctx)] / ACT_BYTES if name == "dispatch" else 1.0
    gather = "all_gather" if name == "dispatch" else "reduce_scatter"
    mirror = "reduce_scatter" if name == "dispatch" else "all_gather"
    extra = 2 if name == "dispatch" else 0  # counts and probabilities travel too

    def exchange(name: str, pass_: Pass, module: str) -> Op:
        forward = pass_ == "forward"
        kind = (gather if forward else mirror) if everyone else "all_to_all"
        return collective(
            name, kind, "ep", nbytes * (narrow if forward else 1.0), pass_=pass_, module=module, overlap="ep",
            kernels=1 + extra, n=d, groups=moe.num_experts, dtype=payload(ctx) if forward and narrow < 1.0 else "bf16",
        )  # fmt: skip

    ops = [exchange(name, "forward", "moe")]
    own = sent * (ctx.software.capacity_factor or 1.0)
    if name == "dispatch":
        casts = cast_ops(ctx, ctx.exchanged_rows if _fused_dispatch(ctx) else own, received_rows(ctx, moe), d)
        first = [op for op in casts if op.name == "dispatch.quantise"]
        ops = [*first, *ops, *casts[len(first) :]]
    if ctx.software.plain_dispatch and name == "dispatch":
        counts = COUNT_BYTES * moe.num_experts * np.ones_like(np.asarray(ctx.plan.ep))
        ops.insert(0, collective("counts", "all_to_all", "ep", counts, module="moe"))
    ops.append(collective(f"{name}.etp", gather, "etp", gathered * kept, module="moe"))
    ops.append(collective(f"{name}.etp.bwd", mirror, "etp", gathered, pass_="backward"))
    ops.append(exchange(f"{name}.bwd", "backward", ""))
    return ops + tp_gather_ops(ctx, name, own * d * ACT_BYTES)


def _experts(ctx: Context, moe: MoESpec, *, gated: bool) -> list[Op]:
    """Grouped GEMM 1, activation, grouped GEMM 2 over E/ep local experts.

    Without the fused path every local expert costs its own GEMM, quantise and launches; with it
    one kernel serves all and the inner quantise steps ride in GEMM epilogues.
    """
    d = moe.row_dim(ctx.model.hidden_dim)
    local = moe.num_experts / ctx.plan.ep
    rows = received_rows(ctx, moe) * ctx.plan.etp
    f = moe.ffn_dim / ctx.plan.etp
    ups = 2 if gated else 1
    received = rows * d * ctx.saved_width
    peak = fullest_over_mean(ctx, moe)
    ops = _grouped(ctx, "experts1", rows / local, ups * f, d, local, peak, saved=received, cast=(True, False))
    ops += _activation(ctx, moe, rows * f, rows * (ups * f + d), ups)
    keep = 0.0 if ctx.drops("moe_act") else rows * f * ctx.saved_width
    ops += _grouped(ctx, "experts2", rows / local, d, f, local, peak, saved=keep, cast=(False, True))
    return ops


def _activation(ctx: Context, moe: MoESpec, inner: Any, biased: Any, ups: int) -> list[Op]:
    """SwiGLU with routing weight: one fused kernel; a clamped, biased activation (GPT-OSS) runs as
    separate elementwise passes, which the fused grouped-MLP kernel does not take over (assumed)."""
    eager = moe.clamped_activation
    saved = ups * ACT_BYTES * inner
    if eager:
        fwd, bwd = EAGER_CLAMP_PASSES
        bias = 2 * ACT_BYTES * biased if moe.expert_bias else 0.0
        return [
            memory_op("experts_act", fwd * FP32_BYTES * inner + bias, module="moe_act", kernels=fwd // 2, saved=saved),
            memory_op("experts_act.bwd", bwd * FP32_BYTES * inner + bias, pass_="backward", kernels=bwd // 2),
        ]
    if ctx.software.elementwise == "torch":
        return activation_ops(ctx, "experts_act", inner, ups, module="moe_act")
    return [
        memory_op("experts_act", (ups + 1) * ACT_BYTES * inner, module="moe_act", saved=saved),
        memory_op("experts_act.bwd", (2 * ups + 1) * ACT_BYTES * inner, pass_="backward"),
    ]


def _grouped(
    ctx: Context, name: str, m: Any, n: Any, k: Any, local: Any, peak: Any, *, saved: Any, cast: tuple[bool, bool]
) -> list[Op]:
    """One grouped linear layer over `local` experts of m rows (the fullest: `peak` m): quantise, forward, dgrad, wgrad.

    cast: whether (input, output gradient) is quantised by a pass of its own on the fused path.
    """
    fused = ctx.software.fused_experts
    flop = 2.0 * m * n * k * local
    loops = 0.0 if fused else EXPERT_STEPS * local
    ops: list[Op] = []

    def quantise(suffix: str, elements: Any, pass_: Pass, module: str, separate: bool) -> None:
        if ctx.dtype not in LOW_PRECISION or (fused and not separate):
            return
        kernels = 1 if fused else local * (EXPERT_QUANT_KERNELS[ctx.dtype] + min(0, amax_kernels(ctx)))
        ops.append(
            Op(
                name=f"{name}{suffix}.quantise", kind="memory", pass_=pass_, module=module, kernels=kernels,
                bytes=elements * quantise_bytes(ctx), host_launches=1 if fused else 0,
                experts=0.0 if fused else kernels,
            )
        )  # fmt: skip

    def gemm(suffix: str, pass_: Pass, dims: tuple[Any, Any, Any], nbytes: Any, keep: Any, module: str) -> None:
        ops.append(
            Op(
                name=f"{name}{suffix}", kind="grouped_gemm", pass_=pass_, module=module, dtype=ctx.dtype,
                m=dims[0], n=dims[1], k=dims[2], groups=local, m_max=None if np.all(peak == 1.0) else peak * m,
                flop=flop, bytes=nbytes, experts=loops, fused=fused, saved_bytes=keep,
            )
        )  # fmt: skip

    quantise("", m * k * local, "forward", "moe", cast[0])
    gemm("", "forward", (m, n, k), 0.0, saved, "moe")
    quantise(".dy", m * n * local, "backward", "", cast[1])
    gemm(".dgrad", "backward", (m, k, n), 0.0, 0.0, "")
    gemm(".wgrad", "wgrad", (n, k, m), accumulate_bytes(ctx, n * k * local), 0.0, "")
    return ops + accumulate_ops(ctx, name, n * k * local)
