"""Write a report's timeline as Chrome / Perfetto JSON, in the shape PyTorch's profiler uses.

One process per simulated lane (a pipeline stage, or a rank of one), one thread per stream. Times are microseconds with
nanosecond steps; the whole file is a function of the report, byte for byte. Communication slices
carry NCCL's kernel names because trace analysers tell communication from compute by that name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dashboards.style import direction, drawn_s, span_class
from sim.build.order import placement, slot_of
from sim.report import Report, Span, Trace

STEP_TID = 0
_COMPUTE = "compute"
_COMMUNICATION = ("tp", "cp", "ep", "etp", "dp", "pp", "communication")

Event = dict[str, Any]


def write_trace(report: Report, path: str | Path, *, lane: int | None = None) -> None:
    """Write the trace of all lanes, or of one (analysers that want one file per rank).

    Raises ValueError when the report was made without a trace, OSError when `path` is not writable.
    """
    Path(path).write_text(trace_json(report, lane=lane), encoding="utf-8")


def trace_json(report: Report, *, lane: int | None = None) -> str:
    """The text `write_trace` writes: one event per line, a space after every colon."""
    trace = report.trace
    if trace is None:
        raise ValueError("the report carries no trace; simulate with trace=True")
    head = {
        "schemaVersion": 1,
        "distributedInfo": {"backend": "nccl", "rank": lane or 0, "world_size": report.devices},
        "deviceProperties": [
            {"id": i, "name": report.cluster, "totalGlobalMem": round(report.mem_capacity_bytes)}
            for i in _lanes(trace, lane)
        ],
        "baseTimeNanoseconds": 0,
        "displayTimeUnit": "ms",
        "moecast": {
            "model": report.model,
            "cluster": report.cluster,
            "software": report.software,
            "plan": report.plan.label(),
            "step_s": report.step_s.value,
            "run": "layers" if trace.lanes else "pipeline",
            "drawn_step_s": trace.makespan_s,
            "micro_batches_not_drawn": trace.periods_skipped,
        },
    }
    text = json.dumps(head, indent=1)
    events = ",\n".join(json.dumps(event) for event in trace_events(report, lane=lane))
    return f'{text[:-2]},\n "traceEvents": [\n{events}\n]\n}}\n'


def trace_events(report: Report, *, lane: int | None = None) -> Iterator[Event]:
    """Metadata, slices, counters of memory and of link loads, and flow arrows, in a fixed order."""
    trace = report.trace
    if trace is None:
        raise ValueError("the report carries no trace; simulate with trace=True")
    lanes = _lanes(trace, lane)
    tracks = _tracks(trace.spans)
    yield from _metadata(report, lanes, tracks)
    number = 0
    for (at, stream, copy), spans in tracks.items():
        if at not in lanes:
            continue
        tid = _tid(tracks, at, stream, copy)
        for span in spans:
            number += 1
            yield _slice(span, tid, number, layers=bool(trace.lanes))
    for at in lanes:
        if at < len(trace.memory):
            for time_s, used_bytes in trace.memory[at]:
                yield _counter("memory in use", at, time_s, {"bytes": round(used_bytes)})
        for (of, link), steps in sorted(trace.link_rates.items()):
            full = trace.link_bytes_per_s.get(link, 0.0)
            if of == at and full > 0.0:
                for time_s, rate in steps:
                    yield _counter(f"load of {link}", at, time_s, {"percent": round(100.0 * rate / full, 2)})
    if lane is None:
        yield from _flows(report, tracks)


def _lanes(trace: Trace, lane: int | None) -> list[int]:
    """Lanes that have anything to show."""
    if lane is not None:
        return [lane]
    return sorted({span.lane for span in trace.spans} | set(range(len(trace.memory))))


def _ns(time_s: float) -> int:
    """Whole nanoseconds: neighbours that touch in the simulation still touch after rounding."""
    return round(time_s * 1e9)


# ---------------------------------------------------------------- tracks

Tracks = dict[tuple[int, str, int], list[Span]]


def _tracks(spans: Iterable[Span]) -> Tracks:
    """(lane, stream, copy) -> spans in order. Slices of one thread must nest, so spans of a stream
    that overlap without nesting are dealt to further copies of it."""
    ordered = sorted(spans, key=lambda s: (s.lane, s.stream != _COMPUTE, s.stream, _ns(s.start_s), -_ns(s.end_s)))
    tracks: Tracks = {}
    for span in ordered:
        copy = 0
        while True:
            row = tracks.setdefault((span.lane, span.stream, copy), [])
            if not row or _ns(row[-1].end_s) <= _ns(span.start_s):
                row.append(span)
                break
            copy += 1
    return {key: tracks[key] for key in sorted(tracks, key=lambda k: (k[0], k[1] != _COMPUTE, k[1], k[2]))}


def _tid(tracks: Tracks, lane: int, stream: str, copy: int) -> int:
    """Thread number: 0 is the step annotation, then the streams in order."""
    return 1 + [key for key in tracks if key[0] == lane].index((lane, stream, copy))


def _metadata(report: Report, lanes: list[int], tracks: Tracks) -> Iterator[Event]:
    trace = report.trace
    assert trace is not None
    for at in lanes:
        yield _meta("process_name", at, STEP_TID, {"name": _process_name(trace, at)})
        yield _meta("process_sort_index", at, STEP_TID, {"sort_index": at})
        yield _meta("thread_name", at, STEP_TID, {"name": "step"})
        mine = [key for key in tracks if key[0] == at]
        for tid, (_, stream, copy) in enumerate(mine, start=1):
            name = f"stream {tid}: {stream}" + (f" ({copy + 1})" if copy else "")
            yield _meta("thread_name", at, tid, {"name": name})
            yield _meta("thread_sort_index", at, tid, {"sort_index": tid})
        yield {
            "ph": "X", "name": "ProfilerStep#0", "cat": "user_annotation", "pid": at, "tid": STEP_TID,
            "ts": 0.0, "dur": _ns(drawn_s(trace)) / 1000, "args": {},
        }  # fmt: skip


def _process_name(trace: Trace, at: int) -> str:
    """ "stage 2", and of a lane that stands for some of a stage's ranks how many: "stage 2, median rank (x 56)"."""
    several = bool(trace.lanes) and bool(trace.lanes[at].name)
    return trace.lane_name(at) + (f" (x {trace.lanes[at].weight})" if several else "")


