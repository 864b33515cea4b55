"""What uneven experts cost one plan: load of every rank, traffic between ranks, time lost, noise of step and memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.build.context import ACT_BYTES
from sim.build.profile import StepProfile
from sim.cost.model import CostModel
from sim.model import MoESpec
from sim.report import Imbalance, Report
from sim.routing.distribution import Layout, StepDistribution, distribution
from sim.routing.loads import ExpertLoads, contiguous, rank_moments
from sim.routing.place import pair_rows
from sim.routing.record import Routing
from sim.run import Simulation
from sim.scenario import Scenario

Floats = NDArray[np.float64]

MOST_RANKS = 64  # larger groups show their traffic by node


def with_imbalance(report: Report, scenario: Scenario, *, cost: CostModel | None = None) -> Report:
    """The same report with `imbalance`; one more simulation, of the same plan under forced balance.

    Unchanged for dense models and under forced balance.
    """
    routing = scenario.routing
    kinds = [layer.moe for layer in scenario.model.layers if layer.moe is not None]
    if not kinds or (not routing.loads and routing.max_over_mean == 1.0):
        return report
    even = Simulation(replace(scenario, routing=Routing()), cost=cost).report(trace=False)
    layout = noise_layout(scenario)
    over = _over(routing, kinds[0], layout)
    points = {1.0: (even.step_s.value, even.peak_mem_bytes), over: (report.step_s.value, report.peak_mem_bytes)}
    capacity = CostModel(scenario.cluster, scenario.software).usable_bytes if cost is None else cost.usable_bytes
    noise = distribution(routing, layout, lambda x: points[x], capacity_bytes=capacity, points=tuple(sorted(points)))
    loads = routing.loads[0] if routing.loads else None
    by_node = layout.ep > MOST_RANKS
    return replace(
        report,
        imbalance=Imbalance(
            source=routing.source, max_over_mean=over,
            fullest_over_mean=float(
                routing.fullest_over_mean_for(
                    layout.ep, layout.tokens, num_experts=kinds[0].num_experts, top_k=kinds[0].top_k
                )
            ),
            balanced_step_s=even.step_s.value, cost_share=report.step_s.value / even.step_s.value - 1.0,
            step_p10_s=noise.p10, step_p50_s=noise.p50, step_p90_s=noise.p90, step_p99_s=noise.p99,
            peak_p50_bytes=noise.bytes_p50, peak_p99_bytes=noise.bytes_p99, oom_probability=noise.oom_probability,
            rank_load=() if loads is None else rank_load(loads, layout.ep), traffic_of="node" if by_node else "rank",
            traffic_bytes=() if loads is None else traffic(loads, layout, scenario, by_node=by_node),
        ),
    )  # fmt: skip


def step_distribution(report: Report, scenario: Scenario, *, cost: CostModel | None = None) -> StepDistribution:
    """Noise of a simulated plan without a second event run: how far balanced experts would move its busiest stage.

    Balanced time: the step less what that stage saves per slot, in its micro-batches and the fill and drain of the
    pipeline; balanced memory: activations in proportion to what a micro-batch leaves. `with_imbalance` runs it instead.
    """
    routing, layout = scenario.routing, noise_layout(scenario)
    sims = [Simulation(each, cost=cost) for each in (scenario, replace(scenario, routing=Routing()))]
    hot, even = (sim.profile() for sim in sims)
    slots = hot.num_micro_batches + hot.pp - 1
    saved_s = (max(_slot_s(hot)) - max(_slot_s(even))) * slots
    worst = max(range(len(report.memory)), key=lambda i: sum(report.memory[i].values()))
    held = report.memory[worst].get("activations", 0.0)
    kept = [sum(c.saved_bytes for c in profile.chunks[worst]) for profile in (hot, even)]
    saved_bytes = held * (1.0 - kept[1] / kept[0]) if kept[0] > 0.0 else 0.0
    kind = next((layer.moe for layer in scenario.model.layers if layer.moe is not None), None)
    over = 1.0 if kind is None else _over(routing, kind, layout)
    here = (report.step_s.value, report.peak_mem_bytes)
    points = {1.0: (here[0] - saved_s, here[1] - saved_bytes), over: here}
    return distribution(
        routing, layout, lambda x: points[x], capacity_bytes=sims[0].cost.usable_bytes, points=tuple(sorted(points))
    )


def _slot_s(profile: StepProfile) -> list[float]:
    """Seconds each stage works per micro-batch: pairs of forward and backward where they overlap."""
    return [
        sum(c.forward_s + c.backward_s if c.paired_s is None else c.paired_s for c in lane) for lane in profile.chunks
    ]


def _over(routing: Routing, moe: MoESpec, layout: Layout) -> float:
    return float(routing.max_over_mean_for(layout.ep, layout.tokens, num_experts=moe.num_experts, top_k=moe.top_k))


def noise_layout(scenario: Scenario) -> Layout:
    """What routing noise averages over in a plan. Held micro-batches: those of the first stage of 1F1B."""
    plan = scenario.plan
    m = plan.num_micro_batches(scenario.workload.global_batch_seqs)
    routed = sum(layer.moe is not None for layer in scenario.model.layers)
    held = m if plan.schedule == "gpipe" else min(plan.pp, m)
    return Layout(
        ep=plan.ep, groups=plan.edp, tokens=float(scenario.context().rows) * plan.ep * plan.etp,
        micro_batches=m, stage_layers=max(1, -(-routed // plan.pp)), held_micro_batches=max(1, held),
    )  # fmt: skip


def rank_load(loads: ExpertLoads, ep: int) -> tuple[tuple[float, ...], ...]:
    """Expected rows over the mean rank, [layer][rank]."""
    mean, _ = rank_moments(loads, contiguous(loads, ep), ep)
    return tuple(tuple(row) for row in (mean * ep / loads.top_k).tolist())


def traffic(loads: ExpertLoads, layout: Layout, scenario: Scenario, *, by_node: bool) -> tuple[tuple[float, ...], ...]:
    """Bytes [source][destination] of one forward dispatch of one micro-batch, mean over layers, one copy per expert.

    By rank, or by node of neighbouring ranks. The diagonal stays where it is.
    """
    tokens = max(1, round(layout.tokens / layout.ep))
    pairs: Floats = pair_rows(loads, contiguous(loads, layout.ep), layout.ep, tokens).mean(axis=0)
    if by_node:
        node = np.arange(layout.ep) // scenario.cluster.devices_per_node
        on = (node[:, None] == np.arange(node[-1] + 1)).astype(np.float64)
        pairs = on.T @ pairs @ on
    return tuple(tuple(row) for row in (pairs * scenario.model.hidden_dim * ACT_BYTES).tolist())
