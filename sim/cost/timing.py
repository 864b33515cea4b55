"""From ops to the time of a part (one layer, or one end of the model): host, compute, communication.

Within a layer the compute stream is serial; communication is exposed except where the software
overlaps it with named work. Across micro-batches all-to-all can hide behind the other pass's
compute (`pair_s`). Everything is array-transparent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from sim.build.context import ACT_BYTES, SAVED_BYTES, Context
from sim.build.order import SPLIT_SCHEDULES
from sim.build.saved import offloaded_ops
from sim.cost.model import CostModel
from sim.mesh import group
from sim.model import MoESpec
from sim.ops import Op
from sim.plan import Degrees

FORWARD, BACKWARD = "forward", "backward"
Key = TypeVar("Key")
SYNC_LAUNCHES = 3  # read-back, split sizes, first kernel after a dropless layer's host synchronisation


@dataclass
class PartTime:
    """Seconds of one part for one micro-batch, per direction (forward; backward with recompute, wgrad).

    classes[direction][class]: device seconds of compute. exposed[direction][axis]: communication the
    layer itself cannot hide. halves[direction][half]: compute of the attention and FFN half.
    late[half]: weight-gradient part of the backward halves. ep[name]: all-to-all seconds by name (dispatch, combine,
    and .bwd of each). host: launching thread.
    comm, left: seconds of the collectives of (direction, axis, overlap) alone, and what is exposed of them.
    network_s[direction][link]: busy seconds of the port and each level above it; up_s: of NVLink, both directions.
    edge_s[direction]: seconds more, once per virtual stage, where two batches overlap (`two_batch_part`).
    lead_s: what a forward lasts beyond both its device time and its launches, as the host runs ahead only from one
    read-back to the next. saved: activation bytes kept from forward to backward, of which `away` on the host (modules
    of `Offload`); deferred: what the weight gradients need where a schedule puts them off; remat: held again during
    recompute.
    """

    classes: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    exposed: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    halves: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    host: dict[str, Any] = field(default_factory=lambda: {FORWARD: 0.0, BACKWARD: 0.0})
    network_s: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    up_s: Any = 0.0
    ep: dict[str, Any] = field(default_factory=dict)
    comm: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    left: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    edge_s: dict[str, Any] = field(default_factory=dict)
    wgrad_s: Any = 0.0
    late: dict[str, Any] = field(default_factory=dict)
    saved: Any = 0.0
    away: Any = 0.0
    deferred: Any = 0.0
    remat: Any = 0.0
    synced: bool = False
    lead_s: Any = 0.0

    def compute_s(self, direction: str) -> Any:
        """Device seconds of compute in one direction."""
        return sum(self.classes[direction].values(), np.zeros(()))

    def exposed_s(self, direction: str) -> Any:
        """Exposed communication in one direction."""
        return sum(self.exposed[direction].values(), np.zeros(()))

    def device_s(self, direction: str) -> Any:
        """Compute plus exposed communication."""
        return self.compute_s(direction) + self.exposed_s(direction)

    def launching_s(self, direction: str) -> Any:
        """Time of the launching thread, with what a read-back keeps it from running ahead of the device."""
        return self.host[direction] + (self.lead_s if direction == FORWARD else 0.0)

    def duration_s(self, direction: str) -> Any:
        """The longer of the device's work and launching it, plus what a read-back keeps the two from overlapping."""
        lead_s = self.lead_s if direction == FORWARD else 0.0
        return np.maximum(self.device_s(direction), self.host[direction]) + lead_s


def operand_bytes(op: Op) -> Any:
    """What a weight gradient [m, n] reads, summed over k rows: the input and the gradient of the output, as wide as
    the product takes them. An input that several products share counts for each."""
    if op.kind not in ("gemm", "grouped_gemm"):
        return 0.0
    return SAVED_BYTES.get(op.dtype, float(ACT_BYTES)) * op.k * (op.m + op.n) * op.groups * op.count


def op_class(op: Op) -> str:
    """The class an op's seconds are reported under."""
    if op.pass_ == "recompute":
        return "recompute"
    return {"gemm": "gemm", "grouped_gemm": "experts", "attention": "attention", "memory": "memory-bound"}[op.kind]


