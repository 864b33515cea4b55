"""`moecast scale`: strong and weak scaling curves with the plan at each point."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from hwprofiles.errors import UserError
from planner.cli import output
from planner.cli.taking import takes
from planner.question.asked import Asked, Option, Text
from planner.question.read import Problems, Question, one_of, read_question
from planner.question.sizes import first_of, grown, read_counts, several

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.scaling import Curve
    from planner.search import PlanResult

_SCALE = "Scaling"
_NOT_HERE = ("out", "trace", "trace_lanes", "anchor", "top")  # of one plan, where many are found


@dataclass(frozen=True, kw_only=True)
class AskedScale(Asked):
    """What the user typed after `scale`: the question, and how far it grows."""

    max_gpus: Annotated[
        Text, Option("--max-gpus", "Devices of the last point; --gpus, doubled until here (or a list of --gpus).", "N",
                      _SCALE)
    ] = None  # fmt: skip
    mode: Annotated[
        str, Option("--mode", "strong (the batch stays), weak (it grows with the devices) or both. Default: both.",
                     "NAME", _SCALE)
    ] = "both"  # fmt: skip


@takes(AskedScale)
def scale(asked: AskedScale) -> None:
    """Draw how tokens per second grow with the number of GPUs, with the best plan at each.

    Example: [bold]moecast scale --model qwen3-30b-a3b --cluster dgx-h100 --gpus 32 --max-gpus 256[/bold]
    """
    output.check_targets(json=asked.json, report=asked.report)
    problems = Problems()
    mode = problems.attempt(lambda: one_of(asked.mode, ("strong", "weak", "both"), "--mode"))
    most = problems.whole(asked.max_gpus, "--max-gpus")
    default = {item.name: item.default for item in fields(Asked)}
    given = [name for name in _NOT_HERE if getattr(asked, name) != default[name]]
    problems.found += [f"--{name.replace('_', '-')} is of one plan; leave it out" for name in given]
    if asked.nodes or asked.host_map:
        problems.found.append("--nodes and --host-map name one allocation; leave them out")
    if asked.max_gpus is None and not several(asked):
        problems.found.append("no --max-gpus; give the devices of the last point, or --gpus as a list or range")
    if asked.max_gpus is not None and several(asked):
        problems.found.append("--gpus names several counts already; leave --max-gpus out")
    first = problems.attempt(lambda: first_of(asked))
    problems.stop()
    assert mode is not None and first is not None
    question = read_question(first)
    from planner.scaling import MODES, curves_json, smaller_of
    from planner.scaling import scale as curve_of

    where = asked.cluster or ""
    clusters = grown(question.cluster, where, read_counts(asked.gpus)) if most is None else sizes(question, where, most)
    with output.progress("searching") as bar:

        def search(cluster: ClusterSpec, batch: int) -> PlanResult:
            from planner.search import find_plans

            text = f"{cluster.num_devices:,} GPUs, batch {batch:,}"
            return find_plans(
                question.model, cluster, question.software, replace(question.workload, global_batch_seqs=batch),
                fixed=question.fixed, target=question.target, top=1, seed=question.seed, routing=question.routing,
                ranks=question.ranks, progress=lambda stage, done, total: bar.update(f"{text}: {stage}", done, total),
            )  # fmt: skip

        batch = question.workload.global_batch_seqs
        smaller = smaller_of(question)
        curves = [curve_of(each, clusters, batch, search, smaller) for each in MODES if mode in (each, "both")]
    if asked.strict:
        refuse_gaps(curves)
    if asked.json:
        data = {"model": question.model.name, "cluster": question.cluster.name, "curves": curves_json(curves)}
        output.write_text(asked.json, output.json_text(data), "--json")
    title = f"{question.model.name} on {question.cluster.name}, {question.software.name}"
    if asked.report:
        from dashboards.figures_scaling import scaling_html

        output.write_text(asked.report, scaling_html(curves, title), "--report")
    if asked.json != output.STDOUT:
        print_curves(curves, title)
        output.say_written(json=asked.json, report=asked.report)


def sizes(question: Question, where: str, most: int) -> list[ClusterSpec]:
    """The cluster in every size of the curve. Raises UserError."""
    from hwprofiles import catalogue
    from planner.goals import counts_between

    least = question.cluster.num_devices
    if most <= least:
        raise UserError(f"--max-gpus {most} is not above {least}; give --gpus to start from fewer", where="--max-gpus")
    return [
        catalogue.cluster(where, gpus=count)
        for count in counts_between(least, most, question.cluster.devices_per_node)
    ]  # fmt: skip


def refuse_gaps(curves: list[Curve]) -> None:
    """Raise UserError where a point has no plan or is not proven."""
    weak: list[Any] = [
        f"{curve.mode}, {point.devices} devices: {point.why or 'not proven: the search stopped early'}"
        for curve in curves for point in curve.points if point.why or point.certificate in ("gap", "void")
    ]  # fmt: skip
    if weak:
        raise UserError(weak, where="--strict")


def print_curves(curves: list[Curve], title: str) -> None:
    """A table per mode."""
    from dashboards.figures_scaling import HEADERS, scaling_rows
    from planner.cli.tables import grid

    screen = output.console()
    screen.print(title, markup=False, style="bold")
    for curve in curves:
        screen.print()
        screen.print(
            grid(f"{curve.mode.capitalize()} scaling", HEADERS, scaling_rows(curve), left=("plan", "note"))
        )  # fmt: skip
