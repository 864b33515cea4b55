"""Two results side by side: what was asked, the plans, their figures, and where the difference of the step lies.

A side is a plan file, a record of `moecast simulate --json`, or the database of a study; two databases are compared
case by case.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from planner.planfile import MAX_FILE_BYTES, load_plan

SQLITE_HEAD = b"SQLite format 3\x00"
ASKED = ("model", "cluster", "devices", "software", "target")
FIGURES = (
    "step_s", "tokens_per_s_per_gpu", "tokens_per_s", "mfu", "tflops_per_gpu", "usd_per_step", "num_micro_batches",
    "bubble_fraction", "peak_mem_bytes", "usable_mem_bytes", "bound_s",
)  # fmt: skip
WHOLE_RUN = ("time_s", "usd", "energy_j", "goodput", "failures")
MOVED = 1e-6  # a step that moved by less, relative, did not


@dataclass(frozen=True, kw_only=True)
class Side:
    """One result. where: the file; record: its plan record; asked: what it was asked about."""

    where: str
    record: Mapping[str, Any]
    asked: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing on both sides. change: b - a of numbers; ratio: b / a; None where that means nothing."""

    name: str
    a: Any
    b: Any
    change: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Lines by part. asked, plan: only what differs; breakdown: seconds by class, whose changes sum to that of the
    step; memory: bytes by tag on the fullest stage; run: of a whole run where both sides have one."""

    a: str
    b: str
    asked: tuple[Line, ...]
    plan: tuple[Line, ...]
    figures: tuple[Line, ...]
    breakdown: tuple[Line, ...]
    exposed: tuple[Line, ...]
    memory: tuple[Line, ...]
    links: tuple[Line, ...]
    run: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def is_database(path: str) -> bool:
    """Whether a file is a SQLite database."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(SQLITE_HEAD)) == SQLITE_HEAD
    except OSError:
        return False


def split_rank(text: str) -> tuple[str, int]:
    """`plan.json#2` as file and place of the plan, 1 where none is named and 0 for what is no number."""
    path, _, rank = text.partition("#") if not Path(text).exists() else (text, "", "")
    return path, int(rank[:9]) if rank.isdecimal() else 0 if rank else 1


def read_side(text: str) -> Side:
    """A plan file (`plan.json`, or `plan.json#2` for its second plan) or a simulated record. Raises UserError."""
    path, place = split_rank(text)
    data = _simulated(path)
    if data is not None:
        asked = {name: data.get(name) for name in ASKED if name in data}
        return Side(where=text, record=data, asked=asked)
    file = load_plan(path)
    if not 1 <= place <= len(file["plans"]):
        raise UserError(f"the file has plans 1 to {len(file['plans'])}", where=text)
    inputs = file["inputs"]
    asked = {name: inputs.get(name) for name in ASKED} | dict(inputs.get("workload", {}))
    asked |= {"routing": inputs.get("options", {}).get("routing")}
    return Side(where=text, record=file["plans"][place - 1], asked=asked)


