"""The step profile: what the pipeline-level event run needs to know of one plan.

Ops are reduced once per distinct virtual stage (chunk) to durations, link bytes and memory;
`sim.build.tasks` then lays chunks x micro-batches over lanes. Seconds and bytes are of ONE rank
of the lane (a pipeline stage); identical ranks are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.build.order import Step, boundary_of, passes_of, placement


@dataclass(frozen=True, kw_only=True)
class ChunkProfile:
    """One virtual stage, one micro-batch.

    forward_s / backward_s: duration when run alone (exposed communication and host limits
    included; backward includes recompute and weight gradients).
    paired_s: duration of one forward and one backward of different micro-batches run together
    (all-to-all of one hidden behind compute of the other); None when the software does not pair.
    wgrad_s: part of backward_s that computes weight gradients, a task of its own where a schedule splits the backward.
    forward_flows / backward_flows: (link, bytes) the chunk itself puts on links that outer
    traffic (pipeline, data parallel) shares.
    inner_bytes: (link, bytes) of one forward + backward on links that nothing outer contends for (reported only).
    saved_bytes: activations kept from forward to backward; working_bytes: transient peak on top. deferred_bytes: what
    a weight gradient that was put off needs: inputs of the products and gradients of their outputs.
    breakdown: seconds per class of one forward + one backward; sums to forward_s + backward_s.
    """

    forward_s: float
    backward_s: float
    paired_s: float | None = None
    wgrad_s: float = 0.0
    forward_flows: tuple[tuple[str, float], ...] = ()
    backward_flows: tuple[tuple[str, float], ...] = ()
    inner_bytes: tuple[tuple[str, float], ...] = ()
    saved_bytes: float = 0.0
    deferred_bytes: float = 0.0
    working_bytes: float = 0.0
    breakdown: Mapping[str, float] = field(default_factory=dict)

    @property
    def pair_factor(self) -> float:
        """How much shorter a step is when paired: paired_s over what forward and backward take alone."""
        alone_s = self.forward_s + self.backward_s
        return 1.0 if self.paired_s is None or alone_s <= 0.0 else self.paired_s / alone_s

    def step_s(self, step: Step) -> float:
        """Seconds of a forward, a whole or split backward, or a weight gradient of its own."""
        if step.kind == "F":
            return self.forward_s * (self.pair_factor if step.paired else 1.0)
        if step.kind == "W":
            return self.wgrad_s
        return self.backward_s * (self.pair_factor if step.paired else 1.0) - (self.wgrad_s if step.split else 0.0)


@dataclass(frozen=True, kw_only=True)
class SendProfile:
    """One activation, or its gradient, over the boundary between two pipeline stages.

    flows: (link, bytes) of one rank; latency_s before them. wire_s: seconds of its slowest link of the network, where
    there are levels: its bytes pass the faster links no faster than that one takes them (0: each link as fast as it
    can).
    """

    flows: tuple[tuple[str, float], ...] = ()
    latency_s: float = 0.0
    wire_s: float = 0.0

    @property
    def costs(self) -> bool:
        """Whether it takes any time."""
        return self.latency_s > 0.0 or any(size > 0.0 for _, size in self.flows)


@dataclass(frozen=True, kw_only=True)
class StageTail:
    """What a pipeline stage does once per step besides its micro-batches.

    grad_flows / grad_latency_s: gradient reduce-scatter (or all-reduce); grad_chunks pieces, piece i
    may start when the last micro-batch's backward of virtual stage (vpp-1-i) has ended if
    `overlap_grad`, else all at the end. param_flows: parameter all-gather before the first
    forward (hidden behind the forward of the first micro-batch when `overlap_param`).
    grad_wire_s / param_wire_s: see `SendProfile.wire_s`.
    buckets: pieces a virtual stage's parameters and gradients travel in when overlapped; its first forward
    (last backward) of the step is cut in as many parts, each waiting for (releasing) one piece.
    optimizer_s: optimizer step; fixed_s: gradient norm, data, step overhead that nothing hides. taken_s: what
    overlapped gradients and parameters take from compute, whose SMs their kernels hold (counted at the step's end).
    """

    grad_flows: tuple[tuple[str, float], ...] = ()
    grad_latency_s: float = 0.0
    grad_wire_s: float = 0.0
    param_flows: tuple[tuple[str, float], ...] = ()
    param_latency_s: float = 0.0
    param_wire_s: float = 0.0
    overlap_grad: bool = True
    overlap_param: bool = True
    buckets: int = 1
    optimizer_s: float = 0.0
    fixed_s: float = 0.0
    taken_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """A whole step of one plan: chunks[stage][virtual stage], tails[stage], links.

    vpp: virtual stages (chunks) on a stage; two in "dualpipe", one for each way. post_validation: the next step begins
    on a stage as soon as this one has ended there.
    group: micro-batches per group of the interleaved schedule (0 = `schedule.group_size`).
    links: effective bytes/s of each link name of ONE lane ("scale_up", "scale_out", then the levels of the network
    above the port, each a device's share): lanes do not share links with each other (different ranks); the tasks of a
    lane do.
    p2p[s]: a send over the boundary between stage s and the next, the last one that from the last stage to the first
    (virtual stages); () = sends take no time. p2p_overlap: they do not block the compute stream.
    static_bytes[stage]: memory by tag held through the step. lane_weight: ranks per lane.
    stretch[stage, chunk, micro-batch, way]: durations over those of `chunks`, of a forward, a backward, and of either
    when paired (way 0, 1, 2), where routing noise gives every micro-batch its own; None: all alike.
    """

    pp: int
    vpp: int
    schedule: str
    num_micro_batches: int
    chunks: tuple[tuple[ChunkProfile, ...], ...]
    tails: tuple[StageTail, ...]
    links: Mapping[str, float]
    p2p: tuple[SendProfile, ...] = ()
    p2p_overlap: bool = True
    static_bytes: tuple[Mapping[str, float], ...] = ()
    mem_capacity_bytes: float = float("inf")
    lane_weight: int = 1
    stretch: NDArray[np.float64] | None = None
    post_validation: bool = False
    group: int = 0

    @property
    def placed(self) -> str:
        """How virtual stages lie on stages (`order.placement`)."""
        return placement(self.schedule)

    @property
    def passes(self) -> int:
        """Micro-batches that run through one chunk."""
        return passes_of(self.schedule, self.num_micro_batches)

    @property
    def sends(self) -> bool:
        """Whether anything between stages takes time."""
        return self.pp > 1 and any(send.costs for send in self.p2p)

    def send_of(self, kind: str, stage: int, chunk: int = 0) -> SendProfile:
        """What a forward ("F") or backward ("B") of a chunk sends on, by the boundary it crosses."""
        return self.p2p[boundary_of(kind, stage, chunk, placed=self.placed)]
