"""The timeline of a layer-level run: processes and threads, categories, arrows and counters, checked like a schema."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from dashboards.figures import timeline
from dashboards.figures_links import link_use, link_use_words
from dashboards.figures_memory import memory_over_time
from dashboards.style import COLOURS, SPAN_NAMES, class_name, colour, direction, span_class
from dashboards.trace_export import kernel_name, trace_events, trace_json
from sim.detail import simulate_layers
from sim.plan import Plan
from sim.report import Report, Span
from sim.run import simulate
from tests.sim.layer_scenarios import scenario

ONE = scenario(
    "Qwen3-30B-A3B", Plan(tp=2, pp=2, vpp=2, ep=8, dp=4, edp=1, schedule="interleaved", account_ends=True), batch=16,
    law="zipf:0.4",
)  # fmt: skip
KEYS = {
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": float, "dur": float, "args": dict},
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    "C": {"name": str, "pid": int, "tid": int, "ts": float, "args": dict},
    "s": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": float},
    "f": {"name": str, "cat": str, "id": int, "pid": int, "tid": int, "ts": float, "bp": str},
}


@cache
def made() -> Report:
    return replace(simulate(ONE, trace=False), trace=simulate_layers(ONE, lanes="median"))


@cache
def events() -> list[dict[str, Any]]:
    data = json.loads(trace_json(made()))
    assert data["moecast"]["run"] == "layers"
    assert data["moecast"]["drawn_step_s"] == pytest.approx(data["moecast"]["step_s"], rel=0.02)
    return list(data["traceEvents"])


def named(kind: str) -> dict[tuple[int, int], str]:
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events() if e["ph"] == "M" and e["name"] == kind}


def test_every_event_has_its_keys_and_no_others() -> None:
    assert {e["ph"] for e in events()} == set(KEYS)
    for event in events():
        wanted = KEYS[event["ph"]]
        assert set(event) == {"ph", *wanted}, event
        for key, kind in wanted.items():
            assert isinstance(event[key], (int, float) if kind is float else kind), (key, event)
        assert event.get("dur", 0) >= 0 and event.get("ts", 0) >= 0


def test_spans_on_one_thread_never_overlap() -> None:
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events():
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert len(rows) > 12
    for row in rows.values():
        row.sort()
        for (_, end), (start, _) in pairwise(row):
            assert start >= end - 1e-6


def test_a_process_is_a_lane_and_a_thread_a_stream() -> None:
    processes = set(named("process_name").values())
    trace = made().trace
    assert trace is not None
    assert processes == {f"stage {s}, {who} rank (x {n})" for s in (0, 1) for who, n in (("hottest", 1), ("median", 7))}
    threads = {name.partition(": ")[2] or name for name in named("thread_name").values()}
    assert threads == {"step", "compute", "ep", "tp", "pp", "dp"}
    assert all(count == 4 for count in Counter(named("thread_name").values()).values())


def test_categories_are_by_kind() -> None:
    seen = {e["cat"] for e in events() if e["ph"] == "X" and e["tid"]}
    assert seen >= {f"kernel,{name}" for name in ("attention", "experts", "router", "weight gradient", "ep", "tp")}
    for event in events():
        if event["ph"] == "X" and event["tid"]:
            assert event["cat"] == f"kernel,{event['args']['class']}"
            assert event["name"].startswith("nccl") == (event["cat"].split(",")[1] in ("ep", "tp", "dp", "pp"))


def test_arrows_join_stages_of_the_same_lane_and_lie_in_slices() -> None:
    starts, ends = ({e["id"]: e for e in events() if e["ph"] == ph} for ph in "sf")
    # 4 micro-batches over 3 borders of 4 virtual stages, there and back, on both lanes
    assert len(starts) == 4 * 3 * 2 * 2 and set(starts) == set(ends)
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events():
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append(event)
    for key, start in starts.items():
        end = ends[key]
        assert start["pid"] != end["pid"] and start["pid"] % 2 == end["pid"] % 2
        assert start["ts"] <= end["ts"]
        for point in (start, end):
            assert any(x["ts"] <= point["ts"] <= x["ts"] + x["dur"] for x in rows[point["pid"], point["tid"]])


def test_memory_is_counted_on_every_lane_and_less_on_the_cold_one() -> None:
    most = [
        max(e["args"]["bytes"] for e in events() if e["ph"] == "C" and e["pid"] == lane and "bytes" in e["args"])
        for lane in range(4)
    ]
    assert most[0] > most[1] and most[2] > most[3]


def test_every_kind_has_a_colour_and_a_name() -> None:
    trace = made().trace
    assert trace is not None
    for name in {span_class(s) for s in trace.spans}:
        assert name in COLOURS and colour(name) != colour("other")
        assert SPAN_NAMES.get(name, class_name(name))
    shown = [COLOURS[n] for n in ("attention", "router", "experts", "shared", "unpermute", "mlp", "ends", "ep", "tp")]
    assert len(set(shown)) == len(shown)


def test_direction_of_a_piece_is_in_its_name() -> None:
    def piece(name: str, stream: str = "compute", kind: str = "experts") -> Span:
        return Span(
            lane=0, stream=stream, name=name, kind=kind, micro_batch=2, chunk=0, start_s=0.0, end_s=1.0
        )  # fmt: skip

    assert [direction(piece(n)) for n in ("F2 experts", "B2.1 wgrad", "optimizer")] == ["forward", "backward", ""]
    assert direction(piece("F2 dispatch", "ep", "ep")) == "" and direction(piece("F2", kind="forward")) == "forward"


def test_tensor_parallel_slices_carry_the_collective() -> None:
    def slice_of(name: str) -> str:
        return kernel_name(
            Span(lane=0, stream="tp", name=name, kind="tp", micro_batch=0, chunk=0, start_s=0.0, end_s=1.0)
        )

    assert "AllGather" in slice_of("F0 qkv.all_gather")
    assert "ReduceScatter" in slice_of("F0 attn_out.reduce_scatter")
    assert "AllReduce" in slice_of("F0 loss.all_reduce")


def test_figures_name_lanes() -> None:
    drawn = timeline(made())
    assert "layer by layer" in drawn.layout.title.text
    labels = {y for bar in drawn.data for y in bar.y}
    assert {"stage 0, hottest rank · compute", "stage 1, median rank · ep"} <= labels
    assert {trace.name for trace in memory_over_time(made()).data} == {
        f"stage {s}, {who} rank" for s in (0, 1) for who in ("hottest", "median")
    }
    rows = [list(panel.y) for panel in link_use(made()).data]
    assert len(rows) == 2 and all("stage 1, median rank" in names for names in rows)
    assert "stage 0, hottest rank" in link_use_words(made())


def test_one_lane_per_stage_keeps_the_plain_name() -> None:
    report = replace(made(), trace=simulate_layers(ONE))
    names = [e["args"]["name"] for e in trace_events(report) if e["name"] == "process_name"]
    assert names == ["stage 0", "stage 1"]
