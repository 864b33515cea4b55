"""From ops to the time of a part (one layer, or one end of the model): host, compute, communication.

Within a layer the compute stream is serial; communication is exposed except where the software
overlaps it with named work. Across micro-batches all-to-all can hide behind the other pass's
compute (`pair_s`). Everything is array-transparent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.build.context import Context
from sim.cost.model import CostModel
from sim.model import MoESpec
from sim.ops import Op

FORWARD, BACKWARD = "forward", "backward"
SYNC_LAUNCHES = 3  # read-back, split sizes, first kernel after a dropless layer's host synchronisation


@dataclass
class PartTime:
    """Seconds of one part for one micro-batch, per direction (forward; backward with recompute, wgrad).

    classes[direction][class]: device seconds of compute. exposed[direction][axis]: communication the
    layer itself cannot hide. halves[direction][half]: compute of the attention and FFN half.
    late[half]: weight-gradient part of the backward halves. ep[name]: all-to-all seconds by name (dispatch, combine,
    and .bwd of each). host: launching thread.
    network_s[direction][link]: busy seconds of the port and each level above it; up_s: of NVLink, both directions.
    lead_s: what a forward lasts beyond both its device time and its launches, as the host runs ahead only from one
    read-back to the next. saved: activation bytes kept from forward to backward; remat: held again during recompute.
    """

    classes: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    exposed: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    halves: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    host: dict[str, Any] = field(default_factory=lambda: {FORWARD: 0.0, BACKWARD: 0.0})
    network_s: dict[str, dict[str, Any]] = field(default_factory=lambda: {FORWARD: {}, BACKWARD: {}})
    up_s: Any = 0.0
    ep: dict[str, Any] = field(default_factory=dict)
    wgrad_s: Any = 0.0
    late: dict[str, Any] = field(default_factory=dict)
    saved: Any = 0.0
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


def op_class(op: Op) -> str:
    """The class an op's seconds are reported under."""
    if op.pass_ == "recompute":
        return "recompute"
    return {"gemm": "gemm", "grouped_gemm": "experts", "attention": "attention", "memory": "memory-bound"}[op.kind]


def part_time(cost: CostModel, ctx: Context, ops: Iterable[Op], moe: MoESpec | None = None) -> PartTime:
    """Add up the ops of one part; then take away what the software hides."""
    part = PartTime()
    comm: dict[tuple[str, str, str], Any] = {}
    attention_core = {FORWARD: np.zeros(()), BACKWARD: np.zeros(())}
    dgrad = np.zeros(())
    shared = {FORWARD: np.zeros(()), BACKWARD: np.zeros(())}
    queue: list[tuple[Any, Any]] = []  # (host, device) seconds of the forward ops, in order
    synced_at = 0
    for op in ops:
        way = FORWARD if op.pass_ == "forward" else BACKWARD
        host_s = cost.host_s(op)
        if op.kind != "collective":
            part.host[way] = part.host[way] + host_s
        part.saved = part.saved + op.saved_bytes
        part.remat = part.remat + op.transient_bytes
        if op.kind == "collective":
            top_k = moe.top_k if moe else 1
            limit = moe.top_k_groups if moe and moe.num_groups > 1 else 0
            t = cost.comm_time(op, ctx.plan, top_k=top_k, group_limit=limit)
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
        seconds = cost.device_s(op)
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
            part.wgrad_s = part.wgrad_s + seconds
            part.late[half] = part.late.get(half, 0.0) + seconds
    for (way, axis, overlap), seconds in comm.items():
        if overlap == "fsdp":
            continue
        left = _exposed(cost, ctx, axis, overlap, seconds, attention_core[way], dgrad, shared[way])
        part.exposed[way][axis] = part.exposed[way].get(axis, 0.0) + left
    for way in (FORWARD, BACKWARD):
        # prefetched gathers and reductions of both axes share the data-parallel stream
        sharded = sum((v for (w, _, o), v in comm.items() if w == way and o == "fsdp"), np.zeros(()))
        if np.any(sharded > 0):
            # what hides behind compute takes its SMs from it
            beside = part.device_s(way)
            steal = cost.factors.overlap_sms["allgather"] / cost.device.num_sms
            part.exposed[way]["dp"] = np.maximum(0.0, sharded - beside) + steal * np.minimum(sharded, beside)
    part.synced = moe is not None and cost.software.host_sync and "full_iteration" not in cost.software.cuda_graph
    if part.synced:
        # the device drains while the host reads the token counts, then waits for its first launches
        gap: Any = SYNC_LAUNCHES * cost.factors.host_launch_s / cost.device.host_speed
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
        # chunked user-buffer overlap: the first of tp pieces has nothing to hide behind
        return seconds / np.maximum(ctx.plan.tp, 1)
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
    steal = cost.factors.overlap_sms[cost.software.dispatcher] / cost.device.num_sms
    if cost.software.dispatch_kernel == "low_latency":
        steal = 0.0  # sent and received by the ports; the receiving half runs when called for
    half_f, half_b = part.halves[FORWARD], part.halves[BACKWARD]
    late = part.late if cost.software.delay_wgrad else {}
    slots = (
        (part.ep.get("combine.bwd", zero), half_f.get("attn", zero)),
        (part.ep.get("dispatch", zero), half_b.get("ffn", zero) - late.get("ffn", zero)),
        (part.ep.get("dispatch.bwd", zero), half_f.get("ffn", zero)),
        (part.ep.get("combine", zero), half_b.get("attn", zero) - late.get("attn", zero)),
    )
    left = 0.0 if cost.software.tuned_overlap else cost.factors.overlap_exposed
    total, gap = np.zeros(()), np.zeros(())
    for comm, compute in slots:
        span = np.maximum(comm, compute + steal * np.minimum(comm, compute / (1.0 - steal)))
        total = total + span + left * np.minimum(comm, compute / (1.0 - steal))
        gap = gap + np.maximum(0.0, comm - compute / (1.0 - steal))
    # delayed weight gradients fill what communication leaves idle, the rest runs after
    total = total + np.maximum(0.0, sum(late.values(), zero) - gap * (1.0 - steal))
    others = sum((v for way in (FORWARD, BACKWARD) for a, v in part.exposed[way].items() if a != "ep"), zero)
    return total + others
