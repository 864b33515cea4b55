"""The models that ship with Moecast: `sim/catalogue/models/*.toml`, found by name or alias, case-insensitively.

A file holds [[model]] tables; [defaults] of the file lies under each of them. [[unsupported]] entries name models that
are known but cannot be simulated yet, with the reason.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sim.families.reader import Reader
from sim.families.toml_model import CATALOGUE_KEYS, merged, read_toml_model
from sim.model import ModelSpec


@dataclass(frozen=True, kw_only=True)
class PublicCounts:
    """Published parameter counts of a model: 0 = none on record. `active_counts` says what the active figure holds."""

    total_params: int
    active_params: int
    source: str
    active_counts: str


@dataclass(frozen=True, kw_only=True)
class _Index:
    tables: Mapping[str, Mapping[str, object]]  # canonical name -> merged table
    wheres: Mapping[str, str]
    names: Mapping[str, str]  # key -> canonical name
    unsupported: Mapping[str, tuple[str, str]]  # key -> (name, reason)


def key(name: str) -> str:
    """Spelling under which names meet: lower case, no organisation, hyphens for blanks and underscores."""
    text = name.strip().casefold()
    organisation, _, rest = text.partition("/")
    if organisation not in {"", ".", "..", "~"} and "/" not in rest:  # org/name, but no path
        text = rest or organisation
    return text.replace("_", "-").replace(" ", "-")


@cache
def _index() -> _Index:
    tables: dict[str, Mapping[str, object]] = {}
    wheres: dict[str, str] = {}
    names: dict[str, str] = {}
    unsupported: dict[str, tuple[str, str]] = {}
    folder = files("sim") / "catalogue" / "models"
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".toml"):
            continue
        data = tomllib.loads(entry.read_text(encoding="utf-8"))
        for table in data.get("model", []):
            full = merged(data.get("defaults", {}), table)
            name = str(full["name"])
            tables[name], wheres[name] = full, f"catalogue {entry.name}: {name}"
            for alias in (name, *table.get("aliases", ())):
                if names.setdefault(key(alias), name) != name:
                    raise ValueError(f"catalogue: {alias!r} names both {names[key(alias)]!r} and {name!r}")
        for table in data.get("unsupported", []):
            for alias in (table["name"], *table.get("aliases", ())):
                unsupported[key(alias)] = (table["name"], table["reason"])
    return _Index(tables=tables, wheres=wheres, names=names, unsupported=unsupported)


def model_names() -> tuple[str, ...]:
    """Names of all catalogue models, sorted without regard to case."""
    return tuple(sorted(_index().tables, key=str.casefold))


def known_spellings() -> tuple[str, ...]:
    """Every spelling that finds a model (lower case), for suggestions."""
    return tuple(_index().names)


def find_name(text: str) -> str | None:
    """Canonical name of a model given by name or alias, or None."""
    return _index().names.get(key(text))


def find_unsupported(text: str) -> tuple[str, str] | None:
    """(name, reason) when the text names a model that is known but not supported yet."""
    return _index().unsupported.get(key(text))


@cache
def catalogue_model(name: str) -> ModelSpec:
    """The model of that canonical name."""
    index = _index()
    return read_toml_model(index.tables[name], index.wheres[name])


def public_counts(name: str) -> PublicCounts | None:
    """Published parameter counts of a catalogue model, None where the catalogue holds none."""
    r = Reader(_index().tables[name], _index().wheres[name])
    if not r.has("public_total_params", "public_active_params"):
        return None
    total, active, source, counts = (k for k in CATALOGUE_KEYS if k != "aliases")
    return PublicCounts(
        total_params=r.size(total, default=0, high=2**60),
        active_params=r.size(active, default=0, high=2**60),
        source=r.text(source),
        active_counts=r.text(counts, default="not stated"),
    )
