"""A hand-made report: a 1F1B pipeline laid out by hand, so the expected numbers are known."""

from __future__ import annotations

from dataclasses import replace

from sim.plan import Plan
from sim.report import Estimate, Report, Span, Trace

GIB = 2.0**30


def pipeline_trace(pp: int, micro_batches: int, forward_s: float = 0.01, backward_s: float = 0.02) -> Trace:
    """A textbook 1F1B schedule with a send after every forward and an optimizer step."""
    order = []
    for lane in range(pp):
        warm = min(pp - lane - 1, micro_batches)
        seq = [("F", i) for i in range(warm)]
        for i in range(micro_batches - warm):
            seq += [("F", warm + i), ("B", i)]
        seq += [("B", i) for i in range(micro_batches - warm, micro_batches)]
        order.append(seq)
    done: dict[tuple[str, int, int], float] = {}
    free = [0.0] * pp
    at = [0] * pp
    spans: list[Span] = []
    memory: list[list[tuple[float, float]]] = [[(0.0, 10 * GIB)] for _ in range(pp)]
    while any(at[lane] < len(order[lane]) for lane in range(pp)):
        for lane in range(pp):
            while at[lane] < len(order[lane]):
                what, mb = order[lane][at[lane]]
                before = (what, mb, lane - 1 if what == "F" else lane + 1)
                first = (what == "F" and lane == 0) or (what == "B" and lane == pp - 1)
                ready = done.get(("F", mb, lane), 0.0) if first and what == "B" else 0.0 if first else done.get(before)
                if ready is None:
                    break
                start = max(free[lane], ready)
                end = start + (forward_s if what == "F" else backward_s)
                kind = "forward" if what == "F" else "backward"
                spans.append(Span(lane=lane, stream="compute", name=f"{what}{mb}", kind=kind, micro_batch=mb,
                                  chunk=0, start_s=start, end_s=end))  # fmt: skip
                used = memory[lane][-1][1] + (GIB if what == "F" else -GIB)
                memory[lane].append((end, used))
                if what == "F" and lane < pp - 1:
                    spans.append(Span(lane=lane, stream="p2p", name=f"send {mb}", kind="p2p", micro_batch=mb,
                                      chunk=0, start_s=end, end_s=end + 0.001))  # fmt: skip
                done[what, mb, lane] = free[lane] = end
                at[lane] += 1
    makespan = max(free) + 0.005
    spans += [
        Span(lane=lane, stream="compute", name="optimizer", kind="optimizer", micro_batch=-1, chunk=-1,
             start_s=makespan - 0.005, end_s=makespan)
        for lane in range(pp)
    ]  # fmt: skip
    busy = tuple(
        sum(s.end_s - s.start_s for s in spans if s.lane == lane and s.stream == "compute") for lane in range(pp)
    )
    return Trace(
        makespan_s=makespan, spans=tuple(spans), memory=tuple(tuple(m) for m in memory),
        peak_bytes=tuple({"weights": 10 * GIB, "activations": max(b for _, b in m) - 10 * GIB} for m in memory),
        lane_busy_s=busy, link_busy_s={(0, "scale_out"): 0.01}, link_bytes={(0, "scale_out"): 1e9},
        num_events=len(spans),
    )  # fmt: skip


def make_report(pp: int = 4, micro_batches: int = 8, **changes: object) -> Report:
    """A report whose breakdown sums to the step and whose bubble is the trace's idle share."""
    trace = pipeline_trace(pp, micro_batches)
    step_s = trace.makespan_s
    idle_s = step_s - trace.lane_busy_s[0]
    work_s = trace.lane_busy_s[0] - 0.005
    report = Report(
        model="toy-moe", cluster="toy-cluster", software="toy-trainer", devices=8 * pp,
        plan=Plan(tp=2, pp=pp, dp=4, ep=8, edp=1), num_micro_batches=micro_batches,
        step_s=Estimate(value=step_s, low=0.9 * step_s, high=1.1 * step_s),
        tokens_per_s_per_gpu=Estimate(value=1234.5, low=1122.0, high=1372.0),
        mfu=Estimate(value=0.41, low=0.37, high=0.455), tflops_per_gpu=405.0, usd_per_step=0.12,
        breakdown={"gemm": 0.4 * work_s, "experts": 0.3 * work_s, "attention": 0.1 * work_s, "ep": 0.15 * work_s,
                   "tp": 0.05 * work_s, "bubble": idle_s, "optimizer": 0.005},
        bubble_fraction=idle_s / step_s, exposed_comm_s={"ep": 0.15 * work_s, "tp": 0.05 * work_s},
        peak_mem_bytes=14 * GIB, mem_capacity_bytes=80 * GIB, usable_mem_bytes=76 * GIB, memory=trace.peak_bytes,
        link_use={"scale_up": {"bytes": 5e10, "utilisation": 0.21},
                  "scale_out": {"bytes": 1e9, "utilisation": 0.04}},
        out_of_memory=None, provenance=("interpolated: expert GEMM", "measured: dense GEMM"),
        warnings=("extrapolated: attention <8192> beyond the table",), bound_s=0.9 * step_s, trace=trace,
    )  # fmt: skip
    return replace(report, **changes)  # type: ignore[arg-type]
