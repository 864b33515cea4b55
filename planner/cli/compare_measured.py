"""`moecast compare --measured`: a profiled run beside the simulated step of its plan, and its row for `validate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import UserError
from planner.cli import output

if TYPE_CHECKING:
    from planner.imports.profiler_trace import Measured, RankTrace
    from sim.report import Report


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
        report = simulate(
            Scenario(
                model=asked.model, cluster=asked.cluster, software=asked.software, workload=asked.workload,
                plan=asked.plan, ranks=asked.ranks,
            ),
            steady=False,
        )  # fmt: skip
        said = beside(measured, report)
    if out:
        row = run_row(asked, measured.step_s, ident, names.cluster)
        output.write_text(out, row_text(row), "--out")
    if json:
        output.write_text(json, output.json_text(said), "--json")
    if json != output.STDOUT:
        _print(measured, said, stale)
        output.say_written(out=out, json=json)


def simulated_ranks(report: Report) -> list[RankTrace]:
    """The simulated lanes, summed up by the code that sums up traces."""
    import json

    from dashboards.trace_export import trace_json
    from dashboards.trace_lanes import lanes_of
    from planner.imports.profiler_trace import rank_trace

    return [rank_trace(json.loads(trace_json(report, lane=lane))) for lane in lanes_of(report)]


def beside(measured: Measured, report: Report) -> dict[str, Any]:
    """Both breakdowns as JSON-ready values. simulated: mean over lanes; ratio: measured over simulated step."""
    from dataclasses import asdict

    from planner.imports.profiler_trace import mean_seconds, mean_shares

    lanes = simulated_ranks(report)
    step = report.step_s
    simulated = {
        "step_s": {"value": step.value, "low": step.low, "high": step.high},
        "shares": asdict(mean_shares([lane.shares for lane in lanes])),
        "busy_s": mean_seconds([lane.busy_s for lane in lanes]),
        "breakdown": dict(report.breakdown),
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
        one, two = said["measured"]["shares"][name], said["simulated"]["shares"][name]
        say(f"{name:<11} measured {one:7.2%}  simulated {two:7.2%}  {what}")
    names = dict.fromkeys([*said["measured"]["busy_s"], *said["simulated"]["busy_s"]])
    for name in names:
        one, two = (said[side]["busy_s"].get(name, 0.0) for side in ("measured", "simulated"))
        say(f"{name:<14} measured {one:.4g} s  simulated {two:.4g} s a step, in kernels")
    for note in (*measured.notes, *([f"warning: {stale}"] if stale else [])):
        say(f"note: {note}")
