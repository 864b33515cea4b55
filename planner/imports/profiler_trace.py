"""PyTorch profiler traces (Kineto JSON, one file a rank, gzip or not): the measured step, and where its time goes.

Shares are those of HolisticTraceAnalysis: of a rank's time from its first to its last device slice, idle is where none
runs, compute where a kernel runs that is neither communication (`nccl...Kernel`) nor memory, overlap the part of
communication with computation beside it.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hwprofiles.errors import UserError
from planner.imports.pickles import refuse_pickle

MAX_BYTES = 512 * 2**20  # of one file, unpacked
MAX_FILES = 4096
TOP_KERNELS = 10
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_STEP = re.compile(r"^ProfilerStep#(\d+)$")
_COMMUNICATION = re.compile(r"^nccl.*Kernel")
_MEMORY = re.compile(r"(^Memcpy)|(^Memset)|(^dma)")
_COLLECTIVES = {
    "all_reduce": "AllReduce", "all_gather": "AllGather", "reduce_scatter": "ReduceScatter", "send_recv": "SendRecv",
    "all_to_all": "AllToAll", "broadcast": "Broadcast",
}  # fmt: skip
Slice = tuple[str, float, float]  # name, start, end
_REMEDY = "give the JSON that torch.profiler's export_chrome_trace or tensorboard_trace_handler wrote"


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Of one rank or of several in the mean: compute, idle and other of its time; overlap of its communication."""

    compute: float
    idle: float
    other: float
    overlap: float


@dataclass(frozen=True, kw_only=True)
class RankTrace:
    """One rank. step_s: median of its annotated steps (without any: its whole time). busy_s: seconds a step that
    kernels of a collective run, summed up; alone_s: seconds a step that some of them run and nothing computes;
    kernels: name -> seconds a step."""

    rank: int
    world: int | None
    steps: int
    step_s: float
    shares: Shares
    busy_s: Mapping[str, float]
    alone_s: Mapping[str, float]
    kernels: Mapping[str, float]
    annotated: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All ranks. step_s: median over ranks; shares, busy_s, alone_s, kernels: mean over ranks."""

    ranks: tuple[RankTrace, ...]
    notes: tuple[str, ...]

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return median(rank.step_s for rank in self.ranks)

    @property
    def shares(self) -> Shares:
        """Mean over ranks."""
        return mean_shares([rank.shares for rank in self.ranks])

    @property
    def busy_s(self) -> dict[str, float]:
        """Mean over ranks."""
        return mean_seconds([rank.busy_s for rank in self.ranks])

    @property
    def alone_s(self) -> dict[str, float]:
        """Mean over ranks."""
        return mean_seconds([rank.alone_s for rank in self.ranks])

    @property
    def kernels(self) -> dict[str, float]:
        """The longest kernels, mean over ranks."""
        all_of = mean_seconds([rank.kernels for rank in self.ranks])
        return dict(sorted(all_of.items(), key=lambda item: (-item[1], item[0]))[:TOP_KERNELS])

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "step_s": self.step_s, "shares": asdict(self.shares), "busy_s": self.busy_s,
            "alone_s": self.alone_s, "kernels": self.kernels,
            "ranks": [{"rank": r.rank, "steps": r.steps, "step_s": r.step_s} | asdict(r.shares) for r in self.ranks],
            "notes": list(self.notes),
        }  # fmt: skip


def mean_shares(all_of: Sequence[Shares]) -> Shares:
    """Mean of each share."""
    return Shares(**{f.name: fmean(getattr(one, f.name) for one in all_of) for f in fields(Shares)})


def mean_seconds(all_of: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name; one that a rank lacks is zero there."""
    names = dict.fromkeys(name for one in all_of for name in one)
    return {name: sum(one.get(name, 0.0) for one in all_of) / len(all_of) for name in names}


def read_traces(path: str) -> Measured:
    """A folder of traces, or one file. Raises UserError for what is no trace, too large, or without device slices."""
    place = Path(path)
    files = sorted(p for p in place.iterdir() if p.name.endswith((".json", ".json.gz"))) if place.is_dir() else [place]
    if not files or len(files) > MAX_FILES:
        raise UserError(f"{len(files)} files named .json or .json.gz; {_REMEDY}", where=path)
    ranks = [rank_trace(_load(str(file)), at, str(file)) for at, file in enumerate(files)]
    numbers = [rank.rank for rank in ranks]
    notes = []
    if len(set(numbers)) < len(numbers):
        notes.append("several files of one rank: each counts as a rank of its own")
    if not all(rank.annotated for rank in ranks):
        notes.append("no ProfilerStep in a trace: the time of all its slices counts as one step (call prof.step())")
    worlds = {rank.world for rank in ranks if rank.world}
    if len(worlds) > 1:
        raise UserError(f"traces of runs of {', '.join(map(str, sorted(worlds)))} ranks; keep one run", where=path)
    return Measured(ranks=tuple(ranks), notes=tuple(notes))


