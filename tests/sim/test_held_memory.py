"""Memory follows the rank that holds most over its stage, time the hottest rank of every layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles import catalogue
from sim.columns import columns_of
from sim.cost.model import CostModel
from sim.families import load_model
from sim.imbalance import with_imbalance
from sim.plan import Plan
from sim.report import Report
from sim.routing import Drift, ExpertLoads, Routing, parse_routing, resolve
from sim.routing.expected import hottest, hottest_chances
from sim.routing.held import fullest_load
from sim.routing.loads import contiguous
from sim.routing.place import place
from sim.routing.popularity import inclusion, law_weights
from sim.routing.sample import sample_counts
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import Workload

TOKENS, EP = 4096, 8


def popularity(sigma: float = 0.5, layers: int = 6, **more: object) -> ExpertLoads:
    weights = law_weights("lognormal", sigma, layers=layers, experts=32, seed=1)
    return ExpertLoads(chance=inclusion(weights, 4), top_k=4, **more)


def drawn(loads: ExpertLoads, draws: int = 1500) -> np.ndarray:
    """Rows over the mean [draw, layer, rank] of drawn micro-batches."""
    counts = sample_counts(loads, TOKENS, draws=draws, seed=3)
    return place(counts, contiguous(loads, EP), EP).rows * EP / (loads.top_k * TOKENS)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5])
def test_the_fullest_rank_is_that_of_drawn_micro_batches(sigma: float) -> None:
    loads = popularity(sigma)
    over = drawn(loads)
    for layers in ((0,), (0, 1, 2), tuple(range(6))):
        want = over[:, list(layers)].sum(axis=1).max(axis=-1).mean()
        assert fullest_load(loads, EP, TOKENS, layers) == pytest.approx(want, rel=2e-3)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5])
def test_virtual_stages_hold_what_the_fullest_rank_of_their_stage_has_of_them(sigma: float) -> None:
    loads = popularity(sigma)
    over = drawn(loads)
    mine, rest = (0, 1, 4), (2, 3, 5)
    full = over.sum(axis=1).argmax(axis=-1)
    want = np.take_along_axis(over[:, list(mine)].sum(axis=1), full[:, None], axis=1).mean()
    got = fullest_load(loads, EP, TOKENS, mine, beside=rest)
    assert got == pytest.approx(want, rel=3e-3)
    whole = fullest_load(loads, EP, TOKENS, mine + rest)
    assert got + fullest_load(loads, EP, TOKENS, rest, beside=mine) == pytest.approx(whole, rel=1e-9)


def test_chances_of_being_the_largest_are_those_of_draws() -> None:
    mean, variance = np.array([1.0, 1.02, 0.9, 1.01]), np.array([4e-4, 1e-4, 4e-4, 9e-4])
    draws = mean + np.sqrt(variance) * np.random.default_rng(0).standard_normal((40_000, 4))
    want = np.bincount(draws.argmax(axis=1), minlength=4) / len(draws)
    largest, got = hottest_chances(mean, variance)
    np.testing.assert_allclose(largest, hottest(mean, variance)[0], rtol=1e-12)
    np.testing.assert_allclose(got, want, atol=8e-3)
    # they are the derivative of the expected maximum
    step = 1e-4 * np.eye(4)
    slope = [(hottest(mean + e, variance)[0] - hottest(mean - e, variance)[0]) / 2e-4 for e in step]
    np.testing.assert_allclose(got, slope, atol=1e-3)
    np.testing.assert_allclose(hottest_chances(np.array([1.0, 2.0]), np.zeros(2))[1], [0.0, 1.0], atol=1e-12)


def test_no_rank_holds_more_than_the_hottest_of_every_layer() -> None:
    for loads in (popularity(), popularity(drift=Drift(rate=0.3, spread=0.3)), popularity(clumping=8.0)):
        by_layer = Routing(loads=(loads,)).by_layer_for(EP, TOKENS)
        held = [fullest_load(loads, EP, TOKENS, tuple(range(n))) for n in range(1, 7)]
        assert held[0] == pytest.approx(by_layer[0], rel=2e-3)
        assert np.all(np.diff(held) > 0.0) and held[5] < 0.9 * by_layer.sum()
    columns = fullest_load(popularity(), np.array([4, 8, 8]), np.array([512.0, TOKENS, 1e6]), (0, 1))
    assert columns[1] == fullest_load(popularity(), 8, TOKENS, (0, 1))


# ---------------------------------------------------------------- plans

PLANS = {
    "one stage": Plan(ep=32, dp=32, edp=1, micro_batch_seqs=3, recompute=("moe_act", "layernorm")),
    "stages": Plan(pp=4, ep=8, dp=8, edp=1, micro_batch_seqs=2),
    "virtual stages": Plan(pp=4, vpp=3, schedule="interleaved", ep=8, dp=8, edp=1, micro_batch_seqs=2),
    "groups": Plan(pp=2, ep=4, dp=16, edp=4),
    "full recompute": Plan(ep=16, dp=32, edp=2, recompute=("full",)),
}
ROUTINGS = ("uniform", "lognormal:0.8", "zipf:1", "lognormal:0.4,drift=0.1", "uniform,clump=10")


def scene(plan: Plan, text: str) -> Scenario:
    model, cluster = load_model("qwen3-30b-a3b"), catalogue.cluster("dgx-h100", gpus=32)
    work = Workload(seq_tokens=4096, global_batch_seqs=96 * 4, precision="bf16")
    return Scenario(
        model=model, cluster=cluster, software=catalogue.software("megatron-lm"), workload=work, plan=plan,
        routing=resolve(parse_routing(text), model),
    )  # fmt: skip


def with_room(s: Scenario, usable_bytes: float) -> Scenario:
    """The same scenario with so many bytes for a rank: the rest is reserved."""
    cost = CostModel(s.cluster, s.software)
    less = (cost.usable_bytes - usable_bytes) * (1.0 + cost.factors.fragmentation)
    return replace(s, software=replace(s.software, reserved_bytes=s.software.reserved_bytes + less))


def told(s: Scenario) -> Report:
    sim = Simulation(s)
    return with_imbalance(sim.report(trace=False), s, run=sim, draws=0)


@pytest.mark.parametrize("plan", PLANS)
def test_peak_quantiles_and_chance_of_a_report_agree(plan: str) -> None:
    for text in ROUTINGS:
        s = scene(PLANS[plan], text)
        report = told(s)
        found = report.imbalance
        assert found is not None
        assert found.peak_p50_bytes == pytest.approx(report.peak_mem_bytes, rel=0.01), text
        for share, fits in ((1.011, True), (0.989, False)) if text in ROUTINGS[1:2] else ():
            other = told(with_room(s, share * report.peak_mem_bytes))
            assert other.fits is fits and other.imbalance is not None
            assert (other.imbalance.oom_probability < 0.5) is fits, text
        seen = screen(s.model, s.cluster, s.software, s.workload, columns_of([s.plan])[0], routing=s.routing)
        assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes, rel=1e-6)
        assert seen.bound_s[0] <= report.step_s.value * (1.0 + 1e-9)


def test_memory_is_the_ledger_of_the_rank_that_holds_most() -> None:
    """Without noise in the way: one popularity of few tokens' choices, its ranks one by one."""
    s = scene(PLANS["one stage"], "lognormal:0.8")
    loads = s.routing.loads[0]
    mean = loads.chance.reshape(48, 32, 4).sum(axis=-1) * 32 / loads.top_k  # [layer, rank] of endless tokens
    sim = Simulation(s)
    (held,) = sim.step.held.of(sim.contents[0][0])
    assert float(held.load) == pytest.approx(mean.sum(axis=0).max(), rel=2e-3)
    assert float(held.priced) == pytest.approx(mean.max(axis=1).sum(), rel=2e-3)
    even = Simulation(replace(s, routing=Routing())).profile().chunks[0][0].saved_bytes
    here = sim.profile().chunks[0][0].saved_bytes
    assert here - even == pytest.approx(float(held.bytes_per_load) * (float(held.load) - 48), rel=1e-6)


def test_a_stated_load_is_the_same_rank_in_all_layers() -> None:
    s = scene(PLANS["stages"], "balanced")
    sim = Simulation(replace(s, routing=Routing(max_over_mean=1.5)))
    assert all(not sim.step.held.of(content) for row in sim.contents for content in row)
    assert Routing(max_over_mean=1.5).held_for(8, 4096, (0, 1, 2)) == 4.5
    even, hot = (simulate(replace(s, routing=Routing(max_over_mean=x)), trace=False) for x in (1.0, 1.5))
    assert hot.peak_mem_bytes > 1.05 * even.peak_mem_bytes


def test_the_limit_a_report_shows_is_the_one_it_is_judged_by() -> None:
    s = scene(PLANS["stages"], "lognormal:0.8")
    report = told(with_room(s, 0.99 * told(s).peak_mem_bytes))
    assert not report.fits and report.out_of_memory is not None
    assert report.usable_mem_bytes == report.out_of_memory.have_bytes < report.peak_mem_bytes
    assert report.usable_mem_bytes < report.mem_capacity_bytes == report.to_json()["mem_capacity_bytes"]
    assert report.to_json()["usable_mem_bytes"] == report.usable_mem_bytes
