"""`moecast sweep`: every case of a study file, on all processors, into a database that survives a kill."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import output
from planner.cli.taking import JSON_OPTION

if TYPE_CHECKING:
    from planner.study.spec import Study
    from planner.study.work import Outcome

Text = str | None
ERRORS_SHOWN = 5


def sweep(
    study_file: Annotated[str, typer.Argument(metavar="STUDY.toml", help="Cases: a grid, a list, or both.")],
    db: Annotated[Text, typer.Option("--db", metavar="FILE", help="Database of results. Default: STUDY.db beside it.",
                                     show_default=False)] = None,
    jobs: Annotated[Text, typer.Option("--jobs", metavar="N", help="Processes. Default: all processors.",
                                       show_default=False)] = None,
    scheduler: Annotated[Text, typer.Option("--scheduler", metavar="ADDRESS", help="Run on a Dask cluster, such as "
                                            "tcp://host:8786.", show_default=False)] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Ask cases again whose row is an error.")] = False,
    export: Annotated[Text, typer.Option("--export", metavar="FILE", help="Write all rows as .csv or .parquet.",
                                         show_default=False)] = None,
    json: Annotated[str | None, JSON_OPTION] = None,
) -> None:  # fmt: skip
    """Ask every case of a study that has no answer yet; the same command goes on where it was stopped.

    Example: [bold]moecast sweep study.toml --export study.csv[/bold]
    """
    output.check_targets(json=json, export=export, db=db)
    from planner.cli.sweep_case import WORK
    from planner.question.case import OPTIONS
    from planner.question.read import Problems
    from planner.study.export import check_format, write_table
    from planner.study.pools import on_dask, on_this_machine
    from planner.study.spec import read_study
    from planner.study.store import writing
    from planner.study.work import run_study, table_of

    problems = Problems()
    count = problems.whole(jobs, "--jobs", highest=1024)
    if export is not None:
        of = export
        problems.attempt(lambda: check_format(of))
    problems.stop()
    study = read_study(study_file, OPTIONS)
    base = db or str(Path(study_file).with_suffix(".db"))
    pool = partial(on_dask, address=scheduler) if scheduler else partial(on_this_machine, jobs=count or processors())
    with writing(base) as store, output.progress("reading the study") as bar:

        def tell(done: int, total: int, failed: int, left_s: float | None) -> None:
            bad = f", {failed} failed" if failed else ""
            bar.update(f"{done:,} of {total:,} cases{bad}{_left(left_s)}", done, total)

        outcome = run_study(study, store, WORK[study.verb], pool, retry=retry, progress=tell)
        rows = table_of(study, store)
    if export:
        write_table(rows, export)
    data = summary(study, outcome, base)
    if json:
        output.write_text(json, output.json_text(data | {"rows": rows}), "--json")
    if json != output.STDOUT:
        print_study(study, data, rows)
        output.say_written(json=json, export=export)
    if outcome.stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(output.INTERRUPTED)


def processors() -> int:
    """Processors this process may use."""
    import os

    return len(os.sched_getaffinity(0))


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f", ETA {hours}:{minutes:02d}:{rest:02d}" if hours else f", ETA {minutes}:{rest:02d}"


def summary(study: Study, outcome: Outcome, base: str) -> dict[str, Any]:
    """What became of a study, as JSON."""
    return {
        "study": study.name, "verb": study.verb, "cases": len(outcome.digests), "status": outcome.status,
        "asked": outcome.asked, "missing": outcome.missing, "differences": outcome.differences, "db": base,
    }  # fmt: skip


def print_study(study: Study, data: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Counts by status, the fastest rows, and the first errors."""
    from planner.cli.tables import grid, notes

    screen = output.console()
    counts = data["status"] | ({"missing": data["missing"]} if data["missing"] else {})
    said = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    screen.print(f"{study.name}: {data['cases']:,} cases, {data['asked']:,} asked now: {said}; {data['db']}",
                 markup=False)  # fmt: skip
    best = sorted((r for r in rows if r.get("fits")), key=lambda r: (-float(r["tokens_per_s_per_gpu"]), r["digest"]))
    if best:
        headers = (*study.varied, "plan", "step s", "tokens/s per GPU", "peak GiB")
        shown = [
            (*(str(r.get(f"ask.{name}")) for name in study.varied), r["label"], f"{r['step_s']:.4g}",
             f"{r['tokens_per_s_per_gpu']:,.0f}", f"{r['peak_mem_bytes'] / 2**30:.1f}")
            for r in best[:10]
        ]  # fmt: skip
        screen.print()
        screen.print(grid("Most tokens per second and GPU", headers, shown, left=(*study.varied, "plan")))
    notes(screen, "Errors", errors_of(study, rows), ERRORS_SHOWN)


def errors_of(study: Study, rows: list[dict[str, Any]]) -> list[str]:
    """Each error once, with the first of the cases that it befell and how many more."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "error":
            found.setdefault(row["error"], []).append(row)
    return [
        f"{case_text(study, befell[0])}{f' and {len(befell) - 1:,} more' if len(befell) > 1 else ''}: {error}"
        for error, befell in found.items()
    ]


def case_text(study: Study, row: dict[str, Any]) -> str:
    """What tells a case from the others of its study."""
    return ", ".join(f"{name}={row[f'ask.{name}']}" for name in study.varied)
