"""`moecast plan`: the fastest layouts of a model on a cluster, ranked, with what was ruled out and why."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from hwprofiles.errors import NoPlanError
from planner.cli import anchoring, money, output, sizes
from planner.cli.inputs import Question, one_of, read_question, scenario_of, with_timeline
from planner.cli.money import AskedPlan
from planner.cli.options import takes
from planner.cli.space_options import WAYS, print_stages, print_variants, with_variant

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.search import PlanResult


@takes(AskedPlan)
def plan(asked: AskedPlan) -> None:
    """Find the fastest (or cheapest, soonest, leanest) layouts that fit, best first.

    Example: [bold]moecast plan --model qwen3-235b-a22b --cluster dgx-h100 --gpus 128[/bold]
    """
    output.check_targets(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    with output.progress("reading") as bar:
        question = read_question(sizes.first_of(asked))
        questions = sizes.questions_of(asked, question, asked.node_types)
        stages = one_of(asked.stages, WAYS, "--stages")
        anchors = anchoring.read(asked.anchor, bar)
        from planner.cli import tables
        from planner.planfile import plan_json, save_plan
        from planner.scaled import scaled
        from planner.search import find_plans
        from planner.variants import Variant, best_of, variants_of
        from sim.imbalance import with_imbalance

        def search(cluster: ClusterSpec, lean: int = 0) -> PlanResult:
            question = sizes.question_on(questions, cluster)
            if asked.search is None:
                return one(question, lean, Variant())
            names = [name.strip() for name in asked.search.split(",")]
            tried = variants_of(names, question.model, question.software, question.workload, question.fixed)
            return best_of(tried, lambda variant: one(question, lean, variant))

        def one(question: Question, lean: int, variant: Variant) -> PlanResult:
            question = with_variant(question, variant)
            found = find_plans(
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
                lean=lean,
                stages=stages,
            )
            first = found.plans[0]
            asked_of = scenario_of(question, first.report.plan, first.report.ranks)
            first = replace(first, report=with_imbalance(first.report, asked_of))
            found = replace(found, plans=(first, *found.plans[1:]))
            # of the first plan, for all: one factor changes no order
            return found if anchors is None else scaled(found, anchors.of_scenario(asked_of))

        reached = None
        try:
            if money.asked_for(asked):
                reached = money.reached(asked, questions, search)
            result = search(question.cluster) if reached is None else reached.chosen
        except NoPlanError as error:
            if asked.json:
                nothing = {"plans": [], "error": str(error), "search": error.search}
                output.write_text(asked.json, output.json_text(nothing), "--json")
            raise
        question = sizes.question_of(questions, result)
        question = replace(question, software=result.software, workload=result.workload)
        best = result.plans[0].report
        data = plan_json(result)
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
        if result.variants:
            print_variants(output.console(), result.variants, result.plans[0].report.step_s.value)
        if result.stages is not None:
            print_stages(output.console(), result.stages)
        if reached is not None:
            money.print_goal(output.console(), reached)
        anchoring.print_anchors(output.console(), best.anchored)
        output.say_written(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    if result.search.stopped == "interrupted":
        print("stopped; the plans found so far are shown", file=sys.stderr)
        raise typer.Exit(output.INTERRUPTED)
