"""From what the user typed to the records of a question; every problem is reported at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from hwprofiles.errors import UserError
from planner.question.asked import Asked
from planner.question.placed import placed_for
from planner.question.trainer import completed

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwprofiles.nodes import NodeList
    from hwprofiles.specs import ClusterSpec, SoftwareProfile
    from sim.mesh import RankMap
    from sim.model import ModelSpec
    from sim.plan import Plan
    from sim.report import Report
    from sim.routing import Routing
    from sim.scenario import Scenario
    from sim.workload import Workload

Value = TypeVar("Value")
_LARGEST = 10**9  # sequences, tokens: beyond it is a slip of the finger
MOST_DEVICES = 2**20  # likewise; maps of ranks and nodes are made of every one


@dataclass
class Problems:
    """Collects problems instead of stopping at the first."""

    found: list[str] = field(default_factory=list)

    def whole(self, text: str | None, option: str, *, lowest: int = 1, highest: int = _LARGEST) -> int | None:
        """An integer of at least `lowest`, or None when nothing was given or it is wrong."""
        if text is None:
            return None
        clean = text.strip().replace("_", "").replace(",", "")
        if not re.fullmatch(r"[+-]?\d{1,30}", clean):
            self.found.append(f"{option} {text[:40]!r} is not a whole number; give an integer such as {option} 8")
            return None
        value = int(clean)
        if not lowest <= value <= highest:
            remedy = f"give at least {lowest}" if value < lowest else f"give at most {highest:,}"
            self.found.append(f"{option} {value} is out of range; {remedy}")
            return None
        return value

    def attempt(self, read: Callable[[], Value]) -> Value | None:
        """The value, or None with the reader's problems collected."""
        try:
            return read()
        except UserError as error:
            head = f"{error.where}: " if error.where else ""
            self.found += [head + p for p in error.problems]
            return None

    def stop(self, where: str = "") -> None:
        """Raise UserError when anything was found."""
        if self.found:
            raise UserError(self.found, where=where)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question ready to be answered. `fixed` holds the layout choices that were given, `ranks` the rank maps to
    choose among, `notes` what was filled in for the target."""

    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    fixed: dict[str, Any]
    target: str
    top: int
    seed: int
    routing: Routing
    ranks: tuple[RankMap, ...]
    notes: tuple[str, ...] = ()


def one_of(name: str, known: tuple[str, ...], option: str) -> str:
    """`name` if known; otherwise a UserError with the nearest names."""
    if name in known:
        return name
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{name[:60]!r} is not known; {hint}use one of: {', '.join(known)}", where=option)


def read_question(asked: Asked) -> Question:
    """Read and check everything the user typed. Raises UserError with all problems."""
    from hwprofiles import catalogue
    from planner.rules import TARGETS
    from sim.families import load_model
    from sim.routing import Routing, parse_routing, resolve
    from sim.workload import Precision, Workload

    problems = Problems()
    asked, filled = completed(asked)
    fixed = _fixed(asked, problems)
    gpus = problems.whole(asked.gpus, "--gpus", highest=MOST_DEVICES)
    seq = problems.whole(asked.seq_len, "--seq-len")
    batch = problems.whole(asked.global_batch, "--global-batch")
    top = problems.whole(asked.top, "--top", highest=10_000)
    seed = problems.whole(asked.seed, "--seed", lowest=0, highest=2**32 - 1)
    precision = problems.attempt(lambda: one_of(asked.precision, get_args(Precision), "--precision"))
    target = problems.attempt(lambda: one_of(asked.target, tuple(TARGETS), "--target"))
    model = cluster = software = None
    if asked.model is None:
        problems.found.append("no --model; give a name (see `moecast show models`) or a config.json")
    else:
        name = asked.model
        model = problems.attempt(lambda: load_model(name))
    if model is not None and model.image is not None and asked.seq_len == Asked.seq_len:
        seq = model.image.tokens  # the model says how long its sequences are
    if asked.cluster is None:
        problems.found.append("no --cluster; give a name (see `moecast show clusters`) or a TOML file")
    elif asked.gpus is None or gpus is not None:
        where = asked.cluster
        cluster = problems.attempt(lambda: catalogue.cluster(where, gpus=gpus))
    nodes: NodeList | None = None
    if cluster is not None and asked.nodes is not None:
        of_nodes, listed = cluster, asked.nodes
        nodes = problems.attempt(lambda: _nodes(listed, of_nodes, gpus))
        if nodes is not None and gpus is None:  # the list is the allocation
            where, gpus = cast(str, asked.cluster), len(nodes.names) * cluster.devices_per_node
            cluster = problems.attempt(lambda: catalogue.cluster(where, gpus=gpus))
    ranks: tuple[RankMap, ...] | None = None
    if cluster is not None and target is not None and (nodes is not None or asked.nodes is None):
        machines, trainer = cluster, target
        ranks = problems.attempt(lambda: _rank_maps(asked, machines, trainer, nodes))
    if cluster is not None and precision is not None:
        machines, wanted = cluster, precision
        problems.attempt(lambda: _device_has(machines, wanted))
    if asked.software is not None or cluster is not None:
        software = problems.attempt(lambda: software_for(asked.software, cluster, model, precision))
    routing: Routing | None = Routing()
    if asked.routing != Asked.routing and model is not None:
        of = model
        routing = problems.attempt(lambda: resolve(parse_routing(asked.routing), of, seed=seed or 0))
    if asked.placement is not None and routing is not None:
        given, ep, at = routing, fixed.get("ep"), cluster
        routing = problems.attempt(lambda: placed_for(asked, given, ep, at))
    elif asked.redundant_experts is not None:
        problems.found.append("--redundant-experts needs --placement auto; give it, or leave the option out")
    from planner.question.levers import read_levers

    levers = problems.attempt(lambda: read_levers(asked, seq or 1))
    problems.stop()
    assert routing is not None and ranks is not None and levers is not None
    assert model and cluster and software and seq and batch and precision and target and top is not None
    assert seed is not None
    workload = Workload(
        seq_tokens=seq, global_batch_seqs=batch, precision=cast(Precision, precision),
        with_mtp=model.mtp_layers > 0,  # a model that has prediction blocks trains them
        **levers,
    )  # fmt: skip
    return Question(
        model=model, cluster=cluster, software=software, workload=workload, fixed=fixed, target=target,
        top=top, seed=seed, routing=routing, ranks=ranks, notes=filled,
    )  # fmt: skip


def _nodes(file: str, cluster: ClusterSpec, gpus: int | None) -> NodeList:
    """The node list of --nodes: as many nodes as --gpus asks for, or as many as it lists."""
    from hwprofiles.nodes import read_nodes

    return read_nodes(file, cluster, needed=1 if gpus is None else cluster.num_nodes)


def _rank_maps(asked: Asked, cluster: ClusterSpec, target: str, nodes: NodeList | None) -> tuple[RankMap, ...]:
    """The rank maps that --rank-order, --host-map and --nodes leave; the preferred one first."""
    from hwprofiles.hostmap import HostMap, read_host_map
    from planner.node_order import host_maps
    from planner.ranks import rank_maps

    hosts: tuple[HostMap | None, ...] = (None,)
    problems = Problems()
    if asked.host_map is not None and nodes is not None:
        problems.found.append("--host-map and --nodes both say where ranks run; give one of them")
    elif nodes is not None:
        hosts = host_maps(nodes, cluster.num_nodes, cluster.devices_per_node)
    elif asked.host_map is not None:
        file, sizes = asked.host_map, {"num_devices": cluster.num_devices, "devices_per_node": cluster.devices_per_node}
        hosts = (problems.attempt(lambda: read_host_map(file, **sizes)),)
    maps = problems.attempt(lambda: rank_maps(target, asked.rank_order, hosts))
    problems.stop()
    assert maps is not None
    return maps


def software_for(
    name: str | None, cluster: ClusterSpec | None, model: ModelSpec | None, precision: str | None
) -> SoftwareProfile:
    """The trainer release (default: the device's) as it behaves for this device, model and precision."""
    from hwprofiles import catalogue

    device = None if cluster is None else cluster.device
    if name is None:
        assert device is not None
        name = catalogue.default_software(device)
    arch = None if model is None else "moe" if model.is_moe else "dense"
    return catalogue.software(
        name, device=device, model=None if model is None else model.name, arch=arch, precision=precision
    )


def _device_has(cluster: ClusterSpec, precision: str) -> None:
    """Raise UserError when the device has no peak for the number format of a precision recipe."""
    from hwprofiles import catalogue
    from sim.workload import Precision

    peaks = catalogue.device_of(cluster).peak_flop_per_s
    if precision not in peaks:
        have = ", ".join(name for name in get_args(Precision) if name in peaks)
        raise UserError(f"{cluster.device} has no {precision} units; use one of: {have}", where="--precision")


_DEGREES = {
    "--tp": "tp", "--pp": "pp", "--vpp": "vpp", "--cp": "cp", "--ep": "ep", "--etp": "etp",
    "--micro-batch": "micro_batch_seqs", "--micro-batch-group": "micro_batch_group",
}  # fmt: skip


def _fixed(asked: Asked, problems: Problems) -> dict[str, Any]:
    typed = {
        "--tp": asked.tp, "--pp": asked.pp, "--vpp": asked.vpp, "--cp": asked.cp, "--ep": asked.ep,
        "--etp": asked.etp, "--micro-batch": asked.micro_batch, "--micro-batch-group": asked.micro_batch_group,
    }  # fmt: skip
    fixed: dict[str, Any] = {}
    for option, text in typed.items():
        value = problems.whole(text, option)
        if value is not None:
            fixed[_DEGREES[option]] = value
    zero = problems.whole(asked.zero, "--zero", lowest=0, highest=3)
    if zero is not None:
        fixed["zero_stage"] = zero
    if asked.recompute is not None:
        given = asked.recompute
        modules = problems.attempt(lambda: read_recompute(given))
        if modules is not None:
            fixed["recompute"] = modules
    if asked.schedule is not None:
        typed_names = asked.schedule
        schedules = problems.attempt(lambda: read_schedules(typed_names))
        if schedules is not None:
            fixed["schedule"] = schedules if len(schedules) > 1 else schedules[0]
    return fixed


def read_schedules(text: str) -> tuple[str, ...]:
    """One or more schedules with commas between."""
    from planner.rules.layout import SCHEDULES

    return tuple(one_of(name.strip(), SCHEDULES, "--schedule") for name in text.split(","))


def read_recompute(text: str) -> tuple[str, ...]:
    """`none`, `full` or a list of modules, as the plan's tuple in canonical order."""
    from sim.plan import RECOMPUTE_MODULES

    names = [part.strip() for part in text.split(",") if part.strip()]
    if names == ["none"]:
        return ()
    if names == ["full"]:
        return ("full",)
    if not names:
        raise UserError("an empty list; give none, full or modules", where="--recompute")
    alone = [name for name in names if name in ("none", "full")]
    if alone:
        raise UserError(f'"{alone[0]}" stands alone; give {alone[0]}, or modules without it', where="--recompute")
    for name in names:
        one_of(name, RECOMPUTE_MODULES if len(names) > 1 else ("none", "full", *RECOMPUTE_MODULES), "--recompute")
    return tuple(module for module in RECOMPUTE_MODULES if module in names)


def read_plan(question: Question, stages: str | None = None) -> Plan:
    """The one plan `simulate` runs: given degrees, 1 elsewhere, data parallelism from what is left.

    Layers that do not divide evenly over the stages are laid out counting embedding and loss as
    layers, unless `stages` says how many each holds. Raises UserError with every broken rule of the target.
    """
    from planner.imports.layout_text import counts_of
    from planner.rules import check
    from sim.build.order import V_SHAPED
    from sim.plan import Plan

    fixed = dict(question.fixed)
    world, layers = question.cluster.num_devices, len(question.model.layers)
    schedule = fixed.setdefault("schedule", "interleaved" if fixed.get("vpp", 1) > 1 else "1f1b")
    if isinstance(schedule, tuple):
        raise UserError(
            f"{', '.join(schedule)}: one step has one schedule; name one, or ask `plan` for the best of them",
            where="--schedule",
        )
    if schedule in V_SHAPED:
        fixed.setdefault("vpp", 2)
    one = Plan(**fixed)
    virtual = one.pp * one.vpp
    counts = None if stages is None else counts_of(stages, "--stages")
    plan = Plan(
        **fixed,
        dp=max(1, world // (one.tp * one.cp * one.pp)),
        edp=max(1, world // (one.etp * one.ep * one.pp)),
        stages=counts,
        account_ends=counts is None and one.pp > 1 and layers % virtual != 0,
    )
    broken = check(
        plan, question.model, question.cluster, question.software, question.workload, target=question.target,
        ranks=question.ranks[0],
    )  # fmt: skip
    if broken:
        raise UserError([str(v) for v in broken], where=plan.label())
    return plan


def scenario_of(question: Question, plan: Plan, ranks: RankMap) -> Scenario:
    """The question, a plan and a rank map as one record."""
    from sim.scenario import Scenario

    return Scenario(
        model=question.model, cluster=question.cluster, software=question.software, workload=question.workload,
        plan=plan, routing=question.routing.at_ep(plan.ep), ranks=ranks,
    )  # fmt: skip


def with_timeline(report: Report, scenario: Scenario) -> Report:
    """The same report with the trace of a run that skips no micro-batch, for pictures of the whole step."""
    from dataclasses import replace

    from sim.run import simulate

    return replace(report, trace=simulate(scenario, trace=True, steady=False).trace)


def read_detail(detail: str, lanes: str) -> str | None:
    """Lanes of the layer-level run, or None where the pipeline run is asked for. Raises UserError."""
    problems = Problems()
    asked = problems.attempt(lambda: one_of(detail, ("pipeline", "layers"), "--detail"))
    problems.attempt(lambda: one_of(lanes, ("hottest", "median", "nodes"), "--lanes"))
    if asked == "pipeline" and lanes != "hottest":
        problems.found.append(f"--lanes {lanes} is of the layer-level run; add --detail layers or leave it out")
    problems.stop()
    return lanes if asked == "layers" else None
