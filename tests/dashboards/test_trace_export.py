"""The timeline file keeps the shape rules of Chrome traces and of trace analysers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dashboards.trace_export import kernel_name, trace_events, trace_json, write_trace
from sim.report import Report, Span
from tests.dashboards.handmade import make_report


def slices(report: Report) -> list[dict[str, Any]]:
    return [e for e in trace_events(report) if e["ph"] == "X"]


def test_slices_carry_the_required_keys_and_nest(report: Report) -> None:
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in slices(report):
        assert {"name", "cat", "pid", "tid", "ts", "dur", "args"} <= set(event)
        assert event["dur"] >= 0
        rows.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for row in rows.values():
        row.sort(key=lambda x: (x[0], -x[1]))
        open_ends: list[float] = []
        for start, end in row:
            while open_ends and open_ends[-1] <= start + 1e-9:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 1e-9
            open_ends.append(end)


def test_times_are_microseconds_of_the_trace(report: Report) -> None:
    trace = report.trace
    assert trace is not None
    kernels = [e for e in slices(report) if e["cat"] == "kernel"]
    assert len(kernels) == len(trace.spans)
    total_s = sum(s.end_s - s.start_s for s in trace.spans)
    assert sum(e["dur"] for e in kernels) == pytest.approx(total_s * 1e6, rel=1e-6)
    steps = [e for e in slices(report) if e["cat"] == "user_annotation"]
    assert {e["name"] for e in steps} == {"ProfilerStep#0"}
    assert all(e["dur"] == pytest.approx(trace.makespan_s * 1e6) for e in steps)


def test_overlapping_spans_of_one_stream_go_to_separate_threads() -> None:
    report = make_report(pp=1, micro_batches=1)
    trace = report.trace
    assert trace is not None
    twin = Span(lane=0, stream="p2p", name="send", kind="p2p", micro_batch=0, chunk=0, start_s=0.0, end_s=0.01)
    late = Span(lane=0, stream="p2p", name="send", kind="p2p", micro_batch=1, chunk=0, start_s=0.005, end_s=0.02)
    from dataclasses import replace

    both = replace(report, trace=replace(trace, spans=(twin, late)))
    tids = {e["tid"] for e in slices(both) if e["cat"] == "kernel"}
    assert len(tids) == 2


def test_every_thread_and_process_is_named(report: Report) -> None:
    events = list(trace_events(report))
    used = {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}
    named = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert used <= named
    processes = {e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert processes == {e["pid"] for e in events}


def test_memory_counters_end_where_the_ledger_ends(report: Report) -> None:
    trace = report.trace
    assert trace is not None
    counters = [e for e in trace_events(report) if e["ph"] == "C" and e["name"] == "memory in use"]
    assert all(isinstance(e["args"]["bytes"], int) for e in counters)
    for lane, points in enumerate(trace.memory):
        mine = [e for e in counters if e["pid"] == lane]
        assert [e["args"]["bytes"] for e in mine] == [round(b) for _, b in points]


def test_arrows_start_and_end_inside_slices_and_pair_up(report: Report) -> None:
    events = list(trace_events(report))
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    # A forward and a backward arrow for every micro-batch over every border between stages.
    assert len(starts) == 2 * 8 * 3
    assert set(starts) == set(ends)
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append(event)
    for key, start in starts.items():
        end = ends[key]
        assert end["bp"] == "e"
        assert start["pid"] != end["pid"]
        assert start["ts"] <= end["ts"]
        for point in (start, end):
            assert any(x["ts"] <= point["ts"] <= x["ts"] + x["dur"] for x in rows[point["pid"], point["tid"]])


def test_communication_is_named_as_analysers_expect(report: Report) -> None:
    for event in slices(report):
        if event["cat"] != "kernel":
            continue
        is_send = event["args"]["op"].startswith("send")
        assert bool(re.match(r"^nccl.*Kernel", event["name"])) == is_send
    grads = Span(lane=0, stream="dp", name="g", kind="grad_sync", micro_batch=-1, chunk=0, start_s=0, end_s=1)
    params = Span(lane=0, stream="dp", name="p", kind="param_gather", micro_batch=-1, chunk=0, start_s=0, end_s=1)
    assert "ReduceScatter" in kernel_name(grads)
    assert "AllGather" in kernel_name(params)


def test_file_is_json_the_same_byte_for_byte_and_states_its_rank(report: Report, tmp_path: Path) -> None:
    write_trace(report, tmp_path / "a.json", lane=2)
    write_trace(make_report(), tmp_path / "b.json", lane=2)
    text = (tmp_path / "a.json").read_text()
    assert text == (tmp_path / "b.json").read_text()
    data = json.loads(text)
    assert {e["pid"] for e in data["traceEvents"]} == {2}
    rank = re.search(r'"rank":\s+(\d+)', text)
    assert rank is not None
    assert rank.group(1) == "2"
    assert data["distributedInfo"]["world_size"] == report.devices


def test_report_without_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="trace=True"):
        trace_json(make_report(trace=None))
