"""Seconds of the MoE layers of a placement on a cluster: prices from the cost model, time from the event run.

Every GPU of the expert-parallel group is a lane. Its experts take the time of grouped products, activation and
permutation at its own rows. Two ways of traffic:

- dispatch: tokens leave their own rank and come back, so a layer has two exchanges. Kernels that send a token once to
  each node take the nodes that a token's experts lie on; others send a copy per expert.
- chain: tokens stay where their expert was (context-coherent execution), so there is one exchange between two layers,
  of the flow between their GPUs.

All lanes meet at every exchange: it starts when all are there and is over when all have sent (as in
`sim.build.detail`). Backward runs the layers the other way round. Attention, router and shared experts are the same for
every placement and are left out. Experts of one GPU count as equally full among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.forms.hits import expected_hits
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.placement.gpus import moe_with
from planner.placement.records import Floats, Instance, Placement, gpu_time
from sim.build.context import ACT_BYTES, Context
from sim.build.moe import moe_ops
from sim.cost.comm import CommTime
from sim.cost.model import CostModel
from sim.engine.core import run
from sim.engine.graph import COMPUTE_STREAM, Task
from sim.mesh import group
from sim.model import ModelSpec, MoESpec
from sim.plan import Plan
from sim.routing.spread import expected_nodes
from sim.workload import Workload

PASSES = ("forward", "backward")
ROUTED = ("experts", "sort_by_expert", "sort_back")  # ops that grow with the rows of a GPU
GRID = 33  # loads at which experts are priced; straight lines between
MOST_LOAD = 8.0  # of them, over the mean; beyond it the last line goes on
RELATIVE_STEP = 0.01  # for slopes


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a placement runs: cluster (one expert-parallel group), model, trainer, tokens a GPU has at once."""

    cluster: ClusterSpec
    model: ModelSpec
    software: SoftwareProfile
    tokens_per_gpu: int
    precision: str = "bf16"

    def moe_of(self, num_experts: int) -> tuple[MoESpec, bool]:
        """(routed experts, gated) of the layer kind with so many experts. Raises UserError where there is none."""
        return moe_with(self.model, num_experts)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Seconds of one more row on the fullest GPU, of one more row that crosses nodes, of one that changes GPU in its
    node, forward and backward together, at the mean load."""

    compute_s: float
    cross_node_s: float
    in_node_s: float


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a placement asks of GPUs and links: over [L, G], load over the mean; spread [L], see `LayerClock.spread`;
    near, far [L - 1, G], rows of a chain's exchanges (None where none are known)."""

    over: Floats
    spread: Floats
    near: Floats | None = None
    far: Floats | None = None


