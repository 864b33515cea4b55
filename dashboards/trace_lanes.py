"""One timeline file per lane, as a profiler writes one per rank, and the shares that trace analysers compute."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dashboards.trace_export import kernel_name, trace_json
from sim.report import Report, Span

COMMUNICATION = "nccl"  # how analysers tell communication: by the name of the kernel


@dataclass(frozen=True, kw_only=True)
class LaneShares:
    """Shares of one lane's time from its first to its last slice, as HolisticTraceAnalysis defines them.

    compute: something computes. idle: no slice runs. other: communication alone. overlap: of the time with
    communication, the part with computation beside it (0 without communication).
    """

    compute: float
    idle: float
    other: float
    overlap: float


def lanes_of(report: Report) -> tuple[int, ...]:
    """Lanes with slices. Raises ValueError when the report carries no trace."""
    if report.trace is None:
        raise ValueError("the report carries no trace; simulate with trace=True")
    return tuple(sorted({span.lane for span in report.trace.spans}))


def lane_files(report: Report, *, compress: bool = False) -> Mapping[str, bytes]:
    """File name -> content, one per lane; the same report gives the same bytes, compressed or not."""
    files: dict[str, bytes] = {}
    for lane in lanes_of(report):
        text = trace_json(report, lane=lane).encode()
        name = f"rank-{lane:04d}.json"
        files[name + ".gz" if compress else name] = gzip.compress(text, mtime=0) if compress else text
    return files


def write_lane_traces(report: Report, folder: str | Path, *, compress: bool = False) -> tuple[Path, ...]:
    """Write one file per lane into a folder, which is made. Raises ValueError without a trace, OSError."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    out = []
    for name, data in lane_files(report, compress=compress).items():
        (target / name).write_bytes(data)
        out.append(target / name)
    return tuple(out)


def lane_shares(report: Report, lane: int) -> LaneShares:
    """Shares of a lane, from the same whole nanoseconds as its file."""
    assert report.trace is not None, "the report carries no trace"
    spans = [span for span in report.trace.spans if span.lane == lane]
    compute = _union(span for span in spans if not kernel_name(span).startswith(COMMUNICATION))
    talk = _union(span for span in spans if kernel_name(span).startswith(COMMUNICATION))
    busy = _union(spans)
    total = max(end for _, end in busy) - busy[0][0]
    both = _length(compute) + _length(talk) - _length(busy)
    return LaneShares(
        compute=_length(compute) / total,
        idle=1.0 - _length(busy) / total,
        other=(_length(busy) - _length(compute)) / total,
        overlap=both / _length(talk) if talk else 0.0,
    )


def _union(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """Joined intervals in whole nanoseconds, in order."""
    out: list[tuple[int, int]] = []
    for start, end in sorted((round(s.start_s * 1e9), round(s.end_s * 1e9)) for s in spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _length(intervals: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in intervals)
