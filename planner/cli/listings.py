"""Tables of `moecast show` and `moecast validate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.markup import escape

from dashboards.style import bytes_text, significant
from planner.cli.tables import grid, notes

WORST = 10
SHOWN = 40


def _count(value: float) -> str:
    """A parameter count: 235 B, 8.03 B, 355 M."""
    return f"{significant(value / 1e9)} B" if value >= 1e9 else f"{significant(value / 1e6)} M"


def _rate(value: float) -> str:
    return f"{significant(value / 1e9)} GB/s"


def _kernels(measured_on: str, scaled_from: str) -> str:
    """Whose kernels a device has: its table folder, the device it is scaled from, or the first and the rest."""
    parts = (measured_on, f"scaled from {scaled_from}" if scaled_from else "")
    return ", rest ".join(part for part in parts if part)


def print_list(console: Console, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The list of one kind of catalogue entries."""
    if kind == "models":
        headers: tuple[str, ...] = (
            "model", "family", "layers", "hidden", "experts", "top-k", "parameters", "active", "GFLOP/token at 4k",
        )  # fmt: skip
        cells: list[Sequence[str]] = [
            (
                r["name"], r["family"], str(r["layers"]), str(r["hidden_dim"]), str(r["experts"] or "-"),
                str(r["top_k"] or "-"), _count(r["total_params"]), _count(r["active_params"]),
                significant(r["flop_per_token_4k"] / 1e9),
            )
            for r in rows
        ]  # fmt: skip
        left: tuple[str, ...] = ("family",)
    elif kind == "devices":
        headers = ("device", "memory", "bandwidth", "dense peaks, TFLOP/s", "kernels")
        cells = [
            (
                r["name"], bytes_text(r["mem_bytes"]), _rate(r["mem_bytes_per_s"]),
                ", ".join(f"{k} {significant(v / 1e12)}" for k, v in r["peak_flop_per_s"].items()),
                _kernels(r["kernels_measured_on"], r["kernels_scaled_from"]),
            )
            for r in rows
        ]  # fmt: skip
        left = headers[3:]
    elif kind == "clusters":
        headers = ("cluster", "device", "per node", "NVLink domain", "devices", "scale-up", "scale-out per GPU")
        cells = [
            (
                r["name"], r["device"], str(r["devices_per_node"]), str(r["domain_devices"]), str(r["num_devices"]),
                _rate(r["scale_up_bytes_per_s"]), _rate(r["scale_out_bytes_per_s"]),
            )
            for r in rows
        ]  # fmt: skip
        left = ("device",)
    else:
        headers = ("software", "trainer", "version", "dispatcher", "CUDA graph", "switches not stated")
        cells = [
            (
                r["name"], r["trainer"], r["version"], r["dispatcher"], ", ".join(r["cuda_graph"]) or "-",
                str(r["unknown_switches"]),
            )
            for r in rows
        ]  # fmt: skip
        left = headers[1:5]
    console.print(grid("", headers, cells, left=left))
    what = "software profiles" if kind == "software" else kind
    console.print(f"\n{len(rows)} {what}; one in full, with its source: moecast show {kind} NAME", style="dim")


def print_entry(console: Console, data: Mapping[str, Any]) -> None:
    """One entry as key and value lines; records inside are indented."""
    for line in _lines(data, 0):
        console.print(line, soft_wrap=True)


def _lines(data: Mapping[str, Any], depth: int) -> list[str]:
    out: list[str] = []
    pad = "  " * depth
    for key, value in data.items():
        if isinstance(value, Mapping):
            out += [f"{pad}[bold cyan]{escape(str(key))}[/]", *_lines(value, depth + 1)]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for item in value:
                out += [f"{pad}[bold cyan]{escape(str(key))}[/]", *_lines(item, depth + 1)]
        else:
            out.append(f"{pad}[cyan]{escape(str(key))}[/]  {escape(_text(str(key), value))}")
    return out


def _text(key: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value) or "-"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float):
        if key.endswith("_bytes"):
            return f"{value:,.0f}  ({bytes_text(float(value))})"
        if key.endswith("bytes_per_s"):
            return f"{value:,.0f}  ({_rate(float(value))})"
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return str(value)


# ---------------------------------------------------------------- validation

_SCORES = (
    ("cases", "cases"), ("mape", "MAPE"), ("median_ape", "median"), ("p90_ape", "p90"), ("bias", "bias"),
    ("coverage", "in interval"), ("mean_over_models", "mean over models"), ("mean_over_sources", "mean over sources"),
)  # fmt: skip


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _number(value: Any) -> str:
    return significant(float(value), 4) if isinstance(value, int | float) else str(value if value is not None else "-")


def _figure(values: Mapping[str, Any], key: str) -> str:
    """A figure, or the note on why there is none."""
    return _number(values[key]) if values[key] is not None else str(values.get("note", "-"))


