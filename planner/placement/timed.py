"""What a placement is worth on a machine: simulated seconds before and after, their sampling interval, time to move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from planner.placement.clock import Demand, LayerClock, Machine, pair_flows, port_flows
from planner.placement.gpus import expert_weight_bytes
from planner.placement.records import Floats, Instance, Placement, Range, TimeFigures, gpu_time
from planner.placement.replan import migration
from planner.placement.scoring import placed_routing
from planner.placement.seconds import SecondsBound
from sim.build.context import ACT_BYTES, FP32_BYTES
from sim.routing import ExpertLoads, Routing
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Precision, Workload

RESAMPLES = 30
QUANTILES = (0.1, 0.9)
OPTIMIZER_WORDS = 3  # of 4 bytes: main weight and two moments, which move with an expert that is trained


def time_figures(
    clock: LayerClock, before: Placement, after: Placement, *, baselines: Mapping[str, Placement],
    bound: SecondsBound, moved_from: Placement | None, seed: int = 0,
) -> TimeFigures:  # fmt: skip
    """Seconds of the layers and of a step with `before` and with `after`, on these counts and on counts drawn anew.

    moved_from: the placement in use, whose weights have to move.
    """
    drawn = np.array([[clock.seconds_sum(d) for d in pair] for pair in _resampled(clock, before, after, seed)])
    first_mean, second_mean = drawn.mean(axis=0).tolist()
    first, second = clock.run_s(before), clock.run_s(after)
    step_before, step_after = simulated_step(clock, before), simulated_step(clock, after)
    moving: dict[str, float | None] = {}
    if moved_from is not None:
        comm = clock.cost.comm
        done = migration(
            moved_from, after, expert_bytes=expert_bytes(clock), bytes_per_s=comm.out_rate,
            near_bytes_per_s=comm.up_rate, gpus_per_node=clock.instance.gpus_per_node,
            saved_s_per_step=max(0.0, step_before[0] - step_after[0]),
        )  # fmt: skip
        moving = {
            "moved_bytes": done.moved_bytes, "move_s": done.move_s, "pays_back_after_steps": done.pays_back_after_steps
        }  # fmt: skip
    w = clock.weights
    return TimeFigures(
        before_s=first, after_s=second, before_range=_range(drawn[:, 0], first_mean),
        after_range=_range(drawn[:, 1], second_mean),
        gain=_range(1.0 - drawn[:, 1] / drawn[:, 0], 1.0 - second_mean / first_mean),
        lower_bound_s=min(bound.seconds, second), bound_kind=bound.kind,
        baselines_s={name: float(clock.layer_s(each).sum()) for name, each in baselines.items()},
        weights_s_per_row={
            "compute": w.compute_s, "cross_node": w.cross_node_s, "in_node": w.in_node_s
        },
        step_before_s=step_before[0], step_after=Range(value=step_after[0], low=step_after[1], high=step_after[2]),
        nodes_over_uniform=float(clock.spread(after).mean()),
        **moving,
    )  # fmt: skip


def _range(drawn: Floats, value: float) -> Range:
    """A value and quantiles of what was drawn, widened to hold it where few draws are skewed."""
    return Range.about(value, *np.quantile(drawn, QUANTILES).tolist())


def _resampled(clock: LayerClock, before: Placement, after: Placement, seed: int) -> Iterator[list[Demand]]:
    """Pairs of demands under counts drawn anew: loads the same for both, rows through the ports of GPUs Poisson about
    theirs (sums of Poisson flows; what one GPU sends and receives are different flows)."""
    rng, instance = np.random.default_rng(seed), clock.instance
    both = before, after
    asked = [clock.demand(each) for each in both]
    chain = asked[0].near is not None and instance.transitions is not None
    flows = [port_flows(pair_flows(instance, each), instance.gpus_per_node) for each in both] if chain else []
    total = instance.transitions.sum(axis=(1, 2))[:, None] if instance.transitions is not None else np.ones(1)
    rows = clock.rows / np.where(total > 0.0, total, 1.0)
    for _ in range(RESAMPLES):
        loads = np.stack([rng.multinomial(round(float(row.sum())), row / row.sum()) for row in instance.loads])
        seen = replace(instance, loads=loads.astype(np.float64), transitions=None, coactivation=None)
        out = []
        for k, each in enumerate(both):
            near = far = None
            if chain:
                near, far = (rng.poisson(port).max(axis=0) * rows for port in flows[k])
            out.append(replace(asked[k], over=clock.over_mean(gpu_time(seen, each)), near=near, far=far))
        yield out


def weight_bytes(clock: LayerClock) -> float:
    """Bytes of the 16-bit weights of one expert."""
    return expert_weight_bytes(clock.machine.model, clock.instance.num_experts)


def expert_bytes(clock: LayerClock) -> float:
    """Bytes of one expert as they move: 16-bit weights, and in training the main weight and moments of Adam."""
    words = OPTIMIZER_WORDS * FP32_BYTES if len(clock.passes) > 1 else 0
    return weight_bytes(clock) * (1.0 + words / ACT_BYTES)


def _chances(loads: Floats, top_k: int) -> Floats:
    """Chance [L, E] that a token holds an expert, in proportion to its load; 1 at most, others take the rest."""
    out: Floats = loads / loads.sum(axis=1, keepdims=True) * top_k
    for _ in range(loads.shape[1]):
        over = out >= 1.0
        out[over] = 1.0
        free = np.where(over, 0.0, out)
        left, sums = top_k - over.sum(axis=1, keepdims=True), free.sum(axis=1, keepdims=True)
        spread = np.where(
            sums > 0.0,
            free * left / np.where(sums > 0.0, sums, 1.0),
            (~over) * left / np.maximum((~over).sum(axis=1, keepdims=True), 1),
        )
        out = np.where(over, 1.0, spread)
        if out.max() <= 1.0:
            break
    return out


def routing_of(instance: Instance, top_k: int) -> Routing:
    """Counts as a routing: chances by layer, pairs where they are known."""
    chance = _chances(instance.loads, top_k)
    joint = None
    if instance.coactivation is not None:
        joint = instance.coactivation.copy()
        every = np.arange(instance.num_experts)
        joint[:, every, every] = 0.0
        sums = joint.sum(axis=(1, 2), keepdims=True)
        joint *= top_k * (top_k - 1) / np.where(sums > 0.0, sums, 1.0)
        joint[:, every, every] = chance
    loads = ExpertLoads(chance=chance, top_k=top_k, joint=joint, source=instance.source)
    return Routing(loads=(loads,), source=instance.source)


def simulated_step(clock: LayerClock, placement: Placement) -> tuple[float, float, float]:
    """(seconds, low, high) of a whole step of one micro-batch by `simulate`, experts placed; the interval is the
    model's own error. Tokens go there and back (dispatch), whatever the traffic of the layers."""
    machine: Machine = clock.machine
    routing = placed_routing(routing_of(clock.instance, clock.moe.top_k), placement)
    scenario = Scenario(
        model=machine.model, cluster=machine.cluster, software=machine.software, plan=clock.plan, routing=routing,
        workload=Workload(
            seq_tokens=machine.tokens_per_gpu, global_batch_seqs=clock.instance.gpus,
            precision=cast(Precision, machine.precision),
        ),
    )  # fmt: skip
    step = simulate(scenario, trace=False).step_s
    return step.value, step.low, step.high