def _simulated(path: str) -> dict[str, Any] | None:
    """The record of `moecast simulate`, or None for anything else."""
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            return None
        data = json.loads(read_bounded(path, MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    wanted = ("plan", "step_s", "breakdown")
    return data if isinstance(data, dict) and all(key in data for key in wanted) else None


def compare(a: Side, b: Side) -> Comparison:
    """Both sides, part by part. Raises UserError where a record lacks what is compared."""
    try:
        return _compared(a, b)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"a record lacks or mangles a field ({error}); write it again", where="compare") from None


def _compared(a: Side, b: Side) -> Comparison:
    first, second = _figures(a), _figures(b)
    runs = [side.record.get("training") or {} for side in (a, b)]
    return Comparison(
        a=a.where,
        b=b.where,
        asked=_different(a.asked, b.asked),
        plan=_different(_choices(a.record), _choices(b.record)),
        figures=tuple(_line(name, first[name], second[name]) for name in FIGURES if name in first or name in second),
        breakdown=_by_change(a.record["breakdown"], b.record["breakdown"]),
        exposed=_by_change(a.record.get("exposed_comm_s", {}), b.record.get("exposed_comm_s", {})),
        memory=_by_change(_fullest(a.record), _fullest(b.record)),
        links=_by_change(_use(a.record), _use(b.record)),
        run=tuple(_line(name, _value(runs[0][name]), _value(runs[1][name])) for name in WHOLE_RUN)
        if all(runs) else (),
    )  # fmt: skip


def _value(cell: Any) -> Any:
    """The value of an estimate, or the cell."""
    return cell["value"] if isinstance(cell, Mapping) and "value" in cell else cell


def _figures(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = {name: _value(side.record.get(name)) for name in FIGURES}
    devices = side.asked.get("devices")
    rate = found["tokens_per_s_per_gpu"]
    found["tokens_per_s"] = None if devices is None or rate is None else rate * devices
    return found


def _choices(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record["plan"], "rank_order": record.get("rank_order"), "pipeline_layout": record.get("pipeline_layout")}


def _fullest(record: Mapping[str, Any]) -> Mapping[str, float]:
    stages: Sequence[Mapping[str, float]] = record.get("memory", ())
    return max(stages, key=lambda tags: sum(tags.values()), default={})


def _use(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(use["utilisation"]) for name, use in record.get("link_use", {}).items()}


def _line(name: str, a: Any, b: Any) -> Line:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if not numbers:
        return Line(name=name, a=a, b=b)
    return Line(name=name, a=a, b=b, change=b - a, ratio=b / a if a else None)


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Line, ...]:
    names = dict.fromkeys([*a, *b])
    return tuple(_line(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name))


def _by_change(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[Line, ...]:
    """Every name of either side (0 where it is missing), the largest change first."""
    lines = [_line(name, float(a.get(name, 0.0)), float(b.get(name, 0.0))) for name in dict.fromkeys([*a, *b])]
    return tuple(sorted(lines, key=lambda line: (-abs(line.change or 0.0), line.name)))


# ---------------------------------------------------------------- studies


@dataclass(frozen=True, kw_only=True)
class StudyComparison:
    """Two databases. Cases are the same when they ask the same; moved: those whose step or status differs, the largest
    change first. ratio: median of b's step over a's, of the cases both answer."""

    a: str
    b: str
    both: int
    only_a: int
    only_b: int
    ratio: float | None
    moved: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare_studies(a: str, b: str) -> StudyComparison:
    """Two databases of `moecast sweep`, case by case. Raises UserError."""
    first, second = _answers(a), _answers(b)
    shared = [case for case in first if case in second]
    steps = [(case, first[case], second[case]) for case in shared]
    ratios = [float(y) / float(x) for _, x, y in steps if isinstance(x, float) and isinstance(y, float)]
    moved = [_line(case, x, y) for case, x, y in steps if _moved(x, y)]
    moved.sort(key=lambda line: (-abs((line.ratio or 0.0) - 1.0), line.name))
    return StudyComparison(
        a=a, b=b, both=len(shared), only_a=len(first) - len(shared), only_b=len(second) - len(shared),
        ratio=median(ratios) if ratios else None, moved=tuple(moved),
    )  # fmt: skip


def _moved(x: float | str, y: float | str) -> bool:
    if isinstance(x, float) and isinstance(y, float):
        return abs(y / x - 1.0) > MOVED
    return x != y


def _answers(path: str) -> dict[str, float | str]:
    """What a case asks -> its step in seconds, or its status where it has none; of the latest program where several
    answered."""
    try:
        base = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)
        rows = base.execute("SELECT inputs, status, result FROM cases ORDER BY rowid").fetchall()
        base.close()
    except sqlite3.Error as error:
        raise UserError(f"not a database of `moecast sweep` ({error})", where=path) from None
    out: dict[str, float | str] = {}
    for inputs, status, result in rows:
        step = json.loads(result).get("step_s")
        asked = ", ".join(f"{name}={value}" for name, value in sorted(json.loads(inputs).items()))
        out[asked] = float(step) if step is not None else str(status)
    return out