def part_time(cost: CostModel, ctx: Context, ops: Iterable[Op], moe: MoESpec | None = None) -> PartTime:
    """Add up the ops of one part; then take away what the software hides."""
    part = PartTime()
    comm = part.comm
    attention_core = {FORWARD: np.zeros(()), BACKWARD: np.zeros(())}
    dgrad = np.zeros(())
    shared = {FORWARD: np.zeros(()), BACKWARD: np.zeros(())}
    queue: list[tuple[Any, Any]] = []  # (host, device) seconds of the forward ops, in order
    synced_at = 0
    to_host = offloaded_ops(ctx.workload.offload.modules)
    splits = ctx.plan.schedule in SPLIT_SCHEDULES
    for op in ops:
        way = FORWARD if op.pass_ == "forward" else BACKWARD
        host_s = cost.host_s(op)
        if op.kind != "collective":
            part.host[way] = part.host[way] + host_s
        part.saved = part.saved + op.saved_bytes
        part.remat = part.remat + op.transient_bytes
        if to_host and op.name in to_host:
            part.away = part.away + op.saved_bytes
        if op.kind == "collective":
            top_k = round(moe.rows_per_token) if moe else 1
            limit, groups = (moe.top_k_groups, moe.num_groups) if moe and moe.num_groups > 1 else (0, 0)
            t = cost.comm_time(op, ctx.plan, top_k=top_k, group_limit=limit, groups=groups, routing=ctx.routing)
            host_s = np.where(t.alone_s > 0.0, host_s, 0.0)  # a group of one calls nothing
            part.host[way] = part.host[way] + host_s
            busy = part.network_s[way]
            for link, seconds in zip(cost.comm.network, t.network_s, strict=True):
                busy[link] = busy.get(link, 0.0) + seconds
            part.up_s = part.up_s + t.up_s
            if op.axis == "ep":
                name = op.name.removesuffix(".again")
                part.ep[name] = part.ep.get(name, 0.0) + t.alone_s
            key = (way, op.axis, op.overlap)
            comm[key] = comm.get(key, 0.0) + t.alone_s
            if op.pass_ == "forward" and op.overlap != "fsdp":
                if op.name == "dispatch":
                    synced_at = len(queue)
                queue.append((host_s, t.alone_s))
            continue
        seconds = cost.device_s(op, ctx.dtype)
        if op.pass_ == "forward":
            queue.append((host_s, seconds))
        group = part.classes[way]
        group[op_class(op)] = group.get(op_class(op), 0.0) + seconds
        half = "attn" if op.scope == "attn" else "ffn"
        part.halves[way][half] = part.halves[way].get(half, 0.0) + seconds
        if op.kind == "attention":
            attention_core[way] = attention_core[way] + seconds
        if op.pass_ == "backward" and op.kind == "gemm":
            dgrad = dgrad + seconds
        if op.name.startswith("shared_fc"):
            shared[way] = shared[way] + seconds
        if op.pass_ == "wgrad":
            if splits:
                part.deferred = part.deferred + operand_bytes(op)
            part.wgrad_s = part.wgrad_s + seconds
            part.late[half] = part.late.get(half, 0.0) + seconds
    for (way, axis, overlap), seconds in comm.items():
        if overlap == "fsdp":
            continue
        left = _exposed(cost, ctx, axis, overlap, seconds, attention_core[way], dgrad, shared[way])
        part.left[way, axis, overlap] = left
        part.exposed[way][axis] = part.exposed[way].get(axis, 0.0) + left
    for way in (FORWARD, BACKWARD):
        # prefetched gathers and reductions of both axes share the data-parallel stream
        sharded = sum((v for (w, _, o), v in comm.items() if w == way and o == "fsdp"), np.zeros(()))
        if np.any(sharded > 0):
            # what hides behind compute takes its SMs from it
            beside = part.device_s(way)
            steal = cost.sm_share("allgather")
            part.exposed[way]["dp"] = np.maximum(0.0, sharded - beside) + steal * np.minimum(sharded, beside)
    part.synced = moe is not None and cost.software.host_sync and "full_iteration" not in cost.software.cuda_graph
    if part.synced:
        # the device drains while the host reads the token counts, then waits for its first launches
        gap: Any = SYNC_LAUNCHES * cost.launch_s
        if cost.software.plain_dispatch:  # rows that stay here need no counts
            gap = np.where(np.asarray(ctx.plan.ep) > 1, gap, 0.0)
        part.exposed[FORWARD]["host"] = part.exposed[FORWARD].get("host", 0.0) + gap
        part.lead_s = _lead_s(queue[synced_at:] + queue[:synced_at])
    return part


