"""`moecast plan`: the fastest layouts of a model on a cluster, ranked, with what was ruled out and why."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from hwprofiles.errors import NoPlanError
from planner.cli import anchoring, money, output, switches
from planner.cli.inputs import Question, read_question, scenario_of, with_timeline
from planner.cli.options import takes
from planner.cli.switches import AskedSwitched

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.search import PlanResult


@takes(AskedSwitched)
def plan(asked: AskedSwitched) -> None:
    """Find the fastest (or cheapest, soonest, leanest) layouts that fit, best first.

    Example: [bold]moecast plan --model qwen3-235b-a22b --cluster dgx-h100 --gpus 128[/bold]
    """
    output.check_targets(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    with output.progress("reading") as bar:
        question, mode = read_question(asked), switches.read_mode(asked)
        anchors = anchoring.read(asked.anchor, bar)
        from planner.cli import tables
        from planner.planfile import plan_json, save_plan
        from planner.scaled import scaled
        from planner.search import find_plans
        from sim.imbalance import with_imbalance

        def search(question: Question, cluster: ClusterSpec, lean: int = 0) -> PlanResult:
            found = find_plans(
                question.model,
                cluster,
                question.software,
                question.workload,
                fixed=question.fixed,
                target=question.target,
                top=question.top,
                progress=bar.update,
                seed=question.seed,
                routing=question.routing,
                ranks=question.ranks,
                lean=lean,
            )
            first = found.plans[0]
            asked_of = scenario_of(money.question_on(question, found), first.report.plan, first.report.ranks)
            first = replace(first, report=with_imbalance(first.report, asked_of))
            found = replace(found, plans=(first, *found.plans[1:]))
            # of the first plan, for all: one factor changes no order
            return found if anchors is None else scaled(found, anchors.of_scenario(asked_of))

        def searched(question: Question) -> switches.Answer:
            if not money.asked_for(asked):
                return search(question, question.cluster), None
            reached = money.reached(asked, question, partial(search, question))
            return reached.chosen, reached

        try:
            question, result, reached, tried = switches.answered(mode, question, searched, bar)
        except NoPlanError as error:
            if asked.json:
                nothing = {"plans": [], "error": str(error), "search": error.search}
                output.write_text(asked.json, output.json_text(nothing), "--json")
            raise
        question = money.question_on(question, result)
        best = result.plans[0].report
        data = plan_json(result)
        data["switches"] = None if tried is None else tried.to_json()
        if reached is not None:
            data = money.with_goal(data, reached)
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
        switches.print_switches(output.console(), tried)
        if reached is not None:
            money.print_goal(output.console(), reached)
        anchoring.print_anchors(output.console(), best.anchored)
        output.say_written(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    if result.search.stopped == "interrupted":
        print("stopped; the plans found so far are shown", file=sys.stderr)
        raise typer.Exit(output.INTERRUPTED)
