"""How popular experts are: laws, the balance-loss knob, drift over steps, noise taken out of counted loads.

Two forms of the same thing: weights w[layer, expert] > 0 (any scale), from which a token draws k experts one after
the other without putting any back, and inclusion p[layer, expert], the chance that a token holds the expert
(sums to k, none above 1). Drawing in succession is a race of exponential clocks of rate w, so that to an error that
vanishes with many experts p = 1 - exp(-t w), t such that the sum is k (B. Rosen, 1972, J. Roy. Statist. Soc. A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError

Floats = NDArray[np.float64]
Law = Literal["uniform", "zipf", "lognormal", "dirichlet"]

NEWTON_STEPS = 60
SURE = 1.0 - 1e-9  # inclusion of an expert that every token holds
FAINT = 1e-12  # least weight relative to the mean of a layer: an expert that is never chosen stays in the arithmetic


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Popularity that wanders from step to step: log w follows a stationary AR(1).

    rate: share of the deviation forgotten per step (1: steps are independent); spread: standard deviation of log w.
    """

    rate: float = 1.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 < self.rate <= 1.0:
            problems.append(f"drift rate {self.rate} is not in (0, 1]; it is the share forgotten per step")
        if not 0.0 <= self.spread < np.inf:
            problems.append(f"drift spread {self.spread} is not a finite number >= 0")
        if problems:
            raise UserError(problems, where="drift")


def law_weights(law: Law, parameter: float, *, layers: int, experts: int, seed: int) -> Floats:
    """Weights [layer, expert] of mean 1 per layer under a law.

    zipf: the n-th expert weighs n^-parameter, in an order drawn per layer; lognormal: parameter is the standard
    deviation of log w; dirichlet: parameter is the concentration per expert (coefficient of variation
    parameter^-1/2). zipf:0 and lognormal:0 are uniform. Raises UserError on a parameter outside its range.
    """
    if not np.isfinite(parameter) or parameter < 0.0 or (law == "dirichlet" and parameter == 0.0):
        least = "above 0" if law == "dirichlet" else ">= 0"
        raise UserError(f"{law}:{parameter:g} has no meaning; give a finite number {least}", where="routing")
    rng = np.random.default_rng(seed)
    if law == "uniform":
        return np.ones((layers, experts))
    if law == "zipf":
        ranks = np.arange(1.0, experts + 1.0) ** -parameter
        weights = np.stack([rng.permutation(ranks) for _ in range(layers)])
    elif law == "lognormal":
        weights = np.exp(parameter * rng.standard_normal((layers, experts)))
    else:
        weights = rng.gamma(parameter, size=(layers, experts))
    return floored(weights)


def floored(weights: Floats) -> Floats:
    """Weights of mean 1 per layer, none zero."""
    mean = np.maximum(weights.mean(axis=-1, keepdims=True), np.finfo(float).tiny)
    out: Floats = np.maximum(weights / mean, FAINT)
    return out


def balanced(weights: Floats, strength: float) -> Floats:
    """Weights shrunk towards uniform as a balance loss does: 0 leaves them, 1 makes all experts alike.

    Raises UserError outside 0..1.
    """
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"balance {strength} is not in 0..1; 0 leaves the popularity, 1 is uniform", where="routing")
    out: Floats = (1.0 - strength) * weights / weights.mean(axis=-1, keepdims=True) + strength
    return out


def inclusion(weights: Floats, top_k: float) -> Floats:
    """Chance that a token's `top_k` distinct experts hold each expert: 1 - exp(-t w), summing to top_k.

    `top_k` = number of experts: all of them, always.
    """
    experts = weights.shape[-1]
    if top_k >= experts:
        return np.ones_like(weights)
    w = weights / weights.mean(axis=-1, keepdims=True)
    # The sum is concave and rising in t: Newton from below climbs to the root and never passes it.
    t = np.full((*w.shape[:-1], 1), top_k / experts)
    for _ in range(NEWTON_STEPS):
        left = np.exp(-t * w)
        step = (top_k - (1.0 - left).sum(axis=-1, keepdims=True)) / np.maximum(
            (w * left).sum(axis=-1, keepdims=True), 1e-300
        )
        t = t + np.maximum(step, 0.0)
        if np.all(np.abs(step) < 1e-13 * t):
            break
    out: Floats = -np.expm1(-t * w)
    return out


def weights_of(chance: Floats) -> Floats:
    """The inverse of `inclusion`."""
    weights: Floats = -np.log1p(-np.minimum(chance, SURE))
    return floored(weights)


def counted_inclusion(counts: Floats, tokens: Floats, top_k: int) -> Floats:
    """Inclusion from counts[layer, expert] over tokens[layer], less the noise of counting.

    Counts of few tokens are more uneven than the router. The deviations from the mean are scaled by
    (1 - noise / variance)^1/2, both over all layers, noise = mean of p (1 - p) / tokens (what counting alone would
    show), so that their variance is what is left above counting.
    """
    chance = np.minimum(counts / tokens[:, None], 1.0)
    mean = top_k / counts.shape[-1]
    off = chance - chance.mean(axis=-1, keepdims=True)
    noise = (chance * (1.0 - chance) / tokens[:, None]).mean()
    keep = np.sqrt(np.clip(1.0 - noise / max((off**2).mean(), 1e-300), 0.0, 1.0))
    out: Floats = np.clip(mean + keep * off, 0.0, 1.0)
    return out


def drifted(weights: Floats, drift: Drift, *, steps: int, seed: int) -> Floats:
    """Weights [step, layer, expert] of `steps` steps in a row; without spread all alike."""
    rng = np.random.default_rng(seed)
    memory = 1.0 - drift.rate
    out = np.empty((steps, *weights.shape))
    state = rng.standard_normal(weights.shape)
    for i in range(steps):
        out[i] = weights * np.exp(drift.spread * state)
        state = memory * state + np.sqrt(1.0 - memory**2) * rng.standard_normal(weights.shape)
    return out
