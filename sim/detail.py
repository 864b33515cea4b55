"""`simulate_layers`: one step at layer level, with lanes that differ in their load.

Beside the pipeline run of `sim.run`, which it does not replace: that one reduces a virtual stage to a duration. Prices
are the same; what differs is listed in `sim.cost.slots` and `sim.build.detail`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hwprofiles.errors import UserError
from sim.build.context import Context
from sim.build.detail import INNER, DetailBuilder, LaneWork
from sim.build.groups import PartWork
from sim.build.layer import end_ops, layer_ops
from sim.build.order import placement, slot_of
from sim.build.schedule import repeats_after
from sim.build.stages import StageContent
from sim.build.tasks import check_profile
from sim.checks import check_layout
from sim.cost.segments import PartSegments, part_segments
from sim.cost.slots import Rules
from sim.cost.step import StepCost
from sim.cost.timing import PartTime, comm_sm_share, half_ops, overlap_left
from sim.engine.core import Engine
from sim.engine.series import with_moved
from sim.mesh import group
from sim.model import MoESpec, mtp_block
from sim.ops import Op
from sim.report import Lane, Trace
from sim.routing.ranks import colder, median_share, node_shares
from sim.run import Simulation
from sim.scenario import Scenario

LANES = ("hottest", "median", "nodes")
MOST_TASKS = 3_000_000  # a minute or two
TASKS_PER_LAYER = 20  # forward and backward of one micro-batch, about


@dataclass(frozen=True, kw_only=True)
class LaneLoad:
    """One lane of every stage: rows over those of the hottest rank, and the ranks it stands for."""

    name: str
    share: float
    weight: int


def simulate_layers(scenario: Scenario, *, lanes: str | Sequence[LaneLoad] = "hottest") -> Trace:
    """One training step, every layer of every micro-batch as events. Deterministic.

    lanes: "hottest" (one per pipeline stage, the most loaded rank), "median" (that one and the median rank), "nodes"
    (the most loaded rank of each scale-up domain of the expert-parallel group), or loads of one's own.
    `Trace.lanes` names them. Raises UserError as `simulate` does, and where the step has too many tasks for this.
    """
    chosen = lane_loads(scenario, lanes) if isinstance(lanes, str) else tuple(lanes)
    if not chosen or any(not 0.0 < each.share <= 1.0 for each in chosen):
        raise ValueError(f"lanes {chosen}: give at least one, each with a share in (0, 1]")
    check_layout(scenario)
    if scenario.workload.offload.layers or scenario.workload.offload.modules:
        raise UserError("the layer-level run has no link to the host; use --detail pipeline", where="--offload")
    micro_batches = scenario.plan.num_micro_batches(scenario.workload.global_batch_seqs)
    tasks_about = TASKS_PER_LAYER * len(scenario.model.layers) * micro_batches * len(chosen)
    if tasks_about > MOST_TASKS:
        raise UserError(
            f"about {tasks_about / 1e6:.0f} million tasks ({micro_batches} micro-batches, {len(chosen)} lanes per "
            "stage) are too many; lower --global-batch or take fewer lanes, the steady state repeats itself",
            where="--detail layers",
        )
    sims = [Simulation(replace(scenario, routing=colder(scenario.routing, each.share))) for each in chosen]
    work = tuple(LaneWork(profile=sim.profile(), chunks=_chunks(sim)) for sim in sims)
    first = work[0].profile
    check_profile(first)
    m, software = first.num_micro_batches, scenario.software
    repeats = repeats_after(first.schedule, pp=first.pp, vpp=first.vpp, num_micro_batches=m, group=first.group)
    builder = DetailBuilder(
        first, m, repeats, work=work, overlap=software.a2a_overlap,
        rules=Rules(
            shared_beside=software.shared_expert_overlap, delay_wgrad=software.delay_wgrad,
            steal=comm_sm_share(sims[0].cost), left=overlap_left(sims[0].cost),
        ),
    )  # fmt: skip
    tasks = builder.tasks()
    static = [lane.profile.static_bytes[stage] for stage in range(first.pp) for lane in work]
    engine = Engine(tasks, first.links, static, link_series=True)
    trace = engine.run()
    inside = [
        ((task.lane, INNER), engine.start_s[i], engine.end_s[i], builder.inner[task.id])
        for i, task in enumerate(tasks) if task.id in builder.inner
    ]  # fmt: skip
    names = tuple(Lane(stage=stage, name=each.name, weight=each.weight) for stage in range(first.pp) for each in chosen)
    return replace(
        trace, lanes=names, link_rates=with_moved(trace.link_rates, inside),
        spans=tuple(s for s in trace.spans if s.end_s > s.start_s),
    )  # fmt: skip


def lane_loads(scenario: Scenario, lanes: str) -> tuple[LaneLoad, ...]:
    """The lanes of one stage. Raises UserError on a name that is not known."""
    if lanes not in LANES:
        raise UserError(f"{lanes!r} is not known; use one of {', '.join(LANES)}", where="--lanes")
    plan = scenario.plan
    ranks = plan.num_devices // plan.pp
    moe = next((layer.moe for layer in scenario.model.layers if layer.moe is not None), None)
    if lanes == "hottest" or moe is None or plan.ep == 1:
        return (LaneLoad(name="", share=1.0, weight=ranks),)
    tokens = float(scenario.context().group_tokens)
    kind, factor = {"num_experts": moe.num_experts, "top_k": moe.top_k}, scenario.software.capacity_factor
    if lanes == "median":
        share = median_share(scenario.routing, plan.ep, tokens, capacity_factor=factor, **kind)
        hot = ranks // plan.ep
        return (
            LaneLoad(name="hottest rank", share=1.0, weight=hot),
            LaneLoad(name="median rank", share=share, weight=ranks - hot),
        )
    inside = max(1, int(group(plan, "ep", scenario.cluster, scenario.ranks).intra))
    shares = node_shares(scenario.routing, plan.ep, inside, tokens, capacity_factor=factor, **kind)
    return tuple(
        LaneLoad(name=f"node {i}, hottest rank", share=share, weight=ranks // len(shares))
        for i, share in enumerate(shares)
    )


def idle_s(trace: Trace, lane: int) -> float:
    """Seconds of the step in which a lane neither computes nor communicates (waiting for others)."""
    spans = sorted((s.start_s, s.end_s) for s in trace.spans if s.lane == lane)
    busy_s, until_s = 0.0, 0.0
    for start_s, end_s in spans:
        busy_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return trace.makespan_s - busy_s


def _chunks(sim: Simulation) -> tuple[tuple[tuple[PartWork, ...], ...], ...]:
    made, contents = _Parts(sim.step), sim.contents
    placed = placement(sim.scenario.plan.schedule)
    first: dict[int, int] = {}  # by copy of the model
    firsts = {}
    places = [(stage, chunk) for chunk in range(len(contents[0])) for stage in range(len(contents))]
    for stage, chunk in sorted(places, key=lambda at: slot_of(*at, pp=len(contents), placed=placed)):
        copy = chunk if placed == "both" else 0
        firsts[stage, chunk] = first.get(copy, 0)
        first[copy] = firsts[stage, chunk] + contents[stage][chunk].num_layers
    return tuple(
        tuple(made.of(content, firsts[stage, chunk]) for chunk, content in enumerate(row))
        for stage, row in enumerate(contents)
    )


def _of_layer(part: PartWork, number: int) -> PartWork:
    half = None if part.half is None else part.half.of_layer(number)
    return PartWork(whole=part.whole.of_layer(number), half=half)


class _Parts:
    """Segments of every part of a model, each laid out once; layers with a load of their own at just that load."""

    def __init__(self, step: StepCost) -> None:
        self.step = step
        self.own: dict[tuple[int, int], PartWork] = {}
        _, self.index = step.ctx.model.layer_kinds()
        self.layers = [self._layer(step.ctx, kind) for kind in range(len(step.kinds))]
        self.embedding = PartWork(whole=self._end("embedding", 0))
        self.head = self._heads()

    def of(self, content: StageContent, first: int) -> tuple[PartWork, ...]:
        """Parts of one chunk in order, `first` the number of its first layer; layers of a kind stand together."""
        parts = [self.embedding] if content.embedding else []
        here = list(enumerate(self.index))[first : first + content.num_layers]
        for kind, (n, mean) in enumerate(zip(content.kind_counts, self.layers, strict=True)):
            rows = self.step.levels.rows(content, kind) if content.own_loads else []
            found = [self._own(kind, row) for row in rows] + [mean] * (n - len(rows))
            numbers = [number for number, of in here if of == kind]
            parts += [_of_layer(part, number) for part, number in zip(found, numbers, strict=True)]
        return tuple(parts + (self.head if content.head else []))

    def _own(self, kind: int, row: int) -> PartWork:
        """The layer of a kind with one row of its popularity."""
        if (kind, row) not in self.own:
            by_layer, _ = self.step.levels.loads(kind)
            ctx = replace(self.step.ctx, over_mean=float(by_layer[row]))
            self.own[kind, row] = self._layer(ctx, kind, row)
        return self.own[kind, row]

    def _layer(self, ctx: Context, kind: int, row: int | None = None) -> PartWork:
        step, layer = self.step, self.step.kinds[kind]
        part = step.layer_at(ctx, kind, row)
        whole = self._segments(ctx, layer_ops(ctx, layer), part, layer.moe)
        if not part.edge_s:
            return PartWork(whole=whole)
        half = step.half_of(ctx, kind, row)
        ops = half_ops(layer_ops(half, layer))
        return PartWork(whole=whole, half=self._segments(half, ops, step.half_part(half, kind), layer.moe))

    def _segments(self, ctx: Context, ops: Iterable[Op], part: PartTime, moe: MoESpec | None = None) -> PartSegments:
        return part_segments(self.step.cost, ctx, ops, part, moe, stragglers=self.step.stragglers)

    def _end(self, which: str, at: int) -> PartSegments:
        part = self.step.embedding if which == "embedding" else self.step.head[at]
        return self._segments(self.step.ctx, end_ops(self.step.ctx, which), part)

    def _heads(self) -> list[PartWork]:
        """As `StepCost.head`: the head, then projection and layer of each prediction block."""
        parts = [PartWork(whole=self._end("head", 0))]
        block = [self.layers[self.step.kinds.index(layer)] for layer in mtp_block(self.step.ctx.model)]
        for at in range(1, len(self.step.head), 1 + len(block)):
            parts += [PartWork(whole=self._end("mtp", at)), *block]
        return parts
