"""`moecast import experts`: a server's map of experts as a placement."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from planner.cli import output

Text = str | None


def experts(
    file: Annotated[str, typer.Argument(metavar="MAP.json", help="SGLang's --init-expert-location.")],
    gpus: Annotated[str, typer.Option("--gpus", metavar="N", help="Expert-parallel ranks it is for.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The placement to write.")],
    model: Annotated[Text, typer.Option("--model", metavar="NAME|FILE", help="Keeps its layers with experts. Default: "
                                        "all rows.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Make a placement file of SGLang's map of experts.

    Example: [bold]moecast import experts map.json --gpus 16 --model DeepSeek-V3 --out placement.json[/bold]
    """
    output.check_targets(out=out)
    from planner.cli.inputs import Problems
    from planner.imports.expert_map import map_text, read_map
    from sim.families import load_model

    problems = Problems()
    ranks = problems.whole(gpus, "--gpus", highest=100_000)
    spec = None if model is None else problems.attempt(lambda: load_model(model))
    problems.stop()
    placement, layers = read_map(file, ranks or 1, spec)
    output.write_text(out, map_text(placement, layers, file), "--out")
    shape = placement.experts.shape
    output.console().print(f"{shape[0]} layers, {shape[1]} GPUs of {shape[2]} slots", markup=False)
    print(f"wrote {out}", file=sys.stderr)