def _lead_s(queue: list[tuple[Any, Any]]) -> Any:
    """Seconds by which a run of ops lasts longer than its device time and its launches, the device idle at its start.

    Op k cannot start before it is launched, and all device work from k on follows it: the run lasts the largest over
    k of (launches up to k + device seconds from k on).
    """
    launched: Any = 0.0
    after = sum((device for _, device in queue), np.zeros(()))
    least = np.maximum(sum((host for host, _ in queue), np.zeros(())), after)
    longest = least
    for host, device in queue:
        launched = launched + host
        longest = np.maximum(longest, launched + after)
        after = after - device
    return longest - least


def _exposed(
    cost: CostModel, ctx: Context, axis: str, overlap: str, seconds: Any, core: Any, dgrad: Any, shared: Any
) -> Any:
    """Seconds of one collective class left after the overlap the software does inside a layer."""
    if overlap == "tp" and cost.software.tp_overlap:
        # chunked user-buffer overlap: the first of tp pieces has nothing to hide behind; the buffers are mapped over
        # the scale-up links, so a group that leaves its domain has none
        far = group(ctx.plan, axis, cost.cluster, cost.ranks).domains > 1
        return np.where(far, seconds, seconds / np.maximum(ctx.plan.tp, 1))
    if overlap == "dgrad":
        return np.maximum(0.0, seconds - dgrad)
    if overlap == "attention":
        cp = np.asarray(ctx.plan.cp, float)
        return np.maximum(0.0, seconds - core * (cp - 1) / cp)
    if overlap == "ep" and cost.software.shared_expert_overlap:
        return np.maximum(0.0, seconds - shared)
    return seconds


def pair_s(cost: CostModel, part: PartTime) -> Any:
    """Device seconds of one forward and one backward of different micro-batches run together.

    Megatron-LM's 1F1B overlap alternates the halves so that each all-to-all runs beside compute of the other
    pass: combine.bwd | attention forward, dispatch | FFN backward, dispatch.bwd | FFN forward,
    combine | attention backward. The communication kernel takes its SMs from what it runs beside; with
    delay_wgrad weight gradients fill the gaps.
    """
    if not part.ep:
        return part.device_s(FORWARD) + part.device_s(BACKWARD)
    zero = np.zeros(())
    steal, left = comm_sm_share(cost), overlap_left(cost)
    half_f, half_b = part.halves[FORWARD], part.halves[BACKWARD]
    late = part.late if cost.software.delay_wgrad else {}
    slots = (
        (part.ep.get("combine.bwd", zero), half_f.get("attn", zero)),
        (part.ep.get("dispatch", zero), half_b.get("ffn", zero) - late.get("ffn", zero)),
        (part.ep.get("dispatch.bwd", zero), half_f.get("ffn", zero)),
        (part.ep.get("combine", zero), half_b.get("attn", zero) - late.get("attn", zero)),
    )
    total, gap = np.zeros(()), np.zeros(())
    for comm, compute in slots:
        total = total + beside_s(comm, compute, steal, left)
        gap = gap + np.maximum(0.0, comm - compute / (1.0 - steal))
    # delayed weight gradients fill what communication leaves idle, the rest runs after
    total = total + np.maximum(0.0, sum(late.values(), zero) - gap * (1.0 - steal))
    others = sum((v for way in (FORWARD, BACKWARD) for a, v in part.exposed[way].items() if a != "ep"), zero)
    return total + others


def comm_sm_share(cost: CostModel) -> float:
    """Share of the SMs that the kernel of the all-to-all takes from compute it runs beside."""
    if cost.software.dispatch_kernel == "low_latency":
        return 0.0  # sent and received by the ports; the receiving half runs when called for
    return cost.sm_share(cost.software.dispatcher)


def overlap_left(cost: CostModel) -> float:
    """Share of an all-to-all beside compute that stays exposed: none where the overlap is tuned by hand."""
    return 0.0 if cost.software.tuned_overlap else cost.factors.overlap_exposed


def hidden_s(comm: Any, compute: Any, steal: float) -> Any:
    """Seconds of `comm` that have `compute` beside them, which has the share 1 - `steal` of the SMs meanwhile."""
    return np.minimum(comm, compute / (1.0 - steal))


