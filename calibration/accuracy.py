"""Score the simulator on every shipped published run, and write docs/accuracy.md from it.

`python -m calibration.accuracy` predicts all rows on all cores, refits the whole-run parameters without each
model, device and release in turn (calibration/leftout.py), writes the intervals that follow
(hwprofiles/fitted/intervals.toml), the scores (scored_runs.csv beside them), and the pages. Same inputs, same bytes: no
time, no date of today.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from calibration import intervals
from calibration.accuracy_kernels import kernel_section
from calibration.accuracy_network import network_section
from calibration.case import Case, Unusable
from calibration.distances import Distances, Known, calibrate, situation_of
from calibration.leftout import Effects, Refit, effects, log_rate
from calibration.parameters import priors, shipped
from calibration.published_files import published
from calibration.runs import read_cases
from calibration.score import cases_of
from calibration.scored import ScoredRun, shown_files, write_scores
from calibration.validate import Row, predict, with_measured
from hwprofiles.catalogue import device_of
from sim.interval import forget, interval, novelty, peak_interval
from sim.model import train_flop_per_token
from sim.plan import Plan

RUNS = "training_runs.csv"
FOLDING = "parallel_folding.csv"
FILES = (
    RUNS, FOLDING, "vtrain_measured_multi.csv", "calculon_megatron_a100_time.csv", "megatron_b200_one_node.csv",
    "calculon_megatron_a100_memory.csv", "memory_feasibility.csv", "vtrain_measured_single.csv",
)  # fmt: skip
LEFT_OUT = ("model", "gpu", "release")
ROOT = Path(__file__).resolve().parents[1]

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Everything the pages are made of.

    rows: by file. left_out: by what was left out ("nothing" = refitted on all), the cases as the refitted
    parameters predict them. refits: the values of each refit by group. ideal: tokens/s/GPU at 100 % MFU by case
    key. distances: intervals by class of distance and what anchors gain (None: not made). kernels: the sections on
    kernels and the closed loop, and on network, dispatch and uneven experts, as paragraphs.
    """

    rows: Mapping[str, Sequence[Row]]
    left_out: Mapping[str, Sequence[Row]]
    refits: Mapping[str, Mapping[str, Mapping[str, float]]]
    ideal: Mapping[str, float]
    distances: Distances | None = None
    kernels: Sequence[str] = ()


@cache
def cases(file: str) -> tuple[Case | Unusable, ...]:
    """Cases of a shipped file, read once per process."""
    return tuple(read_cases(published(file)))


def _predict(job: tuple[str, int, bool]) -> tuple[Row, Effects | None, Plan | None]:
    file, index, ladders = job
    case = cases(file)[index]
    if isinstance(case, Unusable):
        return Row(id=case.id, status=case.status, reason=case.reason, group=case.group), None, None
    row, report = predict(case)
    found = effects(case, report.plan) if ladders and report is not None else None
    return with_measured(row, case), found, None if report is None else report.plan


def _rate(job: tuple[int, Plan, Mapping[str, float]]) -> float:
    index, plan, values = job
    case = cases(RUNS)[index]
    assert isinstance(case, Case)
    return log_rate(case, plan, values)


def first_of_each_case(file: str) -> set[int]:
    """Index of the first scored row of every case key."""
    seen: dict[str, int] = {}
    for i, case in enumerate(cases(file)):
        if isinstance(case, Case) and case.scored and case.measured:
            seen.setdefault(case.weight_key, i)
    return set(seen.values())


def with_interval(row: Row, case: Case | Unusable) -> Row:
    """The row with its bounds as intervals.toml has them now."""
    if isinstance(case, Unusable) or row.predicted is None or row.measure == "fits":
        return row
    if row.measure == "peak_bytes":
        peak = peak_interval(row.predicted)
        return replace(row, low=peak.low, high=peak.high)
    device = device_of(case.cluster)
    row = replace(row, group={**row.group, "distance": novelty(case.model.name, device, case.software).distance})
    one = interval(1.0, model=case.model.name, is_moe=case.model.is_moe, device=device, software=case.software)
    assert row.predicted is not None
    if row.measure == "step_s":
        return replace(row, low=row.predicted * one.low, high=row.predicted * one.high)
    return replace(row, low=row.predicted / one.high, high=row.predicted / one.low)


