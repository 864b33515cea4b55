"""`moecast plan`: the fastest layouts of a model on a cluster, ranked, with what was ruled out and why."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from hwprofiles.errors import NoPlanError, UserError
from planner.cli import anchoring, money, output
from planner.cli.inputs import read_question, scenario_of, with_timeline
from planner.cli.money import AskedPlan
from planner.cli.options import takes
from planner.cli.placed import placement_of, replica_warning, save_placed, with_placement

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.search import PlanResult


@takes(AskedPlan)
def plan(asked: AskedPlan) -> None:
    """Find the fastest (or cheapest, soonest, leanest) layouts that fit, best first.

    Example: [bold]moecast plan --model qwen3-235b-a22b --cluster dgx-h100 --gpus 128[/bold]
    """
    output.check_targets(
        json=asked.json, out=asked.out, trace=asked.trace, report=asked.report, placement_out=asked.placement_out
    )  # fmt: skip
    if asked.placement_out is not None and asked.placement != "auto":
        raise UserError("a placement is made under --placement auto only; give it", where="--placement-out")
    with output.progress("reading") as bar:
        question = read_question(asked)
        anchors = anchoring.read(asked.anchor, bar)
        from planner.cli import tables
        from planner.planfile import plan_json, save_plan
        from planner.scaled import scaled
        from planner.search import find_plans
        from sim.imbalance import with_imbalance

        def search(cluster: ClusterSpec, lean: int = 0) -> PlanResult:
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

        reached = None
        try:
            if money.asked_for(asked):
                reached = money.reached(asked, question, search)
            result = search(question.cluster) if reached is None else reached.chosen
        except NoPlanError as error:
            if asked.json:
                nothing = {"plans": [], "error": str(error), "search": error.search}
                output.write_text(asked.json, output.json_text(nothing), "--json")
            raise
        question = money.question_on(question, result)
        best = result.plans[0].report
        placed = placement_of(question.routing, question.model, best.plan.ep)
        more = replica_warning(placed, question.model, best.plan)
        result = replace(result, warnings=(*result.warnings, *more))
        data = with_placement(plan_json(result), placed)
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
    if asked.placement_out:
        save_placed(placed, asked.placement_out, best.plan.ep)
    output.write_pictures(
        best, asked.trace, asked.report, records=data["plans"], search=data["search"], lanes=asked.trace_lanes
    )
    if asked.json != output.STDOUT:
        tables.print_plans(output.console(), data, best, result.warnings)
        if reached is not None:
            money.print_goal(output.console(), reached)
        anchoring.print_anchors(output.console(), best.anchored)
        output.say_written(
            json=asked.json, out=asked.out, placement_out=asked.placement_out, trace=asked.trace, report=asked.report
        )
    if result.search.stopped == "interrupted":
        print("stopped; the plans found so far are shown", file=sys.stderr)
        raise typer.Exit(output.INTERRUPTED)