class LayerClock:
    """Prices of one question on one machine. traffic: "dispatch" or "chain"; training: with the backward pass."""

    def __init__(self, instance: Instance, machine: Machine, *, traffic: str, training: bool = True) -> None:
        """Raises UserError where cluster, model and question do not go together."""
        if machine.cluster.num_devices != instance.gpus:
            raise UserError(
                f"the cluster has {machine.cluster.num_devices} GPUs and the placement {instance.gpus}; give as many",
                where="--cluster",
            )
        self.instance, self.machine, self.traffic = instance, machine, traffic
        self.moe, self.gated = machine.moe_of(instance.num_experts)
        self.passes = PASSES if training else PASSES[:1]
        self.cost = CostModel(machine.cluster, machine.software)
        gpus = instance.gpus
        self.plan = Plan(ep=gpus, dp=gpus, edp=1)
        self.grp = group(self.plan, "ep", machine.cluster)
        self.ctx = Context(
            model=machine.model, plan=self.plan, software=machine.software,
            workload=Workload(
                seq_tokens=machine.tokens_per_gpu, global_batch_seqs=gpus, precision=machine.precision,  # type: ignore[arg-type]
            ),
        )  # fmt: skip
        self.rows = machine.tokens_per_gpu * self.moe.top_k * gpus  # of a layer, all GPUs
        self._prices: dict[str, tuple[Floats, Floats]] = {}

    # -- prices ------------------------------------------------------------------------------------------------------

    def experts_s(self, over_mean: Floats, way: str) -> Floats:
        """Seconds of the experts of GPUs with `over_mean` of the mean rows."""
        if way not in self._prices:
            grid = np.linspace(0.0, MOST_LOAD, GRID)
            grid[0] = 1e-3
            ops = moe_ops(replace(self.ctx, over_mean=grid), self.moe, gated=self.gated)
            passes = ("forward",) if way == "forward" else ("backward", "wgrad")
            mine = [o for o in ops if o.kind != "collective" and o.pass_ in passes and o.name.startswith(ROUTED)]
            seconds = np.zeros(GRID)
            for op in mine:
                seconds = seconds + self.cost.device_s(op)
            self._prices[way] = grid, seconds
        grid, seconds = self._prices[way]
        x = np.asarray(over_mean, dtype=np.float64)
        slope = (seconds[-1] - seconds[-2]) / (grid[-1] - grid[-2])
        inside = np.asarray(np.interp(x, grid, seconds), dtype=np.float64)
        beyond: Floats = inside + np.maximum(x - grid[-1], 0.0) * slope
        return beyond

    def flow_time(self, near_rows: Floats, far_rows: Floats) -> CommTime:
        """Exchange of GPUs that send or receive so many rows inside their node, and across nodes, at most."""
        row = self.machine.model.hidden_dim * ACT_BYTES
        return self.cost.comm.exchange(near_rows * row, far_rows * row, self.grp)

    def dispatch_time(self, over_mean: Floats, spread: Floats, phase: str) -> CommTime:
        """Dispatch or combine of GPUs with `over_mean` of the mean rows; spread: remote nodes of a token over those of
        uniform routing."""
        row = self.machine.model.hidden_dim * ACT_BYTES
        rows = self.rows / self.instance.gpus * over_mean
        if self.machine.software.dispatcher in ("deepep", "hybridep"):
            return self.cost.comm.dispatch(
                rows * row, self.grp, top_k=self.moe.top_k, hidden=self.machine.model.hidden_dim, phase=phase,
                experts=self.instance.num_experts, spread=spread,
                hybrid=self.machine.software.dispatcher == "hybridep", mode=self.machine.software.dispatch_kernel,
            )  # fmt: skip
        size, intra = float(self.grp.size), float(self.grp.intra)
        return self.cost.comm.exchange(rows * row * (intra - 1.0) / size, rows * row * (size - intra) / size, self.grp)

    @cached_property
    def weights(self) -> Weights:
        """What the terms of a placement weigh, from the prices around the mean."""
        rows = self.rows / self.instance.gpus
        up = np.array([1.0, 1.0 + RELATIVE_STEP])
        compute = sum(float(np.diff(self.experts_s(up, way))[0]) for way in self.passes) / (RELATIVE_STEP * rows)
        moved = rows * np.array([0.5, 0.5 + RELATIVE_STEP])
        none = np.zeros(2)
        each = len(self.passes)

        def slope(near: Floats, far: Floats) -> float:
            return each * float(np.diff(self.flow_time(near, far).alone_s)[0]) / (RELATIVE_STEP * rows)

        across = slope(none, moved) if self.instance.num_nodes > 1 else 0.0
        return Weights(compute_s=compute, cross_node_s=across, in_node_s=slope(moved, none))

    # -- what a placement asks for -----------------------------------------------------------------------------------

    def demand(self, placement: Placement) -> Demand:
        """Load, flow and fan-out of a placement under the counts of the question."""
        near = far = None
        if self.traffic == "chain" and self.instance.transitions is not None and self.instance.transitions.size:
            near, far = self.volumes(pair_flows(self.instance, placement))
        over, spread = self.over_mean(gpu_time(self.instance, placement)), self.spread(placement)
        return Demand(over=over, spread=spread, near=near, far=far)

    def over_mean(self, time: Floats) -> Floats:
        """Load over speed [L, G] as multiples of the mean load: a slow GPU counts as a fuller one."""
        speeds = self.instance.speeds
        mean = (time * speeds).sum(axis=1, keepdims=True) / self.instance.gpus
        out: Floats = time / np.where(mean > 0.0, mean, 1.0)
        return out

    def volumes(self, flow: Floats) -> tuple[Floats, Floats]:
        """(near, far) rows [L - 1, G] of counts [L - 1, G, G]: the larger of sent and received inside the node, and
        across nodes."""
        total = flow.sum(axis=(1, 2), keepdims=True)
        return near_and_far(flow * (self.rows / np.where(total > 0.0, total, 1.0)), self.instance.gpus_per_node)

    def spread(self, placement: Placement) -> Floats:
        """Remote nodes [L] that a token of this placement reaches, over those of uniform routing; 1 where unknown."""
        count = self.instance.num_nodes
        if self.instance.coactivation is None or count == 1 or placement.has_replicas:
            return np.ones(self.instance.num_layers)
        return nodes_over_uniform(self.instance, placement, self.moe.top_k)

    # -- time --------------------------------------------------------------------------------------------------------

    def layer_s(self, placement: Placement) -> Floats:
        """Seconds [L] of every layer: fullest GPU plus slowest exchange, all passes; the event run takes their sum."""
        return self.seconds(self.demand(placement))

    def seconds(self, asked: Demand) -> Floats:
        """The same of what a placement asks for."""
        experts = sum(self.experts_s(asked.over, way).max(axis=1) for way in self.passes)
        out: Floats = np.asarray(experts) + self.exchange_s(asked)
        return out

    def seconds_sum(self, asked: Demand) -> float:
        """The same of all layers together."""
        return float(self.seconds(asked).sum())

    def exchange_s(self, asked: Demand) -> Floats:
        """Seconds [L] of the exchanges of every layer, all passes; a chain's exchange is the layer's that it enters."""
        out = np.zeros(self.instance.num_layers)
        for times in self._exchanges(asked):
            alone = np.asarray(times.alone_s).max(axis=-1)
            out[len(out) - len(alone) :] += alone
        return out

    def _exchanges(self, asked: Demand) -> list[CommTime]:
        """Times [layer, GPU] of the exchanges of one layer, in order of the passes."""
        if self.traffic == "chain":
            if asked.near is None or asked.far is None:
                return []
            return [self.flow_time(asked.near, asked.far)] * len(self.passes)
        spread = asked.spread[:, None]
        both = [self.dispatch_time(asked.over, spread, phase) for phase in ("dispatch", "combine")]
        return both * len(self.passes)

    def run_s(self, placement: Placement) -> float:
        """Seconds of all layers and passes by the event run."""
        return run(self.tasks(placement), self.cost.comm.link_rates()).makespan_s

    def tasks(self, placement: Placement) -> list[Task]:
        """Tasks of all lanes: exchanges on the network's streams, experts on the compute stream."""
        asked, made = self.demand(placement), _Maker(self)
        exchanges = self._exchanges(asked)
        count = self.instance.num_layers
        for number, way in enumerate(self.passes):
            seconds = self.experts_s(asked.over, way)
            for i in range(count) if way == "forward" else range(count - 1, -1, -1):
                if self.traffic == "chain":
                    if way == "forward" and i > 0 and exchanges:
                        made.exchange(exchanges[number], i - 1)
                    made.experts(seconds[i])
                    if way == "backward" and i > 0 and exchanges:
                        made.exchange(exchanges[number], i - 1)
                else:
                    made.exchange(exchanges[2 * number], i)
                    made.experts(seconds[i])
                    made.exchange(exchanges[2 * number + 1], i)
        return made.out


