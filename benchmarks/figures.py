"""What a benchmark says: figures with units, printed one a line and written as JSON for the page (`--json FILE`)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured thing. value: a number, or several in words; unit: "s", "/s", "x" (a ratio), "share", "bytes", "" (a
    count); note: what goes with it."""

    what: str
    value: float | str
    unit: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """The value in a unit to read: three digits, shares as per cent, bytes in GiB, short times in ms or us."""
        value, unit = self.value, self.unit
        if isinstance(value, str):
            return value
        if unit == "share":
            return f"{100.0 * value:.3g} %"
        if unit == "bytes":
            return f"{value / 2**30:.2f} GiB"
        if unit == "s" and 0.0 < value < 0.1:
            return f"{1e6 * value:.3g} us" if value < 1e-4 else f"{1e3 * value:.3g} ms"
        if 0.0 < abs(value) < 1e-3:
            return f"{value:.0e}"
        shown = f"{value:,.0f}" if abs(value) >= 100.0 or value == int(value) else f"{value:.3g}"
        return f"{shown} {unit}".strip()


@dataclass
class Figures:
    """Figures as they come."""

    found: list[Figure] = field(default_factory=list)

    def add(self, what: str, value: float | str, unit: str = "", note: str = "") -> None:
        """Print one and keep it."""
        figure = Figure(what=what, value=value if isinstance(value, str) else float(value), unit=unit, note=note)
        self.found.append(figure)
        print(f"{what:<72} {figure.text:>14}  {note}".rstrip(), flush=True)

    def write(self, file: Path | None) -> None:
        """All of them as JSON."""
        if file is not None:
            file.write_text(json.dumps([asdict(each) for each in self.found], indent=1) + "\n", encoding="utf-8")


def json_option(parser: argparse.ArgumentParser) -> None:
    """`--json FILE`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as JSON")


def run(measure: Callable[[Figures], None], about: str | None) -> None:
    """The command of a benchmark without options of its own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    json_option(parser)
    args, figures = parser.parse_args(), Figures()
    measure(figures)
    figures.write(args.json)
