"""`moecast export`: a saved plan, or a placement of experts, as the files that others read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hwprofiles.errors import UserError
from planner.cli import output

if TYPE_CHECKING:
    from planner.export import Export

Text = str | None


def export(
    plan_file: Annotated[str, typer.Argument(metavar="FILE", help="Written by `moecast plan --out`, or `moecast place "
                                            "--out` for maps of experts.")],
    to: Annotated[
        str, typer.Option("--to", metavar="TARGET", help="megatron-lm, megatron-bridge, deepspeed, torchtitan, "
                          "accelerate, slurm or kubernetes; of a placement: sglang, tensorrt-llm or permutation.")
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
    """Write a plan as launch command, configuration or batch script, or a placement as a map of experts.

    Example: [bold]moecast export plan.json --to megatron-lm --out run[/bold]
    """
    from planner.export import export_plan
    from planner.export.expert_map import MAPS
    from planner.export.handover import handover_from
    from planner.planfile import load_plan
    from planner.question.read import Problems

    problems = Problems()
    place = problems.whole(rank, "--rank")
    problems.stop()
    if to in MAPS:
        _say(*_placed(plan_file, to, model), out, "")
        return
    data = load_plan(plan_file)
    try:
        asked, stale = handover_from(
            data, rank=place or 1, model=model, cluster=cluster, software=software, base=base
        )  # fmt: skip
    except UserError as error:
        raise UserError(error.problems, where=error.where or plan_file) from None
    _say(export_plan(asked, to, version), asked.plan.label(), out, stale)


def _placed(file: str, to: str, model: str | None) -> tuple[Export, str]:
    """(the map of a placement file, what it is of)."""
    from planner.export.expert_map import MAPS, PlacedModel
    from planner.placement.placefile import load_placed
    from sim.families import load_model

    placement, layers, named = load_placed(file)
    model = model or named
    if model is None:
        raise UserError("a placement names no model; give --model", where="--model")
    asked = PlacedModel(model=load_model(model), placement=placement, layers=layers)
    return MAPS[to](asked), f"{len(layers)} layers on {asked.gpus} GPUs"


def _say(made: Export, what: str, out: str, stale: str) -> None:
    from planner.export import write_export

    for path in write_export(made, out):
        print(f"wrote {path}", file=sys.stderr)
    screen = output.console()
    screen.print(f"{what} for {made.target} {made.version}", markup=False)
    for line in made.missing:
        screen.print(f"not expressed: {line}", markup=False)
    if stale:
        screen.print(f"warning: {stale}", markup=False)
