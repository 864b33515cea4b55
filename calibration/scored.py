"""Scores of the published runs as a table that ships: what was predicted, what was measured, and what the run was.

`python -m calibration.accuracy` writes `hwprofiles/fitted/scored_runs.csv` beside the intervals it was made with, so
that a parity plot needs no hour of predictions. The rows are those of docs/accuracy-rows.md.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from calibration.accuracy_rows import UNITS
from calibration.spread import LAYOUT, Situation, Spread, differences
from calibration.validate import Row
from hwprofiles.errors import UserError
from sim.interval import Novelty

TABLE, SOURCE = "scored_runs.csv", "scored_runs.toml"
DIGITS = 9
_FIGURES = ("measured", "predicted", "low", "high", "error", "peak_bytes")
_TEXTS = ("id", "status", "measure", "plan", "key", "reason")
_GROUP = (
    "model", "gpu", "n_gpus", "seq_len", "global_batch", "precision", "release", "arch", "class", "source", "distance",
)  # fmt: skip
_WHOLE = ("seq_tokens", "devices", "micro_batch_tokens", "tp", "pp", "cp", "ep", "zero_stage")
_RUN = ("run_model", "run_device", "run_precision", "trainer", "recompute", *_WHOLE)
COLUMNS = ("file", *_TEXTS, "scored", "ranked", *_FIGURES, *_GROUP, *_RUN)


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A row of a published file as it was scored; run: what errors of predictions go together by (None: unusable)."""

    file: str
    row: Row
    run: Situation | None


def folder() -> Path:
    """Where the table is kept."""
    return Path(str(resources.files("hwprofiles"))) / "fitted"


# ---------------------------------------------------------------- writing


