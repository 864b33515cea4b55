"""`moecast plan`: the fastest layouts of a model on a cluster, ranked, with what was ruled out and why."""

from __future__ import annotations

import sys
from dataclasses import replace

import typer

from hwprofiles.errors import NoPlanError
from planner.cli import anchoring, output
from planner.cli.inputs import read_question, scenario_of, with_timeline
from planner.cli.options import Asked, takes_question


@takes_question
def plan(asked: Asked) -> None:
    """Find the fastest layouts that fit, best first.

    Example: [bold]moecast plan --model qwen3-235b-a22b --cluster dgx-h100 --gpus 128[/bold]
    """
    output.check_targets(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    with output.progress("reading") as bar:
        question = read_question(asked)
        anchors = anchoring.read(asked.anchor, bar)
        from planner.cli import tables
        from planner.planfile import plan_json, save_plan
        from planner.scaled import scaled
        from planner.search import find_plans
        from sim.imbalance import with_imbalance

        try:
            result = find_plans(
                question.model,
                question.cluster,
                question.software,
                question.workload,
                fixed=question.fixed,
                target=question.target,
                top=question.top,
                progress=bar.update,
                seed=question.seed,
                routing=question.routing,
                ranks=question.ranks,
            )
        except NoPlanError as error:
            if asked.json:
                nothing = {"plans": [], "error": str(error), "search": error.search}
                output.write_text(asked.json, output.json_text(nothing), "--json")
            raise
        first = result.plans[0]
        best = with_imbalance(first.report, scenario_of(question, first.report.plan, first.report.ranks))
        result = replace(result, plans=(replace(first, report=best), *result.plans[1:]))
        if anchors is not None:
            # of the first plan, for all: one factor changes no order
            result = scaled(result, anchors.of_scenario(scenario_of(question, best.plan, best.ranks)))
            best = result.plans[0].report
        data = plan_json(result)
        if asked.strict:
            output.refuse_weak(ranked.report for ranked in result.plans)
        if asked.trace or asked.report or asked.trace_lanes:
            bar.update("simulating the best plan with its timeline")
            best = with_timeline(best, scenario_of(question, best.plan, best.ranks))
    if asked.json:
        output.write_text(asked.json, output.json_text(data), "--json")
    if asked.out:
        save_plan(data, asked.out)
    output.write_pictures(
        best, asked.trace, asked.report, records=data["plans"], search=data["search"], lanes=asked.trace_lanes
    )
    if asked.json != output.STDOUT:
        tables.print_plans(output.console(), data, best, result.warnings)
        anchoring.print_anchors(output.console(), best.anchored)
        output.say_written(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    if result.search.stopped == "interrupted":
        print("stopped; the plans found so far are shown", file=sys.stderr)
        raise typer.Exit(output.INTERRUPTED)
