"""Quantity strings ("80 GiB", "400 Gb/s", "5 us") to SI floats: parsed once, at the door.

Inside the project every number is SI and its name carries the unit; only TOML files written by
people use quantity strings. Decimal and binary prefixes are kept apart, bits and bytes too.
"""

from __future__ import annotations

import difflib
import math
import re

from hwprofiles.errors import UserError

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "day": 86400.0}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf\w*))\s*(.*?)\s*", re.I)


def _bytes() -> dict[str, float]:
    sizes = {**_DECIMAL, **_BINARY}
    table = {p + "B": f for p, f in sizes.items()}
    table |= {p + "b": f / 8 for p, f in sizes.items()}
    return table | {p + "bit": f / 8 for p, f in sizes.items()}


def _bytes_per_second() -> dict[str, float]:
    rates = {f"{name}/s": factor for name, factor in _bytes().items()}
    return rates | {f"{p}bps": f / 8 for p, f in _DECIMAL.items()}


# SI unit -> accepted spelling -> factor to SI.
UNITS: dict[str, dict[str, float]] = {
    "B": _bytes(),
    "B/s": _bytes_per_second(),
    "FLOP": {p + "FLOP": f for p, f in _DECIMAL.items()},
    "FLOP/s": {p + "FLOP/s": f for p, f in _DECIMAL.items()},
    "s": _SECONDS,
    "W": {p + "W": f for p, f in _DECIMAL.items()} | {"mW": 1e-3},
    "USD": {"USD": 1.0},
    "USD/s": {f"USD/{t}": 1.0 / f for t, f in _SECONDS.items() if t in ("s", "min", "h", "day")},
    "Hz": {p + "Hz": f for p, f in _DECIMAL.items()},
    "1": {"": 1.0, "%": 1e-2},
}

# Suffix of a field name -> SI unit; the longest suffix that fits decides.
_SUFFIXES = {
    "usd_per_s": "USD/s",
    "flop_per_s": "FLOP/s",
    "bytes_per_s": "B/s",
    "_bytes": "B",
    "_flop": "FLOP",
    "_s": "s",
    "_w": "W",
    "_usd": "USD",
}
_EXAMPLES = {
    "B": '"80 GiB"',
    "B/s": '"400 Gb/s" or "3.35 TB/s"',
    "FLOP": '"2 TFLOP"',
    "FLOP/s": '"989 TFLOP/s"',
    "s": '"5 us"',
    "W": '"700 W"',
    "USD": '"10 USD"',
    "USD/s": '"2.5 USD/h"',
    "Hz": '"1.98 GHz"',
    "1": "0.5",
}


def unit_of(field_name: str) -> str:
    """SI unit that the suffix of a field name promises ("1" where it has none)."""
    fits = [s for s in _SUFFIXES if field_name.endswith(s)]
    return _SUFFIXES[max(fits, key=len)] if fits else "1"


def quantity(value: object, unit: str) -> float:
    """`value` as a float in the SI unit `unit` (a key of `UNITS`).

    A string is a number and a unit of that kind; a plain number is taken as SI already.
    Raises UserError when the unit is missing, of another kind or unknown, and for NaN, infinite
    or negative amounts; the message names what was read and what is accepted.
    """
    if unit not in UNITS:
        raise KeyError(f"no such SI unit: {unit}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(f"read {value!r} ({type(value).__name__}): give a number or a string such as {_EXAMPLES[unit]}")
    amount = _parse(value, unit) if isinstance(value, str) else _finite(value)
    if not math.isfinite(amount) or amount < 0:
        raise UserError(f"read {value!r}: must be a finite number, zero or more, such as {_EXAMPLES[unit]}")
    return amount


def _finite(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond the range of a float
        return math.inf


def _parse(text: str, unit: str) -> float:
    accepted = UNITS[unit]
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise UserError(f"read {text!r}: not a number with a unit; write {_EXAMPLES[unit]}")
    number, spelling = found.groups()
    if spelling not in accepted:
        raise UserError(f"read {text!r}: {_unit_problem(spelling, unit)}")
    factor = accepted[spelling]
    amount = float(number.replace("_", ""))
    # Dividing by the whole number 1/factor keeps "5 us" the float nearest to 5e-6.
    return amount * factor if factor >= 1 else amount / round(1 / factor)


def _unit_problem(spelling: str, unit: str) -> str:
    accepted = UNITS[unit]
    listed = ", ".join(sorted((s for s in accepted if s), key=lambda s: accepted[s])[:40])
    if not spelling:
        return f"the unit is missing; write {_EXAMPLES[unit]} (accepted: {listed})"
    other = [kind for kind, table in UNITS.items() if spelling in table]
    if other:
        return f"unit {spelling!r} is {other[0]}, but {unit} is needed here; write {_EXAMPLES[unit]}"
    same_letters = [s for s in accepted if s.lower() == spelling.lower()]
    close = same_letters or difflib.get_close_matches(spelling, [s for s in accepted if s], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown unit {spelling!r}{hint} (accepted: {listed})"