class _Maker:
    """Tasks in order; `there` holds those that the next one of every lane waits for."""

    def __init__(self, clock: LayerClock) -> None:
        self.rates = clock.cost.comm.link_rates()
        self.gpus = clock.instance.gpus
        self.out: list[Task] = []
        self.there: tuple[int, ...] = ()

    def experts(self, seconds: Floats) -> None:
        """Experts of every lane; they start when the exchange before is over for all."""
        first = len(self.out)
        self.out += [
            Task(id=first + g, name="experts", kind="experts", lane=g, stream=COMPUTE_STREAM, busy_s=float(s),
                 after=self.there)
            for g, s in enumerate(seconds)
        ]  # fmt: skip
        self._meet()

    def exchange(self, times: CommTime, layer: int) -> None:
        """One exchange of every lane; it starts when all are there."""
        first = len(self.out)
        latency, *links = (np.asarray(v)[layer] for v in (times.latency_s, times.up_s, *times.network_s))
        names = tuple(self.rates)
        for g in range(self.gpus):
            flows = tuple(
                (name, float(s[g]) * self.rates[name]) for name, s in zip(names, links, strict=True) if s[g] > 0.0
            )
            self.out.append(
                Task(id=first + g, name="exchange", kind="ep", lane=g, stream="ep", latency_s=float(latency[g]),
                     flows=flows, after=self.there)
            )  # fmt: skip
        self._meet()

    def _meet(self) -> None:
        """A point without duration that waits for the last task of every lane."""
        last = tuple(task.id for task in self.out[-self.gpus :])
        meet = len(self.out)
        self.out.append(Task(id=meet, name="meet", kind="sync", lane=0, stream="meet", after=last))
        self.there = (meet,)


