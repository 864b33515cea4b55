"""`moecast simulate`: one plan, in detail."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import OutOfMemoryError
from planner.cli import anchoring, output
from planner.cli.taking import takes_step
from planner.question.asked import AskedStep
from planner.question.read import read_detail, read_plan, read_question, scenario_of, with_timeline

if TYPE_CHECKING:
    from sim.report import OutOfMemory, Report
    from sim.scenario import Scenario


@takes_step
def simulate(asked: AskedStep) -> None:
    """Predict step time and memory of one layout; degrees that are left out are 1.

    Example: [bold]moecast simulate --model mixtral-8x7b --cluster dgx-h100 --gpus 64 --tp 2 --pp 4 --ep 8[/bold]
    """
    output.check_targets(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    with output.progress("reading") as bar:
        lanes = read_detail(asked.detail, asked.lanes)
        question = read_question(asked)
        plan = read_plan(question, asked.stages)
        anchors = anchoring.read(asked.anchor, bar)
        from planner.cli import tables
        from planner.ranks import best_map
        from sim.imbalance import with_imbalance
        from sim.interval import adjusted
        from sim.notes import notes
        from sim.run import Simulation

        bar.update("simulating")
        one_order = [m for m in question.ranks if m.order == question.ranks[0].order]
        asked_for = scenario_of(question, plan, one_order[0])
        scenario = replace(asked_for, ranks=best_map(asked_for, one_order))
        run = Simulation(scenario)
        report = with_imbalance(run.report(trace=False), scenario, run=run)
        if anchors is not None:
            report = adjusted(report, anchors.of_scenario(scenario))
        layers: dict[str, Any] | None = None
        if lanes is not None:
            bar.update("simulating layers")
            report, layers = with_layers(report, scenario, lanes)
        elif asked.trace or asked.report or asked.trace_lanes:
            report = with_timeline(report, scenario)
    if asked.strict:
        output.refuse_weak([report])
    report = replace(report, warnings=(*report.warnings, *question.notes, *notes(scenario, run)))
    data = simulate_json(report, scenario) | ({} if layers is None else {"layers": layers})
    training = training_json(scenario, question.seed)
    data |= training
    if asked.json:
        output.write_text(asked.json, output.json_text(data), "--json")
    if asked.out:
        output.write_text(asked.out, output.json_text(data), "--out")
    output.write_pictures(report, asked.trace, asked.report, records=[data], lanes=asked.trace_lanes)
    if asked.json != output.STDOUT:
        tables.print_report(output.console(), report)
        anchoring.print_anchors(output.console(), report.anchored)
        tables.print_training(output.console(), training)
        if layers is not None:
            tables.print_layers(output.console(), report, layers)
        output.say_written(json=asked.json, out=asked.out, trace=asked.trace, report=asked.report)
    if report.out_of_memory is not None:
        raise OutOfMemoryError(misfit_text(report.out_of_memory), where=report.plan.label())


def with_layers(report: Report, scenario: Scenario, lanes: str) -> tuple[Report, dict[str, Any]]:
    """The report with the trace of the layer-level run, and the figures of that run."""
    from sim.detail import idle_s, simulate_layers

    trace = simulate_layers(scenario, lanes=lanes)
    each = [
        {"stage": lane.stage, "name": trace.lane_name(at), "ranks": lane.weight, "idle_s": idle_s(trace, at)}
        for at, lane in enumerate(trace.lanes)
    ]
    return replace(report, trace=trace), {"lanes": lanes, "step_s": trace.makespan_s, "each": each}


def training_json(scenario: Scenario, seed: int) -> dict[str, Any]:
    """What lengths and a batch ramp-up make of the step: `packs` and `ramp_up`, each where the workload has one."""
    from dataclasses import asdict

    out: dict[str, Any] = {}
    if scenario.workload.lengths is not None:
        from sim.packs import drawn_packs

        packs = drawn_packs(scenario, seed=seed)
        out["packs"] = asdict(packs) | {"cost_share": packs.cost_share}
    if scenario.workload.ramp_up is not None:
        from sim.ramp import ramp_time

        ramp = ramp_time(scenario)
        tokens = ramp.samples * scenario.workload.seq_tokens
        out["ramp_up"] = asdict(ramp) | {"steps": ramp.steps, "seconds": ramp.seconds, "tokens": tokens}
    return out


def simulate_json(report: Report, scenario: Scenario) -> dict[str, Any]:
    """The record of one plan as in `plan --json`, and what it was asked about."""
    from planner.planfile import plan_record

    asked_of = {
        "model": report.model, "cluster": report.cluster, "software": report.software, "devices": report.devices,
    }  # fmt: skip
    bound_s = bound_of(scenario)
    if bound_s is not None and report.anchored is not None:
        bound_s *= report.anchored.factor
    return plan_record(report, rank=1) | {"bound_s": bound_s} | asked_of


def bound_of(scenario: Scenario) -> float | None:
    """Lower bound of the step in seconds as screening sees it; None for explicit stages, which it does not know."""
    from math import isfinite

    from sim.columns import columns_of
    from sim.screen import screen

    if scenario.plan.stages is not None:
        return None
    (columns,) = columns_of([scenario.plan])
    seen = screen(
        scenario.model, scenario.cluster, scenario.software, scenario.workload, columns, routing=scenario.routing,
        ranks=scenario.ranks,
    )  # fmt: skip
    bound_s = float(seen.bound_s[0])
    return bound_s if isfinite(bound_s) else None


def misfit_text(short: OutOfMemory) -> str:
    """Where a plan does not fit: lane, tag, need and have, and what would help."""
    from sim.report import HOST

    need, have = short.need_bytes / 2**30, short.have_bytes / 2**30
    if short.tag == HOST:
        return (
            f"out of host memory on a node of pipeline stage {short.lane}: needs {need:.1f} GiB, has {have:.1f} GiB; "
            "offload a smaller share of the optimizer, fewer layers or modules, or use more --gpus"
        )
    return (
        f"out of memory on lane {short.lane} (pipeline stage {short.lane}): needs {need:.1f} GiB, has {have:.1f} GiB; "
        f"most of it is {short.tag}; raise --pp, --tp or --ep, add --recompute, lower --micro-batch, or use more --gpus"
    )
