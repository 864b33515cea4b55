"""The first tests: does a prediction follow what one mechanism does to published runs?

Pairs of rows that differ in that mechanism are named in published/first_tests.toml; what counts is the error of the
ratio between their speeds, in which whatever both rows share cancels.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from calibration.accuracy_rows import left_table, percent, value_text
from calibration.published_files import published
from calibration.validate import Row

FILE = "first_tests.toml"
AIM = 0.08  # the error of a ratio that passes


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of training_runs.csv or parallel_folding.csv by id, and what else differs between them."""

    first: str
    second: str
    beside: str


@dataclass(frozen=True, kw_only=True)
class FirstTest:
    """One test and its pairs."""

    name: str
    what: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A pair with its rows. Ratios are of tokens/s per GPU, second over first."""

    pair: Pair
    first: Row
    second: Row
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured ratio, minus 1."""
        return self.predicted / self.measured - 1.0

    @property
    def passes(self) -> bool:
        """Whether the ratio is within the aim."""
        return abs(self.error) <= AIM


def first_tests() -> list[FirstTest]:
    """The tests as shipped."""
    data = tomllib.loads(published(FILE).read_text(encoding="utf-8"))
    return [
        FirstTest(
            name=test["name"], what=test["what"],
            pairs=tuple(Pair(first=p["from"], second=p["to"], beside=p["beside"]) for p in test["pairs"]),
        )
        for test in data["tests"]
    ]  # fmt: skip


def outcomes(test: FirstTest, rows: Sequence[Row]) -> list[Outcome]:
    """The pairs of a test of which both rows have a prediction and a measurement."""
    known = {r.id: r for r in rows if r.error is not None}
    out = []
    for pair in test.pairs:
        one, two = known.get(pair.first), known.get(pair.second)
        if one and two and one.measured and two.measured and one.predicted and two.predicted:
            ratios = two.measured / one.measured, two.predicted / one.predicted
            out.append(Outcome(pair=pair, first=one, second=two, measured=ratios[0], predicted=ratios[1]))
    return out


def first_section(rows: Sequence[Row]) -> list[str]:
    """The section of docs/accuracy.md, as paragraphs; empty where no pair is predicted."""
    parts: list[str] = []
    lines = []
    for test in first_tests():
        found = outcomes(test, rows)
        if not found:
            continue
        within = sum(o.passes for o in found)
        worst = max(found, key=lambda o: abs(o.error))
        lines.append([test.name, len(found), within, percent(worst.error, sign=True), _yes(within == len(found))])
        cells = [
            [
                f"{o.pair.first} → {o.pair.second}", o.pair.beside, _speeds(o.first), _speeds(o.second),
                f"{o.measured:.3f}", f"{o.predicted:.3f}", percent(o.error, sign=True),
                percent(o.first.error, sign=True), percent(o.second.error, sign=True), _yes(o.passes),
            ]
            for o in found
        ]  # fmt: skip
        head = (
            "rows", "what changes", "first: measured, predicted", "second: measured, predicted", "measured ratio",
            "predicted ratio", "error of the ratio", "error of the first", "error of the second", f"within "
            f"{100 * AIM:.0f} %",
        )  # fmt: skip
        parts += [f"### {test.name}", test.what, left_table(head, cells)]
    if not parts:
        return []
    return [
        "## First tests",
        "Pairs of published runs that differ mainly in one mechanism: what it does to tokens/s per GPU as measured and "
        "as predicted. What both rows share cancels in the ratio; what else differs is said with each pair. Passed "
        f"is a ratio within {100 * AIM:.0f} %.",
        left_table(("test", "pairs", "passed", "worst error of a ratio", "all passed"), lines), *parts,
    ]  # fmt: skip


def _speeds(row: Row) -> str:
    return f"{value_text(row, row.measured)}, {value_text(row, row.predicted)}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
