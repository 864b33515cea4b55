"""Cells of a CSV of runs: text in, checked numbers and recompute words out."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from sim.plan import RECOMPUTE_MODULES

LARGEST = 10**12  # tokens, sequences, devices: beyond it is a slip of the finger
EMPTY = ("", "na")
ALONE = ("full", "all", "none", "na")  # recompute words that stand alone
UNFOLDED = ("fsdp + ep", "tp + ep + dp", "mcore")  # the methods that arXiv 2504.14960 compares folding with
BESIDE = ("selective", "norm", "act", "sequence parallel")  # printed beside or instead of module names

MAX_FILE_BYTES = 2**26


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; lines starting with # are comments. Raises UserError if it cannot be read."""
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which is no part of the first column's name
        lines = [
            x for x in read_bounded(path, MAX_FILE_BYTES).decode("utf-8-sig").splitlines() if not x.startswith("#")
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error}); give a CSV file of measured runs", where=str(path)) from error
    if not lines:
        raise UserError("is empty; give a CSV file with a header line", where=str(path))
    if lines[0].count(";") > lines[0].count(","):
        raise UserError("columns are separated by ';' and must be separated by ','; save it so", where=str(path))
    try:
        return [{k: (v or "").strip() for k, v in row.items() if k} for row in csv.DictReader(lines)]
    except csv.Error as error:
        raise UserError(f"is not a CSV file ({error}); give a CSV file of measured runs", where=str(path)) from error


def whole(row: Mapping[str, str], name: str, default: int | None = None) -> int | None:
    """A cell as an integer; empty gives the default. Raises UserError on anything else."""
    text = row.get(name, "")
    if text in EMPTY:
        return default
    value = _float(text, name)
    if not 1 <= value <= LARGEST or value != int(value):
        raise UserError(f"{text[:40]!r} must be a whole number from 1 to {LARGEST:,}; mend the cell", where=name)
    return int(value)


def needed(row: Mapping[str, str], name: str) -> int:
    """A cell that must hold an integer. Raises UserError when it does not."""
    value = whole(row, name)
    if value is None:
        raise UserError("is empty; give a whole number", where=name)
    return value


def number(row: Mapping[str, str], name: str) -> float | None:
    """A measured cell; None when empty. Raises UserError on anything but a positive number."""
    text = row.get(name, "")
    if text in EMPTY:
        return None
    value = _float(text, name)
    if not (math.isfinite(value) and value > 0.0):
        raise UserError(f"{text[:40]!r} must be a positive number; mend the cell or leave it empty", where=name)
    return value


def _float(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        hint = "; leave out the thousands separators" if re.fullmatch(r"[\d,' ]+(\.\d+)?", text) else "; mend the cell"
        raise UserError(f"{text[:40]!r} is not a number{hint}", where=name) from None


def recompute(row: Mapping[str, str], software: SoftwareProfile) -> tuple[str, ...] | None:
    """Recompute as stated: modules, full, none; None when the row does not say. Raises UserError on other words."""
    modules, plain = row.get("sw_recompute_modules", "").lower(), row.get("recompute", "").lower()
    stated, printed = _words(modules, "sw_recompute_modules"), _words(plain, "recompute")
    if "all" in stated or "full" in (*stated, *printed) or row.get("sw_recompute_granularity") == "full":
        return ("full",)
    if "none" in (*stated, *printed):
        return ()
    words = stated or printed
    if not words or "na" in words:
        return None
    aliases = {"norm": "layernorm", "act": "moe_act"}
    found = {aliases.get(word, word) for word in words}
    if "selective" in printed and not found & set(RECOMPUTE_MODULES):
        if software.selective_by_operator:
            return ("operators",)
        return () if software.flash_attention else ("core_attn",)
    return tuple(m for m in RECOMPUTE_MODULES if m in found)


def _words(text: str, name: str) -> list[str]:
    """The words of a recompute cell, remarks in brackets left out. Raises UserError on unknown ones."""
    words = [w for part in re.split(r"[,+;]", re.sub(r"\([^)]*\)", "", text)) if (w := part.strip())]
    known = ("full", "none", "selective", *RECOMPUTE_MODULES, *BESIDE[1:], "all")
    unknown = [w for w in words if w not in known and w != "na"]
    if unknown:
        said = ", ".join(repr(w[:40]) for w in unknown)
        raise UserError(f"{said} is not known; use {', '.join(known)}", where=name)
    alone = [w for w in words if w in ALONE]
    if alone and any(w in (*ALONE, *RECOMPUTE_MODULES, "norm", "act", "selective") for w in words if w != alone[0]):
        raise UserError(f"{alone[0]!r} stands alone; leave out the other words", where=name)
    return words


def coupled_etp(row: Mapping[str, str]) -> int | None:
    """Tensor parallelism of the experts where a row names a method of arXiv 2504.14960 that does not fold.

    Attention and experts share one mesh there, so an expert is cut as attention is (before core 0.10 Megatron knew
    nothing else). The method is the first word group of `framework_version`. None for every other row.
    """
    method = row.get("framework_version", "").partition(";")[0].strip().lower()
    return whole(row, "tp") if method in UNFOLDED and (whole(row, "ep") or 1) > 1 else None
