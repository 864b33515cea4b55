"""`moecast compare --measured`: a profiled run beside the simulated step of its plan, and its row for `validate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import UserError
from planner.cli import output

if TYPE_CHECKING:
    from planner.imports.profiler_trace import Measured
    from sim.report import Report, Trace
    from sim.scenario import Scenario

IDLE = ("bubble", "host", "stragglers")  # classes of a breakdown in which no kernel runs
COPIES = ("offload", "link contention")  # those that wait for a link, beside the axes of communication


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Names or files to read instead of the names in a plan file."""

    model: str | None = None
    cluster: str | None = None
    software: str | None = None


def trace(
    traces: str, plan: str, *, ident: str = "measured", names: Renamed = Renamed(), out: str | None = None,
    json: str | None = None,
) -> None:  # fmt: skip
    """Print the profiler traces of a run beside the simulated step of its plan (`plan.json`, `plan.json#2`).

    out: file of the run as a row for `validate`. json: file of both breakdowns. Raises UserError.
    """
    output.check_targets(out=out, json=json)
    with output.progress("reading traces") as bar:
        from planner.compare import split_rank
        from planner.export.handover import handover_from
        from planner.imports.profiler_trace import read_traces
        from planner.imports.run_row import row_text, run_row
        from planner.planfile import load_plan
        from sim.run import simulate
        from sim.scenario import Scenario

        path, place = split_rank(plan)
        asked, stale = handover_from(
            load_plan(path), rank=place, model=names.model, cluster=names.cluster, software=names.software
        )  # fmt: skip
        measured = read_traces(traces)
        world = next((one.world for one in measured.ranks if one.world), None)
        if world is not None and world != asked.plan.num_devices:
            raise UserError(
                f"traces of {world} ranks, but the plan has {asked.plan.num_devices} devices; give its own plan",
                where=plan,
            )
        bar.update("simulating")
        scenario = Scenario(
            model=asked.model, cluster=asked.cluster, software=asked.software, workload=asked.workload,
            plan=asked.plan, ranks=asked.ranks,
        )  # fmt: skip
        said = beside(measured, simulate(scenario, trace=False), *layer_level(scenario))
    if out:
        row = run_row(asked, measured.step_s, ident, names.cluster)
        output.write_text(out, row_text(row), "--out")
    if json:
        output.write_text(json, output.json_text(said), "--json")
    if json != output.STDOUT:
        _print(measured, said, stale)
        output.say_written(out=out, json=json)


def layer_level(scenario: Scenario) -> tuple[Trace | None, str]:
    """The layer-level run, whose lanes have the kernels inside passes; None, and why, where it does not do."""
    from sim.detail import simulate_layers

    try:
        return simulate_layers(scenario), ""
    except UserError as error:
        return None, f"no seconds in kernels of the simulated step: {'; '.join(error.problems)}"


def shares_of(report: Report) -> dict[str, float]:
    """Shares of the step that compute, idle and only communicate or copy, of the busiest stage: the report's breakdown
    by class, which sums to the step."""
    from sim.account import EXPOSED_AXES

    step_s = report.step_s.value
    idle, other = (
        sum(report.breakdown.get(name, 0.0) for name in names) / step_s for names in (IDLE, (*EXPOSED_AXES, *COPIES))
    )
    return {"compute": 1.0 - idle - other, "idle": idle, "other": other}


def in_kernels(trace: Trace) -> dict[str, Any]:
    """Mean over the lanes of a layer-level run, by the rules that sum up traces: overlap, busy_s and alone_s."""
    from statistics import fmean

    from dashboards.trace_export import kernel_name
    from planner.imports.profiler_trace import collective_seconds, mean_seconds, overlap_share

    lanes = [
        [(kernel_name(s), s.start_s, s.end_s) for s in trace.spans_of(lane) if s.kind not in ("host", "sync")]
        for lane in range(len(trace.lanes))
    ]
    seconds = [collective_seconds(lane) for lane in lanes]
    return {
        "overlap": fmean(overlap_share(lane) for lane in lanes),
        "busy_s": mean_seconds([busy for busy, _ in seconds]),
        "alone_s": mean_seconds([alone for _, alone in seconds]),
    }


def beside(measured: Measured, report: Report, layers: Trace | None, why: str = "") -> dict[str, Any]:
    """Both breakdowns as JSON-ready values. ratio: measured over simulated step. layers: the layer-level run, or why
    there is none."""
    kernels = {"overlap": None, "busy_s": {}, "alone_s": {}} if layers is None else in_kernels(layers)
    step = report.step_s
    simulated = {
        "step_s": {"value": step.value, "low": step.low, "high": step.high},
        "shares": shares_of(report) | {"overlap": kernels["overlap"]},
        "busy_s": kernels["busy_s"],
        "alone_s": kernels["alone_s"],
        "exposed_comm_s": dict(report.exposed_comm_s),
        "breakdown": dict(report.breakdown),
        "notes": [why] if why else [],
    }
    return {
        "plan": report.plan.label(), "measured": measured.to_json(), "simulated": simulated,
        "ratio": measured.step_s / step.value, "inside": step.low <= measured.step_s <= step.high,
    }  # fmt: skip


def _print(measured: Measured, said: dict[str, Any], stale: str) -> None:
    screen = output.console()

    def say(text: str) -> None:
        screen.print(text, markup=False)

    step = said["simulated"]["step_s"]
    inside = "inside" if said["inside"] else "outside"
    say(f"{said['plan']}, {len(measured.ranks)} ranks traced")
    say(
        f"step        measured {measured.step_s:.4g} s  simulated {step['value']:.4g} s "
        f"({step['low']:.4g} to {step['high']:.4g}, {inside})  ratio {said['ratio']:.3f}"
    )
    for name, what in (
        ("compute", "computing"), ("other", "communication or copies alone"), ("idle", "idle"),
        ("overlap", "of communication, with computation beside it"),
    ):  # fmt: skip
        one, two = (said[side]["shares"][name] for side in ("measured", "simulated"))
        say(f"{name:<11} measured {one:7.2%}  simulated {'      -' if two is None else f'{two:7.2%}'}  {what}")
    names = dict.fromkeys([*said["measured"]["busy_s"], *said["simulated"]["busy_s"]])
    for name in names:
        one, two = (
            f"{said[side]['busy_s'].get(name, 0.0):.4g} s ({said[side]['alone_s'].get(name, 0.0):.4g} s alone)"
            for side in ("measured", "simulated")
        )
        unknown = not said["simulated"]["busy_s"]
        say(f"{name:<14} measured {one}  simulated {'-' if unknown else two}  a step, in kernels")
    exposed = said["simulated"]["exposed_comm_s"]
    if exposed:
        shown = ", ".join(f"{axis.upper()} {s:.4g} s ({s / step['value']:.1%})" for axis, s in exposed.items())
        say(f"exposed     simulated {shown}")
    for note in (*measured.notes, *said["simulated"]["notes"], *([f"warning: {stale}"] if stale else [])):
        say(f"note: {note}")
