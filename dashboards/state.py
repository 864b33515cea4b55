"""What the page shows, as text: one scenario per `Knobs`, which a URL or a study file holds.

Knobs are a case of a study (`planner.question.case`). They come from a stranger's URL, so they never name a file: a
model, cluster or release is an entry of the catalogue or an upload, routing and lengths are laws or uploads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from dashboards import uploads
from hwprofiles.errors import UserError
from planner.question.case import OPTIONS
from planner.study.spec import RECORDS

MAX_VALUE, MAX_KEYS = 400, 80  # characters of a value, keys of a scenario: beyond it is no question of a person
# What a visitor without a question sees: a published model on a common machine, in a layout that fits.
START: Mapping[str, str] = {
    "model": "Mixtral-8x7B", "cluster": "dgx-h100", "gpus": "64", "global_batch": "512", "pp": "2", "ep": "8",
    "routing": "like:mixtral-8x7b",
}  # fmt: skip
LAYOUT = ("tp", "pp", "vpp", "cp", "ep", "etp", "micro_batch", "recompute", "zero", "schedule", "micro_batch_group",
          "rank_order")  # fmt: skip
# Options whose value may name a file, and the words with which a value that is none begins.
_LAWS: Mapping[str, tuple[str, ...]] = {
    "routing": ("balanced", "uniform", "zipf:", "lognormal:", "dirichlet:", "like:"),
    "placement": ("auto",),
    "lengths": ("lognormal:", "percentiles:", "fixed:"),
    "host_map": (),
    "nodes": (),
}
_PATH = re.compile(r"[/\\]|\.csv")
_FILE = re.compile(r"[/\\]|\.[a-z]{2,5}$", re.IGNORECASE)
_FIELD = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


@dataclass(frozen=True)
class Knobs:
    """One scenario: (key, text) pairs in order of their keys; a key that is not there has its default."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Knobs:
        """The knobs of these values; unknown keys and empty or endless values are left out."""
        kept = {k: v.strip() for k, v in values.items() if known(k) and 0 < len(v.strip()) <= MAX_VALUE}
        return cls(tuple(sorted(kept.items())[:MAX_KEYS]))

    @classmethod
    def of_query(cls, text: str) -> Knobs:
        """The knobs of the text of `query`."""
        return cls.of(dict(parse_qsl(text[: MAX_VALUE * MAX_KEYS], max_num_fields=None)[:MAX_KEYS]))

    @property
    def values(self) -> dict[str, str]:
        """Key to text."""
        return dict(self.pairs)

    def get(self, key: str, default: str = "") -> str:
        """The text of a key, `default` where it is not set."""
        return self.values.get(key, default)

    def with_(self, changes: Mapping[str, str | None]) -> Knobs:
        """Knobs with some set, or left out (None or nothing)."""
        merged = self.values | {k: v or "" for k, v in changes.items()}
        return Knobs.of(merged)

    def completed(self) -> Knobs:
        """With the page's own model and cluster where they are not set, as the lists at the side show them."""
        return Knobs.of({name: START[name] for name in ("model", "cluster")} | self.values)

    def without(self, *prefixes: str) -> Knobs:
        """Knobs less those of these keys or records."""
        return Knobs(tuple((k, v) for k, v in self.pairs if k not in prefixes and k.partition(".")[0] not in prefixes))

    def query(self) -> str:
        """As the text of a URL's query."""
        return urlencode(self.pairs)

    def case(self) -> dict[str, Any]:
        """The case of a study: tokens of uploads as paths, fields of records as values.

        Raises UserError for a value that would name a file, and for an upload that is no longer there.
        """
        case: dict[str, Any] = {}
        problems: list[str] = []
        for key, text in self.pairs:
            try:
                case[key] = _value(key, text)
            except UserError as error:
                problems += [f"{error.where}: {p}" if error.where else p for p in error.problems]
        if problems:
            raise UserError(problems)
        return case

    def label(self) -> str:
        """A short name: model, GPUs, cluster and layout."""
        values = self.values
        degrees = " ".join(f"{k.upper()}{values[k]}" for k in ("tp", "cp", "pp", "vpp", "ep", "etp") if k in values)
        where = f"{values.get('gpus', '')} {values.get('cluster', '')}".strip()
        return ", ".join(uploads.shown(p) for p in (values.get("model", ""), where, degrees) if p)


def known(key: str) -> bool:
    """Whether a key is an option of a question or a field of a record."""
    record, dot, rest = key.partition(".")
    return key in OPTIONS or (record in RECORDS and bool(dot) and _FIELD.fullmatch(rest) is not None)


def _value(key: str, text: str) -> Any:
    """What a case holds for a text."""
    if "." in key:
        try:
            return json.loads(text)
        except ValueError:
            return text
    if uploads.is_token(text):
        return str(uploads.path(text))
    option = "--" + key.replace("_", "-")
    if key in ("model", "cluster", "software"):
        return _entry(key, text, option)
    laws = _LAWS.get(key)
    if laws is not None and not (laws and text.startswith(laws) and not _PATH.search(text)):
        use = f"use one of {', '.join(laws)}, or upload the file" if laws else "upload the file"
        raise UserError(f"{text[:40]!r} {_why_not(key, text)}; {use}", where=option)
    return text


def _why_not(key: str, text: str) -> str:
    """What is wrong with a text that is neither a law nor an upload."""
    if _FILE.search(text):
        return "names a file"
    if key == "nodes":
        return "is no list of nodes (their number follows from gpus, a whole number of devices)"
    return "is nothing this option takes"


def _entry(key: str, text: str, option: str) -> str:
    """A name of the catalogue, as it stands there."""
    found = {name.casefold(): name for name in names(key)}.get(text.casefold())
    if found is None:
        raise UserError(f"{text[:60]!r} is not in the catalogue; choose a name, or upload the file", where=option)
    return found


def names(key: str) -> tuple[str, ...]:
    """Catalogue names for `model`, `cluster` or `software`."""
    if key == "model":
        from sim.families import model_names

        return tuple(model_names())
    from hwprofiles import catalogue

    return catalogue.names({"cluster": "clusters", "software": "software"}[key])


def study_text(knobs: Knobs, verb: str = "simulate") -> str:
    """The scenario as a study of one case, which `moecast sweep` reads; uploads by the names they came with."""
    lines = [
        "# One scenario; run it with: moecast sweep FILE", "[study]", 'name = "scenario"', f'verb = "{verb}"', "",
        "[base]",
    ]  # fmt: skip
    for key, text in knobs.pairs:
        value: Any = _value(key, text) if "." in key else text
        if isinstance(value, str) and uploads.is_token(value):
            value = uploads.shown(value)
        lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value in TOML: JSON's texts, numbers, truth values and lists of them are also TOML's."""
    return json.dumps(value, ensure_ascii=False)


def knobs_of_study(data: bytes) -> Knobs:
    """The knobs of the first case of a study file. Raises UserError."""
    import tomllib
    from pathlib import Path

    from planner.study.spec import study_of

    try:
        tables = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"not a TOML file: {error}; give a study or a scenario saved here", where="scenario") from None
    study = study_of(tables, OPTIONS, where="scenario", folder=Path())
    case = study.cases[0]
    texts = {key: v if isinstance(v, str) else ",".join(map(str, v)) if isinstance(v, list) and "." not in key
             else json.dumps(v) for key, v in case.items()}  # fmt: skip
    return Knobs.of(texts)
