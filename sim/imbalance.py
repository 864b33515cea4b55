"""What uneven experts cost one plan: load of every rank, traffic between ranks, time lost, noise of step and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.build.context import ACT_BYTES
from sim.build.moe import fullest_over_mean, hottest_over_mean
from sim.build.pipeline import pipeline_s
from sim.cost.model import CostModel
from sim.model import MoESpec
from sim.noise import balanced_twin, drawn_stretch, has_noise, stage_loads
from sim.report import Imbalance, Report
from sim.routing.curve import rank_rows
from sim.routing.distribution import HeldStage, Layout, StepDistribution, distribution
from sim.routing.loads import ExpertLoads, contiguous
from sim.routing.place import pair_rows, stay_share
from sim.routing.record import Routing
from sim.run import Simulation
from sim.scenario import Scenario

Floats = NDArray[np.float64]

SAMPLES = 48  # steps drawn for the sampled quantiles
SAMPLING_ERROR = 0.03  # of the mean load: about what 1,000 token-choices per rank leave
MOST_RANKS = 64  # larger groups show their traffic by node


def with_imbalance(
    report: Report, scenario: Scenario, *, cost: CostModel | None = None, run: Simulation | None = None,
    draws: int = SAMPLES,
) -> Report:  # fmt: skip
    """The same report with `imbalance`. No second event run: the same plan under forced balance is priced, and timed
    as the longest path of its pipeline (`sim.build.pipeline`), whose difference is taken off the simulated step.

    run: the simulation that made the report, where it is at hand, so that the plan is not priced again.
    draws: steps drawn for the sampled quantiles (0: none). Unchanged for dense models and under forced balance.
    """
    routing = scenario.routing
    kinds = [layer.moe for layer in scenario.model.layers if layer.moe is not None]
    if not kinds or (not routing.loads and routing.max_over_mean == 1.0):
        return report
    pair = _Pair(report, run or Simulation(scenario, cost=cost))
    layout, moe = pair.layout, kinds[0]
    noise = pair.noise()
    loads = routing.loads[0] if routing.loads else None
    by_node = layout.ep > MOST_RANKS
    fullest = fullest_over_mean(scenario.context(), moe)
    return replace(
        report,
        warnings=(*report.warnings, *routing.notes, *pair.few_tokens()),
        imbalance=Imbalance(
            source=routing.source, max_over_mean=pair.over, fullest_over_mean=float(fullest),
            balanced_step_s=pair.balanced_step_s, cost_share=report.step_s.value / pair.balanced_step_s - 1.0,
            step_p10_s=noise.p10, step_p50_s=noise.p50, step_p90_s=noise.p90, step_p99_s=noise.p99,
            peak_p50_bytes=noise.bytes_p50, peak_p99_bytes=noise.bytes_p99, oom_probability=noise.oom_probability,
            rank_load=() if loads is None else rank_load(loads, layout), traffic_of="node" if by_node else "rank",
            traffic_bytes=() if loads is None else traffic(loads, layout, scenario, moe, by_node=by_node),
            **pair.sampled(draws), **_dropped(routing, moe, layout), **_stays(loads, layout, scenario),
        ),
    )  # fmt: skip


def few_tokens(step_s: float, balanced_s: float, over: float, routing: Routing, layout: Layout) -> tuple[str, ...]:
    """Warning where few tokens were recorded: what their sampling error makes of the cost of imbalance.

    Of a rank's load in one layer, tokens recorded leave (variance per token / tokens)^1/2; the cost moves with the
    mean over layers of the hottest rank's, whose errors are independent.
    """
    if routing.recorded_tokens <= 0.0 or not routing.loads:
        return ()
    loads = routing.loads[0]
    mean, variance = rank_rows(loads, layout.ep, routing.recorded_tokens)
    hot = mean.argmax(axis=1)[:, None]
    error = np.sqrt(np.take_along_axis(variance, hot, axis=1)) * layout.ep / (loads.top_k * routing.recorded_tokens)
    if float(error.mean()) < SAMPLING_ERROR:
        return ()
    slope = (step_s / balanced_s - 1.0) / (over - 1.0) if over > 1.0 else 0.0
    cost = slope * float(np.sqrt((error**2).mean() / loads.num_layers))
    return (
        f"routing rests on {routing.recorded_tokens:,.0f} tokens of a layer: a sampling error of {error.mean():.1%} of "
        f"the mean in the hottest rank's load of one layer, {100 * cost:.1f} points in the cost of imbalance; record "
        "more",
    )


def step_distribution(report: Report, scenario: Scenario, *, cost: CostModel | None = None) -> StepDistribution:
    """Quantiles of step and memory of a simulated plan over routing noise; as `with_imbalance` gives them."""
    return _Pair(report, Simulation(scenario, cost=cost)).noise()


class _Pair:
    """A simulated plan and the same plan under forced balance, priced but not run."""

    def __init__(self, report: Report, sim: Simulation) -> None:
        self.report, self.sim, self.scenario = report, sim, sim.scenario
        self.layout = noise_layout(sim.scenario)
        self.hot, self.even = sim.profile(), sim.balanced_profile()
        self.expected_s = float(pipeline_s(self.hot))
        self.balanced_step_s = report.step_s.value - self.expected_s + float(pipeline_s(self.even))
        moe = next((layer.moe for layer in sim.scenario.model.layers if layer.moe is not None), None)
        self.over = self.even_over = 1.0
        if moe is not None:
            self.over = float(hottest_over_mean(sim.scenario.context(), moe))
            self.even_over = float(hottest_over_mean(balanced_twin(sim.scenario).context(), moe))

    def noise(self) -> StepDistribution:
        points = {self.even_over: self.balanced_step_s, self.over: self.report.step_s.value}
        return distribution(
            self.scenario.routing, self.layout, lambda x: points[x], self.held_stages(), points=tuple(sorted(points)),
            capacity_bytes=self.sim.cost.usable_bytes,
        )  # fmt: skip

    def held_stages(self) -> tuple[HeldStage, ...]:
        """Memory of every stage at its peak, and what of its activations moves with the load of its fullest rank.

        Layers of the first kind of experts; any other kind stays at its expected load.
        """
        out = []
        first = next(iter(self.scenario.routing.loads), None)
        for tags, row, chunks in zip(self.report.memory, self.sim.contents, self.hot.chunks, strict=True):
            held = [h for content in row for h in self.sim.step.held.of(content) if h.loads is first]
            load = float(sum(h.load for h in held))
            saved, activations = sum(c.saved_bytes for c in chunks), tags.get("activations", 0.0)
            share = min(1.0, _share(float(sum(h.load * h.bytes_per_load for h in held)), saved))
            layers = tuple(layer for each in held for layer in each.layers)
            out.append(
                HeldStage(
                    layers=layers, load=load, peak_bytes=sum(tags.values()), routed_bytes=activations * share,
                    micro_batches=max(1.0, _share(activations, saved)),
                )
            )  # fmt: skip
        return tuple(out)

    def few_tokens(self) -> tuple[str, ...]:
        """See the function."""
        return few_tokens(self.report.step_s.value, self.balanced_step_s, self.over, self.scenario.routing, self.layout)

    def sampled(self, draws: int) -> dict[str, Any]:
        """Quantiles of drawn steps and the loads of the virtual stages."""
        if not has_noise(self.scenario):
            return {}
        loads = stage_loads(self.scenario, self.sim.contents)
        layers = loads.balanced / self.even_over
        over = np.where(layers > 0.0, loads.expected / np.maximum(layers, 1.0), 1.0)
        out: dict[str, Any] = {"stage_over_mean": tuple(over.T.ravel().tolist()), "sampled_steps": draws}
        if draws:
            stretch = drawn_stretch(
                self.hot, self.even, loads, draws=draws, groups=self.layout.groups, seed=self.scenario.routing.seed
            )
            seconds = self.report.step_s.value - self.expected_s + pipeline_s(self.hot, stretch).max(axis=1)
            found = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
            out |= dict(zip(("sampled_p10_s", "sampled_p50_s", "sampled_p90_s"), found, strict=True))
        return out


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 1.0


def _dropped(routing: Routing, moe: MoESpec, layout: Layout) -> dict[str, Any]:
    if layout.capacity_factor is None or not routing.loads:
        return {}
    share = routing.dropped_for(
        layout.ep, layout.tokens, layout.capacity_factor, num_experts=moe.num_experts, top_k=moe.top_k
    )
    return {"dropped_share": float(share.mean()), "dropped_worst_layer": float(share.max())}


def _stays(loads: ExpertLoads | None, layout: Layout, scenario: Scenario) -> dict[str, Any]:
    if loads is None or loads.transitions is None or not loads.transitions.size:
        return {}
    rank = contiguous(loads, layout.ep)
    node = rank // scenario.cluster.devices_per_node
    return {"stay_rank": float(stay_share(loads, rank).mean()), "stay_node": float(stay_share(loads, node).mean())}


def noise_layout(scenario: Scenario) -> Layout:
    """What routing noise averages over in a plan."""
    plan = scenario.plan
    return Layout(
        ep=plan.ep, groups=plan.edp, tokens=float(scenario.context().group_tokens),
        micro_batches=plan.num_micro_batches(scenario.workload.global_batch_seqs),
        capacity_factor=scenario.software.capacity_factor,
    )  # fmt: skip


def rank_load(loads: ExpertLoads, layout: Layout) -> tuple[tuple[float, ...], ...]:
    """Expected rows over the mean rank's sent ones, [layer][rank]."""
    mean, _ = rank_rows(loads, layout.ep, layout.tokens, layout.capacity_factor)
    return tuple(tuple(row) for row in (mean * layout.ep / (loads.top_k * layout.tokens)).tolist())


def traffic(
    loads: ExpertLoads, layout: Layout, scenario: Scenario, moe: MoESpec, *, by_node: bool
) -> tuple[tuple[float, ...], ...]:
    """Bytes [source][destination] of one forward dispatch of one micro-batch, mean over layers, one copy per expert.

    By rank, or by node of neighbouring ranks. The diagonal stays where it is.
    """
    tokens = max(1, round(layout.tokens / layout.ep))
    pairs: Floats = pair_rows(loads, contiguous(loads, layout.ep), layout.ep, tokens).mean(axis=0)
    if by_node:
        node = np.arange(layout.ep) // scenario.cluster.devices_per_node
        on = (node[:, None] == np.arange(node[-1] + 1)).astype(np.float64)
        pairs = on.T @ pairs @ on
    row_bytes = moe.row_dim(scenario.model.hidden_dim) * ACT_BYTES * moe.rows_per_token / moe.top_k
    return tuple(tuple(row) for row in (pairs * row_bytes).tolist())
