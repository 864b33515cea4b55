"""Where the seconds and bytes of an event run went: breakdown, bubble, exposed communication, links."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from sim.build.profile import StepProfile
from sim.engine.series import Loads, Moved, with_moved
from sim.report import Span, Trace

ROUNDING = 1e-9  # relative
EXPOSED_AXES = ("tp", "cp", "ep", "etp", "dp", "pp")


def account(
    profile: StepProfile, run: Trace, step_s: float | None = None
) -> tuple[dict[str, float], float, dict[str, float]]:
    """(breakdown summing to the step, bubble fraction, exposed communication by axis).

    step_s: seconds from step to step; None = the makespan. Of the stage whose compute stream is busiest. What the
    pairing of micro-batches hides is taken off the expert all-to-all; waiting for gradients or parameters outside the
    pipeline, and what they take from compute beside them, is "dp"; the rest of the idle time is "bubble" (pipeline
    hops are under "pp" only when they block).
    """
    lane = busiest(run)
    step_s = run.makespan_s if step_s is None else step_s
    m = profile.passes
    parts: dict[str, float] = {}
    for chunk in profile.chunks[lane]:
        for name, seconds in chunk.breakdown.items():
            parts[name] = parts.get(name, 0.0) + m * seconds
    tail = profile.tails[lane]
    ends = {"optimizer": tail.optimizer_s, "step overhead": tail.fixed_s}
    busy = run.lane_busy_s[lane] - sum(ends.values()) - tail.taken_s
    hidden = sum(parts.values()) - busy
    if hidden > 0.0 and sum(parts.values()) > 0.0:
        ep = min(hidden, parts.get("ep", 0.0))
        parts["ep"] = parts.get("ep", 0.0) - ep
        rest = (hidden - ep) / max(sum(parts.values()), 1e-30)
        parts = {k: v * (1.0 - rest) for k, v in parts.items()}
    elif hidden < 0.0:
        # sends that block the compute stream count as busy; anything else is chunks stretched by shared links
        parts["pp" if not profile.p2p_overlap else "link contention"] = -hidden
    wait = _wait_for_gradients(run, lane)
    parts["dp"] = parts.get("dp", 0.0) + wait + tail.taken_s
    parts.update(ends)
    idle = step_s - sum(parts.values())
    parts["bubble"] = idle
    out = {k: v for k, v in parts.items() if abs(v) > 1e-12}
    exposed = {axis: parts[axis] for axis in EXPOSED_AXES if parts.get(axis, 0.0) > 0.0}
    return out, max(0.0, idle) / step_s, exposed


def busiest(run: Trace) -> int:
    """The first lane whose compute stream is busiest, but for rounding (equal stages must not change places by it)."""
    return int(np.argmax(np.array(run.lane_busy_s) >= max(run.lane_busy_s) * (1.0 - ROUNDING)))


def carried_s(profile: StepProfile, run: Trace) -> float:
    """Seconds by which the next step begins before this one has ended everywhere: 0 where stages wait for each other.

    Without that (Qi et al. 2023, post-validation of the optimizer step) every stage begins its next step when it
    has ended this one, and steps follow each other at the longest time any stage has from its beginning to its end.
    A stage begins with its first forward, or so long before it as gathering its parameters takes alone.
    """
    if not profile.post_validation:
        return 0.0
    gathers = [
        t.param_latency_s + max((size / profile.links[link] for link, size in t.param_flows), default=0.0)
        for t in profile.tails
    ]
    begins, ends = [float("inf")] * profile.pp, [0.0] * profile.pp
    for span in run.spans:
        if span.kind == "forward":
            begins[span.lane] = min(begins[span.lane], span.start_s)
        ends[span.lane] = max(ends[span.lane], span.end_s)
    longest = max(end - max(0.0, start - wait) for start, end, wait in zip(begins, ends, gathers, strict=True))
    return max(ends) - longest


def _wait_for_gradients(run: Trace, lane: int) -> float:
    """Seconds between a lane's last backward and the end of its gradient reduction, and before its first
    forward while parameters are gathered."""
    mine = run.spans_of(lane)
    backward = [s.end_s for s in mine if s.kind in ("backward", "wgrad")]
    forward = [s.start_s for s in mine if s.kind == "forward" and s.micro_batch == 0]
    grads = [s.end_s for s in mine if s.kind == "grad"]
    params = [s.end_s for s in mine if s.kind == "param" and s.chunk == 0]
    after = max(0.0, max(grads) - max(backward)) if grads and backward else 0.0
    first = min(forward) if forward else 0.0
    before = min(first, max(params)) if params and lane == 0 else 0.0
    return after + before


def link_use(profile: StepProfile, run: Trace) -> dict[str, dict[str, float]]:
    """Bytes a step puts on each link and the mean share of its rate, of the lane that uses it most.

    bytes count what the link is taken up with (sizes over the achieved share of the rate).
    """
    out: dict[str, dict[str, float]] = {}
    for lane, chunks in enumerate(profile.chunks):
        used = {link: run.link_bytes.get((lane, link), 0.0) for link in profile.links}
        for chunk in chunks:
            for link, size in chunk.inner_bytes:
                used[link] += profile.passes * size
        for link, size in used.items():
            share = size / (profile.links[link] * run.makespan_s)
            # of lanes equally busy the first one, whatever their last digits
            if link not in out or share > out[link]["utilisation"] * (1.0 + ROUNDING):
                out[link] = {"bytes": size, "utilisation": share, "lane": float(lane)}
    return {link: use for link, use in sorted(out.items()) if use["bytes"] > 0.0}


def link_rates(profile: StepProfile, run: Trace) -> Loads:
    """`Trace.link_rates` with the traffic inside chunks, which the engine does not run: spread evenly over the passes.

    Where no period was jumped over, the integral is the bytes of `link_use`. A layer-level run has that traffic in its
    rates, layer by layer, and nothing is added.
    """
    if run.lanes:
        return run.link_rates
    passes: dict[tuple[int, int, int], list[tuple[float, float]]] = defaultdict(list)
    for span in run.spans:
        if span.kind in ("forward", "backward") and any(size > 0.0 for _, size in _inner(profile, run, span)):
            passes[span.lane, span.chunk, span.micro_batch].append((span.start_s, span.end_s))
    moved: list[Moved] = []
    for (lane, chunk, _), spans in passes.items():
        lasting_s = sum(end_s - start_s for start_s, end_s in spans)
        for link, size in profile.chunks[run.stage_of(lane)][chunk].inner_bytes:
            moved += [((lane, link), at_s, end_s, size * (end_s - at_s) / lasting_s) for at_s, end_s in spans]
    return with_moved(run.link_rates, moved)


def _inner(profile: StepProfile, run: Trace, span: Span) -> tuple[tuple[str, float], ...]:
    return profile.chunks[run.stage_of(span.lane)][span.chunk].inner_bytes
