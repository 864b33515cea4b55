"""`moecast mix`: one training over several types of devices, the stages of its pipeline on each."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from hwprofiles.errors import NoPlanError, UserError
from planner.cli import output
from planner.cli.taking import takes
from planner.question.asked import QUESTION, Asked, Option, Text
from planner.question.read import Problems, Question, read_question

if TYPE_CHECKING:
    from hwprofiles.specs import LinkSpec
    from planner.mixed.rows import TypeQuestion
    from planner.mixed.search import MixedResult
    from sim.report import Report

NO_PLAN_FILE = (
    "--out is not for mix: explain, export and simulate read a plan file again on one cluster, and stages on several "
    "have none; --json FILE writes the plans"
)
_NOT_HERE = ("cluster", "gpus", "trace", "trace_lanes", "report", "anchor", "nodes", "host_map", "rank_order")


@dataclass(frozen=True, kw_only=True)
class AskedMix(Asked):
    """What the user typed after `mix`: the question, and the pools."""

    pool: Annotated[
        list[str] | None, Option("--pool", "Devices of one type: cluster and how many of them, such as dgx-h100:64; "
                                  "two or more times.", "NAME|FILE:N", QUESTION)
    ] = None  # fmt: skip
    between: Annotated[
        Text, Option("--between", 'Link of a device from one pool to another, such as "100 Gb/s" or "100 Gb/s,10 us". '
                      "Default: as fast as the slower side.", "RATE[,LATENCY]", QUESTION)
    ] = None  # fmt: skip


@takes(AskedMix)
def mix(asked: AskedMix) -> None:
    """Find the fastest pipeline over pools of several types of devices, layers by each type's speed and memory.

    Example: [bold]moecast mix --model Mixtral-8x7B --pool dgx-h100:64 --pool dgx-a100-80g:64 --global-batch 256[/bold]
    """
    output.check_targets(json=asked.json)
    problems = Problems()
    default = {item.name: item.default for item in fields(Asked)}
    given = [name for name in _NOT_HERE if getattr(asked, name) != default[name]]
    problems.found += [f"--{name.replace('_', '-')} is not for mix; leave it out" for name in given]
    pools = problems.attempt(lambda: read_pools(asked.pool or []))
    between = problems.attempt(lambda: read_between(asked.between))
    if asked.out is not None:
        problems.found.append(NO_PLAN_FILE)
    if asked.placement:
        problems.found.append("--placement is for one type of devices; leave it out")
    problems.stop()
    assert pools is not None
    with output.progress("reading") as bar:
        questions = read_questions(asked, pools)
        from planner.mixed.search import find_mixed

        first = questions[0]
        found = find_mixed(
            types_of(questions, pools), fixed=first.fixed, target=first.target, between=between, top=first.top,
            seed=first.seed, progress=bar.update,
        )  # fmt: skip
        alone = {name: best_alone(asked, name, count, bar.update) for name, count in pools}
    if asked.strict:
        output.refuse_weak(plan.report for plan in found.plans)
    if asked.json:
        output.write_text(asked.json, output.json_text(mixed_json(found, first, alone)), "--json")
    if asked.json != output.STDOUT:
        print_mixed(found, alone)
        output.say_written(json=asked.json)


def read_pools(said: list[str]) -> list[tuple[str, int]]:
    """(cluster, devices) of every --pool. Raises UserError."""
    pools, problems = [], Problems()
    for text in said:
        name, _, count = text.rpartition(":")
        devices = problems.whole(count, "--pool") if name else None
        if not name:
            problems.found.append(f"--pool {text[:40]!r}: write a cluster and its devices, such as dgx-h100:64")
        elif devices is not None:
            pools.append((name, devices))
    twice = sorted({name for i, (name, _) in enumerate(pools) if name in [other for other, _ in pools[:i]]})
    if twice:
        problems.found.append(f"--pool {', '.join(twice)} is named twice; give its devices once, together")
    if len(said) < 2:
        problems.found.append("--pool is given once or not at all; name two pools or more, or use `moecast plan`")
    problems.stop()
    return pools


def read_between(text: str | None) -> LinkSpec | None:
    """The link of --between. Raises UserError."""
    if text is None:
        return None
    from hwprofiles.specs import LinkSpec
    from hwprofiles.units import quantity

    rate, _, latency = text.partition(",")
    try:
        rate_per_s = quantity(rate.strip(), "B/s")
        latency_s = quantity(latency.strip(), "s") if latency.strip() else 0.0
    except UserError as error:
        raise UserError(str(error), where="--between") from None
    if rate_per_s <= 0.0:
        raise UserError(f"{text[:40]!r}: the rate must be more than zero", where="--between")
    return LinkSpec(name="between", bytes_per_s=rate_per_s, latency_s=latency_s)


def read_questions(asked: AskedMix, pools: list[tuple[str, int]]) -> list[Question]:
    """The question on each type, on as many devices as all pools have."""
    total = str(sum(count for _, count in pools))
    problems = Problems()
    found = [problems.attempt(lambda n=name: read_question(_on(asked, n, total))) for name, _ in pools]  # type: ignore[misc]
    problems.found = list(dict.fromkeys(problems.found))
    problems.stop()
    return [question for question in found if question is not None]


def _on(asked: AskedMix, cluster: str, gpus: str) -> Asked:
    own: dict[str, Any] = {item.name: getattr(asked, item.name) for item in fields(Asked)}
    return Asked(**(own | {"cluster": cluster, "gpus": gpus}))


def types_of(questions: list[Question], pools: list[tuple[str, int]]) -> list[TypeQuestion]:
    """The types as the search takes them."""
    from planner.mixed.rows import TypeQuestion
    from planner.ranks import Question as Priced

    return [
        TypeQuestion(
            question=Priced(model=q.model, cluster=q.cluster, software=q.software, workload=q.workload,
                            routing=q.routing),
            devices=count,
        )
        for q, (_, count) in zip(questions, pools, strict=True)
    ]  # fmt: skip


def best_alone(asked: AskedMix, cluster: str, count: int, progress: Any) -> Report | str:
    """The fastest plan of one pool by itself, or why there is none."""
    from planner.search import find_plans

    try:
        q = read_question(replace(_on(asked, cluster, str(count)), top="1"))
        fixed = {name: value for name, value in q.fixed.items() if name not in ("pp", "vpp")}
        found = find_plans(
            q.model, q.cluster, q.software, q.workload, fixed=fixed, target=q.target, top=1, seed=q.seed,
            routing=q.routing, ranks=q.ranks, progress=progress,
        )  # fmt: skip
    except (NoPlanError, UserError) as error:
        return error.problems[0]
    return found.plans[0].report


def mixed_json(found: MixedResult, question: Question, alone: dict[str, Report | str]) -> dict[str, Any]:
    """The answer as JSON, SI units."""
    from planner.planfile import plan_record

    return {
        "model": question.model.name, "pools": [
            {"cluster": name, "devices": count, "alone": _alone_json(report)}
            for name, count, report in zip(found.names, found.devices, alone.values(), strict=True)
        ],
        "plans": [
            plan_record(p.report, rank=i + 1, bound_s=p.bound_s)
            | {"pool_of_stage": [found.names[at] for at in p.where], "even_s": p.even_s,
               "programme": {"way": p.game.way, "objective_s": p.game.objective_s, "bound_s": p.game.bound_s,
                             "gap": p.game.gap, "status": p.game.status}}
            for i, p in enumerate(found.plans)
        ],
        "search": {"raw": found.raw, "legal": found.legal, "tried": found.tried, "bound_s": found.bound_s,
                   "gap": found.gap, "stopped": found.stopped, "rejected": dict(found.rejected)},
        "warnings": list(found.warnings), "timing": {"seconds": found.seconds},
    }  # fmt: skip


def _alone_json(report: Report | str) -> dict[str, Any]:
    if isinstance(report, str):
        return {"label": None, "step_s": None, "why": report}
    return {"label": report.plan.label(), "step_s": report.step_s.value, "why": ""}


def print_mixed(found: MixedResult, alone: dict[str, Report | str]) -> None:
    """Plans with the layers of each stage and its pool, the pools by themselves, and the proof."""
    from dashboards.style import gib_text, interval_text, seconds_text
    from planner.cli.tables import grid, notes, rests_on

    screen = output.console()
    rows = []
    for i, plan in enumerate(found.plans):
        report = plan.report
        pools = " | ".join(f"{found.names[at]} x{plan.where.count(at)}" for at in dict.fromkeys(plan.where))
        even = "" if plan.even_s is None else seconds_text(plan.even_s)
        rows.append((
            str(i + 1), report.plan.label(), pools, " ".join(str(sum(each)) for each in chunks_of(report)),
            ", ".join(report.plan.recompute) or "none", interval_text(report.step_s), even,
            f"{gib_text(report.peak_mem_bytes)}/{gib_text(report.usable_mem_bytes)}",
        ))  # fmt: skip
    headers = ("#", "plan", "stages on", "layers of each stage", "recompute", "step", "even layers", "GiB")
    total = sum(found.devices)
    title = f"{found.plans[0].report.model} on {total:,} devices of {len(found.names)} pools"
    screen.print(grid(title, headers, rows, left=("plan", "stages on", "layers of each stage", "recompute")))
    first = found.plans[0]
    if first.report.plan.vpp > 1:
        stages = [
            (str(at), found.names[first.where[at]], str(sum(each)), " ".join(map(str, each)))
            for at, each in enumerate(chunks_of(first.report))
        ]  # fmt: skip
        names = ("stage", "pool", "# layers", "of each virtual stage")
        screen.print()
        screen.print(grid("Stages of the first plan", names, stages, left=("pool", "of each virtual stage")))
    screen.print(f"\nLayout of the first plan: {first.report.pipeline_layout}", markup=False)
    screen.print()
    lines = []
    for (name, own), count in zip(alone.items(), found.devices, strict=True):
        said = (own, "") if isinstance(own, str) else (own.plan.label(), seconds_text(own.step_s.value))
        lines.append((name, f"{count:,}", *said))
    screen.print(grid("Each pool by itself", ("pool", "# GPUs", "plan", "step"), lines, left=("plan",)))
    why = "no layout that is left could be faster" if found.stopped == "bound" else "stopped at the limit of layouts"
    screen.print(
        f"\n{found.raw:,} candidates, {found.legal:,} may fit, stages of {found.tried} chosen: {why}. No layout is "
        f"faster than {seconds_text(found.bound_s)}, whatever its stages (gap {found.gap:.1%})."
    )
    notes(screen, "The first plan rests on", rests_on(found.plans[0].report.provenance))
    notes(screen, "Warnings", found.warnings)


def chunks_of(report: Report) -> list[tuple[int, ...]]:
    """Layers of the virtual stages of each stage, in the order in which a micro-batch comes through it."""
    pp = report.plan.pp
    return [tuple(report.stages[stage::pp]) for stage in range(pp)]
