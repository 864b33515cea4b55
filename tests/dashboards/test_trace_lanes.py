"""Timelines per lane: the same events as in the whole file, bytes that repeat, and shares that add up."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards.trace_lanes import lane_files, lane_shares, lanes_of, write_lane_traces
from sim.report import Report, Span
from tests.dashboards.handmade import make_report


def test_one_file_per_lane_named_by_its_rank(report: Report, tmp_path: Path) -> None:
    paths = write_lane_traces(report, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == [f"rank-{lane:04d}.json" for lane in lanes_of(report)]
    for lane, path in zip(lanes_of(report), paths, strict=True):
        text = path.read_text()
        assert {e["pid"] for e in json.loads(text)["traceEvents"]} == {lane}
        found = re.search(r'"rank":\s+(\d+)', text)  # the whitespace is what analysers look for
        assert found is not None and int(found[1]) == lane


def test_compressed_files_hold_the_same_and_repeat_byte_for_byte(report: Report) -> None:
    plain, small = lane_files(report), lane_files(report, compress=True)
    assert small == lane_files(make_report(), compress=True)
    assert [gzip.decompress(data) for data in small.values()] == list(plain.values())
    assert all(name.endswith(".json.gz") for name in small)


def test_shares_of_a_lane_by_hand() -> None:
    """Compute 0-4 and 6-8, a send 3-5 and 9-10: busy 0-5, 6-8, 9-10 of ten."""
    report = make_report(pp=1, micro_batches=1)
    assert report.trace is not None

    def span(stream: str, kind: str, start: float, end: float) -> Span:
        return Span(
            lane=0, stream=stream, name=kind, kind=kind, micro_batch=0, chunk=0, start_s=start, end_s=end
        )  # fmt: skip

    spans = (
        span("compute", "forward", 0, 4), span("compute", "forward", 6, 8),
        span("p2p", "p2p", 3, 5), span("p2p", "p2p", 9, 10),
    )  # fmt: skip
    shares = lane_shares(replace(report, trace=replace(report.trace, spans=spans)), 0)
    assert (shares.compute, shares.other) == (0.6, 0.2)
    assert shares.idle == pytest.approx(0.2) and shares.overlap == pytest.approx(1 / 3)


def test_shares_add_up(report: Report) -> None:
    for lane in lanes_of(report):
        shares = lane_shares(report, lane)
        assert shares.compute + shares.idle + shares.other == pytest.approx(1.0)
        assert 0 <= shares.overlap <= 1


def test_without_a_trace_there_is_nothing_to_write() -> None:
    with pytest.raises(ValueError, match="trace=True"):
        lane_files(make_report(trace=None))
