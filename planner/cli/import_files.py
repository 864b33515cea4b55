"""`moecast import experts`, `routing` and `weights`: maps of experts, recorded routing and checkpoints of others."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hwprofiles.errors import UserError
from planner.cli import output
from planner.cli.taking import JSON_OPTION

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
    from planner.imports.expert_map import map_text, read_map
    from planner.question.read import Problems
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


def routing(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Megatron-LM's .jsonl logs or their folder, "
                                               "SGLang's counts as .json, or .csv, .parquet, .npz, .npy.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The CSV of counts to write.")],
    model: Annotated[Text, typer.Option("--model", metavar="NAME|FILE", help="The model that ran (required for logs).",
                                        show_default=False)] = None,
    plan: Annotated[Text, typer.Option("--plan", metavar="PLAN.json", help="The plan that ran, for logs of a run with "
                                       "pipeline stages.", show_default=False)] = None,
    rank: Annotated[str, typer.Option("--rank", metavar="N", help="Which plan of that file.")] = "1",
    tokens: Annotated[Text, typer.Option("--tokens", metavar="FILE", help="Also write the experts of single tokens, of "
                                         "a routing trace.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Make what `--routing` and `place --loads` read of recorded routing.

    Example: [bold]moecast import routing traces/ --model Qwen3-30B-A3B --out counts.csv[/bold]
    """
    output.check_targets(out=out, tokens=tokens)
    from planner.imports.routing import import_routing, plan_of
    from planner.question.read import Problems
    from sim.families import load_model

    problems = Problems()
    number = problems.whole(rank, "--rank")
    spec = None if model is None else problems.attempt(lambda: load_model(model))
    ran = None if plan is None else problems.attempt(lambda: plan_of(plan, number or 1))
    problems.stop()
    made = import_routing(files, model=spec, plan=ran)
    output.write_text(out, made.text(), "--out")
    if tokens is not None:
        if made.tokens is None:
            raise UserError("the files have counts, not single tokens; leave it out", where="--tokens")
        output.write_text(tokens, made.tokens.trace_text(), "--tokens")
    screen = output.console()
    experts = len(next(iter(made.counts.values())))
    total = sum(float(row.sum()) for row in made.counts.values())
    screen.print(f"{made.kind}: {len(made.counts)} layers of {experts} experts, {total:,.0f} choices", markup=False)
    for note in made.notes:
        screen.print(f"note: {note}", markup=False)
    output.say_written(out=out, tokens=tokens)


def weights(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint's folder, .safetensors file, or "
                                        "model.safetensors.index.json.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME|FILE", help="The model it is of.")],
    json: Annotated[Text, JSON_OPTION] = None,
) -> None:  # fmt: skip
    """Compare the exact sizes of a checkpoint with those of the model's description; weights are not read.

    Example: [bold]moecast import weights path/to/checkpoint --model Qwen3-30B-A3B[/bold]
    """
    output.check_targets(json=json)
    from planner.imports.weights import read_weights
    from sim.families import load_model

    found = read_weights(path, load_model(model))
    if json:
        output.write_text(json, output.json_text(found.to_json()), "--json")
    if json == output.STDOUT:
        return
    screen = output.console()
    for part, expected in found.model_params.items():
        has = f"{found.params[part]:,}" if part in found.params else "not known"
        screen.print(f"{part}: {has}; the model {expected:,}", markup=False)
    screen.print(f"{found.tensors:,} tensors, {found.bytes:,} bytes", markup=False)
    for note in found.notes:
        screen.print(f"note: {note}", markup=False)
    if found.params and not found.notes:
        screen.print("every size is that of the model", markup=False)