def score(files: Sequence[str] = FILES, *, note: Note | None = None, target: Path | None = None) -> Scored:
    """Predict, leave out, calibrate the intervals (written to `target` or the shipped file), write the scores beside.

    Raises UserError where a shipped file is damaged.
    """
    say = note or (lambda text: None)
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        rows: dict[str, list[Row]] = {}
        known: dict[int, tuple[Effects, Plan]] = {}
        plans: dict[str, list[Plan | None]] = {}
        for file in files:
            say(f"predicting {file}: {len(cases(file))} rows")
            first = first_of_each_case(file) if file == RUNS else set()
            got = list(pool.map(_predict, [(file, i, i in first) for i in range(len(cases(file)))], chunksize=4))
            rows[file], plans[file] = [row for row, _, _ in got], [plan for _, _, plan in got]
            known |= {i: (e, p) for i, (_, e, p) in enumerate(got) if e is not None and p is not None}
        say("leaving out models, devices and releases")
        left_out, refits = _leave_out(pool, known, cases_of(rows[RUNS]))
    by_key = {c.weight_key: c for c in cases(RUNS) if isinstance(c, Case)}
    say("fitting and predicting what was measured on our own devices")
    kernels = [*kernel_section(), *network_section()]
    found = [Known(case=_case(i), effects=e, plan=p) for i, (e, p) in known.items()]
    other = [
        (row, case)
        for file in files
        for row, case in zip(rows[file], cases(file), strict=True)
        if isinstance(case, Case) and (file != RUNS or row.measure == "peak_bytes")
    ]
    distances = calibrate(found, other, rows[RUNS], date=newest(), target=target or intervals.path())
    if target is None:
        forget()
    rows = {f: [with_interval(r, c) for r, c in zip(rs, cases(f), strict=True)] for f, rs in rows.items()}
    runs = [each for f in shown_files() if f in rows for each in scored_runs(f, rows[f], plans[f])]
    write_scores(runs, (target or intervals.path()).parent, date=newest())
    return Scored(
        rows=rows, left_out=left_out, refits=refits, distances=distances,
        ideal={key: ideal_rate(case) for key, case in by_key.items()}, kernels=kernels,
    )  # fmt: skip


def scored_runs(file: str, rows: Sequence[Row], plans: Sequence[Plan | None]) -> list[ScoredRun]:
    """Rows of a shipped file with what each run was; plans: as they were predicted with."""
    return [
        ScoredRun(
            file=file, row=row,
            run=situation_of(case, plan) if isinstance(case, Case) and plan is not None else None,
        )
        for row, case, plan in zip(rows, cases(file), plans, strict=True)
    ]  # fmt: skip


def _case(index: int) -> Case:
    case = cases(RUNS)[index]
    assert isinstance(case, Case)
    return case


def _leave_out(
    pool: Executor, known: Mapping[int, tuple[Effects, Plan]], scored: Sequence[Row]
) -> tuple[dict[str, list[Row]], dict[str, dict[str, dict[str, float]]]]:
    found = [e for e, _ in known.values()]
    refit = Refit(found, priors({e.folder for e in found}))
    by_key = {row.key: row for row in scored}
    everything = refit.fit(lambda _: True)
    left_out: dict[str, list[Row]] = {}
    refits: dict[str, dict[str, dict[str, float]]] = {}
    for by in ("nothing", *LEFT_OUT):
        values = [everything for _ in found] if by == "nothing" else refit.left_out(by)
        refits[by] = {e.groups.get(by, ""): v for e, v in zip(found, values, strict=True)}
        base = [(i, p, shipped(e.folder)) for i, (e, p) in known.items()]
        before = [e.error + math.log(_measured(i)) for i, (e, _) in known.items()]
        after = pool.map(_rate, [(i, p, v) for (i, p, _), v in zip(base, values, strict=True)], chunksize=4)
        left_out[by] = [
            _shifted(by_key[e.key], math.exp(new - old)) for e, old, new in zip(found, before, after, strict=True)
        ]
    return left_out, refits


def _measured(index: int) -> float:
    case = cases(RUNS)[index]
    assert isinstance(case, Case) and case.measured is not None
    return case.measured


def _shifted(row: Row, factor: float) -> Row:
    assert row.predicted is not None and row.measured is not None
    predicted = row.predicted * factor
    return replace(row, predicted=predicted, error=predicted / row.measured - 1.0, low=None, high=None)


def ideal_rate(case: Case) -> float:
    """Tokens/s/GPU at 100 % MFU: dense peak of the training precision over model FLOP per token (causal)."""
    work = case.workload
    flop = train_flop_per_token(case.model, work.seq_tokens, with_mtp=work.with_mtp)
    return device_of(case.cluster).peak_flop_per_s[work.precision] / flop


def newest() -> str:
    """Date of the newest shipped training run."""
    with published(RUNS).open(encoding="utf-8", newline="") as file:
        return max(row["date"] for row in csv.DictReader(file))


def write(scored: Scored, root: Path) -> list[Path]:
    """Write the pages and the figure under `root`/docs; returns their paths."""
    from calibration.accuracy_html import html_page
    from calibration.accuracy_page import page
    from calibration.accuracy_rows import rows_page
    from calibration.parity import parity_svg

    texts = {
        "accuracy.md": page(scored), "accuracy-rows.md": rows_page(scored.rows),
        "images/parity.svg": parity_svg(cases_of(scored.rows[RUNS])), "accuracy.html": html_page(scored),
    }  # fmt: skip
    out = []
    for name, text in texts.items():
        path = root / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        out.append(path)
    return out


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m calibration.accuracy [--out DIR]`: rewrite DIR/docs and the intervals."""
    import sys

    parser = argparse.ArgumentParser(description="Score the shipped runs; write docs/accuracy.md and the intervals.")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder that holds docs/ (default: this repository)")
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    done = score(note=lambda text: print(text, file=sys.stderr, flush=True))
    for path in write(done, options.out):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
