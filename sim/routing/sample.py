"""Drawn routing: experts of single tokens, counts of whole micro-batches, capacity drops, padding. All by seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.routing.loads import ExpertLoads, freed, group_chance
from sim.routing.popularity import SURE

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDS = 8  # of handing out what clipping at 0 and at the tokens left over


def sample_tokens(loads: ExpertLoads, layer: int, tokens: int, *, seed: int) -> Ints:
    """Experts [token, top_k] of single tokens, all different within a token, most eager first.

    Draws in succession by weight (the smallest of exponential clocks, which is the Gumbel-top-k trick);
    with limited groups first the groups, then among their experts. `joint` is not followed.
    """
    rng = np.random.default_rng(seed)
    chance = loads.chance[layer]
    groups, size = loads.num_groups, loads.num_experts // loads.num_groups
    allowed = np.ones((tokens, loads.num_experts), dtype=bool)
    if loads.top_k_groups < groups:
        kept = group_chance(loads)[layer]
        chosen = _first(kept, tokens, loads.top_k_groups, rng)
        mask = np.zeros((tokens, groups), dtype=bool)
        np.put_along_axis(mask, chosen, True, axis=1)
        allowed = np.repeat(mask, size, axis=1)
        chance = chance / np.repeat(kept, size)
    return _first(chance, tokens, loads.top_k, rng, allowed)


def _first(chance: Floats, tokens: int, k: int, rng: np.random.Generator, allowed: Any = None) -> Ints:
    """The k clocks that ring first, by token; clock e rings at rate -log(1 - chance)."""
    rate = np.maximum(-np.log1p(-np.minimum(chance, SURE)), 1e-300)
    rings = rng.exponential(size=(tokens, len(chance))) / rate
    if allowed is not None:
        rings = np.where(allowed, rings, np.inf)
    first = np.argpartition(rings, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(rings, first, axis=1), axis=1)
    return np.take_along_axis(first, order, axis=1).astype(np.int64)


def sample_counts(loads: ExpertLoads, tokens: int, *, draws: int, seed: int) -> Ints:
    """Tokens per expert [draw, layer, expert] of `draws` micro-batches; every layer sums to top_k x tokens.

    Independent binomials, widened by what fixing the sum takes (`sim.routing.loads`) and moved to that sum in
    proportion to their variance: the first two moments are those of drawing without replacement. Groups and joint
    choices are not followed. `clumping` draws from so many fewer, so much larger lumps of tokens.
    """
    rng = np.random.default_rng(seed)
    total = loads.top_k * tokens
    lumps = max(1, round(tokens / max(loads.clumping, 1e-9))) if loads.clumping > 1.0 else tokens
    chance = np.minimum(loads.chance, 1.0)
    drawn = rng.binomial(lumps, np.broadcast_to(chance, (draws, *chance.shape))) * (tokens / lumps)
    alone = chance * (1.0 - chance)
    wanted = freed(alone)
    counts = chance * tokens + (drawn - chance * tokens) * np.sqrt(wanted / np.maximum(alone, 1e-300))
    weight = np.broadcast_to(wanted + 1e-12, counts.shape)
    for _ in range(ROUNDS):
        left = total - counts.sum(axis=-1, keepdims=True)
        counts = np.clip(counts + left * weight / weight.sum(axis=-1, keepdims=True), 0.0, float(tokens))
    return _whole(counts, total, tokens)


def _whole(counts: Floats, total: int, tokens: int) -> Ints:
    """Integers with the wanted sum on the last axis: down, then one more where most was cut off and room is left."""
    floor = np.floor(counts + 1e-9)
    rest = counts - floor
    whole = floor.astype(np.int64)
    missing = total - whole.sum(axis=-1)
    while np.any(missing > 0):
        order = np.argsort(-np.where(whole < tokens, rest, -1.0), axis=-1, kind="stable")
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(counts.shape[-1]) * np.ones_like(order), axis=-1)
        whole = whole + ((place < missing[..., None]) & (whole < tokens))
        missing = total - whole.sum(axis=-1)
    return whole


@dataclass(frozen=True, kw_only=True, eq=False)
class Dropped:
    """Counts kept under a capacity and how many choices were dropped, [..., layer]."""

    counts: Ints
    dropped: Ints


def with_capacity(counts: Ints, tokens: int, top_k: int, factor: float) -> Dropped:
    """At most ceil(factor x tokens x top_k / experts) per expert; the rest is dropped and counted.

    Raises UserError on a factor that is not above 0.
    """
    if not factor > 0.0:
        raise UserError(f"capacity factor {factor} is not above 0; 1 holds the mean, 2 twice the mean", where="routing")
    capacity = int(np.ceil(factor * tokens * top_k / counts.shape[-1]))
    kept = np.minimum(counts, capacity)
    return Dropped(counts=kept, dropped=(counts - kept).sum(axis=-1))


def padded(counts: Ints, multiple: int) -> Ints:
    """Rows after padding every expert that has any to a multiple (dropless kernels with tiles or block scales).

    Raises UserError on a multiple below 1.
    """
    if multiple < 1:
        raise UserError(f"padding to {multiple} rows; give a whole number >= 1", where="routing")
    return -(-counts // multiple) * multiple
