"""Chances of being chosen under popularity laws, to their extremes, against draws."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hwprofiles.errors import UserError
from sim.routing.popularity import Law, inclusion, law_log_weights, law_weights, succession

LAWS: tuple[tuple[Law, float], ...] = (
    ("zipf", 1.0), ("zipf", 5.0), ("zipf", 20.0), ("zipf", 1e6), ("lognormal", 0.8), ("lognormal", 3.0),
    ("lognormal", 50.0), ("dirichlet", 1.0), ("dirichlet", 0.05), ("dirichlet", 0.001), ("dirichlet", 1e-9),
)  # fmt: skip


def drawn(log_w: np.ndarray, k: int, tokens: int = 40_000) -> np.ndarray:
    """Share of tokens that hold each expert, by Gumbel top-k, on the layer's log weights."""
    noise = np.random.default_rng(5).gumbel(size=(tokens, len(log_w)))
    chosen = np.argpartition(-(log_w + noise), k - 1, axis=1)[:, :k]
    return np.bincount(chosen.ravel(), minlength=len(log_w)) / tokens


@pytest.mark.parametrize(("law", "parameter"), LAWS)
@pytest.mark.parametrize("k", [1, 8])
def test_chances_are_those_of_draws(law: Law, parameter: float, k: int) -> None:
    log_w = law_log_weights(law, parameter, layers=2, experts=64, seed=3)
    chance = succession(log_w, k)
    np.testing.assert_allclose(chance.sum(axis=1), k, rtol=1e-9)
    for layer in range(2):
        want = drawn(log_w[layer], k)
        np.testing.assert_allclose(chance[layer], want, atol=0.012)
        over, seen = (p.reshape(8, 8).sum(axis=1).max() * 8 / k for p in (chance[layer], want))
        assert over == pytest.approx(seen, rel=0.01)


def test_the_most_skewed_popularity_is_the_most_uneven() -> None:
    """One expert takes all of top-1; k experts take all of top-k."""
    for law, parameter in (("dirichlet", 1e-9), ("zipf", 1e6), ("lognormal", 1e300)):
        chance = np.sort(succession(law_log_weights(law, parameter, layers=3, experts=32, seed=0), 4), axis=1)
        np.testing.assert_allclose(chance[:, -4:], 1.0, atol=1e-6)
        np.testing.assert_allclose(chance[:, :-4], 0.0, atol=1e-6)


@pytest.mark.parametrize(("law", "parameter"), [("zipf", 1e301), ("dirichlet", 1e-301), ("lognormal", float("nan"))])
def test_what_cannot_be_drawn_is_refused(law: Law, parameter: float) -> None:
    with pytest.raises(UserError, match=r"from .* to 1e"):
        law_log_weights(law, parameter, layers=1, experts=4, seed=0)


def test_many_alike_experts_are_as_the_limit_says() -> None:
    np.testing.assert_allclose(succession(np.zeros((2, 64)), 8), 8 / 64, rtol=1e-9)
    np.testing.assert_allclose(succession(np.zeros((1, 4)), 4), 1.0)
    weights = law_weights("lognormal", 0.4, layers=3, experts=256, seed=1)
    np.testing.assert_allclose(succession(np.log(weights), 8), inclusion(weights, 8), rtol=0.01)
    got = succession(np.log(np.array([[3.0, 2.0, 1.0]])), 2)  # by hand: 1/2 + 1/3 3/4 + 1/6 3/5, ...
    np.testing.assert_allclose(
        got, [[0.85, 1 / 3 + 0.5 * 2 / 3 + 1 / 6 * 2 / 5, 1 / 6 + 0.5 / 3 + 1 / 3 / 4]], rtol=1e-6
    )


def test_a_large_model_takes_a_moment() -> None:
    began = time.process_time()
    succession(law_log_weights("zipf", 1.0, layers=8, experts=256, seed=0), 8)
    assert time.process_time() - began < 5.0
