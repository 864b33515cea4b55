"""Popularity, loads on ranks and the facts that any routing must satisfy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from sim.routing import Drift, ExpertLoads, Routing
from sim.routing.curve import curve, divisors
from sim.routing.expected import hottest
from sim.routing.loads import contiguous, rank_moments
from sim.routing.place import exchanged, layer_stats, pair_rows, pair_tokens, place
from sim.routing.popularity import balanced, counted_inclusion, drifted, inclusion, law_weights, weights_of
from sim.routing.sample import padded, sample_counts, sample_tokens, with_capacity


def loads(law: str = "lognormal", parameter: float = 0.5, *, layers: int = 3, experts: int = 32, k: int = 4, **more):
    weights = law_weights(law, parameter, layers=layers, experts=experts, seed=3)
    return ExpertLoads(chance=inclusion(weights, k), top_k=k, **more)


# ---------------------------------------------------------------- popularity


def test_inclusion_is_near_the_exact_chance_of_drawing_in_succession() -> None:
    weights = np.array([[4.0, 2.0, 1.0, 1.0, 1.0, 0.5, 1.5, 1.0]])
    exact = np.zeros(8)
    for a, b in permutations(range(8), 2):
        p = weights[0, a] / weights.sum() * weights[0, b] / (weights.sum() - weights[0, a])
        exact[[a, b]] += p
    got = inclusion(weights, 2)[0]
    assert got.sum() == pytest.approx(2.0, abs=1e-12)
    np.testing.assert_allclose(got, exact, rtol=0.07)


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 99))
def test_inclusion_sums_to_k_and_weights_come_back(experts: int, k: int, seed: int) -> None:
    k = min(k, experts - 1)
    weights = law_weights("lognormal", 1.0, layers=2, experts=experts, seed=seed)
    chance = inclusion(weights, k)
    np.testing.assert_allclose(chance.sum(axis=1), k, rtol=1e-9)
    assert chance.min() > 0.0 and chance.max() <= 1.0
    np.testing.assert_allclose(inclusion(weights_of(chance), k), chance, rtol=1e-5)


@pytest.mark.parametrize(("law", "zero"), [("zipf", 0.0), ("lognormal", 0.0)])
def test_laws_at_zero_are_uniform(law: str, zero: float) -> None:
    uniform = law_weights("uniform", 0.0, layers=4, experts=16, seed=0)
    np.testing.assert_array_equal(law_weights(law, zero, layers=4, experts=16, seed=0), uniform)


def test_dirichlet_spread_is_one_over_the_root_of_its_concentration() -> None:
    weights = law_weights("dirichlet", 25.0, layers=200, experts=64, seed=1)
    assert weights.std() == pytest.approx(0.2, rel=0.03)


def test_balance_loss_shrinks_towards_uniform() -> None:
    weights = law_weights("zipf", 1.0, layers=1, experts=16, seed=0)
    spread = [balanced(weights, s).std() for s in (0.0, 0.3, 0.7, 1.0)]
    assert spread == sorted(spread, reverse=True) and spread[-1] == 0.0
    np.testing.assert_allclose(balanced(weights, 0.0), weights)
    with pytest.raises(UserError, match="is not in 0"):
        balanced(weights, 1.5)


def test_counting_noise_is_taken_out_of_counts() -> None:
    """Few tokens of an even router look uneven; many tokens of an uneven one are believed."""
    even = loads("uniform", 0.0, experts=16, k=2, layers=40)
    few = sample_counts(even, 200, draws=1, seed=0)[0].astype(float)
    cleaned = counted_inclusion(few, np.full(40, 200.0), 2)
    assert cleaned.std() < 0.4 * (few / 200).std()
    uneven = loads("lognormal", 0.6, experts=16, k=2, layers=4)
    many = sample_counts(uneven, 100_000, draws=1, seed=0)[0].astype(float)
    np.testing.assert_allclose(counted_inclusion(many, np.full(4, 1e5), 2), uneven.chance, atol=0.01)


def test_drift_is_stationary_and_forgets_at_its_rate() -> None:
    weights = np.ones((1, 4000))
    logs = np.log(drifted(weights, Drift(rate=0.3, spread=0.2), steps=6, seed=0))[:, 0]
    np.testing.assert_allclose(logs.std(axis=1), 0.2, rtol=0.06)
    for lag in (1, 2, 4):
        assert np.corrcoef(logs[0], logs[lag])[0, 1] == pytest.approx(0.7**lag, abs=0.05)
    with pytest.raises(UserError, match="drift rate 0"):
        Drift(rate=0.0)


# ---------------------------------------------------------------- the largest load


def test_expected_maximum_of_a_few_equal_normals() -> None:
    """sigma / sqrt(pi) of two, 3 sigma / (2 sqrt(pi)) of three; one rank holds everything."""
    for n, want in ((1, 0.0), (2, 1 / np.sqrt(np.pi)), (3, 1.5 / np.sqrt(np.pi))):
        most, _ = hottest(np.full((1, n), 100.0), np.full((1, n), 4.0))
        assert most[0] == pytest.approx(100.0 + 2.0 * want, abs=1e-4)
    assert hottest(np.array([[5.0]]), np.array([[0.0]]))[1][0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("law", "parameter"), [("uniform", 0.0), ("lognormal", 0.4), ("zipf", 0.6)])
@pytest.mark.parametrize("ep", [2, 8, 32])
def test_expected_hottest_rank_agrees_with_drawn_micro_batches(law: str, parameter: float, ep: int) -> None:
    some = loads(law, parameter)
    tokens = 2048
    drawn = place(sample_counts(some, tokens, draws=400, seed=5), contiguous(some, ep), ep)
    mean, variance = rank_moments(some, contiguous(some, ep), ep)
    most, spread = hottest(mean * tokens, variance * tokens)
    np.testing.assert_allclose(drawn.rows.max(axis=-1).mean(axis=0), most, rtol=0.006)
    np.testing.assert_allclose(drawn.rows.max(axis=-1).std(axis=0), np.sqrt(spread), rtol=0.2)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([16, 24, 60]), st.floats(0.0, 1.2), st.integers(0, 9))
def test_more_ranks_never_lower_the_hottest(experts: int, spread: float, seed: int) -> None:
    weights = law_weights("lognormal", spread, layers=2, experts=experts, seed=seed)
    table = curve(ExpertLoads(chance=inclusion(weights, 4), top_k=4)).rank_over_mean
    assert np.all(np.diff(np.asarray(table), axis=0) >= 0.0)
    assert table[0] == pytest.approx([1.0] * len(table[0]), abs=1e-6)


@pytest.mark.parametrize("ep", [2, 4, 8, 16])
def test_nested_ranks_are_monotone_without_the_running_maximum(ep: int) -> None:
    some = loads("lognormal", 0.7)
    tops = []
    for size in (ep, 2 * ep):
        mean, variance = rank_moments(some, contiguous(some, size), size)
        tops.append(hottest(mean * 500, variance * 500)[0].mean() * size)
    assert tops[1] >= tops[0]


# ---------------------------------------------------------------- facts of placement


@given(st.integers(0, 50))
def test_uniform_routing_is_blind_to_the_order_of_experts(seed: int) -> None:
    some = loads("uniform", 0.0)
    rng = np.random.default_rng(seed)
    shuffled = np.stack([rng.permutation(row) for row in contiguous(some, 8)])
    for a, b in zip(rank_moments(some, contiguous(some, 8), 8), rank_moments(some, shuffled, 8), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@given(st.integers(0, 50))
def test_permuting_experts_within_a_rank_changes_nothing(seed: int) -> None:
    some = loads("zipf", 1.0)
    rng = np.random.default_rng(seed)
    order = np.concatenate([4 * r + rng.permutation(4) for r in range(8)])
    moved = ExpertLoads(chance=some.chance[:, order], top_k=some.top_k)
    for ep in (1, 2, 4, 8):
        want = rank_moments(some, contiguous(some, ep), ep)
        got = rank_moments(moved, contiguous(moved, ep), ep)
        for a, b in zip(want, got, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_placed_loads_against_plain_loops() -> None:
    some = loads()
    counts = sample_counts(some, 300, draws=2, seed=0)
    placement = np.random.default_rng(1).integers(0, 5, size=some.chance.shape)
    placed = place(counts, placement, 5)
    for draw in range(2):
        for layer in range(3):
            on = [counts[draw, layer][placement[layer] == r] for r in range(5)]
            rows = np.array([x.sum() for x in on])
            hot = int(rows.argmax())
            np.testing.assert_array_equal(placed.rows[draw, layer], rows)
            assert placed.hottest[draw, layer] == hot
            assert placed.max_over_mean[draw, layer] == pytest.approx(rows.max() / rows.mean())
            assert placed.fullest_over_mean[draw, layer] == pytest.approx(on[hot].max() / on[hot].mean())


def test_bad_placement_lists_every_problem() -> None:
    with pytest.raises(UserError) as caught:
        place(np.ones((2, 4)), np.array([[0, 1, 2, 7], [0, -1, 1, 1]]), 4)
    assert len(caught.value.problems) == 2 and "layer 0, expert 3" in caught.value.problems[0]


def test_pairs_send_what_is_routed_and_nodes_add_up() -> None:
    some = loads("lognormal", 0.6)
    pairs = pair_rows(some, contiguous(some, 8), 8, 500, seed=2)
    np.testing.assert_array_equal(pairs.sum(axis=2), 4 * 500)
    mean = pair_rows(some, contiguous(some, 8), 8, 500)
    np.testing.assert_allclose(pairs.sum(axis=1), mean.sum(axis=1), rtol=0.06)
    sent, received, node_sent, node_received = exchanged(mean, 4)
    away = mean[0] * (1 - np.eye(8))
    assert sent[0] == pytest.approx(away.sum(axis=1).max()) and received[0] == pytest.approx(away.sum(axis=0).max())
    assert node_sent[0] == pytest.approx(max(mean[0, :4, 4:].sum(), mean[0, 4:, :4].sum()))
    assert node_received[0] == pytest.approx(node_sent[0])


def test_tokens_that_reach_a_rank_agree_with_drawn_tokens() -> None:
    some = loads("lognormal", 0.6, layers=1)
    ids = sample_tokens(some, 0, 40_000, seed=0)
    reach = np.array([np.mean(np.any(ids // 4 == r, axis=1)) for r in range(8)])
    np.testing.assert_allclose(pair_tokens(some, contiguous(some, 8), 8, 1)[0, 0], reach, rtol=0.05)


# ---------------------------------------------------------------- drawing


@given(st.sampled_from(["uniform", "zipf", "lognormal"]), st.integers(1, 700), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_tokens_are_conserved(law: str, tokens: int, seed: int) -> None:
    some = loads(law, 0.0 if law == "uniform" else 1.0)
    counts = sample_counts(some, tokens, draws=3, seed=seed)
    np.testing.assert_array_equal(counts.sum(axis=-1), 4 * tokens)
    assert counts.min() >= 0 and counts.max() <= tokens
    dropped = with_capacity(counts, tokens, 4, 1.25)
    np.testing.assert_array_equal(dropped.counts.sum(axis=-1) + dropped.dropped, 4 * tokens)
    assert dropped.counts.max() <= np.ceil(1.25 * tokens * 4 / 32)
    full = padded(counts, 16)
    assert np.all(full % 16 == 0) and np.all(full >= counts) and np.all(full[counts == 0] == 0)


def test_drawn_tokens_hold_distinct_experts_as_often_as_stated() -> None:
    some = loads("zipf", 1.0, layers=1)
    ids = sample_tokens(some, 0, 30_000, seed=0)
    assert all(len(set(row)) == 4 for row in ids[:500].tolist())
    seen = np.bincount(ids.ravel(), minlength=32) / 30_000
    np.testing.assert_allclose(seen, some.chance[0], rtol=0.08, atol=0.003)
    np.testing.assert_array_equal(ids, sample_tokens(some, 0, 30_000, seed=0))


def test_limited_groups_are_kept_to_and_make_ranks_more_uneven() -> None:
    free = loads("uniform", 0.0, layers=1)
    limited = loads("uniform", 0.0, layers=1, num_groups=8, top_k_groups=2)
    ids = sample_tokens(limited, 0, 30_000, seed=0)
    assert max(len(set(row)) for row in (ids // 4)[:500].tolist()) <= 2
    np.testing.assert_allclose(np.bincount(ids.ravel(), minlength=32) / 30_000, limited.chance[0], rtol=0.08)
    hits = (ids // 4)[..., None] == np.arange(8)
    _, variance = rank_moments(limited, contiguous(limited, 8), 8)
    # back to loads with a fixed sum, which is what was drawn
    own = variance * (1 - variance / variance.sum())
    np.testing.assert_allclose(hits.sum(axis=1).var(axis=0), own[0], rtol=0.06)
    assert curve(limited).at(curve(limited).rank_over_mean, 8, 2000) > curve(free).at(
        curve(free).rank_over_mean, 8, 2000
    )


def test_layer_stats_say_what_the_curve_expects() -> None:
    some = loads("lognormal", 0.4)
    stats = layer_stats(some, 8, 512, micro_batches=64, ranks_per_node=4)
    routing = Routing(loads=(some,))
    assert np.mean([s.max_over_mean for s in stats]) == pytest.approx(routing.max_over_mean_for(8, 8 * 512), rel=0.01)
    assert np.mean([s.fullest_over_mean for s in stats]) == pytest.approx(
        routing.fullest_over_mean_for(8, 8 * 512), rel=0.06
    )
    for s in stats:
        assert s.mean_rows == 4 * 512 and list(s.quantiles) == sorted(s.quantiles)
        assert s.node_received_rows <= 4 * s.received_rows


# ---------------------------------------------------------------- the record


def test_columns_of_ep_give_what_numbers_give() -> None:
    routing = Routing(loads=(loads(),))
    eps, tokens = np.array([1, 2, 8, 32, 5]), np.array([512.0, 1e4, 4e5, 1e9, 33.0])
    for ask in (routing.max_over_mean_for, routing.fullest_over_mean_for):
        column = ask(eps, tokens)
        assert column.tolist() == pytest.approx([ask(int(e), float(t)) for e, t in zip(eps, tokens, strict=True)])
    assert routing.max_over_mean_for(1, 4096) == pytest.approx(1.0)
    assert Routing(max_over_mean=1.5).max_over_mean_for(eps, tokens) == 1.5


def test_the_curve_matches_the_quadrature_between_its_points() -> None:
    some = loads("lognormal", 0.3)
    for ep, tokens in ((8, 1500), (32, 20_000), (4, 3000)):
        mean, variance = rank_moments(some, contiguous(some, ep), ep)
        want = hottest(mean * tokens, variance * tokens)[0].mean() * ep / (4 * tokens)
        assert Routing(loads=(some,)).max_over_mean_for(ep, tokens) == pytest.approx(want, rel=0.01)


def test_padding_and_clumping_add_to_the_hottest_rank() -> None:
    plain, clumped = loads(), loads(clumping=4.0)
    filled = loads(pad_to=64)
    at = lambda x: Routing(loads=(x,)).max_over_mean_for(8, 4096)  # noqa: E731
    assert at(filled) > at(plain) and at(clumped) > at(plain)
    # 31.5 rows per expert on average
    assert at(filled) - at(plain) == pytest.approx(31.5 * 4 / (4 * 4096 / 8), rel=0.01)


def test_impossible_loads_are_refused_with_all_problems() -> None:
    with pytest.raises(UserError) as caught:
        ExpertLoads(chance=np.full((1, 8), 0.5), top_k=2, num_groups=3, top_k_groups=1, pad_to=0)
    assert len(caught.value.problems) == 3
    with pytest.raises(UserError, match="at least the mean"):
        Routing(max_over_mean=0.9)
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
