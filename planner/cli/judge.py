"""`moecast judge`: what a script or configuration asks for, its gap to the best, the one change that helps most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import output
from planner.cli.taking import JSON_OPTION

if TYPE_CHECKING:
    from planner.judge import Judgement
    from sim.plan import Plan

Text = str | None


def judge(
    script: Annotated[str, typer.Argument(metavar="FILE", help="Launch script with Megatron-LM's flags, "
                                         "Megatron-Bridge YAML, or DeepSpeed JSON.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME|FILE", help="The model it trains.")],
    cluster: Annotated[str, typer.Option("--cluster", metavar="NAME|FILE", help="The cluster it runs on.")],
    gpus: Annotated[Text, typer.Option("--gpus", metavar="N", help="Devices. Default: what its torchrun line says, or "
                                       "the cluster's own.", show_default=False)] = None,
    software: Annotated[str, typer.Option("--software", metavar="NAME|FILE", help="Release whose other switches "
                                          "hold.")] = "megatron-lm",
    routing: Annotated[str, typer.Option("--routing", metavar="LAW|FILE", help="Popularity of experts, as in "
                                         "`plan`.")] = "balanced",
    seq_len: Annotated[Text, typer.Option("--seq-len", metavar="N", help="Tokens of a sequence, for a DeepSpeed JSON, "
                                          "which does not say.", show_default=False)] = None,
    json: Annotated[Text, JSON_OPTION] = None,
) -> None:  # fmt: skip
    """Predict a launch script's step, its gap to the best plan, and the single change that helps most.

    Example: [bold]moecast judge run.sh --model Qwen3-30B-A3B --cluster dgx-h100[/bold]
    """
    output.check_targets(json=json)
    with output.progress("reading") as bar:
        from hwprofiles import catalogue
        from planner.imports.launch import devices_of, read_any, slurm_notes
        from planner.judge import judge as judged
        from planner.question.read import Problems
        from sim.families import load_model
        from sim.routing import parse_routing, resolve
        from sim.scenario import Scenario

        problems = Problems()
        devices = problems.whole(gpus, "--gpus")
        tokens = problems.whole(seq_len, "--seq-len")
        spec = problems.attempt(lambda: load_model(model))
        if gpus is None:
            devices = problems.attempt(lambda: devices_of(script) or 0) or None
        machines = problems.attempt(lambda: catalogue.cluster(cluster, gpus=devices))
        problems.stop()
        assert spec is not None and machines is not None
        arch = "moe" if spec.is_moe else "dense"
        profile = catalogue.software(software, device=machines.device, model=spec.name, arch=arch)
        launch = read_any(script, spec, profile, machines.num_devices, tokens)
        loads = resolve(parse_routing(routing), spec, seed=0)
        notes = [*launch.notes, *slurm_notes(script, machines)]
        if devices is None:
            notes.insert(0, f"devices: the file does not say; all {machines.num_devices} of the cluster (give --gpus)")
        bar.update("comparing with the best plan")
        scenario = Scenario(
            model=spec, cluster=machines, software=launch.software, workload=launch.workload, plan=launch.plan,
            routing=loads, ranks=launch.ranks,
        )  # fmt: skip
        result = judged(scenario, target=launch.target, notes=tuple(notes))
    if json:
        output.write_text(json, output.json_text(result.to_json()), "--json")
    if json != output.STDOUT:
        _print(result)


def _print(result: Judgement) -> None:
    screen = output.console()
    given, best = result.given, result.best.plans[0].report

    def say(text: str) -> None:
        screen.print(text, markup=False)

    def step(report: object) -> str:
        estimate = report.step_s  # type: ignore[attr-defined]
        return f"{estimate.value:.4g} s ({estimate.low:.4g} to {estimate.high:.4g})"

    say(f"given  {given.plan.label()}  {step(given)}" + ("" if given.fits else "  DOES NOT FIT in memory"))
    say(f"best   {best.plan.label()}  {step(best)}  recompute {', '.join(best.plan.recompute) or 'none'}")
    say(f"gap    {gap_text(result.gap, given.plan)}")
    if result.changes:
        for at, one in enumerate(result.changes[:4]):
            of = "" if at else " of the step saved"
            what = f"{one.gain:+.1%}{of}" if given.fits else "fits in memory"
            after = "" if at else f" ({one.label})"
            say(f"{'   or ' if at else 'change'} {one.change}: {one.step_s:.4g} s, {what}{after}")
    else:
        say(f"change none of {result.tried} single changes helps")
    if result.changes and result.changes[0].step_s < best.step_s.value:
        say("note   best has the switches that the file sets; the change turns on another")
    for note in result.notes:
        say(f"note   {note}")


def gap_text(gap: float, plan: Plan) -> str:
    """The gap of a given plan in words: where that is the faster one, what the search did not cover."""
    if gap >= 0:
        return f"{gap:.1%} slower than the best plan"
    uneven = " with even stages" if plan.stages is not None else ""
    return f"{-gap:.1%} faster than the best layout{uneven} found"
