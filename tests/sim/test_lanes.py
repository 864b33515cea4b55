"""Lanes of a stage that differ in load: they meet at every exchange, and the hottest sets the pace."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from sim.detail import LaneLoad, idle_s, lane_loads, simulate_layers
from sim.plan import Plan
from sim.report import Trace
from sim.routing import Routing
from sim.routing.loads import contiguous, rank_moments
from sim.routing.ranks import colder, median_share, node_shares
from tests.sim.layer_scenarios import scenario

PLAN = Plan(pp=2, ep=16, dp=16, account_ends=True)
UNEVEN = scenario("Qwen3-30B-A3B", PLAN, batch=64, law="zipf:0.4")
PAIRS = scenario(
    "Qwen3-30B-A3B", Plan(pp=2, vpp=2, ep=16, dp=16, account_ends=True, schedule="interleaved"), batch=128,
    law="zipf:0.4", a2a_overlap=True,
)  # fmt: skip


@cache
def traced(which: str, lanes: str) -> Trace:
    return simulate_layers({"uneven": UNEVEN, "pairs": PAIRS}[which], lanes=lanes)


def sums(trace: Trace) -> dict[str, tuple[float, float]]:
    """(idle seconds, peak bytes) of each lane by its name."""
    return {
        trace.lane_name(at): (idle_s(trace, at), sum(trace.peak_bytes[at].values())) for at in range(len(trace.lanes))
    }


@pytest.mark.parametrize("which", ["uneven", "pairs"])
@pytest.mark.parametrize("lanes", ["median", "nodes"])
def test_the_hottest_lane_ends_as_it_does_alone(which: str, lanes: str) -> None:
    alone, several = traced(which, "hottest"), traced(which, lanes)
    assert several.makespan_s == pytest.approx(alone.makespan_s, rel=1e-9)
    per_stage = len(several.lanes) // PLAN.pp
    for stage in range(PLAN.pp):
        hot = idle_s(several, stage * per_stage)
        assert hot == pytest.approx(idle_s(alone, stage), rel=1e-9)
        for other in range(1, per_stage):
            assert idle_s(several, stage * per_stage + other) > hot


def test_order_of_lanes_changes_nothing() -> None:
    loads = (*lane_loads(UNEVEN, "nodes"), LaneLoad(name="cold", share=0.3, weight=1))
    one, other = (simulate_layers(UNEVEN, lanes=order) for order in (loads, loads[::-1]))
    assert other.makespan_s == pytest.approx(one.makespan_s, rel=1e-12)
    assert sums(other) == {name: pytest.approx(values) for name, values in sums(one).items()}


def test_a_cold_lane_computes_less_holds_less_and_waits() -> None:
    trace = traced("uneven", "median")
    found = sums(trace)
    for stage in range(PLAN.pp):
        hot, cold = found[f"stage {stage}, hottest rank"], found[f"stage {stage}, median rank"]
        assert cold[0] > hot[0] and cold[1] < hot[1]
    experts = [
        sum(s.end_s - s.start_s for s in trace.spans if s.lane == lane and s.kind == "experts") for lane in (0, 1)
    ]
    attention = [
        sum(s.end_s - s.start_s for s in trace.spans if s.lane == lane and s.kind == "attention") for lane in (0, 1)
    ]
    assert experts[1] < 0.9 * experts[0] and attention[1] == pytest.approx(attention[0])


def test_lanes_start_each_exchange_together_and_go_on_when_all_have_sent() -> None:
    trace = traced("uneven", "nodes")
    count = len(trace.lanes) // PLAN.pp
    assert count == 2
    of = [[s for s in trace.spans if s.lane == lane] for lane in range(count)]
    sent = [[s for s in mine if s.stream == "ep"] for mine in of]
    work = [sorted((s.start_s, s.name) for s in mine if s.stream == "compute") for mine in of]
    for together in zip(*sent, strict=True):
        assert len({s.name for s in together}) == 1
        assert max(s.start_s for s in together) == min(s.start_s for s in together)
        end_s = max(s.end_s for s in together)
        for mine in work:
            after = [start for start, _ in mine if start > together[0].start_s]
            assert not after or min(after) >= end_s * (1 - 1e-12)


def test_gradients_are_reduced_when_every_lane_has_them() -> None:
    trace = traced("uneven", "median")
    grads = [sorted(s.start_s for s in trace.spans if s.lane == lane and s.kind == "grad") for lane in (0, 1)]
    assert len(grads[0]) > 1 and grads[0] == grads[1]


def test_balanced_lanes_are_alike() -> None:
    even = replace(UNEVEN, routing=Routing())
    alone = simulate_layers(even)
    for lanes in ("median", "nodes"):
        assert {each.share for each in lane_loads(even, lanes)} == {1.0}
    several = simulate_layers(even, lanes="nodes")
    assert several.makespan_s == pytest.approx(alone.makespan_s)
    assert len({round(idle, 9) for idle, _ in (sums(several)[f"stage 0, node {i}, hottest rank"] for i in (0, 1))}) == 1


def test_weights_stand_for_all_ranks_of_a_stage() -> None:
    for lanes in ("hottest", "median", "nodes"):
        assert sum(each.weight for each in lane_loads(UNEVEN, lanes)) == PLAN.num_devices // PLAN.pp
    dense = replace(UNEVEN, plan=Plan(tp=8, pp=2, dp=2, edp=16, account_ends=True))
    assert len(lane_loads(dense, "nodes")) == 1


def test_shares_are_those_of_the_expected_loads() -> None:
    loads = UNEVEN.routing.loads[0]
    kind = {"num_experts": loads.num_experts, "top_k": loads.top_k}
    mean, _ = rank_moments(loads, contiguous(loads, 16), 16)
    # with endless tokens the noise is gone: the hottest is the largest mean
    endless = 1e12
    share = median_share(UNEVEN.routing, 16, endless, **kind)
    assert share == pytest.approx(np.median(mean, axis=1).mean() / mean.max(axis=1).mean(), rel=1e-3)
    nodes = node_shares(UNEVEN.routing, 16, 8, endless, **kind)
    second = np.sort(mean.reshape(-1, 2, 8).max(axis=2), axis=1)[:, 0].mean()
    assert nodes == pytest.approx((1.0, second / mean.max(axis=1).mean()), rel=1e-3)
    # of one number only the mean is known beside it
    assert median_share(Routing(max_over_mean=1.6), 16, 4096.0, **kind) == pytest.approx(1 / 1.6)


def test_a_capacity_brings_hot_and_median_rank_together() -> None:
    loads = UNEVEN.routing.loads[0]
    kind = {"num_experts": loads.num_experts, "top_k": loads.top_k}
    free, full = (median_share(UNEVEN.routing, 16, 65536.0, **kind, capacity_factor=f) for f in (None, 0.5))
    assert free < full <= 1.0
    assert node_shares(UNEVEN.routing, 16, 8, 65536.0, **kind, capacity_factor=0.5)[1] > free


def test_a_colder_rank_sees_the_same_law_scaled() -> None:
    half = colder(UNEVEN.routing, 0.5)
    for ep in (4, 16):
        over = UNEVEN.routing.max_over_mean_for(ep, 65536.0)
        assert half.max_over_mean_for(ep, 65536.0) == pytest.approx(0.5 * over)
        by_layer = UNEVEN.routing.by_layer_for(ep, 65536.0)
        assert half.by_layer_for(ep, 65536.0) == pytest.approx(0.5 * by_layer) and len(by_layer) == 48
        assert half.fullest_over_mean_for(ep, 65536.0) == UNEVEN.routing.fullest_over_mean_for(ep, 65536.0)
    assert colder(UNEVEN.routing, 1.0) is UNEVEN.routing


def test_idle_counts_neither_compute_nor_communication() -> None:
    trace: Trace = traced("uneven", "hottest")
    lane = [s for s in trace.spans if s.lane == 0]
    ends = sorted({s.start_s for s in lane} | {s.end_s for s in lane} | {0.0, trace.makespan_s})
    waited = sum(b - a for a, b in pairwise(ends) if not any(s.start_s < (a + b) / 2 < s.end_s for s in lane))
    assert idle_s(trace, 0) == pytest.approx(waited)