def write_scores(runs: Sequence[ScoredRun], at: Path, *, date: str) -> tuple[Path, Path]:
    """Write the table and its source into the folder `at`. Same runs, same bytes. Raises OSError."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for each in runs:
        writer.writerow(_cells(each))
    table, source = at / TABLE, at / SOURCE
    table.write_text(out.getvalue(), encoding="utf-8")
    source.write_text(_SOURCE.format(date=date), encoding="utf-8")
    return table, source


_SOURCE = """\
# What scored_runs.csv is. Made by calibration.accuracy.
[source]
kind = "published"
title = "Published runs: measured, and as this release predicts them with the intervals beside this file"
where = "measured: calibration/published, each file's own source; predicted: python -m calibration.accuracy"
date = "{date}"
licence = "facts; see calibration/published/source.toml"
note = "Rows and predictions are those of docs/accuracy-rows.md. predicted is made from a row's configuration alone."
"""


def _cells(each: ScoredRun) -> dict[str, str]:
    row, run = each.row, each.run
    out = {"file": each.file, **{name: str(getattr(row, name)) for name in _TEXTS}}
    out |= {name: "yes" if getattr(row, name) else "no" for name in ("scored", "ranked")}
    out |= {n: "" if (v := getattr(row, n)) is None else f"{v:.{DIGITS}g}" for n in _FIGURES}
    out |= {name: row.group.get(name, "").removesuffix(".0") for name in _GROUP}
    if run is None:
        return out
    layout = dict(zip(LAYOUT, run.layout, strict=True))
    values: dict[str, Any] = {
        "run_model": run.model, "run_device": run.device, "run_precision": run.precision, "trainer": run.trainer,
        "recompute": "+".join(layout.pop("recompute")),
    }  # fmt: skip
    names = ("seq_tokens", "devices", "micro_batch_tokens")
    return out | {k: str(v) for k, v in (values | layout | {n: getattr(run, n) for n in names}).items()}


# ---------------------------------------------------------------- reading


@lru_cache(maxsize=1)
def shipped_scores() -> tuple[ScoredRun, ...]:
    """The table of this release. Raises UserError where it is missing or damaged."""
    return read_scores(folder() / TABLE)


def read_scores(path: Path) -> tuple[ScoredRun, ...]:
    """A table that `write_scores` wrote. Raises UserError on anything else."""
    remedy = "run `python -m calibration.accuracy`, or install the package anew"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return tuple(_read(cells) for cells in csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}; {remedy}", where=str(path)) from None
    except (KeyError, ValueError, TypeError, UnicodeDecodeError):
        raise UserError(f"not a table of scored runs; {remedy}", where=str(path)) from None


def _read(cells: Mapping[str, str]) -> ScoredRun:
    figures = {name: None if cells[name] == "" else float(cells[name]) for name in _FIGURES}
    row = Row(
        **{name: cells[name] for name in _TEXTS}, **figures, scored=cells["scored"] == "yes",  # type: ignore[arg-type]
        ranked=cells["ranked"] == "yes",
        group={name: cells[name] for name in (*_GROUP, "trainer") if cells[name]},
    )  # fmt: skip
    if not cells["run_model"]:
        return ScoredRun(file=cells["file"], row=row, run=None)
    recompute = tuple(name for name in cells["recompute"].split("+") if name)
    whole = {name: int(cells[name]) for name in _WHOLE}
    run = Situation(
        model=cells["run_model"], is_moe=cells["arch"] == "moe", device=cells["run_device"], release=cells["release"],
        trainer=cells["trainer"], precision=cells["run_precision"], seq_tokens=whole["seq_tokens"],
        devices=whole["devices"], micro_batch_tokens=whole["micro_batch_tokens"],
        layout=tuple(recompute if name == "recompute" else whole[name] for name in LAYOUT),
    )  # fmt: skip
    return ScoredRun(file=cells["file"], row=row, run=run)


# ---------------------------------------------------------------- what is near


@dataclass(frozen=True, kw_only=True)
class Near:
    """A measured run beside a prediction. likeness: correlation of the two errors (calibration/spread.py), 0 to 1;
    differs: what the two do not share, in words."""

    scored: ScoredRun
    likeness: float
    differs: tuple[str, ...]


_SHARED = {"model": "model", "device": "GPU", "release": "release", "precision": "precision"}


def nearest_runs(
    runs: Sequence[ScoredRun], target: Situation, new: Novelty, spread: Spread, *, count: int = 8
) -> list[Near]:  # fmt: skip
    """The scored runs whose errors tell most of a prediction's, the most telling first; one per case key.

    Where nothing correlates (another device), runs that share more names come first, then those nearer in size.
    """
    found: dict[str, tuple[tuple[Any, ...], Near]] = {}
    for each in runs:
        run = each.run
        if run is None or not each.row.scored or each.row.measure not in ("tokens_per_s_gpu", "step_s"):
            continue
        if each.row.error is None:
            continue
        likeness = spread.covariance(target, run, new, target) / spread.total(target, new)
        unlike = spread.unlike(*differences(target, run))
        shared = sum(getattr(run, name) == getattr(target, name) for name in ("model", "device", "release", "trainer"))
        order = (-likeness, -shared, run.is_moe != target.is_moe, unlike, each.row.id)
        near = Near(scored=each, likeness=min(1.0, likeness), differs=_differs(target, run))
        if each.row.key not in found or order < found[each.row.key][0]:
            found[each.row.key] = (order, near)
    return [near for _, near in sorted(found.values(), key=lambda item: item[0])[:count]]


def _differs(target: Situation, run: Situation) -> tuple[str, ...]:
    out = [said for name, said in _SHARED.items() if getattr(target, name) != getattr(run, name)]
    for name, said in (("devices", "GPUs"), ("seq_tokens", "sequence"), ("micro_batch_tokens", "micro-batch")):
        ratio = getattr(run, name) / getattr(target, name)
        if not math.isclose(ratio, 1.0):
            out.append(f"{said} × {ratio:.3g}")
    if target.layout != run.layout:
        out.append("layout")
    return tuple(out)


def shown_files() -> tuple[str, ...]:
    """Files whose rows the table holds: those of docs/accuracy-rows.md."""
    return tuple(UNITS)
