"""Tables of a placement question: loads, transitions and coactivation as CSV, every problem of a file at once.

`layer,expert,count`; `layer,expert,next_expert,count` (layer is the first of the two); `layer,expert_a,expert_b,count`
(a pair once). Further columns are ignored. Pairs that are not listed count zero; loads must be complete.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from planner.placement.records import MOST_SHOWN, Floats, Instance, Ints

MAX_FILE_BYTES = 2**26
LOADS = ("layer", "expert", "count")
SPEEDS = ("gpu", "speed")
CLASSES = ("class", "layer", "expert", "count")
TRANSITIONS = ("layer", "expert", "next_expert", "count")
Value = TypeVar("Value")
MOST_SPARSE = 1000  # cells of a table of loads for each of its rows
COACTIVATION = ("layer", "expert_a", "expert_b", "count")


def read_instance(
    loads: str | Path, *, gpus: int, gpus_per_node: int, slots_per_gpu: int, transitions: str | Path | None = None,
    coactivation: str | Path | None = None, num_groups: int = 1, speed: tuple[float, ...] = (),
    slots: tuple[int, ...] = (),
) -> Instance:  # fmt: skip
    """The instance of one to three files. Raises UserError with all problems of the files and of the sizes."""
    problems: list[str] = []
    table, layers = _collect(problems, lambda: read_loads(loads)) or (None, ())
    flows = pairs = None
    if table is not None:
        experts = table.shape[1]
        if transitions is not None:
            flows = _collect(problems, lambda: read_transitions(transitions, layers, experts))
        if coactivation is not None:
            pairs = _collect(problems, lambda: read_coactivation(coactivation, layers, experts))
        found = _collect(
            problems,
            lambda: Instance(
                loads=table, layers=layers, gpus=gpus, gpus_per_node=gpus_per_node, slots_per_gpu=slots_per_gpu,
                transitions=flows, coactivation=pairs, num_groups=num_groups, speed=speed, slots=slots,
                source=Path(loads).name,
            ),
        )  # fmt: skip
    if problems:
        raise UserError(problems)
    assert table is not None and found is not None
    return found


def _collect(problems: list[str], read: Callable[[], Value]) -> Value | None:
    try:
        return read()
    except UserError as error:
        head = f"{error.where}: " if error.where else ""
        problems += [head + p for p in error.problems]
        return None


def read_loads(path: str | Path) -> tuple[Floats, tuple[int, ...]]:
    """(loads [L, E], layer numbers). Raises UserError: every row that is bad or twice, every expert that is missing."""
    rows = _rows(path, LOADS)
    problems = _Problems(path)
    keys = rows[:, :2].astype(np.int64)
    layers = tuple(sorted(set(keys[:, 0].tolist())))
    experts = int(keys[:, 1].max()) + 1
    if len(layers) * experts > MOST_SPARSE * len(rows):
        problems.say(
            f"{len(rows)} rows for {len(layers)} layers of {experts} experts (the largest number is {experts - 1}); "
            "give a row for every expert, numbered from 0"
        )
        problems.stop()
    place = np.searchsorted(np.array(layers), keys[:, 0])
    _twice(problems, place * experts + keys[:, 1], keys, ("layer", "expert"))
    out = np.full((len(layers), experts), np.nan)
    out[place, keys[:, 1]] = rows[:, 2]
    for i, e in np.argwhere(np.isnan(out)).tolist():
        problems.say(f"layer {layers[i]}, expert {e} is missing; give a row for every expert, with count 0 if unused")
    problems.stop()
    return out, layers


def read_transitions(path: str | Path, layers: tuple[int, ...], experts: int) -> Floats:
    """Flow [L - 1, E, E] between adjacent layers of `layers`. Raises UserError with every bad row."""
    rows = _rows(path, TRANSITIONS)
    problems = _Problems(path)
    keys = rows[:, :3].astype(np.int64)
    place = _placed(problems, keys[:, 0], layers[:-1], "has no next layer in the loads")
    _outside(problems, keys[:, 1:], experts)
    problems.stop()
    _twice(problems, (place * experts + keys[:, 1]) * experts + keys[:, 2], keys, TRANSITIONS[:3])
    problems.stop()
    out = np.zeros((len(layers) - 1, experts, experts))
    out[place, keys[:, 1], keys[:, 2]] = rows[:, 3]
    return out


def read_coactivation(path: str | Path, layers: tuple[int, ...], experts: int) -> Floats:
    """Joint counts [L, E, E], symmetric. Raises UserError with every bad row; layers without rows stay zero."""
    rows = _rows(path, COACTIVATION)
    problems = _Problems(path)
    keys = rows[:, :3].astype(np.int64)
    place = _placed(problems, keys[:, 0], layers, "is not in the loads")
    _outside(problems, keys[:, 1:], experts)
    problems.stop()
    low, high = keys[:, 1:].min(axis=1), keys[:, 1:].max(axis=1)
    _twice(problems, (place * experts + low) * experts + high, keys, COACTIVATION[:3])
    problems.stop()
    out = np.zeros((len(layers), experts, experts))
    out[place, low, high] = out[place, high, low] = rows[:, 3]
    return out


def read_speeds(path: str | Path, gpus: int) -> tuple[float, ...]:
    """Relative speed of every GPU from gpu,speed. Raises UserError on a GPU twice, missing or unknown, or a speed that
    is not above zero."""
    rows = _rows(path, SPEEDS, free="speed")
    problems = _Problems(path)
    keys = rows[:, :1].astype(np.int64)
    _twice(problems, keys[:, 0], keys, SPEEDS[:1])
    for i in np.flatnonzero((keys[:, 0] >= gpus) | (rows[:, 1] <= 0.0)).tolist():
        problems.say(f"row {i + 2}: GPU {keys[i, 0]}, speed {rows[i, 1]:g}; give GPUs 0 to {gpus - 1} and speeds > 0")
    for g in np.setdiff1d(np.arange(gpus), keys[:, 0]).tolist():
        problems.say(f"GPU {g} is missing; give a row for every GPU")
    problems.stop()
    out = np.empty(gpus)
    out[keys[:, 0]] = rows[:, 1]
    return tuple(out.tolist())


def read_classes(path: str | Path, layers: tuple[int, ...], experts: int) -> Floats:
    """Counts [class, layer, expert] of class,layer,expert,count. Raises UserError with every bad row."""
    rows = _rows(path, CLASSES)
    problems = _Problems(path)
    keys = rows[:, :3].astype(np.int64)
    place = _placed(problems, keys[:, 1], layers, "is not in the loads")
    _outside(problems, keys[:, 2:], experts)
    problems.stop()
    kind = keys[:, 0]
    _twice(problems, (kind * len(layers) + place) * experts + keys[:, 2], keys, CLASSES[:3])
    out = np.zeros((int(kind.max()) + 1, len(layers), experts))
    out[kind, place, keys[:, 2]] = rows[:, 3]
    for k in np.flatnonzero((out.sum(axis=2) <= 0.0).any(axis=1)).tolist():
        problems.say(f"class {k} has no token in some layer; number classes from 0 and give all layers of each")
    problems.stop()
    return out


class _Problems:
    """Problems of one file; the first are named, the rest counted."""

    def __init__(self, path: str | Path) -> None:
        self.where, self.said, self.more = str(path), [], 0  # type: str, list[str], int

    def say(self, text: str) -> None:
        if len(self.said) < MOST_SHOWN:
            self.said.append(text)
        else:
            self.more += 1

    def stop(self) -> None:
        if self.said:
            raise UserError([*self.said, *([f"and {self.more} more problems"] if self.more else [])], where=self.where)


def _rows(path: str | Path, columns: Sequence[str], free: str = "count") -> Floats:
    """The named columns [row, column] as numbers; whole numbers >= 0 but for the one called `free`: any >= 0."""
    import pandas as pd

    wanted = ",".join(columns)
    try:
        table = pd.read_csv(io.BytesIO(read_bounded(path, MAX_FILE_BYTES)), encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"cannot be read as CSV ({error}); give columns {wanted}", where=str(path)) from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"columns {', '.join(missing)} are missing; give a header {wanted}", where=str(path))
    if table.empty:
        raise UserError(f"has a header and no rows; give rows of {wanted}", where=str(path))
    problems = _Problems(path)
    out = np.empty((len(table), len(columns)))
    for j, name in enumerate(columns):
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
        whole = name != free
        bad = ~np.isfinite(values) | (values < 0.0)
        if whole:
            bad |= ~bad & ((values != np.floor(values)) | (values > 1e6))
        for i in np.flatnonzero(bad).tolist():
            kind = "a whole number of 0 to 1,000,000" if whole else "a number >= 0"
            problems.say(f"row {i + 2}: {name} {str(table[name].iloc[i])[:30]!r}; give {kind}")
        out[:, j] = values
    problems.stop()
    return out


def _twice(problems: _Problems, key: Ints, keys: Ints, names: Sequence[str]) -> None:
    _, first, back = np.unique(key, return_index=True, return_inverse=True)
    for i in np.flatnonzero(first[back] != np.arange(len(key))).tolist():
        what = ", ".join(f"{n} {v}" for n, v in zip(names, keys[i].tolist(), strict=True))
        problems.say(f"row {i + 2}: {what} again (first in row {first[back[i]] + 2}); keep one")


def _placed(problems: _Problems, layer: Ints, layers: tuple[int, ...], why: str) -> Ints:
    known = np.array(layers, dtype=np.int64)
    at = np.searchsorted(known, layer)
    bad = (at >= len(known)) | (known[np.minimum(at, len(known) - 1)] != layer) if len(known) else at >= 0
    for i in np.flatnonzero(bad).tolist():
        problems.say(f"row {i + 2}: layer {layer[i]} {why}; leave the row out, or add the layer to the loads")
    return at


def _outside(problems: _Problems, experts_of: Ints, experts: int) -> None:
    for i in np.flatnonzero((experts_of >= experts).any(axis=1)).tolist():
        problems.say(f"row {i + 2}: expert {experts_of[i].max()} is not among the {experts} of the loads; correct it")
