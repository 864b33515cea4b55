"""Loads of single layers in the step: which stage they slow, what a capacity keeps, drift, where tokens go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from sim.build.moe import hottest_over_mean, received_rows
from sim.families import load_model
from sim.imbalance import with_imbalance
from sim.plan import Plan
from sim.routing import Drift, ExpertLoads, Routing, parse_routing, resolve
from sim.routing.curve import kept_rows, rank_rows, steps_of
from sim.routing.layers import level_shares, load_levels, own_loads
from sim.routing.loads import contiguous
from sim.routing.place import place, stay_share
from sim.routing.popularity import inclusion, law_weights
from sim.routing.sample import sample_counts, with_capacity
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.workload import Workload

EXPERTS, TOP_K, LAYERS = 128, 8, 48


def popularity(hot: slice, strength: float = 1.5) -> np.ndarray:
    """Chances of 48 layers, even but for the layers in `hot`, where the first experts draw more."""
    weights = np.ones((LAYERS, EXPERTS))
    weights[hot, : EXPERTS // 8] += strength
    return inclusion(weights, TOP_K)


def routing(hot: slice = slice(0, 12), **more: object) -> Routing:
    return Routing(loads=(ExpertLoads(chance=popularity(hot), top_k=TOP_K, **more),))


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    model, cluster = load_model("qwen3-30b-a3b"), catalogue.cluster("dgx-h100", gpus=32)
    software = replace(catalogue.software("megatron-lm"), capacity_factor=None)
    work = Workload(seq_tokens=4096, global_batch_seqs=8 * 8 * 4, precision="bf16")
    plan = Plan(pp=4, ep=8, dp=8, edp=1, micro_batch_seqs=4)
    return Scenario(model=model, cluster=cluster, software=software, workload=work, plan=plan)


def test_the_stage_with_the_hot_layers_is_the_slowest_and_the_fullest(scenario: Scenario) -> None:
    for stage in range(4):
        hot = replace(scenario, routing=routing(slice(12 * stage, 12 * stage + 12)))
        chunks = [row[0] for row in Simulation(hot).profile().chunks]
        even = [row[0] for row in Simulation(scenario).profile().chunks]
        slower = [a.forward_s / b.forward_s for a, b in zip(chunks, even, strict=True)]
        fuller = [a.saved_bytes / b.saved_bytes for a, b in zip(chunks, even, strict=True)]
        assert int(np.argmax(slower)) == int(np.argmax(fuller)) == stage
        assert slower[stage] > 1.1 and all(x < 1.05 for i, x in enumerate(slower) if i != stage)
    first = simulate(replace(scenario, routing=routing()), trace=False)
    assert int(np.argmax([sum(tags.values()) for tags in first.memory])) == 0


def test_stages_add_up_to_the_layers_however_they_are_cut(scenario: Scenario) -> None:
    hot = replace(scenario, routing=routing(slice(3, 17)))

    def total(pp: int) -> tuple[float, float]:
        plan = replace(hot.plan, pp=pp, dp=32 // pp, edp=4 // pp)
        rows = Simulation(replace(hot, plan=plan)).profile().chunks
        return sum(c.forward_s for row in rows for c in row), sum(c.saved_bytes for row in rows for c in row)

    seconds, nbytes = zip(*(total(pp) for pp in (1, 2, 4)), strict=True)
    assert seconds[1:] == pytest.approx((seconds[0],) * 2, rel=1e-9)
    # the fullest rank of each part holds at least what the fullest of the whole has of it
    assert nbytes[0] * (1 - 1e-9) <= nbytes[1] <= nbytes[2] * (1 + 1e-9) and nbytes[2] < 1.05 * nbytes[0]


def test_the_order_of_layers_within_a_stage_does_not_matter(scenario: Scenario) -> None:
    chance = inclusion(law_weights("lognormal", 0.5, layers=LAYERS, experts=EXPERTS, seed=3), TOP_K)
    order = np.concatenate([12 * s + np.random.default_rng(s).permutation(12) for s in range(4)])
    a, b = (
        simulate(replace(scenario, routing=Routing(loads=(ExpertLoads(chance=each, top_k=TOP_K),))), trace=False)
        for each in (chance, chance[order])
    )
    assert a.step_s.value == pytest.approx(b.step_s.value, rel=1e-9)
    assert a.peak_mem_bytes == pytest.approx(b.peak_mem_bytes, rel=1e-9)
    moved = Routing(loads=(ExpertLoads(chance=np.roll(chance, 7, axis=0), top_k=TOP_K),))
    assert simulate(replace(scenario, routing=moved), trace=False).step_s.value != pytest.approx(
        a.step_s.value, rel=1e-6
    )


def test_one_popularity_for_all_layers_is_priced_as_one_kind(scenario: Scenario) -> None:
    same = np.repeat(popularity(slice(0, 1))[:1], LAYERS, axis=0)
    alike = Routing(loads=(ExpertLoads(chance=same, top_k=TOP_K),))
    one = Routing(loads=(ExpertLoads(chance=same[:1], top_k=TOP_K),))
    assert not own_loads(scenario.model, alike) and not own_loads(scenario.model, Routing(max_over_mean=1.5))
    sim = Simulation(replace(scenario, routing=alike))
    assert len({content for row in sim.contents[1:-1] for content in row}) == 1
    steps = [simulate(replace(scenario, routing=each), trace=False).step_s.value for each in (alike, one)]
    assert steps[0] == pytest.approx(steps[1], rel=1e-12)
    assert set(own_loads(scenario.model, routing())) == set(range(LAYERS))


def test_levels_meet_every_load_on_a_line() -> None:
    loads = np.array([1.0, 1.1, 1.4, 2.5])
    levels = load_levels(loads, loads.mean())
    shares = level_shares(loads, levels[:, None])
    np.testing.assert_allclose(shares.sum(axis=0), 1.0)
    np.testing.assert_allclose(levels @ shares, loads)


# ---------------------------------------------------------------- capacity, padding, drift


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_kept_rows_are_those_of_drawn_micro_batches(factor: float) -> None:
    some = ExpertLoads(
        chance=inclusion(law_weights("lognormal", 0.4, layers=3, experts=32, seed=1), 4), top_k=4
    )  # fmt: skip
    ep, own = 8, 512
    counts = sample_counts(some, own, draws=ep * 300, seed=2)
    kept = with_capacity(counts, own, 4, factor)
    np.testing.assert_array_equal(kept.counts.sum(axis=-1) + kept.dropped, 4 * own)  # sent = kept + dropped
    groups = kept.counts.reshape(300, ep, 3, 32).sum(axis=1)
    mean, _ = kept_rows(some, ep, ep * own, factor)
    np.testing.assert_allclose(mean, groups.mean(axis=0), rtol=0.015)
    record = Routing(loads=(some,))
    over = place(groups, contiguous(some, ep), ep).rows.max(axis=-1).mean(axis=0) / (4 * own)
    tokens = ep * own
    np.testing.assert_allclose(record.by_layer_for(ep, tokens, capacity_factor=factor), over, rtol=0.01)
    lost = kept.dropped.mean(axis=0) / (4 * own)
    np.testing.assert_allclose(record.dropped_for(ep, tokens, factor), lost, atol=0.005)
    # sent = kept + dropped, in expectation too
    rows, _ = rank_rows(some, ep, tokens, factor)
    np.testing.assert_allclose(rows.sum(axis=-1) / (4 * tokens) + record.dropped_for(ep, tokens, factor), 1.0)


def test_a_capacity_takes_rows_off_and_the_report_tells_what_it_drops(scenario: Scenario) -> None:
    some = replace(scenario, routing=routing(slice(0, 48, 2), clumping=2.0))
    seen = []
    for factor in (1.0, 1.5, 4.0, None):
        capped = replace(some, software=replace(some.software, capacity_factor=factor))
        report = simulate(capped, trace=False)
        found = with_imbalance(report, capped).imbalance
        assert found is not None and 0.0 <= found.dropped_share <= found.dropped_worst_layer < 1.0
        moe = some.model.layers[0].moe
        assert moe is not None
        over = float(hottest_over_mean(capped.context(), moe))
        assert factor is None or over <= factor
        seen.append((over, report.step_s.value, report.peak_mem_bytes, -found.dropped_share))
    assert np.all(np.diff(np.array(seen), axis=0) >= -1e-9 * np.abs(np.array(seen)[1:]) - 1e-12)
    assert seen[0][3] < -0.05 and seen[2][3] == pytest.approx(0.0, abs=1e-6) and seen[3][3] == 0.0
    assert seen[2][:3] == pytest.approx(seen[3][:3], rel=1e-4)


def test_without_popularity_a_capacity_is_full_buffers(scenario: Scenario) -> None:
    moe = scenario.model.layers[0].moe
    assert moe is not None
    for record in (Routing(), Routing(max_over_mean=1.4)):
        capped = replace(scenario, routing=record, software=replace(scenario.software, capacity_factor=1.25))
        assert received_rows(capped.context(), moe) == pytest.approx(1.25 * 4 * 4096 * 8)


def test_padding_reaches_time_and_memory(scenario: Scenario) -> None:
    plain, padded = (
        simulate(replace(scenario, routing=routing(pad_to=pad)), trace=False) for pad in (1, 512)
    )  # fmt: skip
    assert padded.step_s.value > 1.005 * plain.step_s.value
    assert padded.peak_mem_bytes > 1.001 * plain.peak_mem_bytes


def test_the_step_is_priced_at_the_drifted_load(scenario: Scenario) -> None:
    still, moving = routing(), routing(drift=Drift(rate=0.3, spread=0.4))
    steps = steps_of(moving.loads[0], 0)
    want = np.mean([Routing(loads=(step,)).max_over_mean_for(8, 131072) for step in steps])
    assert moving.max_over_mean_for(8, 131072) == pytest.approx(want, rel=0.01)
    assert want > 1.02 * still.max_over_mean_for(8, 131072)
    a, b = (simulate(replace(scenario, routing=each), trace=False) for each in (still, moving))
    assert b.step_s.value > a.step_s.value
    found = with_imbalance(b, replace(scenario, routing=moving)).imbalance
    assert found is not None and found.step_p50_s == pytest.approx(b.step_s.value, rel=0.01)


# ---------------------------------------------------------------- from layer to layer


def test_transitions_of_a_trace(tmp_path: Path) -> None:
    """Even experts are followed by the same two, odd ones by two others: rows sum to top_k, shares by hand."""
    model = load_model("mixtral-8x7b")
    names = [i for i, layer in enumerate(model.layers) if layer.moe is not None]
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(64):
        first = rng.choice(8, 2, replace=False)
        rows.append([f"{first[0]}|{first[1]}"] * len(names))
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([",".join(f"L{i}" for i in names), *(",".join(row) for row in rows)]) + "\n")
    loads = resolve(parse_routing(str(path)), model).loads[0]
    assert loads.transitions is not None and loads.transitions.shape == (len(names) - 1, 8, 8)
    np.testing.assert_allclose(loads.transitions.sum(axis=-1), 2.0)
    np.testing.assert_allclose(np.diagonal(loads.transitions, axis1=1, axis2=2), 1.0)  # the same two again
    assert np.all(stay_share(loads, contiguous(loads, 1)) == pytest.approx(1.0))
    # one rank each: of the two next choices one is where this one was
    np.testing.assert_allclose(stay_share(loads, contiguous(loads, 8)), 0.5)
    assert np.all(stay_share(loads, contiguous(loads, 2)) >= stay_share(loads, contiguous(loads, 4)))


def test_transitions_must_fit_and_are_not_made_up() -> None:
    with pytest.raises(UserError, match="layer - 1"):
        ExpertLoads(chance=np.full((2, 4), 0.5), top_k=2, transitions=np.ones((2, 4, 4)))
    with pytest.raises(UserError, match="must sum to top_k"):
        ExpertLoads(chance=np.full((2, 4), 0.5), top_k=2, transitions=np.ones((1, 4, 4)))
    some = ExpertLoads(chance=np.full((2, 4), 0.5), top_k=2)
    with pytest.raises(UserError, match="no transitions"):
        stay_share(some, contiguous(some, 2))
