"""Step and memory over routing noise, against brute force; what routing does to plans and screening."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from sim.columns import columns_of
from sim.families import load_model
from sim.imbalance import noise_layout, step_distribution, with_imbalance
from sim.plan import Plan
from sim.routing import Drift, ExpertLoads, Routing, parse_routing, resolve
from sim.routing.distribution import HeldStage, Layout, distribution, line_through
from sim.routing.loads import contiguous
from sim.routing.place import place
from sim.routing.popularity import inclusion, law_weights
from sim.routing.sample import sample_counts
from sim.run import simulate
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import Workload

LAYOUT = Layout(ep=8, groups=4, tokens=4096, micro_batches=12)
HELD = 3  # micro-batches at once
# two stages of two layers: 40 bytes and 30 more per mean rank's rows of a layer
STAGES = tuple(
    HeldStage(layers=each, load=2.0, peak_bytes=70.0, routed_bytes=30.0, micro_batches=HELD)
    for each in ((0, 1), (2, 3))
)


def routing(law: str = "lognormal", parameter: float = 0.3, **more: object) -> Routing:
    weights = law_weights(law, parameter, layers=4, experts=32, seed=1)
    return Routing(loads=(ExpertLoads(chance=inclusion(weights, 4), top_k=4, **more),))


def line(x: float) -> float:
    return 10.0 + 5.0 * x


def brute(some: Routing, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(time load, memory load) of drawn steps: [group, micro-batch, layer, rank] loads, then the plain definitions."""
    loads, lay = some.loads[0], LAYOUT
    draws = steps * lay.groups * lay.micro_batches
    rows = place(sample_counts(loads, int(lay.tokens), draws=draws, seed=9), contiguous(loads, lay.ep), lay.ep).rows
    over = rows.reshape(steps, lay.groups, lay.micro_batches, 4, lay.ep) / (4 * lay.tokens / lay.ep)
    time = over.max(axis=-1).mean(axis=(2, 3)).max(axis=1)
    held = over.reshape(steps, lay.groups, 4, 3, 2, 2, lay.ep).mean(axis=(3, 5))
    return time, held.reshape(steps, -1).max(axis=1)


@pytest.mark.parametrize(("law", "parameter"), [("uniform", 0.0), ("lognormal", 0.3)])
def test_quantiles_agree_with_drawn_steps(law: str, parameter: float) -> None:
    some = routing(law, parameter)
    got = distribution(some, LAYOUT, line, STAGES, capacity_bytes=1e9)
    time, memory = brute(some, 400)
    np.testing.assert_allclose(got.time_over_mean[:3], np.quantile(time, (0.1, 0.5, 0.9)), rtol=2e-3)
    held = (np.array([got.bytes_p10, got.bytes_p50, got.bytes_p90]) - 40.0) / 30.0
    np.testing.assert_allclose(held, np.quantile(memory, (0.1, 0.5, 0.9)), rtol=6e-3)
    np.testing.assert_allclose([got.p10, got.p90], 10 + 5 * np.array(got.time_over_mean)[[0, 2]])


def test_chance_of_out_of_memory_agrees_with_drawn_steps() -> None:
    some = routing("uniform", 0.0)
    _, memory = brute(some, 400)
    for share in (0.3, 0.7):
        limit = float(np.quantile(memory, 1.0 - share))
        got = distribution(some, LAYOUT, line, STAGES, capacity_bytes=40 + 30 * limit)
        assert got.oom_probability == pytest.approx(share, abs=0.12)
    assert distribution(some, LAYOUT, line, STAGES, capacity_bytes=1.0).oom_probability == 1.0
    assert distribution(some, LAYOUT, line, STAGES, capacity_bytes=1e6).oom_probability == pytest.approx(0.0, abs=1e-9)


def test_noise_asks_for_two_evaluations_and_none_more() -> None:
    asked: list[float] = []

    def evaluate(x: float) -> float:
        asked.append(x)
        return line(x)

    distribution(routing(drift=Drift(rate=0.2, spread=0.1)), LAYOUT, evaluate, STAGES, capacity_bytes=1e9)
    assert len(asked) == 2 and asked[0] == 1.0


def test_no_noise_no_spread_and_drift_widens_it() -> None:
    fixed = distribution(Routing(max_over_mean=1.4), LAYOUT, line, STAGES, capacity_bytes=69.0)
    assert fixed.p10 == fixed.p99 == pytest.approx(17.0) and fixed.oom_probability == 1.0
    assert distribution(Routing(), LAYOUT, line, STAGES, capacity_bytes=71.0).oom_probability == 0.0
    still = distribution(routing(), LAYOUT, line, STAGES, capacity_bytes=1e9)
    moving = distribution(routing(drift=Drift(spread=0.1)), LAYOUT, line, STAGES, capacity_bytes=1e9)
    assert moving.p90 - moving.p10 > 3 * (still.p90 - still.p10) > 0.0


