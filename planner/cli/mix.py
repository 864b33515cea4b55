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
    from sim.report import Report

LINE_S = 5.0  # between lines of progress where no terminal shows a bar
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
    output.check_targets(json=asked.json, out=asked.out)
    problems = Problems()
    default = {item.name: item.default for item in fields(Asked)}
    given = [name for name in _NOT_HERE if getattr(asked, name) != default[name]]
    problems.found += [f"--{name.replace('_', '-')} is not for mix; leave it out" for name in given]
    pools = problems.attempt(lambda: read_pools(asked.pool or []))
    between = problems.attempt(lambda: read_between(asked.between))
    if asked.placement:
        problems.found.append("--placement is for one type of devices; leave it out")
    problems.stop()
    assert pools is not None
    with output.progress("reading", every_s=LINE_S) as bar:
        questions = read_questions(asked, pools)
        from planner.mixed.search import find_mixed

        first, types = questions[0], types_of(questions, pools)
        found = find_mixed(
            types, fixed=first.fixed, target=first.target, between=between, top=first.top,
            seed=first.seed, progress=bar.update,
        )  # fmt: skip
        alone = []
        for name, count in pools:
            bar.update(f"{name} by itself")
            alone.append(best_alone(asked, name, count, bar.update))
    if asked.strict:
        output.refuse_weak(plan.report for plan in found.plans)
    from planner.cli.tables_mix import print_mixed
    from planner.mixed.mixfile import mixed_json

    data = mixed_json(
        found, types, alone, between=between, target=first.target, fixed=first.fixed, top=first.top, seed=first.seed
    )
    for target, option in ((asked.json, "--json"), (asked.out, "--out")):
        if target:
            output.write_text(target, output.json_text(data), option)
    if asked.json != output.STDOUT:
        print_mixed(data)
        output.say_written(json=asked.json, mix=asked.out)


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
