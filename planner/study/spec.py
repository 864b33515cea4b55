"""A study file: cases as a grid and a list over the options of a question and the fields of its records.

`[study]` names it and the verb, `[base]` holds what all cases share, `[grid]` lists whose every combination is a case,
`[[list]]` tables of values that go together; the list is crossed with the grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.reader import read_toml

VERBS = ("simulate", "plan")
RECORDS = ("model", "cluster", "device", "software", "plan")  # `record.field` sets a field of a record
TABLES = ("study", "base", "grid", "list")
# Options that name a file or an entry of a catalogue; a file lies relative to the study.
FILES = ("model", "cluster", "software", "routing", "placement", "host_map", "nodes")
MAX_CASES = 1_000_000

Case = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study file asks. cases: option or `record.field` -> value, in order of the file; none stands twice."""

    name: str
    verb: str
    cases: tuple[Case, ...]
    varied: tuple[str, ...]
    folder: Path


def read_study(file: str | Path, options: Iterable[str]) -> Study:
    """The study of a TOML file. options: names a question knows. Raises UserError with every problem."""
    path = Path(file)
    return study_of(read_toml(path, str(file)), options, where=str(file), folder=path.parent, default_name=path.stem)


def study_of(
    data: Mapping[str, Any], options: Iterable[str], *, where: str, folder: Path, default_name: str = "study"
) -> Study:
    """The study of a parsed file; see `read_study`."""
    known = tuple(options)
    problems = [_unknown(key, TABLES, "table") for key in data if key not in TABLES]
    head = data.get("study", {})
    if not isinstance(head, Mapping):
        problems.append("study must be a table: [study]")
        head = {}
    problems += [_unknown(f"study.{key}", ("study.name", "study.verb"), "key") for key in head
                 if key not in ("name", "verb")]  # fmt: skip
    verb = head.get("verb", "simulate")
    if verb not in VERBS:
        problems.append(f"study.verb = {verb!r}: use one of {', '.join(VERBS)}")
    base, grid, listed = _parts(data, problems)
    for part, keys in (("base", base), ("grid", grid), *((f"list.{i}", row) for i, row in enumerate(listed))):
        problems += [p for key in keys if (p := _bad_key(f"{part}.{key}", key, known))]
    problems += [f"base.{key} is a list; give one value, or move it to [grid]" for key, value in base.items()
                 if _is_choice(key, value)]  # fmt: skip
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            problems.append(f"grid.{key} = {values!r}: give a list of values")
        elif any(key in row for row in listed):
            problems.append(f"{key} stands in [grid] and in [[list]]; give it in one of them")
    if problems:
        raise UserError(problems, where=where)
    count = prod((len(values) for values in grid.values()), start=max(1, len(listed)))
    if count > MAX_CASES:
        raise UserError(f"{count:,} cases; a study holds at most {MAX_CASES:,}: shorten a list", where=where)
    names = list(grid)
    cases = [
        {**base, **row, **dict(zip(names, values, strict=True))}
        for row in (listed or [{}])
        for values in product(*grid.values())
    ]
    varied = tuple(dict.fromkeys([*(key for row in listed for key in row), *names]))
    once = {repr(sorted(case.items(), key=lambda item: item[0])): case for case in cases}
    name = str(head.get("name", default_name))
    return Study(name=name, verb=verb, cases=tuple(once.values()), varied=varied, folder=folder)


def _parts(data: Mapping[str, Any], problems: list[str]) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    tables: dict[str, dict[str, Any]] = {}
    for name in ("base", "grid"):
        table = data.get(name, {})
        if not isinstance(table, Mapping):
            problems.append(f"{name} must be a table: [{name}]")
            table = {}
        tables[name] = _flat(table)
    rows = data.get("list", [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        problems.append("list must be an array of tables: [[list]]")
        rows = []
    return tables["base"], tables["grid"], [_flat(row) for row in rows]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys: `cluster.scale_out.bytes_per_s`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_choice(key: str, value: Any) -> bool:
    """Whether a list was given where one value stands; recompute and fields of records may be lists."""
    return isinstance(value, list) and "." not in key and key != "recompute"


def _bad_key(path: str, key: str, options: tuple[str, ...]) -> str:
    record, dot, name = key.partition(".")
    if dot and name and record in RECORDS:
        return ""
    return "" if key in options else _unknown(path, [*options, *(f"{r}.FIELD" for r in RECORDS)], "key", key)


def _unknown(path: str, known: Iterable[str], what: str, key: str = "") -> str:
    names = list(known)
    near = get_close_matches(key or path, names, n=1)
    return f"unknown {what} {path!r}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}")


def resolved(case: Case, folder: Path) -> dict[str, Any]:
    """The case with files beside the study as absolute paths, so that any worker of the file system finds them."""
    out = dict(case)
    for key in FILES:
        value = case.get(key)
        if isinstance(value, str) and (folder / value).is_file():
            out[key] = str((folder / value).resolve())
    return out
