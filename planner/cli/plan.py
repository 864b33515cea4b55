"""`moecast plan`: the fastest layouts of a model on a cluster, ranked, with what was ruled out and why."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from hwprofiles.errors import NoPlanError, UserError
from planner.cli import anchoring, output
from planner.cli.taking import takes
from planner.question import sizes
from planner.question.placed import save_placed
from planner.question.read import read_question, scenario_of, with_timeline
from planner.question.switches import AskedSwitched

if TYPE_CHECKING:
    from planner.search import PlanResult
    from sim.scenario import Scenario


@takes(AskedSwitched)
def plan(asked: AskedSwitched) -> None:
    """Find the fastest (or cheapest, soonest, leanest) layouts that fit, best first.

    Example: [bold]moecast plan --model qwen3-235b-a22b --cluster dgx-h100 --gpus 128[/bold]
    """
    output.check_targets(
        json=asked.json, out=asked.out, trace=asked.trace, report=asked.report, placement_out=asked.placement_out
    )  # fmt: skip
    if asked.placement_out is not None and asked.placement != "auto":
        raise UserError("a placement is made under --placement auto only; give it", where="--placement-out")
    with output.progress("reading") as bar:
        question = read_question(sizes.first_of(asked))
        anchors = anchoring.read(asked.anchor, bar)
        from planner.cli import tables, tables_money, tables_space, tables_switches
        from planner.planfile import save_plan
        from planner.question.answering import answered
        from planner.scaled import scaled

        def anchored(found: PlanResult, first: Scenario) -> PlanResult:
            # of the first plan, for all: one factor changes no order
            return found if anchors is None else scaled(found, anchors.of_scenario(first))

        try:
            answer = answered(asked, question, progress=bar.update, adjusted=anchored)
        except NoPlanError as error:
            if asked.json:
                nothing = {"plans": [], "error": str(error), "search": error.search}
                output.write_text(asked.json, output.json_text(nothing), "--json")
            raise
        question, result, reached = answer.question, answer.result, answer.reached
        best = result.plans[0].report
        data = answer.to_json()
        if asked.strict:
            output.refuse_weak(ranked.report for ranked in result.plans)
        if asked.trace or asked.report or asked.trace_lanes:
            bar.update("simulating the best plan with its timeline")
            best = with_timeline(best, scenario_of(question, best.plan, best.ranks))
    if asked.json:
        output.write_text(asked.json, output.json_text(data), "--json")
    if asked.out:
        save_plan(data, asked.out)
    if asked.placement_out:
        save_placed(answer.placed, asked.placement_out, best.plan.ep)
    output.write_pictures(
        best, asked.trace, asked.report, records=data["plans"], search=data["search"], lanes=asked.trace_lanes
    )
    if asked.json != output.STDOUT:
        tables.print_plans(output.console(), data, best, result.warnings)
        if result.variants:
            tables_space.print_variants(output.console(), data["plans"], data["variants"])
        if result.stages is not None:
            tables_space.print_stages(output.console(), result.stages)
        tables_switches.print_switches(output.console(), answer.tried)
        if reached is not None:
            tables_money.print_goal(output.console(), reached)
        anchoring.print_anchors(output.console(), best.anchored)
        output.say_written(
            json=asked.json, out=asked.out, placement_out=asked.placement_out, trace=asked.trace, report=asked.report
        )
    if result.search.stopped == "interrupted":
        print("stopped; the plans found so far are shown", file=sys.stderr)
        raise typer.Exit(output.INTERRUPTED)
