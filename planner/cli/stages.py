"""`moecast stages`: layers to pipeline stages and recompute of one layout, proved, beside even stages."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from planner.cli import output
from planner.cli.taking import takes_question
from planner.question.asked import Asked
from planner.question.read import Problems, read_plan, read_question, scenario_of

if TYPE_CHECKING:
    from planner.stage_plan.answer import StageAnswer
    from planner.stage_plan.records import StageSolution
    from sim.report import Report

_NOT_HERE = ("trace", "trace_lanes", "report", "anchor", "top", "out")


@takes_question
def stages(asked: Asked) -> None:
    """Choose the layers of every pipeline stage, and recompute, of one layout; degrees that are left out are 1.

    Example: [bold]moecast stages --model deepseek-v3 --cluster dgx-h100 --gpus 2048 --pp 16 --ep 32[/bold]
    """
    output.check_targets(json=asked.json)
    problems = Problems()
    default = {item.name: item.default for item in fields(Asked)}
    given = [name for name in _NOT_HERE if getattr(asked, name) != default[name]]
    problems.found += [f"--{name.replace('_', '-')} is not for stages; leave it out" for name in given]
    problems.stop()
    with output.progress("reading") as bar:
        question = read_question(asked)
        plan = read_plan(question)
        scenario = scenario_of(question, plan, question.ranks[0])
        from planner.stage_plan.answer import best_stages

        answer = best_stages(
            scenario, target=question.target, recompute=question.fixed.get("recompute"), seed=question.seed,
            progress=bar.update,
        )  # fmt: skip
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
    rows = [_row("one setting for all stages", answer.together)]
    if answer.apart is not None:
        rows.append(_row("a setting per stage", answer.apart))
    screen.print()
    headers = ("recompute", "layers of each stage", "objective", "bound", "gap", "status")
    screen.print(grid("Closed form", headers, rows, left=("layers of each stage", "status")))
    both = [("even stages", answer.before), ("chosen stages", answer.after)]
    screen.print()
    screen.print(grid("Simulated", ("step of", "time", "peak memory", "recompute"), [_step(*each) for each in both]))
    if answer.better and answer.before is not None:
        gain = 1.0 - answer.after.step_s.value / answer.before.step_s.value
        screen.print(f"\nThe chosen stages take {gain:.1%} less time than even ones.")
    elif answer.better:
        screen.print("\nEven stages do not fit; the chosen ones do.")
    else:
        screen.print("\nKeep even stages: the simulated step of the chosen ones is not shorter.")
    if answer.apart is not None and answer.apart.choice and len(set(answer.apart.choice.recompute)) > 1:
        screen.print("A setting per stage is what recompute could still give: a plan has one for all stages.")


def _row(name: str, solution: StageSolution) -> tuple[str, ...]:
    choice = solution.choice
    if choice is None or solution.bound_s is None or solution.gap is None:
        return (name, "", "", "", "", solution.status)
    settings = sorted({", ".join(each) or "none" for each in choice.recompute})
    from dashboards.style import seconds_text

    return (
        f"{name}: {' | '.join(settings)}", " ".join(str(n) for n in choice.counts), seconds_text(choice.objective_s),
        seconds_text(solution.bound_s), f"{solution.gap:.2e}", solution.status,
    )  # fmt: skip


def _step(name: str, report: Report | None) -> tuple[str, ...]:
    from dashboards.style import seconds_text

    if report is None:
        return (name, "does not fit", "", "")
    peak = f"{report.peak_mem_bytes / 2**30:.1f} GiB" + ("" if report.fits else " (does not fit)")
    return (name, seconds_text(report.step_s.value), peak, ", ".join(report.plan.recompute) or "none")
