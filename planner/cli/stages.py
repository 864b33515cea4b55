"""`moecast stages`: layers to pipeline stages, recompute and offload of one layout, proved, beside even stages."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from planner.cli import output
from planner.cli.taking import takes
from planner.question.read import Problems, read_plan, read_question, scenario_of
from planner.question.space import AskedStages

if TYPE_CHECKING:
    from planner.stage_plan.answer import StageAnswer, Step
    from planner.stage_plan.records import Setting, StageSolution

_NOT_HERE = ("trace", "trace_lanes", "report", "anchor", "top", "out")


@takes(AskedStages)
def stages(asked: AskedStages) -> None:
    """Choose the layers of every pipeline stage, recompute and offload of one layout; degrees that are left out are 1.

    Example: [bold]moecast stages --model deepseek-v3 --cluster dgx-h100 --gpus 2048 --pp 16 --ep 32[/bold]
    """
    output.check_targets(json=asked.json)
    problems = Problems()
    default = {item.name: item.default for item in fields(AskedStages)}
    given = [name for name in _NOT_HERE if getattr(asked, name) != default[name]]
    problems.found += [f"--{name.replace('_', '-')} is not for stages; leave it out" for name in given]
    problems.stop()
    with output.progress("reading") as bar:
        question = read_question(asked)
        plan = read_plan(question)
        scenario = scenario_of(question, plan, question.ranks[0])
        from planner.stage_plan.answer import best_stages
        from planner.stage_plan.settings import settings_of

        names = [] if asked.search is None else [name.strip() for name in asked.search.split(",")]
        tried = settings_of(scenario, names, recompute=question.fixed.get("recompute"))
        answer = best_stages(scenario, target=question.target, tried=tried, seed=question.seed, progress=bar.update)
    if asked.strict:
        output.refuse_weak([answer.after])
    if asked.json:
        asked_of = {"model": scenario.model.name, "cluster": scenario.cluster.name, "devices": plan.num_devices}
        output.write_text(asked.json, output.json_text(asked_of | answer.to_json()), "--json")
    if asked.json != output.STDOUT:
        print_answer(answer)
        output.say_written(json=asked.json)


def print_answer(answer: StageAnswer) -> None:
    """The chosen stages, the proof, and the steps."""
    from planner.cli.tables import grid

    screen = output.console()
    screen.print(answer.after.plan.label(), markup=False, style="bold")
    screen.print(f"stages {answer.after.pipeline_layout}", markup=False)
    what = "one setting, virtual stages alike" if answer.alike else "one setting for all stages"
    rows = [_row(what, answer.together, answer.searched)]
    if answer.kept is not None:
        rows.append(_row("the same without offload", answer.kept, answer.searched))
    if answer.apart is not None:
        rows.append(_row("a setting per stage", answer.apart, answer.searched))
    screen.print()
    named = "recompute; offload" if answer.searched else "recompute"
    headers = (named, "layers of each stage", "objective", "bound", "gap", "status")
    screen.print(grid("Closed form", headers, rows, left=("layers of each stage", "status")))
    steps = [("even stages", answer.even), ("chosen stages", answer.chosen)]
    if answer.kept is not None:
        steps.append(("chosen without offload", answer.kept_step))
    screen.print()
    lines = [_step(*each, answer.searched) for each in steps]
    screen.print(grid("Simulated", ("step of", "time", "peak memory", named), lines))
    if answer.searched:
        _print_settings(answer)
    if answer.better and answer.before is not None:
        gain = 1.0 - answer.after.step_s.value / answer.before.step_s.value
        screen.print(f"\nThe chosen stages take {gain:.1%} less time than even ones.")
    elif answer.better:
        screen.print("\nEven stages do not fit; the chosen ones do.")
    else:
        screen.print("\nKeep even stages: the simulated step of the chosen ones is not shorter.")
    if answer.searched:
        screen.print(_gain(answer))
    if answer.apart is not None and answer.apart.choice and len(set(answer.apart.choice.settings)) > 1:
        what = "recompute and offload" if answer.searched else "recompute"
        screen.print(f"A setting per stage is what {what} could still give: a plan has one for all stages.")


def _print_settings(answer: StageAnswer) -> None:
    """Layers, recompute and offload stage by stage, where each has its own."""
    choice = None if answer.apart is None else answer.apart.choice
    if choice is None or len(set(choice.settings)) == 1:
        return
    from planner.cli.tables import grid

    both = zip(choice.counts, choice.settings, strict=True)
    rows = [
        (str(at), str(count), ", ".join(s.recompute) or "none", ", ".join(s.offload or ()) or "none")
        for at, (count, s) in enumerate(both)
    ]
    screen = output.console()
    screen.print()
    headers = ("stage", "layers", "recompute", "offload")
    screen.print(grid("A setting per stage", headers, rows, left=("recompute", "offload")))


def _gain(answer: StageAnswer) -> str:
    """What offload gives with one setting for all stages."""
    if not any(each.offload for each in answer.options):
        return "No offload was a choice: the target runs none, or what it would send is recomputed."
    choice = answer.together.choice
    if choice is None or not choice.offloads:
        if answer.apart is not None and answer.apart.choice and answer.apart.choice.offloads:
            return "With one setting for all stages offload gains nothing; with a setting per stage some gain by it."
        return "Offload gains nothing here: the fastest stages send no activations to the host."
    if answer.kept_step is None or not answer.kept_step.report.fits:
        return "Without offload no stages fit."
    less = 1.0 - answer.after.step_s.value / answer.kept_step.report.step_s.value
    if not answer.after.fits or less <= 0.0:
        return "Offload gains in the closed form alone: the simulated step without it is not longer."
    return f"Offload takes {less:.1%} off the simulated step of chosen stages."


def _row(name: str, solution: StageSolution, searched: bool) -> tuple[str, ...]:
    choice = solution.choice
    if choice is None or solution.bound_s is None or solution.gap is None:
        return (name, "", "", "", "", solution.status)
    settings = sorted({_text(each, searched) for each in choice.settings})
    from dashboards.style import seconds_text

    return (
        f"{name}: {' | '.join(settings)}", " ".join(str(n) for n in choice.counts), seconds_text(choice.objective_s),
        seconds_text(solution.bound_s), f"{solution.gap:.2e}", solution.status,
    )  # fmt: skip


def _text(setting: Setting, searched: bool) -> str:
    recompute = ", ".join(setting.recompute) or "none"
    return f"{recompute}; {', '.join(setting.offload or ()) or 'none'}" if searched else recompute


def _step(name: str, made: Step | None, searched: bool) -> tuple[str, ...]:
    from dashboards.style import seconds_text

    if made is None:
        return (name, "does not fit", "", "")
    report = made.report
    peak = f"{report.peak_mem_bytes / 2**30:.1f} GiB" + ("" if report.fits else " (does not fit)")
    return (name, seconds_text(report.step_s.value), peak, _text(made.setting, searched))