def test_more_groups_wait_longer_and_more_micro_batches_average() -> None:
    some = routing("uniform", 0.0)
    one = distribution(some, replace(LAYOUT, groups=1), line, STAGES, capacity_bytes=1e9)
    many = distribution(some, replace(LAYOUT, groups=64), line, STAGES, capacity_bytes=1e9)
    long = distribution(some, replace(LAYOUT, groups=1, micro_batches=120), line, STAGES, capacity_bytes=1e9)
    assert many.p50 > one.p50 and long.p90 - long.p10 < 0.5 * (one.p90 - one.p10)


def test_lines_through_points_go_on_beyond_them() -> None:
    at = line_through(((1.0, 2.0), (2.0, 4.0), (4.0, 5.0)))
    assert [at(x) for x in (0.0, 1.5, 2.0, 3.0, 6.0)] == pytest.approx([0.0, 3.0, 4.0, 4.5, 6.0])


def test_an_impossible_layout_lists_its_problems() -> None:
    with pytest.raises(UserError) as caught:
        Layout(ep=0, tokens=0.0, micro_batches=1)
    assert len(caught.value.problems) == 2


# ---------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    model, cluster = load_model("qwen3-30b-a3b"), catalogue.cluster("dgx-h100", gpus=32)
    software = catalogue.software(
        catalogue.default_software(cluster.device), device=cluster.device, model=model.name, arch="moe",
        precision="bf16",
    )  # fmt: skip
    work = Workload(seq_tokens=4096, global_batch_seqs=256, precision="bf16")
    plan = Plan(pp=2, ep=8, dp=16, edp=2, micro_batch_seqs=4)  # long enough for the GPU, not the host, to set the pace
    return Scenario(model=model, cluster=cluster, software=software, workload=work, plan=plan)


def test_uneven_experts_cost_time_and_memory_and_the_bound_stays_below(scenario: Scenario) -> None:
    steps, peaks = [], []
    for text in ("balanced", "uniform", "lognormal:0.4", "zipf:1"):
        hot = replace(scenario, routing=resolve(parse_routing(text), scenario.model))
        report = simulate(hot, trace=False)
        seen = screen(
            hot.model, hot.cluster, hot.software, hot.workload, columns_of([hot.plan])[0], routing=hot.routing
        )
        assert seen.bound_s[0] <= report.step_s.value * (1 + 1e-9)
        assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes, rel=1e-6)
        steps.append(report.step_s.value)
        peaks.append(report.peak_mem_bytes)
    assert steps == sorted(steps) and peaks == sorted(peaks) and steps[3] > 1.1 * steps[0]


def test_screening_prices_every_ep_at_its_own_load(scenario: Scenario) -> None:
    some = resolve(parse_routing("lognormal:0.6"), scenario.model)
    plans = [replace(scenario.plan, ep=ep, edp=16 // ep) for ep in (2, 4, 8, 16)]
    args = (scenario.model, scenario.cluster, scenario.software, scenario.workload)
    together = screen(*args, columns_of(plans)[0], routing=some).bound_s
    alone = [screen(*args, columns_of([plan])[0], routing=some).bound_s[0] for plan in plans]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    lost = together / screen(*args, columns_of(plans)[0]).bound_s
    assert np.all(np.diff(lost) > 0.0)


def test_noise_from_profiles_is_near_that_of_two_event_runs(scenario: Scenario) -> None:
    hot = replace(scenario, routing=resolve(parse_routing("lognormal:0.4,drift=0.2"), scenario.model))
    report = simulate(hot, trace=False)
    run, near = with_imbalance(report, hot).imbalance, step_distribution(report, hot)
    assert run is not None
    for want, got in ((run.step_p10_s, near.p10), (run.step_p99_s, near.p99), (run.peak_p99_bytes, near.bytes_p99)):
        assert got == pytest.approx(want, rel=0.02)
    assert near.p99 - near.p10 == pytest.approx(run.step_p99_s - run.step_p10_s, rel=0.25)


def test_report_of_imbalance(scenario: Scenario) -> None:
    hot = replace(scenario, routing=resolve(parse_routing("lognormal:0.4,drift=0.05"), scenario.model))
    report = with_imbalance(simulate(hot, trace=False), hot)
    found = report.imbalance
    assert found is not None
    assert found.cost_share == pytest.approx(report.step_s.value / simulate(scenario, trace=False).step_s.value - 1)
    assert found.step_p10_s <= found.step_p50_s <= found.step_p90_s <= found.step_p99_s
    assert found.step_p50_s == pytest.approx(report.step_s.value, rel=0.05)
    assert found.peak_p50_bytes == pytest.approx(report.peak_mem_bytes, rel=0.01)
    assert found.peak_p50_bytes <= found.peak_p99_bytes <= 1.02 * report.peak_mem_bytes
    load = np.asarray(found.rank_load)
    assert load.shape == (48, 8)
    np.testing.assert_allclose(load.mean(axis=1), 1.0)
    sent = np.asarray(found.traffic_bytes)
    np.testing.assert_allclose(sent.sum(axis=1), 4 * 4096 * 8 * 2048 * 2)
    layout = noise_layout(hot)
    assert (layout.ep, layout.groups, layout.tokens, layout.micro_batches) == (8, 2, 4 * 4096 * 8, 4)
    assert with_imbalance(simulate(scenario, trace=False), scenario).imbalance is None