def _load(path: str) -> dict[str, Any]:
    """The JSON of a trace; at most MAX_BYTES are unpacked."""
    first = refuse_pickle(path, _REMEDY)
    try:
        if first[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as plain:
                data = plain.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"refused: more than {MAX_BYTES // 2**20} MiB unpacked; profile fewer steps", where=path)
        tree = json.loads(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read ({str(error)[:60]}); {_REMEDY}", where=path) from None
    except (ValueError, RecursionError):
        raise UserError(f"not JSON; {_REMEDY}", where=path) from None
    if not isinstance(tree, dict) or not isinstance(tree.get("traceEvents"), list):
        raise UserError(f"no traceEvents in it; {_REMEDY}", where=path)
    return tree


def rank_trace(tree: Mapping[str, Any], number: int = 0, where: str = "trace") -> RankTrace:
    """One trace. number: the rank where the file does not say. Raises UserError without device slices."""
    slices: list[Slice] = []
    steps: dict[int, float] = {}
    for event in tree["traceEvents"]:
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        name, start, length = str(event.get("name", "")), event.get("ts"), event.get("dur")
        if not isinstance(start, int | float) or not isinstance(length, int | float) or length < 0:
            continue
        found = _STEP.match(name)
        if str(event.get("cat")).partition(",")[0] in DEVICE:  # Chrome takes a list
            slices.append((name, float(start), float(start) + float(length)))
        elif found and event.get("cat") == "user_annotation":
            steps[int(found[1])] = float(length)
    if not slices:
        raise UserError("no slice of a device in it; profile with ProfilerActivity.CUDA", where=where)
    info = tree.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    total = max(end for _, _, end in slices) - min(start for _, start, _ in slices)
    count = max(1, len(steps))
    rank, world = info.get("rank"), info.get("world_size")
    kernels: dict[str, float] = {}
    for name, start, end in slices:
        kernels[name] = kernels.get(name, 0.0) + (end - start) / count / 1e6
    busy, alone = collective_seconds(slices)
    return RankTrace(
        rank=rank if isinstance(rank, int) else number, world=world if isinstance(world, int) else None, steps=count,
        step_s=(median(steps.values()) if steps else total) / 1e6, shares=_shares(slices, total),
        busy_s={kind: us / count / 1e6 for kind, us in busy.items()},
        alone_s={kind: us / count / 1e6 for kind, us in alone.items()}, kernels=kernels, annotated=bool(steps),
    )  # fmt: skip


def collective_seconds(slices: Sequence[Slice]) -> tuple[dict[str, float], dict[str, float]]:
    """Collective -> time its kernels run, summed up, and time some of them run while nothing computes; in the unit of
    the slices."""
    busy, alone = dict[str, float](), dict[str, float]()
    talk = [one for one in slices if _COMMUNICATION.match(one[0])]
    compute = _computing(slices)
    beside = _length(compute)
    for kind, word in _COLLECTIVES.items():
        mine = [(start, end) for name, start, end in talk if word in name]
        if any(end > start for start, end in mine):
            busy[kind] = sum(end - start for start, end in mine)
            alone[kind] = min(busy[kind], max(0.0, _length(_union([*mine, *compute])) - beside))
    return busy, alone


def overlap_share(slices: Sequence[Slice]) -> float:
    """Of the time with communication, the share with computation beside it; 0 without communication."""
    talk = _union((start, end) for name, start, end in slices if _COMMUNICATION.match(name))
    compute = _computing(slices)
    both = _length(compute) + _length(talk) - _length(_union([*talk, *compute]))
    return both / _length(talk) if talk else 0.0


def _computing(slices: Sequence[Slice]) -> list[tuple[float, float]]:
    return _union(
        (start, end) for name, start, end in slices if not _COMMUNICATION.match(name) and not _MEMORY.search(name)
    )


def _shares(slices: Sequence[Slice], total: float) -> Shares:
    compute = _computing(slices)
    busy = _union((start, end) for _, start, end in slices)
    total = total or 1.0
    return Shares(
        compute=_length(compute) / total, idle=1.0 - _length(busy) / total,
        other=(_length(busy) - _length(compute)) / total,
        overlap=overlap_share(slices),
    )  # fmt: skip


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    out: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _length(intervals: Sequence[tuple[float, float]]) -> float:
    return sum(end - start for start, end in intervals)
