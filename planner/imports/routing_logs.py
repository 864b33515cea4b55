"""Megatron-LM's logs of routing, JSON Lines of one rank each: `--moe-routing-trace-path` (the experts of every token)
and `--save-tokens-per-expert-interval` (tokens of the rank's own experts).

Layers are numbered inside a pipeline stage, so a run with stages needs its plan; with virtual stages see
`routing_chunks`. Lines are read one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from planner.imports.routing_chunks import Chunks
from sim.mesh import RankMap, axis_dims
from sim.model import ModelSpec
from sim.plan import Plan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_LINE_BYTES = 64 * 2**20
MAX_FILES = 100_000
MAX_HELD = 2**28  # choices of one step of a rank that are kept at once
MAX_TOKENS = 200_000  # rows of a trace that are kept; counts take all
TRACE, TOKENS = "Megatron-LM's routing trace", "Megatron-LM's tokens per expert"
_NAME = re.compile(r"rank(\d{1,7})\.jsonl$")


@dataclass(frozen=True, kw_only=True)
class Logged:
    """counts[layer] over experts. rows: experts of single tokens by layer, one mapping a token (trace only)."""

    kind: str
    counts: Mapping[int, Floats]
    rows: Sequence[Mapping[int, str]] = ()
    notes: tuple[str, ...] = ()

    def trace_text(self) -> str:
        """CSV with a column per layer, as `--routing` reads it. Raises UserError where no tokens were recorded."""
        if not self.rows:
            raise UserError("the log has counts, not single tokens; record --moe-routing-trace-path", where="--trace")
        layers = sorted(self.counts)
        head = ",".join(f"L{layer}" for layer in layers)
        return head + "\n" + "".join(",".join(row.get(n, "") for n in layers) + "\n" for row in self.rows)


def is_log(path: str) -> bool:
    """Whether a file is told by its name to be a log."""
    return path.lower().endswith(".jsonl")


def log_files(path: str) -> list[Path]:
    """The logs that a path names: itself, or those of a folder and of its tokens_per_expert."""
    if is_log(path):
        return [Path(path)]
    folder = Path(path)
    if not folder.is_dir():
        return []
    found = sorted(folder.glob("*.jsonl")) or sorted((folder / "tokens_per_expert").glob("*.jsonl"))
    if not found or len(found) > MAX_FILES:
        raise UserError(f"{len(found)} .jsonl files in it; give a folder of logs of Megatron-LM", where=path)
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(f"a line beyond {MAX_LINE_BYTES} bytes; give a log as written", where=str(path))
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError("no record")
                    yield record
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"a line is not JSON ({str(error)[:60]}); leave out lines cut short", where=str(path)) from None


class _Place:
    """Which layer and which experts a rank's records are of."""

    def __init__(self, model: ModelSpec, plan: Plan | None, ranks: RankMap, stages: tuple[int, ...]) -> None:
        self.model, self.plan, self.ranks = model, plan, ranks
        self.first = [0]
        self.chunks: Chunks | None = None
        if plan is not None and plan.pp > 1:
            self.first = np.concatenate([[0], np.cumsum(stages)])[:-1].tolist()
            if plan.vpp > 1:
                self.chunks = Chunks(model, plan, stages)

    def _at(self, axis: str, rank: int) -> int:
        assert self.plan is not None
        ((size, stride),) = axis_dims(self.plan, axis, self.ranks)
        return rank // int(stride) % int(size)

    def layers(self, rank: int, local: int, entries: int, where: str) -> list[int | None]:
        """Layer of each of the records that a rank wrote of one local layer in a step; None: not to be counted."""
        if self.chunks is not None:
            return self.chunks.layers_of(self._at("pp", rank), local, entries, where)
        return [local if len(self.first) == 1 else int(self.first[self._at("pp", rank)]) + local] * entries

    def experts(self, rank: int, layer: int, where: str) -> int:
        moe = self.model.layers[layer].moe if 0 <= layer < len(self.model.layers) else None
        if moe is None:
            raise UserError(
                f"layer {layer} has no experts in {self.model.name}; give its --model, and the run's --plan where it "
                "had pipeline stages",
                where=where,
            )
        return moe.num_experts

    def first_expert(self, rank: int, held: int, total: int, where: str) -> int:
        """Number of the first of `held` experts on a rank."""
        if held == 0 or total % held:
            raise UserError(f"{held} experts on a rank do not divide {total}; give the --model that ran", where=where)
        if self.plan is None:
            return rank % (total // held) * held
        if self.plan.ep * held != total:
            raise UserError(f"{held} experts on a rank, but ep {self.plan.ep} in the plan; give its own", where=where)
        return self._at("ep", rank) * held


class _Sums:
    """What is added up over all ranks."""

    def __init__(self, place: _Place) -> None:
        self.place = place
        self.counts: dict[int, Floats] = {}
        self.rows: list[dict[int, str]] = []

    def row(self, rank: int, layer: int, where: str) -> Floats:
        """Counts of a layer so far."""
        return self.counts.setdefault(layer, np.zeros(self.place.experts(rank, layer, where)))


class _Trace:
    """The routing trace of one rank."""

    def __init__(self, sums: _Sums, where: str) -> None:
        self.sums, self.where = sums, where
        self.batches: dict[int, int] = {}  # records of a layer that this rank wrote so far
        self.starts: list[tuple[int, int]] = []  # (first row, tokens) of each batch of this rank
        self.step: Any = None
        self.waiting: dict[int, list[Ints]] = {}  # of one step, by local layer: only its end says whose they are
        self.held = 0

    def take(self, rank: int, local: int, record: Mapping[str, Any]) -> None:
        """One record. Raises UserError where its experts are none of the layer's."""
        chosen = _table(record["top_indices"], self.where)
        if self.sums.place.chunks is None:
            (layer,) = self.sums.place.layers(rank, local, 1, self.where)
            self._count(rank, layer, chosen)
            return
        if record.get("step") != self.step:
            self.flush(rank)
            self.step = record.get("step")
        self.held += chosen.size
        if self.held > MAX_HELD:
            raise UserError(f"more than {MAX_HELD} choices in one step; record fewer micro-batches", where=self.where)
        self.waiting.setdefault(local, []).append(chosen.astype(np.int32))

    def flush(self, rank: int) -> None:
        """Count what waits for the end of a step."""
        for local, tables in sorted(self.waiting.items()):
            layers = self.sums.place.layers(rank, local, len(tables), self.where)
            for layer, chosen in zip(layers, tables, strict=True):
                self._count(rank, layer, chosen)
        self.waiting, self.held = {}, 0

    def _count(self, rank: int, layer: int | None, chosen: Ints) -> None:
        if layer is None:
            return
        row, rows = self.sums.row(rank, layer, self.where), self.sums.rows
        if chosen.max() >= len(row):
            raise UserError(f"expert {chosen.max()} of {len(row)}; give the --model that ran", where=self.where)
        row += np.bincount(chosen.ravel(), minlength=len(row))
        batch = self.batches.get(layer, 0)
        self.batches[layer] = batch + 1
        if batch == len(self.starts) and len(rows) + len(chosen) <= MAX_TOKENS:
            self.starts.append((len(rows), len(chosen)))
            rows += [{} for _ in range(len(chosen))]
        if batch < len(self.starts) and self.starts[batch][1] == len(chosen):
            for at, experts in enumerate(chosen.tolist(), self.starts[batch][0]):
                rows[at][layer] = "|".join(map(str, experts))


def _take_tokens(sums: _Sums, rank: int, local: int, record: Mapping[str, Any], where: str) -> None:
    """Tokens of a rank's own experts, a row for each time the layer ran in a step."""
    table = _table(record["tpe"], where)
    layers = sums.place.layers(rank, local, len(table), where)
    for layer in dict.fromkeys(layers):
        if layer is None:
            continue
        row, mine = sums.row(rank, layer, where), [i for i, each in enumerate(layers) if each == layer]
        first = sums.place.first_expert(rank, table.shape[1], len(row), where)
        row[first : first + table.shape[1]] += table[mine].sum(axis=0)


def read_logs(
    files: Sequence[Path], model: ModelSpec, plan: Plan | None, ranks: RankMap, stages: tuple[int, ...]
) -> Logged:  # fmt: skip
    """All records of all ranks, added up. Raises UserError for what is no log, or does not fit the model."""
    sums = _Sums(_Place(model, plan, ranks, stages))
    kinds: set[str] = set()
    skipped = 0
    for path in files:
        where = str(path)
        found = _NAME.search(path.name)
        trace = _Trace(sums, where)
        rank: Any = 0
        for record in _lines(path):
            if record.get("block", "decoder") != "decoder":
                skipped += 1
                continue
            rank = record.get("rank", int(found[1]) if found else None)
            local = record.get("layer")
            if type(rank) is not int or type(local) is not int or rank < 0 or local < 0:
                raise UserError("a record without rank or layer; give logs as Megatron-LM names them", where=where)
            if "top_indices" in record:
                kinds.add(TRACE)
                trace.take(rank, local, record)
            elif "tpe" in record:
                kinds.add(TOKENS)
                _take_tokens(sums, rank, local, record, where)
            else:
                raise UserError("neither top_indices nor tpe in a record; give a log of Megatron-LM", where=where)
        trace.flush(rank)
    if len(kinds) != 1:
        raise UserError("no records of one kind in the logs; give one kind of log", where="FILES")
    notes = ["layers are numbered inside a pipeline stage: a run with stages needs --plan"] if plan is None else []
    if skipped:
        notes.append(f"{skipped} records of multi-token prediction blocks are left out")
    kind = kinds.pop()
    if kind == TOKENS and plan is None:
        notes.append("rank r is taken as expert-parallel rank r modulo ep (etp 1); else give --plan")
    if sums.place.chunks is not None:
        notes.append("virtual stages are told apart by the order in which the interleaved schedule runs them")
    return Logged(kind=kind, counts=sums.counts, rows=sums.rows, notes=tuple(notes))


def _table(value: Any, where: str) -> Ints:
    """[row, column] of whole numbers >= 0."""
    try:
        table = np.array(value)
    except ValueError:
        table = np.zeros(0)
    if table.ndim != 2 or table.dtype.kind not in "iu" or table.size == 0 or table.min() < 0:
        raise UserError("a record whose rows are not whole numbers of one length", where=where)
    return table.astype(np.int64)
