"""What is behind the largest errors: published/mechanisms.toml, one entry for rows that share a suspected cause.

An entry says what mechanism is missing, what was built for it and what that did. Entries name rows, not cases of
today's list, so that a list whose order moves keeps its texts; one whose rows are all well predicted is stale.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.accuracy_rows import filled_text, left_table, percent, value_text
from calibration.published_files import published
from calibration.validate import Row

FILE = "mechanisms.toml"
WORST = 20
SETTLED = 0.05  # an entry whose rows are all nearer than this has done its service


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One entry: ids of rows, and three texts."""

    title: str
    rows: tuple[str, ...]
    missing: str
    built: str
    did: str


def mechanisms() -> list[Mechanism]:
    """The entries as shipped. Raises ValueError where two name one row."""
    data = tomllib.loads(published(FILE).read_text(encoding="utf-8"))
    out = [Mechanism(**{**entry, "rows": tuple(entry["rows"])}) for entry in data["mechanisms"]]
    names = [name for entry in out for name in entry.rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"named by two entries of {FILE}: {', '.join(twice)}")
    return out


def worst_of(cases: Sequence[Row], count: int = WORST) -> list[Row]:
    """The cases with the largest absolute errors, largest first."""
    return sorted(cases, key=lambda c: (-abs(c.error or 0.0), c.id))[:count]


def stale(entries: Sequence[Mechanism], errors: Mapping[str, float]) -> list[str]:
    """Titles of entries without a row that is still off by more than `SETTLED`. errors: by row id."""
    return [e.title for e in entries if all(abs(errors.get(name, 0.0)) <= SETTLED for name in e.rows)]


def time_classes(row: Row, count: int = 4) -> str:
    """The largest shares of the predicted step."""
    total = sum(row.breakdown.values())
    largest = sorted(row.breakdown.items(), key=lambda item: (-item[1], item[0]))[:count]
    return ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in largest) if total else ""


def worst_section(cases: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """The section of docs/accuracy.md, as paragraphs. rows: all rows, for the errors an entry quotes."""
    worst = worst_of(cases)
    entries = {name: entry for entry in mechanisms() for name in entry.rows}
    by_key: dict[str, list[str]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row.id)
    found: dict[str, Mechanism] = {}
    for case in worst:
        hit = next((entries[i] for i in (case.id, *by_key.get(case.key, ())) if i in entries), None)
        if hit is not None:
            found[case.id] = hit
    cells = [
        [
            c.id, percent(c.error, sign=True), value_text(c, c.measured), value_text(c, c.predicted), c.group["model"],
            f"{c.group['gpu']} × {c.group['n_gpus']}", c.group["precision"], c.group["release"], c.plan,
            time_classes(c), filled_text(c.filled), found[c.id].title if c.id in found else "not looked at",
        ]
        for c in worst
    ]  # fmt: skip
    head = (
        "case", "error", "measured", "predicted", "model", "GPUs", "precision", "release", "plan",
        "largest time classes", "filled", "see",
    )  # fmt: skip
    parts = [
        "## The worst cases",
        f"The {WORST} largest errors, with where the predicted step goes, and below what is suspected behind them: "
        "suspicions, each with what was built for it and what that did. Nothing is fitted to a row.",
        left_table(head, cells),
    ]
    errors = {r.id: r.error for r in rows if r.error is not None}
    for entry in dict.fromkeys(found.values()):
        said = ", ".join(f"{name} {percent(errors[name], sign=True)}" for name in entry.rows if name in errors)
        parts += [
            f"### {entry.title}",
            f"**Rows**: {said}.",
            f"**Missing or not stated**: {entry.missing}",
            f"**Built**: {entry.built} **What it did**: {entry.did}",
        ]
    return parts
