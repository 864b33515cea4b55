"""Ops: one kind of work in a layer, on one rank, for one micro-batch. Sizes only, no seconds.

Every numeric field is a number or a numpy column, so one description serves the event run and
the screening of 10^5 candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Pass = Literal["forward", "recompute", "backward", "wgrad"]
Kind = Literal["gemm", "grouped_gemm", "attention", "memory", "collective", "host"]
Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p", "ring"]


@dataclass(frozen=True, kw_only=True)
class Op:
    """One op.

    gemm: C[m,n] = A[m,k] B[k,n], `count` times; `row_bytes`: from row to row of an operand that nothing pads, 0 where
    all are padded. grouped_gemm: `groups` local experts of the most loaded rank with m
    rows each on average (the weight gradient sums over them: there k is that mean); `m_max`: rows of the fullest of
    them, None where all hold the mean.
    attention: flop = causal FLOP of the core; `seq`, `heads`, `kv_heads`, `dqk`, `dv`, `batch` pick the
    kernel. memory: bytes moved through HBM. collective: `bytes` is the full buffer of
    the group as nccl-tests counts it ("size" per rank: the gathered or exchanged buffer). Of an exchange of tokens
    between experts n is the width of a token, groups are the experts, dtype is what a deduplicating kernel sends.
    kernels: device kernels (each has a launch floor); host_launches: launches issued by the host, None =
    as many as kernels; experts: launches the host issues one local expert after the other.
    fused: one kernel serves all groups of a grouped GEMM. scope: the part of a layer that a CUDA graph
    may capture ("attn", "mlp", "moe_router", "moe_preprocess", "experts", "ends").
    kernel: class of a memory-bound kernel where its time may have been measured (`moecast calibrate measure`
    names them), kernel_bytes: its size as that class counts bytes.
    saved_bytes: activation bytes kept for the backward pass once this op has run (the memory
    ledger frees them in the matching backward); transient_bytes: what a recomputed op holds again while
    its layer's backward runs. module: the recompute module it belongs to. rests_on: provenance of a price that no
    table of its own stands behind.
    """

    name: str
    kind: Kind
    pass_: Pass = "forward"
    module: str = ""
    dtype: str = "bf16"
    m: Any = 0
    n: Any = 0
    k: Any = 0
    count: Any = 1
    row_bytes: Any = 0
    groups: Any = 1
    m_max: Any = None
    flop: Any = 0.0
    bytes: Any = 0.0
    seq: Any = 0
    batch: Any = 0
    heads: Any = 0
    kv_heads: Any = 0
    dqk: Any = 0
    dv: Any = 0
    window: int | None = None
    collective: Collective | None = None
    axis: str = ""
    overlap: str = ""
    kernels: Any = 1
    host_launches: Any = None
    experts: Any = 0
    fused: bool = False
    scope: str = ""
    kernel: str = ""
    kernel_bytes: Any = 0.0
    saved_bytes: Any = 0.0
    transient_bytes: Any = 0.0
    rests_on: str = ""


def exchange_phase(op: Op) -> Literal["dispatch", "combine"]:
    """Which kernel an exchange of tokens runs: the gradient of a combine is dispatched, that of a dispatch combined."""
    return "dispatch" if op.name.startswith("dispatch") != (op.pass_ == "backward") else "combine"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an op asks of the machine: seconds alone, and how they split.

    busy_s: on the device; latency_s: not shared with anything; flows: (link, bytes) whose time is
    bytes over the link's effective rate; host_s: time of the launching thread; flop: useful FLOP.
    """

    busy_s: Any = 0.0
    latency_s: Any = 0.0
    flows: tuple[tuple[str, Any], ...] = ()
    host_s: Any = 0.0
    flop: Any = 0.0
    provenance: str = "measured"
