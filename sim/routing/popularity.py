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
LEAST_GAMMA = 0.1  # concentration from which gamma variates are drawn as they are
FARTHEST = 1e307  # log weights stay finite
WIDEST = 1e300  # parameter of a law
BEYOND = 600.0  # in log w: experts farther from the k-th are certain, or never chosen
TIMES = 256  # quadrature points of the time of the k-th ring, a tenth apart in its logarithm
LAYERS_AT_ONCE = 8
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
    """`law_log_weights` as weights [layer, expert] of mean 1 per layer, none below `FAINT` of it."""
    log_w = law_log_weights(law, parameter, layers=layers, experts=experts, seed=seed)
    return floored(np.exp(log_w - log_w.max(axis=-1, keepdims=True)))


def law_log_weights(law: Law, parameter: float, *, layers: int, experts: int, seed: int) -> Floats:
    """Logarithms of weights [layer, expert] under a law, any scale per layer.

    zipf: the n-th expert weighs n^-parameter, in an order drawn per layer; lognormal: parameter is the standard
    deviation of log w; dirichlet: parameter is the concentration per expert (coefficient of variation
    parameter^-1/2). zipf:0 and lognormal:0 are uniform. Raises UserError on a parameter outside its range.
    """
    least = 1.0 / WIDEST if law == "dirichlet" else 0.0
    if not least <= parameter <= WIDEST:
        above = "above 0" if law == "dirichlet" else ">= 0"
        raise UserError(
            f"{law}:{parameter:g} has no meaning; give a finite number {above} (from {least:g} to {WIDEST:g})",
            where="routing",
        )
    rng = np.random.default_rng(seed)
    if law == "uniform":
        return np.zeros((layers, experts))
    with np.errstate(over="ignore"):
        if law == "zipf":
            ranks = -parameter * np.log(np.arange(1.0, experts + 1.0))
            log_w = np.stack([rng.permutation(ranks) for _ in range(layers)])
        elif law == "lognormal":
            log_w = parameter * rng.standard_normal((layers, experts))
        elif parameter >= LEAST_GAMMA:
            log_w = np.log(rng.gamma(parameter, size=(layers, experts)))
        else:  # would underflow; Gamma(a) is Gamma(a + 1) U^(1/a)
            log_w = np.log(rng.gamma(parameter + 1.0, size=(layers, experts)))
            log_w = log_w + np.log(rng.uniform(size=(layers, experts))) / parameter
    out: Floats = np.clip(log_w, -FARTHEST, FARTHEST)
    return out


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


def succession(log_weights: Floats, top_k: int) -> Floats:
    """Chance that a token holds each expert when `top_k` are drawn in succession by weight; sums to top_k per layer.

    Exact, also where few experts are in the race: with clocks of rate w, expert i is held if it rings while fewer than
    k others have, p = integral of w exp(-w s) P(at most k - 1 others by s) ds. The number of others is a Poisson
    binomial, built up expert by expert from both ends. Experts certain to be held, or never, drop out by themselves.
    """
    experts = log_weights.shape[-1]
    if top_k >= experts:
        return np.ones_like(log_weights)
    parts = [
        _succession(log_weights[at : at + LAYERS_AT_ONCE], top_k) for at in range(0, len(log_weights), LAYERS_AT_ONCE)
    ]
    out: Floats = np.concatenate(parts)
    for _ in range(2):  # what quadrature left over goes where it can
        free = out * (1.0 - out)
        left = top_k - out.sum(axis=-1, keepdims=True)
        out = np.clip(out + left * free / np.maximum(free.sum(axis=-1, keepdims=True), 1e-300), 0.0, 1.0)
    return out


def _succession(log_weights: Floats, k: int) -> Floats:
    ordered = -np.sort(-log_weights, axis=-1)
    log_w = np.clip(log_weights - ordered[:, k - 1 : k], -BEYOND, BEYOND)  # the k-th weighs 1
    rate = np.exp(log_w)
    # until the first time nothing but the certain rings; by the last one the k-th has rung for sure
    start = np.log(1e-8 / np.exp(np.clip(ordered[:, k - 1 :] - ordered[:, k - 1 : k], -BEYOND, 0.0)).sum(axis=-1))
    log_s = start[:, None] + (np.log(40.0) - start)[:, None] * np.linspace(0.0, 1.0, TIMES)
    due = rate[:, :, None] * np.exp(log_s)[:, None, :]  # [layer, expert, time]
    quiet = np.exp(-due)
    experts = rate.shape[1]
    before = np.zeros((experts, k, len(rate), TIMES))  # P(j of the experts before have rung)
    count = np.zeros((k, len(rate), TIMES))
    count[0] = 1.0
    for e in range(experts):
        before[e] = count
        count = _one_more(count, quiet[:, e])
    fewer = np.empty(due.shape)  # P(at most k - 1 others have rung)
    count = np.zeros_like(count)
    count[0] = 1.0
    for e in reversed(range(experts)):
        fewer[:, e] = (before[e] * np.cumsum(count, axis=0)[::-1]).sum(axis=0)
        count = _one_more(count, quiet[:, e])
    step = (log_s[:, 1] - log_s[:, 0])[:, None]
    held = due * quiet * fewer
    out: Floats = -np.expm1(-due[:, :, 0]) + step * (held.sum(axis=-1) - (held[..., 0] + held[..., -1]) / 2.0)
    return np.clip(out, 0.0, 1.0)


def _one_more(count: Floats, quiet: Floats) -> Floats:
    """P(j have rung) [j, ...] with one more expert, silent with chance `quiet`; more than the last j is left out."""
    out = count * quiet
    out[1:] += count[:-1] * (1.0 - quiet)
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
