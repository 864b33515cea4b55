"""Figures of a placement show the loads, the traffic and the proof of the answer, before and after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards import figures_placement as drawn
from dashboards import placement_rows
from dashboards.figures_experts import MEAN
from planner.placement.answer import place_experts
from planner.placement.flows import crossing
from planner.placement.generate import coactivation_of
from planner.placement.placefile import placement_json
from planner.placement.records import Instance, Placement, PlacementResult

LAYERS, EXPERTS, GPUS, TOP_K = 3, 16, 8, 4


@pytest.fixture(scope="module")
def asked() -> Instance:
    """Two nodes of four GPUs, two experts each; pairs and flows as drawn tokens have them."""
    rng = np.random.default_rng(3)
    chosen = rng.permuted(np.tile(np.arange(EXPERTS), (LAYERS, 500, 1)), axis=2)[..., :TOP_K]
    skew = np.minimum(chosen, rng.integers(1, EXPERTS, size=chosen.shape))
    loads = np.stack([np.bincount(x.ravel(), minlength=EXPERTS) for x in skew])
    flow = rng.integers(0, 50, size=(LAYERS - 1, EXPERTS, EXPERTS))
    pairs = np.stack([coactivation_of(x, EXPERTS) for x in chosen])
    return Instance(
        loads=loads, transitions=flow, coactivation=pairs, gpus=GPUS, gpus_per_node=4, slots_per_gpu=2,
        layers=(3, 5, 9),
    )  # fmt: skip


@pytest.fixture(scope="module")
def answer(asked: Instance) -> PlacementResult:
    return place_experts(asked)


def test_load_is_that_of_the_placement_on_one_scale(asked: Instance, answer: PlacementResult) -> None:
    before = drawn.start_of(asked, None)
    figure = drawn.load_before_after(asked, before, answer.placement)
    first, second = figure.data
    loads = asked.loads.reshape(LAYERS, GPUS, 2).sum(axis=2)
    assert np.array(first.z) == pytest.approx(loads / loads.mean(axis=1, keepdims=True), abs=1e-4)
    assert np.array(second.z).max(axis=1).mean() == pytest.approx(answer.certificate.max_over_mean, abs=1e-4)
    assert list(first.y) == ["3", "5", "9"] and first.coloraxis == second.coloraxis == "coloraxis"
    scale = figure.layout.coloraxis
    (middle,) = [at for at, colour in scale.colorscale if colour == MEAN]
    assert scale.cmin + middle * (scale.cmax - scale.cmin) == pytest.approx(1.0)
    both = np.array([first.z, second.z])
    assert (scale.cmin, scale.cmax) == pytest.approx((both.min(), both.max()), abs=1e-4)
    words = drawn.load_words(asked, before, answer.placement)
    assert f"{np.array(first.z).max():.3f} times the mean" in words


def test_traffic_is_what_crosses(asked: Instance, answer: PlacementResult) -> None:
    for placement in (drawn.start_of(asked, None), answer.placement):
        matrix = drawn.traffic_between(asked, placement)
        found = crossing(asked, placement)
        assert found is not None and matrix.shape == (2, 2) and matrix.sum() == pytest.approx(1.0)
        assert 1.0 - np.trace(matrix) == pytest.approx(found[0])
    words = drawn.traffic_words(asked, drawn.start_of(asked, None), answer.placement)
    assert f"{answer.certificate.cross_node:.1%} after" in words and "2 nodes" in words
    figure = drawn.traffic_before_after(asked, drawn.start_of(asked, None), answer.placement)
    assert f"after: {100 * (answer.certificate.cross_node or 0):.1f} % changes node" in [
        a.text for a in figure.layout.annotations
    ]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.sampled_from([(8, 4), (8, 8), (6, 2)]), st.integers(0, 9))
def test_all_traffic_is_accounted_for(layers: int, sizes: tuple[int, int], seed: int) -> None:
    """Without transitions every source sends alike, and a destination gets its load."""
    gpus, per_node = sizes
    loads = np.random.default_rng(seed).integers(1, 100, size=(layers, gpus))
    instance = Instance(loads=loads, gpus=gpus, gpus_per_node=per_node, slots_per_gpu=1)
    matrix = drawn.traffic_between(instance, drawn.start_of(instance, None))
    assert matrix.sum() == pytest.approx(1.0) and np.ptp(matrix, axis=0) == pytest.approx(0.0)
    assert matrix.sum(axis=0).sum() * loads.sum() == pytest.approx(loads.sum())


def test_fan_out_falls_when_partners_share_a_node() -> None:
    """Tokens hold {0, 1} or {2, 3}: apart they reach two nodes, together one."""
    pairs = np.zeros((1, 4, 4))
    pairs[0, 0, 1] = pairs[0, 1, 0] = pairs[0, 2, 3] = pairs[0, 3, 2] = 50.0
    instance = Instance(loads=[[50.0] * 4], coactivation=pairs, gpus=2, gpus_per_node=1, slots_per_gpu=2)
    apart, together = (Placement.of_ranks(np.array([r]), 2) for r in ([0, 1, 0, 1], [0, 0, 1, 1]))
    one, other = (drawn.fan_out(instance, p, 2) for p in (apart, together))
    assert one is not None and other is not None
    assert 1.8 < float(one[0]) <= 2.0 and other == pytest.approx(1.0)
    figure = drawn.fan_out_before_after(instance, apart, together, 2)
    assert [t.name.split(" (")[0] for t in figure.data] == ["before", "after", "uniform routing"]
    assert "2 experts of a token" in drawn.fan_out_words(instance, apart, together, 2)


def test_what_is_not_known_is_said(asked: Instance, answer: PlacementResult) -> None:
    before, after = drawn.start_of(asked, None), answer.placement
    bare = replace(asked, coactivation=None)
    for instance, top_k, words in (
        (bare, TOP_K, "coactivation"), (asked, 1, "one expert"), (replace(asked, gpus_per_node=GPUS), 4, "One node"),
    ):  # fmt: skip
        text = drawn.fan_out_before_after(instance, before, after, top_k).layout.annotations[0].text
        assert words in text and text == drawn.fan_out_words(instance, before, after, top_k)
    assert "no slot is left" in drawn.replicas(asked, after).layout.annotations[0].text
    single = Instance(loads=[[1.0, 2.0]], gpus=1, gpus_per_node=1, slots_per_gpu=2)
    alone = drawn.start_of(single, None)
    for draw in (drawn.load_before_after, drawn.traffic_before_after):
        assert "One GPU" in draw(single, alone, alone).layout.annotations[0].text


def test_replicas_are_counted(asked: Instance) -> None:
    wide = replace(asked, slots_per_gpu=3)
    placed = place_experts(wide).placement
    counts = placed.counts(EXPERTS)
    figure = drawn.replicas(wide, placed)
    assert np.array(figure.data[0].customdata).tolist() == counts.tolist() and counts.sum() == LAYERS * wide.num_slots
    words = drawn.replicas_words(wide, placed)
    assert "8 slots of a layer" in words and f"with {counts.max()} copies" in words


def test_the_proof_says_the_certificate(asked: Instance, answer: PlacementResult) -> None:
    data = placement_json(answer)
    c, rows = answer.certificate, dict(placement_rows.certificate_rows(data))
    assert rows["decided by"] == c.objective_of and c.bound_kind in rows["no placement is below"]
    assert rows["gap"].startswith(f"{100 * c.gap:.3f} %")
    assert rows["flow that changes node"] == f"{100 * (c.cross_node or 0.0):.2f} %"
    table = placement_rows.against_rows(data)
    assert [r["placement"] for r in table] == ["this answer", *c.baselines]
    assert table[1]["max load"] == f"{c.baselines['contiguous']['max_load']:,.1f}"
    gaps = [float(r["gap %"]) for r in placement_rows.layer_rows(data)]
    assert gaps == sorted(gaps, reverse=True) and len(gaps) == LAYERS


@pytest.mark.parametrize(("layers", "gpus"), [(1, 2), (94, 128), (58, 256)])
def test_figures_fit_a_screen(layers: int, gpus: int) -> None:
    loads = np.random.default_rng(0).exponential(size=(layers, gpus))
    instance = Instance(loads=loads, gpus=gpus, gpus_per_node=2, slots_per_gpu=1)
    at = drawn.start_of(instance, None)
    figure = drawn.load_before_after(instance, at, at)
    assert figure.layout.height <= 820
    assert gpus / figure.layout.xaxis.dtick * 30 <= 330
    assert len(figure.layout.yaxis.tickvals) * 12 <= figure.layout.height - 150
    assert drawn.traffic_before_after(instance, at, at).layout.height <= 600