def beside_s(comm: Any, compute: Any, steal: float, left: float = 0.0) -> Any:
    """Seconds of `compute` beside `comm`, which takes the share `steal` of the SMs while it runs; `left`: share of what
    is hidden that comes on top (`overlap_left`)."""
    hidden = hidden_s(comm, compute, steal)
    return np.maximum(comm, compute + steal * hidden) + left * hidden


def two_batch_part(cost: CostModel, whole: PartTime, half: PartTime) -> PartTime:
    """A layer whose micro-batch runs as two halves A and B, each all-to-all beside compute of the other half.

    whole, half: the layer at all and at half of the rows. Slots of a layer, forward: combine of B of the layer before |
    attention A, dispatch A | attention B, dispatch B | FFN A, combine A | FFN B; backward mirrored. As in `pair_s` the
    communication kernel takes its SMs and a share of what is hidden stays exposed. The first attention and the last
    combine of a virtual stage have nothing beside them: `edge_s`. Nothing is gained for sure: two halves cost more than
    a whole in kernels and launches, and each reads its counts back. Memory is that of the whole. Layers without an
    all-to-all are not cut.
    """
    if not half.ep:
        return whole
    steal, left = comm_sm_share(cost), overlap_left(cost)
    two = replace(
        half, saved=whole.saved, away=whole.away, remat=whole.remat, edge_s={}, wgrad_s=2.0 * half.wgrad_s,
        up_s=2.0 * half.up_s,
        lead_s=2.0 * half.lead_s, late=_twice(half.late), ep=_twice(half.ep), host=_twice(half.host),
        network_s=_each_twice(half.network_s), comm=_twice(half.comm), left=_twice(half.left),
        classes=_each_twice(half.classes), exposed=_each_twice(half.exposed), halves=_each_twice(half.halves),
    )  # fmt: skip
    zero = np.zeros(())
    once, again = half.comm.get((FORWARD, "ep", "ep"), zero), half.comm.get((BACKWARD, "ep", "ep"), zero)
    named = half.ep.get("dispatch", zero) + half.ep.get("combine", zero)
    first = np.where(named > 0.0, once / np.where(named > 0.0, named, 1.0), 1.0)  # the rest of `named` is recompute
    for way, suffix, total in ((FORWARD, "", once), (BACKWARD, ".bwd", again)):
        attn, ffn = half.halves[way].get("attn", zero), half.halves[way].get("ffn", zero)
        share = first if way == FORWARD else 1.0
        dispatch, combine = (share * half.ep.get(name + suffix, zero) for name in ("dispatch", "combine"))
        span = sum((beside_s(x, y, steal, left) for x in (dispatch, combine) for y in (attn, ffn)), zero)
        # exchanges that run again in the backward pass, and those of row counts, have nothing beside them
        alone = total - dispatch - combine + half.left.get((way, "ep", ""), zero)
        two.exposed[way]["ep"] = span - 2.0 * (attn + ffn) + 2.0 * alone
        two.edge_s[way] = attn + combine - beside_s(combine, attn, steal, left)
    return two


def _twice(seconds: dict[Key, Any]) -> dict[Key, Any]:
    return {key: 2.0 * value for key, value in seconds.items()}


def _each_twice(seconds: dict[str, dict[Key, Any]]) -> dict[str, dict[Key, Any]]:
    return {way: _twice(values) for way, values in seconds.items()}


def half_micro_batch(ctx: Context) -> Context:
    """The same plan on half of a micro-batch's rows. One sequence is cut inside: attention is priced as the mean of
    its two parts."""
    return replace(ctx, plan=HalfBatch(of=ctx.plan))


def half_ops(ops: Iterable[Op]) -> list[Op]:
    """Ops of one half, sharded parameters gathered (and their gradients reduced) once for both."""
    return [
        replace(op, bytes=op.bytes / 2.0, kernel_bytes=op.kernel_bytes / 2.0, kernels=op.kernels / 2.0)
        if op.name.startswith("fsdp_") else op
        for op in ops
    ]  # fmt: skip


class HalfBatch:
    """The degrees of a plan with half its micro-batch."""

    def __init__(self, *, of: Degrees) -> None:
        self._of = of
        self.micro_batch_seqs = of.micro_batch_seqs / 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)