def _counter(name: str, pid: int, time_s: float, args: dict[str, float]) -> Event:
    return {"ph": "C", "name": name, "pid": pid, "tid": STEP_TID, "ts": _ns(time_s) / 1000, "args": args}


def _meta(name: str, pid: int, tid: int, args: dict[str, Any]) -> Event:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args}


# ---------------------------------------------------------------- slices


def kernel_name(span: Span) -> str:
    """Name of a slice: NCCL's for communication, the task's own otherwise."""
    group = span_class(span)
    if group not in _COMMUNICATION:
        return span.name
    if group == "dp":
        gathers = "param" in span.kind + span.name or "gather" in span.kind + span.name
        return "ncclDevKernel_AllGather_RING_LL" if gathers else "ncclDevKernel_ReduceScatter_Sum_RING_LL"
    if group in ("tp", "etp"):
        if "all_reduce" in span.name:
            return "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"
        return f"ncclDevKernel_{'ReduceScatter_Sum' if 'reduce' in span.name else 'AllGather'}_RING_LL"
    return "ncclDevKernel_SendRecv"


def _slice(span: Span, tid: int, number: int, *, layers: bool) -> Event:
    start = _ns(span.start_s)
    args: dict[str, Any] = {
        "device": span.lane, "stream": tid, "correlation": number, "op": span.name, "class": span_class(span),
    }  # fmt: skip
    if span.micro_batch >= 0:
        args |= {"micro_batch": span.micro_batch, "chunk": span.chunk}
    # Chrome takes a list of categories; of single layers the class too, so that a viewer can filter by it.
    categories = f"kernel,{span_class(span)}" if layers else "kernel"
    return {
        "ph": "X", "name": kernel_name(span), "cat": categories, "pid": span.lane, "tid": tid,
        "ts": start / 1000, "dur": (_ns(span.end_s) - start) / 1000, "args": args,
    }  # fmt: skip


def _flows(report: Report, tracks: Tracks) -> Iterator[Event]:
    """Arrows along the pipeline: a micro-batch's forward to the next virtual stage, and back, lane by lane."""
    pp = max(1, report.plan.pp)
    placed = placement(report.plan.schedule)
    last = pp * max(1, report.plan.vpp) - 1
    trace = report.trace
    assert trace is not None
    # A pass may be cut in pieces (layers; a first forward or last backward): an arrow leaves the last, meets the first.
    pieces: dict[tuple[str, int, int, int], list[tuple[Span, int]]] = {}
    for (lane, stream, copy), spans in tracks.items():
        tid = _tid(tracks, lane, stream, copy)
        stage = trace.stage_of(lane)
        of = lane - stage * (len(trace.lanes) // pp) if trace.lanes else 0
        for span in spans:
            group = direction(span)
            if span.micro_batch >= 0 and group:
                key = (group, span.micro_batch, slot_of(stage, span.chunk, pp=pp, placed=placed), of)
                pieces.setdefault(key, []).append((span, tid))
    number = 0
    for (group, micro_batch, stage, of), mine in sorted(pieces.items(), key=lambda item: item[0]):
        onward = stage + 1 if group == "forward" else stage - 1
        if not 0 <= onward <= last or (group, micro_batch, onward, of) not in pieces:
            continue
        span, tid = mine[-1]
        target, target_tid = pieces[group, micro_batch, onward, of][0]
        if target.lane == span.lane:
            continue
        number += 1
        # An arrow binds to the slice around its time stamp: leave just inside the sender's end.
        leave = max(_ns(span.start_s), _ns(span.end_s) - 1)
        yield {"ph": "s", "name": "pipeline", "cat": "p2p", "id": number, "pid": span.lane, "tid": tid,
               "ts": leave / 1000}  # fmt: skip
        yield {"ph": "f", "bp": "e", "name": "pipeline", "cat": "p2p", "id": number, "pid": target.lane,
               "tid": target_tid, "ts": _ns(target.start_s) / 1000}  # fmt: skip
