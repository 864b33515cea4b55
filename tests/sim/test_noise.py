"""Drawn loads in every micro-batch: the event run, the longest path beside it, and the quantiles of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles import catalogue
from sim.build.pipeline import pipeline_s
from sim.build.tasks import simulate_step
from sim.families import load_model
from sim.imbalance import with_imbalance
from sim.noise import balanced_twin, drawn_stretch, slowest_group, stage_loads
from sim.plan import Plan
from sim.routing import Routing, parse_routing, resolve
from sim.routing.loads import contiguous
from sim.routing.place import place
from sim.routing.sample import sample_counts
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.workload import Workload


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    model, cluster = load_model("qwen3-30b-a3b"), catalogue.cluster("dgx-h100", gpus=32)
    software = replace(catalogue.software("megatron-lm"), capacity_factor=None)
    work = Workload(seq_tokens=4096, global_batch_seqs=4 * 16 * 8, precision="bf16")
    plan = Plan(pp=4, ep=4, dp=8, edp=2, micro_batch_seqs=4)
    made = Scenario(model=model, cluster=cluster, software=software, workload=work, plan=plan)
    return replace(made, routing=resolve(parse_routing("lognormal:0.3,clump=8"), model, seed=5))


def drawn(scenario: Scenario, draws: int, groups: int = 2) -> tuple[Simulation, np.ndarray]:
    sim = Simulation(scenario)
    loads = stage_loads(scenario, sim.contents)
    return sim, drawn_stretch(sim.profile(), sim.balanced_profile(), loads, draws=draws, groups=groups, seed=1)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(pp=4, ep=4, dp=8, edp=2, micro_batch_seqs=4),
        Plan(pp=4, vpp=2, schedule="interleaved", ep=4, dp=8, edp=2, micro_batch_seqs=4),
        Plan(pp=1, ep=8, dp=32, edp=4, micro_batch_seqs=4),
    ],
)
def test_the_longest_path_is_the_event_run_but_for_shared_links(scenario: Scenario, plan: Plan) -> None:
    sim, stretch = drawn(replace(scenario, plan=plan), 2)
    profile = sim.profile()
    expected = float(pipeline_s(profile))
    assert expected == pytest.approx(simulate_step(profile).makespan_s, rel=0.01)
    for each in stretch.reshape(-1, *stretch.shape[2:]):
        run = simulate_step(replace(profile, stretch=each)).makespan_s
        assert run - simulate_step(profile).makespan_s == pytest.approx(
            float(pipeline_s(profile, each)) - expected, abs=0.002 * expected
        )


def test_ones_change_nothing_and_slower_micro_batches_never_speed_a_step_up(scenario: Scenario) -> None:
    profile = Simulation(scenario).profile()
    ones = np.ones((4, 1, profile.num_micro_batches, 3))
    assert float(pipeline_s(profile, ones)) == pytest.approx(float(pipeline_s(profile)), rel=1e-12)
    same = simulate_step(replace(profile, stretch=ones)).makespan_s
    assert same == pytest.approx(simulate_step(profile).makespan_s, rel=1e-9)
    slow = np.repeat(ones[None], 4, axis=0)
    for i in range(4):
        slow[i, i, 0, 3] = 1.5
    assert np.all(pipeline_s(profile, slow) >= pipeline_s(profile) * (1 - 1e-12))
    assert slowest_group(profile, np.stack([ones, slow[3]])).stretch is not None
    np.testing.assert_array_equal(slowest_group(profile, np.stack([ones, slow[3]])).stretch, slow[3])


def test_a_noisy_step_repeats_by_seed_and_waits(scenario: Scenario) -> None:
    a, b = (simulate(scenario, trace=False, noise=True) for _ in range(2))
    assert a.to_json() == b.to_json()
    other = replace(scenario, routing=replace(scenario.routing, seed=6))
    assert simulate(other, trace=False, noise=True).step_s.value != a.step_s.value
    plain = simulate(scenario, trace=False)
    assert a.step_s.value == pytest.approx(plain.step_s.value, rel=0.1) and a.step_s.value != plain.step_s.value
    for still in (Routing(), Routing(max_over_mean=1.3)):
        quiet = replace(scenario, routing=still)
        assert simulate(quiet, trace=False, noise=True).to_json() == simulate(quiet, trace=False).to_json()


def test_stage_loads_are_those_of_drawn_tokens(scenario: Scenario) -> None:
    sim = Simulation(scenario)
    found = stage_loads(scenario, sim.contents)
    loads = scenario.routing.loads[0]
    counts = sample_counts(loads, 4 * 4 * 4096, draws=200, seed=3)
    over = place(counts, contiguous(loads, 4), 4).max_over_mean.reshape(200, 4, 12).sum(axis=-1)
    np.testing.assert_allclose(found.mean[0, :, 0], over.mean(axis=0), rtol=0.003)
    np.testing.assert_allclose(np.sqrt(found.variance[0, :, 0]), over.std(axis=0), rtol=0.25)
    np.testing.assert_allclose(found.expected, found.mean[0], rtol=0.01)
    np.testing.assert_array_equal(found.balanced, 12.0)


def test_sampled_quantiles_agree_with_the_closed_form(scenario: Scenario) -> None:
    """One stage: both are then the mean over layers and micro-batches of the slowest group."""
    plan = Plan(pp=1, ep=8, dp=32, edp=4, micro_batch_seqs=4)
    flat = replace(scenario, plan=plan, workload=replace(scenario.workload, global_batch_seqs=4 * 32 * 8))
    run = Simulation(flat)
    found = with_imbalance(run.report(trace=False), flat, run=run, draws=600).imbalance
    assert found is not None and found.sampled_steps == 600
    assert found.sampled_p10_s is not None and found.sampled_p50_s is not None and found.sampled_p90_s is not None
    width = found.step_p90_s - found.step_p10_s
    assert width > 0.0
    for got, want in (
        (found.sampled_p10_s, found.step_p10_s), (found.sampled_p50_s, found.step_p50_s),
        (found.sampled_p90_s, found.step_p90_s),
    ):  # fmt: skip
        assert got == pytest.approx(want, abs=0.15 * width)


def test_a_pipeline_waits_for_more_than_its_mean_micro_batch(scenario: Scenario) -> None:
    """Stages wait for each other's slow micro-batches: drawn steps take longer than the step at the mean load."""
    sim, stretch = drawn(scenario, 100, groups=1)
    even = replace(sim.profile(), chunks=(sim.profile().chunks[1],) * 4)  # no stage sets the pace alone
    seconds = pipeline_s(even, stretch)[:, 0]
    assert seconds.mean() > float(pipeline_s(even)) + 3.0 * seconds.std() / np.sqrt(len(seconds))


def test_the_twin_under_forced_balance_costs_no_event_run_and_is_that_of_one(scenario: Scenario) -> None:
    report = simulate(scenario, trace=False)
    found = with_imbalance(report, scenario, draws=0).imbalance
    assert found is not None and found.sampled_steps == 0 and found.sampled_p50_s is None
    even = simulate(balanced_twin(scenario), trace=False)
    assert found.balanced_step_s == pytest.approx(even.step_s.value, rel=2e-3)
    assert len(found.stage_over_mean) == 4 and np.mean(found.stage_over_mean) == pytest.approx(found.max_over_mean)
    assert with_imbalance(report, replace(scenario, routing=Routing())).imbalance is None
