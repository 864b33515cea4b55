"""Timelines of simulated steps keep the rules of Chrome traces that Perfetto and Kineto's readers ask for."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any

import pytest

from dashboards.trace_export import trace_json
from dashboards.trace_lanes import lane_files
from sim.report import Report
from tests.exports.timeline import PLANS, reports

# Phase -> keys an event of it must have, beside those it may have.
KEYS = {
    "M": ({"name", "pid", "tid", "args"}, set()),
    "X": ({"name", "cat", "pid", "tid", "ts", "dur", "args"}, set()),
    "C": ({"name", "pid", "tid", "ts", "args"}, set()),
    "s": ({"name", "cat", "id", "pid", "tid", "ts"}, set()),
    "f": ({"name", "cat", "id", "pid", "tid", "ts", "bp"}, set()),
}
HEAD = {"schemaVersion", "distributedInfo", "deviceProperties", "baseTimeNanoseconds", "displayTimeUnit", "traceEvents"}
METADATA = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}


@pytest.fixture(scope="module")
def made() -> dict[str, Report]:
    return reports()


def texts(report: Report) -> list[str]:
    """The file of all lanes and those of the single ones."""
    return [trace_json(report), *(data.decode() for data in lane_files(report).values())]


@pytest.mark.parametrize("name", PLANS)
def test_every_event_has_the_keys_of_its_phase(name: str, made: dict[str, Report]) -> None:
    for text in texts(made[name]):
        data = json.loads(text, parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))
        assert set(data) >= HEAD and '"rank": ' in text
        for event in data["traceEvents"]:
            must, may = KEYS[event["ph"]]
            assert must <= set(event) <= must | may | {"ph"}
            assert type(event["pid"]) is int and type(event["tid"]) is int and isinstance(event["name"], str)
            if event["ph"] == "M":
                assert event["name"] in METADATA
            else:
                assert event["ts"] >= 0.0 and round(event["ts"] * 1000) == pytest.approx(event["ts"] * 1000, abs=1e-3)


@pytest.mark.parametrize("name", PLANS)
def test_slices_nest_and_kernels_have_a_stream(name: str, made: dict[str, Report]) -> None:
    for text in texts(made[name]):
        events = [e for e in json.loads(text)["traceEvents"] if e["ph"] == "X"]
        kernels = [e for e in events if e["cat"].startswith("kernel")]
        numbers = [e["args"]["correlation"] for e in kernels]
        assert kernels and len(set(numbers)) == len(numbers) and all(e["args"]["stream"] == e["tid"] for e in kernels)
        assert {e["name"] for e in events if e["cat"] == "user_annotation"} == {"ProfilerStep#0"}
        rows = defaultdict(list)
        for e in events:
            rows[e["pid"], e["tid"]].append((round(e["ts"] * 1000), round((e["ts"] + e["dur"]) * 1000)))
        for row in rows.values():
            row.sort()
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(row))


@pytest.mark.parametrize("name", PLANS)
def test_counters_go_forward_in_time_and_are_numbers(name: str, made: dict[str, Report]) -> None:
    report = made[name]
    last: dict[tuple[int, str], float] = {}
    for event in json.loads(trace_json(report))["traceEvents"]:
        if event["ph"] == "C":
            key = event["pid"], event["name"]
            assert last.get(key, 0.0) <= event["ts"]
            assert all(type(x) in (int, float) and x >= 0 for x in event["args"].values()) and event["args"]
            last[key] = event["ts"]
    links = {name for _, name in last if name.startswith("load of ")}
    assert report.trace is not None
    assert {pid for pid, name in last if name == "memory in use"} == set(range(len(report.trace.memory)))
    assert links == {f"load of {link}" for link in report.link_use}


@pytest.mark.parametrize("name", PLANS)
def test_link_counters_add_up_to_the_bytes_of_the_report(name: str, made: dict[str, Report]) -> None:
    """The integral of a lane's counter over its link's rate is the traffic that `link_use` names."""
    report = made[name]
    assert report.trace is not None
    events = [e for e in json.loads(trace_json(report))["traceEvents"] if e["ph"] == "C"]
    for link, use in report.link_use.items():
        steps = [(e["ts"], e["args"]["percent"]) for e in events
                 if e["name"] == f"load of {link}" and e["pid"] == use["lane"]]  # fmt: skip
        share = sum(x * (end - start) for (start, x), (end, _) in itertools.pairwise(steps)) / 100 / 1e6
        assert share * report.trace.link_bytes_per_s[link] == pytest.approx(use["bytes"], rel=0.01, abs=1e6)


@pytest.mark.parametrize("name", PLANS)
def test_every_arrow_has_both_ends_on_slices(name: str, made: dict[str, Report]) -> None:
    events = json.loads(trace_json(made[name]))["traceEvents"]
    ends: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in "sf":
            ends[event["id"]].append(event)
    assert bool(ends) == (made[name].plan.pp > 1)
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for start, end in ends.values():
        assert (start["ph"], end["ph"], end["bp"]) == ("s", "f", "e") and start["ts"] <= end["ts"]
        assert start["pid"] != end["pid"] and (start["name"], start["cat"]) == (end["name"], end["cat"])
        for point in (start, end):
            assert any(a <= point["ts"] <= b for a, b in slices[point["pid"], point["tid"]])
