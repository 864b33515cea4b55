"""Parameters of a rank, the state an optimizer keeps of them, on device and host, and the ranks that share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, Context
from sim.plan import Degrees
from sim.workload import STATE_BYTES, Workload

MATRIX_FIELDS = ("matrix_dense", "matrix_routed", "matrix_dense_s", "matrix_routed_s")
TRAINED_FIELDS = ("trained_dense", "trained_routed")


@dataclass(frozen=True, kw_only=True)
class LocalParams:
    """Parameters a rank of one pipeline stage holds before data-parallel sharding.

    more: sums over the same layers that the workload needs besides (`more_fields`).
    """

    dense: Any
    routed: Any
    more: tuple[Any, ...] = ()

    def __add__(self, other: LocalParams) -> LocalParams:
        more = tuple(a + b for a, b in zip(self.more, other.more, strict=True))
        return LocalParams(dense=self.dense + other.dense, routed=self.routed + other.routed, more=more)

    def times(self, count: Any) -> LocalParams:
        """`count` copies."""
        return LocalParams(
            dense=self.dense * count, routed=self.routed * count, more=tuple(x * count for x in self.more)
        )


def more_fields(workload: Workload) -> tuple[str, ...]:
    """Names of `LocalParams.more` under a workload: what Muon works on, or what adapters leave trained."""
    if workload.optimizer.name == "muon":
        return MATRIX_FIELDS
    return TRAINED_FIELDS if workload.lora else ()


def trained(ctx: Context, params: LocalParams) -> LocalParams:
    """The parameters that have gradients and optimizer state: all, or the adapters."""
    return LocalParams(dense=params.more[0], routed=params.more[1]) if ctx.workload.lora else params


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bytes per parameter of what an update reads and keeps."""

    grad: float
    master: float
    first: float
    second: float

    @property
    def state(self) -> float:
        """Bytes an element of the state rests in."""
        return self.master + self.first + self.second

    @property
    def moved(self) -> float:
        """Bytes an element moves: gradient read, state read and written, 16-bit weight written."""
        return self.grad + 2.0 * self.state + ACT_BYTES


def widths(ctx: Context, *, second: bool = True) -> Widths:
    """Of the workload's optimizer; second: with the second moment. Unless stated, moments rest in fp32, or in 16 bits
    under the profile's precision-aware optimizer (the setting of the published recipes that switch it on); no master
    weights where the profile says so."""
    o, aware = ctx.workload.optimizer, ctx.software.precision_aware_optimizer
    moment = "bf16" if aware else "fp32"
    return Widths(
        grad=STATE_BYTES[o.main_grads or "fp32"],
        master=STATE_BYTES[o.main_params or "fp32"] if o.main_params or ctx.software.master_weights else 0.0,
        first=STATE_BYTES[o.exp_avg or moment], second=STATE_BYTES[o.exp_avg_sq or moment] if second else 0.0,
    )  # fmt: skip


def state_bytes(ctx: Context, params: LocalParams) -> tuple[Any, Any]:
    """(dense, routed) bytes of the state before sharding: master weights, moments, and gradients where the update
    reads them in another dtype than they are summed in."""
    o, mine = ctx.workload.optimizer, trained(ctx, params)
    full = widths(ctx, second=o.name != "sgd")
    summed = "fp32" if ctx.software.grad_dtype == "fp32" else "bf16"
    copy = full.grad if o.main_grads and o.main_grads != summed else 0.0
    dense, routed = ((full.state + copy) * count for count in (mine.dense, mine.routed))
    if o.name == "muon":
        saved = full.second  # matrices have a momentum and no second moment
        dense, routed = dense - saved * params.more[0], routed - saved * params.more[1]
    return dense, routed


def host_share(ctx: Context) -> float:
    """Share of the optimizer that lives on the host."""
    return max(ctx.workload.offload.optimizer, 1.0 if ctx.software.optimizer_offload else 0.0)


def host_state_bytes(ctx: Context, params: LocalParams) -> Any:
    """Bytes of one rank in host memory: its share of the sharded state, and fp32 gradients to read it with."""
    share = host_share(ctx)
    if not share:
        return 0.0
    mine, (dense, routed) = trained(ctx, params), state_bytes(ctx, params)
    over_dense, over_routed = shards(ctx)
    grads = FP32_BYTES * (mine.dense / over_dense + mine.routed / over_routed)
    return share * (dense / over_dense + routed / over_routed + grads)


def shards(ctx: Context) -> tuple[Any, Any]:
    """Ranks that share the state of dense parameters and of experts."""
    plan = ctx.plan
    if plan.zero_stage == 0:
        return np.ones(()), np.ones(())
    return np.asarray(plan.dp * plan.cp, float), np.asarray(plan.edp, float)


class TwoCopies:
    """The degrees of a plan whose stages are held twice, as its state sees them."""

    def __init__(self, *, of: Degrees) -> None:
        self._of = of
        self.dp, self.edp = 2 * of.dp, 2 * of.edp
        self.pp = of.pp // 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)
