"""docs/accuracy-rows.md: every predicted row, as text. Also what both pages format with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibration.validate import Row

MADE = "<!-- Made by `make accuracy` (python -m calibration.accuracy) from calibration/published. Do not edit. -->"


def percent(value: float | None, *, sign: bool = False) -> str:
    """A share as text; a dash where it is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    shown = round(100 * value, 1) + 0.0  # no "-0.0"
    return f"{shown:+.1f} %" if sign else f"{shown:.1f} %"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; figures stand to the right from the second column on."""
    lines = [list(header), ["---", *("---:" for _ in header[1:])]]
    lines += [[str(cell).replace("|", "\\|").replace("\n", " ").strip() for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def left_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table of texts."""
    return table(header, rows).replace("---:", "---", len(header) - 1)


def value_text(row: Row, value: float | None) -> str:
    """A measured or predicted figure in the unit of its row."""
    if value is None:
        return "–"
    if row.measure == "tokens_per_s_gpu":
        return f"{value:,.0f}"
    if row.measure == "step_s":
        return f"{value:,.3f} s"
    if row.measure == "peak_bytes":
        return f"{value / 2**30:,.1f} GiB"
    return {1.0: "fits", 0.0: "out of memory"}.get(value, f"{value:g}")


def filled_text(filled: Mapping[str, Any]) -> str:
    """Filled cells as `name=value`; empty where the row stated everything."""
    parts = []
    for name, value in filled.items():
        text = "+".join(str(v) for v in value) or "none" if isinstance(value, tuple | list) else str(value)
        parts.append(f"{name}={text}".replace(" ", ""))
    return " ".join(parts)


def _line(row: Row) -> list[str]:
    group = row.group
    return [
        row.id, group.get("model", ""), f"{group.get('gpu', '')} × {group.get('n_gpus', '').removesuffix('.0')}",
        f"{group.get('seq_len', '').removesuffix('.0')}", group.get("precision", ""), group.get("release", ""),
        row.plan, value_text(row, row.measured), value_text(row, row.predicted), _error(row),
        "yes" if row.scored else "no", filled_text(row.filled),
        row.reason if row.status == "ok" else f"{row.status}: {row.reason}",
    ]  # fmt: skip


def _error(row: Row) -> str:
    if row.measure == "fits" and row.predicted is not None and row.measured is not None:
        return "right" if row.predicted == row.measured else "wrong"
    return percent(row.error, sign=True)


HEADER = (
    "row", "model", "GPUs", "sequence", "precision", "release", "plan", "measured", "predicted", "error", "scored",
    "filled", "note",
)  # fmt: skip
UNITS = {
    "training_runs.csv": "Training runs, tokens/s per GPU",
    "parallel_folding.csv": "Parallel folding, tokens/s per GPU (not fitted)",
    "calculon_megatron_a100_time.csv": "Megatron on A100, step time",
    "megatron_b200_one_node.csv": "One node of B200, step time and peak memory",
    "memory_feasibility.csv": "Fits or out of memory",
    "vtrain_measured_multi.csv": "GPT on several nodes of A100, step time",
}


def rows_page(rows: Mapping[str, Sequence[Row]]) -> str:
    """The page of all rows, but for the 1,400 short ones of one A100 node."""
    parts = [
        "# Accuracy, row by row",
        MADE,
        "Every published row with the plan it was predicted with, the cells that planning filled because the source "
        "did not state them (before any measured column was read), and the error, predicted / measured - 1. Rows "
        "with `scored` = no are shown, not counted: their figure was derived from TFLOP/s, is in doubt, or the row "
        "lacks what its score needs. Summary: [accuracy](accuracy.md).",
    ]
    for file, title in UNITS.items():
        if file in rows:
            parts += [f"## {title}", f"`calibration/published/{file}`", left_table(HEADER, map(_line, rows[file]))]
    return "\n\n".join(parts) + "\n"