def pair_flows(instance: Instance, placement: Placement) -> Floats:
    """Counts [L - 1, G, G] that go from GPU to GPU between adjacent layers; replicas in proportion to their shares."""
    assert instance.transitions is not None
    on = placement.on_gpu(instance.num_experts)
    return np.stack([on[i].T @ flow @ on[i + 1] for i, flow in enumerate(instance.transitions)])


def near_and_far(flow: Floats, per_node: int) -> tuple[Floats, Floats]:
    """(near, far) [..., G] of flow [..., source, destination]: the larger of sent and received, inside and across."""
    near, far = port_flows(flow, per_node)
    return near.max(axis=0), far.max(axis=0)


def port_flows(flow: Floats, per_node: int) -> tuple[Floats, Floats]:
    """(near, far) [2, ..., G] of flow [..., source, destination]: sent and received, inside the node and across."""
    gpus = flow.shape[-1]
    node = np.arange(gpus) // per_node
    same = node[:, None] == node[None, :]
    inside = flow * (same & ~np.eye(gpus, dtype=bool))
    outside = flow * ~same
    near, far = (np.stack([each.sum(axis=-1), each.sum(axis=-2)]) for each in (inside, outside))
    return near, far


def nodes_over_uniform(instance: Instance, placement: Placement, top_k: int) -> Floats:
    """Remote nodes [L] of a token, over those of uniform routing, from pairs of experts that tokens hold."""
    assert instance.coactivation is not None
    nodes = instance.num_nodes
    part = np.empty((instance.num_layers, instance.num_experts), dtype=np.int64)
    at = np.repeat(np.arange(nodes), placement.experts[0].size // nodes)
    for i, hosts in enumerate(placement.experts):
        filled = hosts.ravel() >= 0
        part[i, hosts.ravel()[filled]] = at[filled]
    uniform = float(expected_hits(top_k, nodes, instance.num_experts))
    pairs = zip(instance.coactivation, instance.loads, part, strict=True)
    return np.array([expected_nodes(c, w, p, nodes, top_k) / uniform for c, w, p in pairs])