def _is_scores(value: Any) -> bool:
    return isinstance(value, Mapping) and "mape" in value


def _cases(scores: Mapping[str, Any]) -> str:
    """What was counted; peak memory counts rows."""
    return str(scores.get("cases", scores.get("rows", "-")))


def _scores(title: str, first: str, groups: Mapping[str, Mapping[str, Any]]) -> Group:
    """One line of scores per group, the worst first where there are groups."""
    shown = [(key, name) for key, name in _SCORES if key == "cases" or any(key in g for g in groups.values())]
    rows = [
        (name, *(_cases(scores) if key == "cases" else _percent(scores.get(key)) for key, _ in shown))
        for name, scores in groups.items()
    ]
    return grid(title, (first, *(name for _, name in shown)), rows)


def print_validation(console: Console, result: Mapping[str, Any]) -> None:
    """Scores in all and per group, the worst rows, and what was not scored."""
    rows, summary = result["rows"], result["summary"]
    status: dict[str, int] = {}
    for row in rows:
        status[row["status"]] = status.get(row["status"], 0) + 1
    counts = ", ".join(f"{n} {name}" for name, n in sorted(status.items(), key=lambda item: -item[1]))
    console.print(f"[bold]{len(rows)} rows[/bold] ({counts})\n")
    scores = {k: v for k, v in summary.items() if _is_scores(v)}
    if scores:
        console.print(_scores("Error of predictions", "class", scores))
    _print_predictions(console, [r for r in rows if r["status"] == "ok" and r["measured"] is None])
    others = [
        (f"{name}: {key.replace('_', ' ')}", _figure(values, key))
        for name, values in summary.items()
        if isinstance(values, Mapping) and not name.startswith("by_") and name != "status" and not _is_scores(values)
        for key, value in values.items()
        if key == "balanced_accuracy" or (isinstance(value, int | float) and value and math.isfinite(value))
    ]
    if others:
        console.print()
        console.print(grid("Other scores", ("figure", "value"), others))
    for name in ("by_distance", "by_model", "by_gpu"):
        groups = {k: v for k, v in summary.get(name, {}).items() if _is_scores(v)}
        if groups:
            worst_first = dict(sorted(groups.items(), key=lambda item: -item[1]["mape"]))
            console.print()
            console.print(_scores(f"Error per {name[3:]}", name[3:], worst_first))
    _print_worst(console, rows)
    reasons: dict[str, int] = {}
    for row in rows:
        if row["status"] != "ok":
            text = f"{row['status']}: {row['reason']}"
            reasons[text] = reasons.get(text, 0) + 1
    most_first = sorted(reasons.items(), key=lambda item: -item[1])
    notes(console, "Not predicted", [f"{n} {'row' if n == 1 else 'rows'} {text}" for text, n in most_first], 12)


_UNITS = {"tokens_per_s_gpu": "tokens/s per GPU", "step_s": "s per step", "fits": "fits (1) or not (0)"}


def _filled(row: Mapping[str, Any]) -> str:
    """The cells that planning filled in."""
    cells = {k: ", ".join(v) or "none" if isinstance(v, list | tuple) else v for k, v in (row["filled"] or {}).items()}
    return ", ".join(f"{name} {value}" for name, value in cells.items())


def _print_predictions(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows that state no measurement: the prediction alone."""
    if not rows:
        return
    cells = [
        (
            str(r["id"]), str(r["plan"]), _number(r["predicted"]), f"{_number(r['low'])}-{_number(r['high'])}",
            _UNITS.get(r["measure"], r["measure"]), "; ".join(text for text in (r["reason"], _filled(r)) if text),
        )
        for r in rows[:SHOWN]
    ]  # fmt: skip
    headers = ("row", "plan", "predicted", "80 % interval", "unit", "notes, filled in")
    console.print()
    console.print(grid("Predictions (nothing measured to compare with)", headers, cells, left=("plan", *headers[4:])))
    if len(rows) > SHOWN:
        console.print(f"... and {len(rows) - SHOWN} more rows (see --json)", style="dim")


def _print_worst(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    scored = [r for r in rows if r["status"] == "ok" and isinstance(r["error"], int | float) and r.get("scored", True)]
    worst = sorted(scored, key=lambda r: -abs(float(r["error"])))[:WORST]
    if not worst:
        return
    cells = [
        (
            str(r["id"]), str(r["plan"]), _number(r["measured"]), _number(r["predicted"]), _percent(r["error"]),
            _filled(r),
        )
        for r in worst
    ]  # fmt: skip
    headers = ("row", "plan", "measured", "predicted", "error", "filled in")
    console.print()
    console.print(grid("Worst rows", headers, cells, left=("plan", "filled in")))
