"""`moecast share`: several jobs on devices and money that they share, a row of its own table for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import output
from planner.cli.taking import JSON_OPTION
from planner.question.read import one_of

if TYPE_CHECKING:
    from planner.share.records import Sharing

Text = str | None


def share(
    file: Annotated[str, typer.Argument(metavar="JOBS.toml", help="What is shared, and the jobs with their rows.")],
    objective: Annotated[
        Text, typer.Option("--objective", metavar="NAME", help="throughput, makespan or cost. Default: the file's.")
    ] = None,
    json: Annotated[Text, JSON_OPTION] = None,
) -> None:
    """Choose one row for each job under the devices, the budget and the deadline that all share.

    Example: [bold]moecast share jobs.toml --objective makespan[/bold]
    """
    output.check_targets(json=json)
    from planner.share.choose import share as choose
    from planner.share.read import read_jobs
    from planner.share.records import OBJECTIVES

    with output.progress("choosing"):
        wanted = None if objective is None else one_of(objective, OBJECTIVES, "--objective")
        found = choose(*read_jobs(file, wanted))
    if json:
        output.write_text(json, output.json_text(found.to_json()), "--json")
    if json != output.STDOUT:
        print_sharing(found)
        output.say_written(json=json)


def print_sharing(found: Sharing) -> None:
    """The row of each job, what is used of what is shared, and the proof."""
    from planner.cli.tables import grid

    screen = output.console()
    rows = []
    for job, row in zip(found.jobs, found.rows, strict=True):
        if row is None:
            rows.append((job.name, "left out", "", "", "", "", f"{len(job.rows)}"))
            continue
        usd = "" if row.usd is None else f"{row.usd:,.0f}"
        rows.append((job.name, row.label, row.pool, f"{row.devices:,}", f"{row.time_s / 86400:.4g}", usd,
                     f"{len(job.rows)}"))  # fmt: skip
    headers = ("job", "row", "pool", "# devices", "days", "USD", "rows")
    screen.print(grid(f"Shared (objective: {found.shared.objective})", headers, rows, left=("row", "pool")))
    limits = [
        f"{used:,} of {found.shared.devices[pool]:,} devices{f' of {pool}' if pool else ''}"
        for pool, used in found.devices.items() if found.shared.devices is not None
    ]  # fmt: skip
    if found.usd is not None:
        budget = found.shared.budget_usd
        limits.append(f"{found.usd:,.0f}{'' if budget is None else f' of {budget:,.0f}'} USD")
    limits.append(f"the last job ends after {found.time_s / 86400:.4g} days")
    screen.print("\n" + ", ".join(limits))
    greedy = "found nothing" if found.greedy is None else f"reaches {found.greedy:.6g}"
    screen.print(
        f"value {found.value:.6g}, bound {found.bound:.6g}, gap {found.gap:.2e}, {found.status}; "
        f"the simple choice {greedy}"
    )
