"""`moecast export`: a saved plan as the files a trainer or a scheduler reads."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hwprofiles.errors import UserError
from planner.cli import output

Text = str | None


def export(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN.json", help="File written by `moecast plan --out`.")],
    to: Annotated[
        str, typer.Option("--to", metavar="TARGET", help="megatron-lm, megatron-bridge, deepspeed, torchtitan, "
                          "accelerate, slurm or kubernetes.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder for the files; it is made.")],
    version: Annotated[Text, typer.Option("--version", metavar="V", help="Release of the target. Default: the "
                                          "newest that is written for.", show_default=False)] = None,
    rank: Annotated[str, typer.Option("--rank", metavar="N", help="Which plan of the file; 1 is the fastest.")] = "1",
    base: Annotated[Text, typer.Option("--base", metavar="TEXT", help="What the target builds on: a recipe "
                                       "(torchtitan: MODULE:FUNCTION, megatron-bridge) or an image (kubernetes).",
                                       show_default=False)] = None,
    model: Annotated[Text, typer.Option("--model", metavar="NAME|FILE", help="The model, where the plan was made "
                                        "from a file.", show_default=False)] = None,
    cluster: Annotated[Text, typer.Option("--cluster", metavar="NAME|FILE", help="The cluster, where the plan was "
                                          "made from a file.", show_default=False)] = None,
    software: Annotated[Text, typer.Option("--software", metavar="NAME|FILE", help="The trainer release, where the "
                                           "plan was made from a file.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Write a plan as launch command, configuration or batch script.

    Example: [bold]moecast export plan.json --to megatron-lm --out run[/bold]
    """
    from planner.cli.inputs import Problems
    from planner.export import export_plan, write_export
    from planner.export.handover import handover_from
    from planner.planfile import load_plan

    problems = Problems()
    place = problems.whole(rank, "--rank")
    problems.stop()
    data = load_plan(plan_file)
    try:
        asked, stale = handover_from(
            data, rank=place or 1, model=model, cluster=cluster, software=software, base=base
        )  # fmt: skip
    except UserError as error:
        raise UserError(error.problems, where=error.where or plan_file) from None
    made = export_plan(asked, to, version)
    for path in write_export(made, out):
        print(f"wrote {path}", file=sys.stderr)
    screen = output.console()
    screen.print(f"{asked.plan.label()} for {made.target} {made.version}", markup=False)
    for line in made.missing:
        screen.print(f"not expressed: {line}", markup=False)
    if stale:
        screen.print(f"warning: {stale}", markup=False)
