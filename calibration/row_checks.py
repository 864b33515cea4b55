"""What a measured row must hold before anything is fitted to it or held against it; every problem is told at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from calibration.harness.points import ELEMENT_BYTES
from calibration.harness.rows import Row
from hwprofiles.errors import UserError

LONGEST_S = 86400.0  # no call takes a day
SHOWN = 10
_BLOCK = ("batch", "seq", "hidden", "heads", "kv_heads", "head_dim", "experts", "top_k", "ffn")
_STEP = (*_BLOCK, "layers", "vocab", "micro_batches", "ranks", "ep")
# Sizes without which a row of the family says nothing.
KEYS: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention": ("batch", "seq", "heads", "kv_heads", "dqk", "dv", "causal"),
    "grouped_gemm": ("groups", "m", "n", "k", "m_max", "rows"),
    "collectives": ("ranks", "bytes", "bytes_off_max", "spread"),
    "copies": ("bytes", "pinned"),
    "neighbours": ("size", "ranks"),
    "moe_block": (*_BLOCK, "tokens"),
    "moe_block_ep": (*_BLOCK, "tokens", "ranks"),
    "train_step": _STEP,
    "train_step_ep": _STEP,
}
MAY_BE_ZERO = ("seconds",)  # of a sustained run that was cut short


def check_rows(rows: Iterable[Row], where: str) -> None:
    """Raises UserError listing rows with a time whose cells cannot be used."""
    problems = [f"{_label(row)}: {problem}" for row in rows if row["status"] == "ok" for problem in _problems(row)]
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        remedy = "delete such rows and run the same `moecast calibrate measure` again, which measures them anew"
        raise UserError([*problems[:SHOWN], *more, remedy], where=where)


def _label(row: Row) -> str:
    return " ".join(row[name] for name in ("family", "op", "dtype", "pass", "sizes"))


def _problems(row: Row) -> list[str]:
    found = []
    median_s = _number(row["median_s"])
    if median_s is None or not 0.0 < median_s < LONGEST_S:
        found.append(f"median_s {row['median_s']!r} is no time in seconds")
    for name in ("flop", "bytes", "peak_bytes"):
        value = _number(row[name]) if row[name] else 0.0
        if value is None or value < 0.0:
            found.append(f"{name} {row[name]!r} is no count")
    if row["dtype"] not in ELEMENT_BYTES and row["family"] in ("gemm", "attention", "grouped_gemm"):
        found.append(f"dtype {row['dtype']!r} is not one of {', '.join(ELEMENT_BYTES)}")
    sizes = _object(row["sizes"])
    if sizes is None:
        return [*found, f"sizes {row['sizes']!r} is no JSON object"]
    missing = [key for key in KEYS.get(row["family"], ()) if key not in sizes]
    if missing:
        found.append(f"sizes lack {', '.join(missing)}")
    for key, value in sizes.items():
        if isinstance(value, bool | str):
            continue
        if (
            not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
            or (value == 0 and key not in MAY_BE_ZERO)
        ):
            found.append(f"size {key} = {value!r} is not positive")
    observed = _object(row["observed"]) if row["observed"] else {}
    if observed is None:
        found.append(f"observed {row['observed']!r} is no JSON object")
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
