"""TOML in, checked records out: the door through which every profile enters.

The dataclasses of `hwprofiles.specs` are the only schema. Quantities are converted by the unit
that their field name promises, unknown keys are refused with the nearest known one, and every
problem of a file is reported at once.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from hwprofiles.units import quantity, unit_of

T = TypeVar("T")
_MAX_FILE_BYTES = 1_000_000  # a profile is a few KiB; anything larger is the wrong file
_SOURCE_REMEDY = (
    "add a [source] table with kind (measured, datasheet, published, documentation, user, assumed or fitted), "
    "title, where and date: every figure must say where it comes from"
)


def shipped(kind: str) -> dict[str, Traversable]:
    """Shipped files of `kind` (devices, clusters, software): name -> file, in order of name."""
    folder = resources.files("hwprofiles") / kind
    files = (f for f in folder.iterdir() if f.name.endswith(".toml"))
    return dict(sorted((f.name.removesuffix(".toml"), f) for f in files))


def looks_like_path(name: str) -> bool:
    """Whether a name is meant as a file rather than as an entry of the catalogue."""
    return name.endswith(".toml") or "/" in name or "\\" in name


def read_toml(file: Path | Traversable, where: str) -> dict[str, Any]:
    """The file as a mapping; UserError when it is missing, too large, binary or not TOML."""
    try:
        if isinstance(file, Path) and file.stat().st_size > _MAX_FILE_BYTES:
            raise UserError(f"is {file.stat().st_size} bytes; a profile has at most {_MAX_FILE_BYTES}", where=where)
        text = (read_bounded(file, _MAX_FILE_BYTES) if isinstance(file, Path) else file.read_bytes()).decode("utf-8")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise UserError("no such file; give a path to a TOML file or a name of the catalogue", where=where) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=where) from None
    except UnicodeDecodeError:
        raise UserError("is not a text file; a profile is TOML in UTF-8", where=where) from None
    except RecursionError:
        raise UserError("is not valid TOML: nested too deeply", where=where) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"is not valid TOML: {error}", where=where) from None


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in the catalogue, with the nearest entries."""
    if not isinstance(name, str):
        return UserError(f"read {name!r} ({type(name).__name__}); give a name or a path as text", where=kind)
    listed = sorted(known)
    lower = {entry.lower(): entry for entry in listed}
    close = [lower[c] for c in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return UserError(f"no {kind} named {name!r}.{hint} Known: {', '.join(listed)}; or give a path to a TOML file")


def build(record: type[T], data: Mapping[str, Any], *, where: str) -> T:
    """`data` as a `record`; UserError lists every unknown, missing or badly typed key."""
    from pydantic import ValidationError  # slow to import, and only needed at the door

    problems: list[str] = []
    bad: set[str] = set()
    kind: type = record
    clean = _convert(kind, data, "", problems, bad)
    try:
        # Strict JSON mode: no text taken for a number, no 8.0 for 8, but arrays may fill tuples.
        made: T = _adapter(kind).validate_json(json.dumps(clean, default=str), strict=True)
    except ValidationError as error:
        for item in error.errors():
            path = ".".join(str(part) for part in item["loc"])
            if path not in bad and not any(path.startswith(b + ".") for b in bad):
                problems.append(_explain(path, item))
        raise UserError(problems, where=where) from None
    if problems:
        raise UserError(problems, where=where)
    return made


def positive(record: object, *, zero_ok: Iterable[str] = (), prefix: str = "") -> list[str]:
    """Problems of numeric fields that are zero or negative (recursively), each with its remedy."""
    allowed = set(zero_ok)
    problems: list[str] = []
    for item in dataclasses.fields(record):  # type: ignore[arg-type]
        value, path = getattr(record, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            problems += positive(value, zero_ok=allowed, prefix=path + ".")
        entries = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, number in entries:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            name = f"{path}.{key}" if key else path
            if number < 0 or (number == 0 and item.name not in allowed):
                least = "zero or more" if item.name in allowed else "greater than zero"
                problems.append(f"{name} = {number:g}: must be {least}")
    return problems


@functools.cache
def _adapter(record: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(record)


@functools.cache
def _fields(record: type) -> dict[str, Any]:
    hints = typing.get_type_hints(record)
    return {item.name: hints[item.name] for item in dataclasses.fields(record)}


def _convert(record: type, data: Mapping[str, Any], prefix: str, problems: list[str], bad: set[str]) -> dict[str, Any]:
    """Copy with quantities in SI and unknown keys dropped; what is wrong goes to `problems`."""
    known = _fields(record)
    clean: dict[str, Any] = {}
    for key, value in data.items():
        path = prefix + key
        if key not in known:
            problems.append(_unknown_key(path, key, known))
            continue
        hint = _without_none(known[key])
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
            clean[key] = _convert(hint, value, path + ".", problems, bad)
        elif _row_of(hint) and isinstance(value, list) and all(isinstance(row, Mapping) for row in value):
            rows = enumerate(value)
            clean[key] = [_convert(_row_of(hint), row, f"{path}.{i}.", problems, bad) for i, row in rows]
        elif typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
            clean[key] = {k: _number(v, unit_of(key), f"{path}.{k}", problems, bad) for k, v in value.items()}
        elif hint is float:
            clean[key] = _number(value, unit_of(key), path, problems, bad)
        elif isinstance(value, datetime.date):
            clean[key] = value.isoformat()
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{path} = {value}: must be a finite number")
            bad.add(path)
        else:
            clean[key] = value
    return clean


def _number(value: object, unit: str, path: str, problems: list[str], bad: set[str]) -> float:
    try:
        return quantity(value, unit)
    except UserError as error:
        problems.extend(f"{path}: {p}" for p in error.problems)
        bad.add(path)
        return 1.0


def _row_of(hint: Any) -> Any:
    """The record of an array of tables (tuple[Record, ...]); None for any other field."""
    inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else ()
    return inner[0] if inner and dataclasses.is_dataclass(inner[0]) else None


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def _unknown_key(path: str, key: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}"
    return f"unknown key {path!r}; {remedy}"


def _explain(path: str, item: Mapping[str, Any]) -> str:
    """A pydantic error in our words: key path, what was read, what is wanted."""
    if item["type"] == "missing":
        return f"missing {path!r}: " + (_SOURCE_REMEDY if path == "source" else f"add {path.split('.')[-1]} = ...")
    return f"{path} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
