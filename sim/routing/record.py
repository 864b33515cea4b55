"""What a step needs of routing: how far the most loaded rank and expert lie above the mean, by expert-parallel size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.routing.expected import hottest
from sim.routing.loads import ExpertLoads, contiguous, freed, rank_moments

Floats = NDArray[np.float64]

# Tokens of an expert-parallel group that curves are worked out for; noise falls with their root.
TOKEN_GRID = tuple(float(8**i) for i in range(3, 8))


@dataclass(frozen=True, kw_only=True)
class LoadCurve:
    """Expected load of the hottest rank over the mean rank, and of its fullest expert over its mean expert.

    rank_over_mean[i][j], expert_over_mean[i][j]: at eps[i] ranks and TOKEN_GRID[j] tokens of the whole group in one
    micro-batch, averaged over layers (each waits for its own hottest rank). Loads are means over micro-batches.
    """

    num_experts: int
    top_k: int
    eps: tuple[int, ...]
    rank_over_mean: tuple[tuple[float, ...], ...]
    expert_over_mean: tuple[tuple[float, ...], ...]

    def at(self, table: tuple[tuple[float, ...], ...], ep: Any, tokens: Any) -> Any:
        """`table` at ep ranks and `tokens` (None: endless), numbers or columns of the same length.

        Linear in log(ep) and in 1 / sqrt(tokens); beyond either end the nearest.
        """
        if tokens is None:
            tokens = TOKEN_GRID[-1]
        x, y = np.broadcast_arrays(np.log2(np.asarray(ep, float)), 1.0 / np.sqrt(np.asarray(tokens, float)))
        grid = np.asarray(table)[:, ::-1]
        first, right = _between(x, np.log2(np.asarray(self.eps, float)))
        low, up = _between(y, 1.0 / np.sqrt(np.asarray(TOKEN_GRID[::-1])))
        after = np.minimum(first + 1, grid.shape[0] - 1)
        value = (1 - right) * ((1 - up) * grid[first, low] + up * grid[first, low + 1])
        value = value + right * ((1 - up) * grid[after, low] + up * grid[after, low + 1])
        return float(value) if np.ndim(value) == 0 else value


def _between(x: Any, at: Floats) -> tuple[Any, Any]:
    """(index, share): x lies that share of the way from at[index] to the next."""
    if len(at) == 1:
        return np.zeros(np.shape(x), dtype=np.int64), np.zeros(np.shape(x))
    index = np.clip(np.searchsorted(at, x, side="right") - 1, 0, len(at) - 2)
    return index, np.clip((x - at[index]) / (at[index + 1] - at[index]), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Load over the experts of one expert-parallel group.

    max_over_mean: tokens of the most loaded rank over the mean (1.0 = forced balance, as vendor
    benchmarks run). Time and memory follow the most loaded rank, never the mean. With `loads` (popularity per
    layer, one record per kind of MoE layer) it depends on the expert-parallel size and on the tokens:
    `max_over_mean_for`; the field then holds the value of one expert per rank and endless tokens.
    """

    max_over_mean: float = 1.0
    source: str = "forced balance"
    loads: tuple[ExpertLoads, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.max_over_mean >= 1.0:
            raise UserError(
                f"max_over_mean = {self.max_over_mean} is impossible: the most loaded rank holds at least the mean; "
                "give a number >= 1"
            )

    def curve_of(self, num_experts: int | None = None, top_k: int | None = None) -> LoadCurve | None:
        """The curve of a kind of MoE layer (None: the first); None where the load is one number."""
        loads = self.loads_of(num_experts, top_k)
        return None if loads is None else curve(loads)

    def loads_of(self, num_experts: int | None = None, top_k: int | None = None) -> ExpertLoads | None:
        """Popularity of a kind of MoE layer; the first where it is not among them."""
        for loads in self.loads:
            if (loads.num_experts, loads.top_k) == (num_experts, top_k):
                return loads
        return self.loads[0] if self.loads else None

    def max_over_mean_for(
        self, ep: Any, tokens: Any = None, *, num_experts: int | None = None, top_k: int | None = None
    ) -> Any:
        """Expected rows of the hottest of `ep` ranks over the mean, numbers or columns.

        tokens: of the whole expert-parallel group in one micro-batch (None: so many that only popularity matters).
        """
        found = self.curve_of(num_experts, top_k)
        return self.max_over_mean if found is None else found.at(found.rank_over_mean, ep, tokens)

    def fullest_over_mean_for(
        self, ep: Any, tokens: Any = None, *, num_experts: int | None = None, top_k: int | None = None
    ) -> Any:
        """Expected rows of the fullest expert of the hottest rank over that rank's mean; arguments as above.

        Where only one number is known, experts of the hottest rank are taken to be as uneven as ranks (assumed).
        """
        found = self.curve_of(num_experts, top_k)
        return self.max_over_mean if found is None else found.at(found.expert_over_mean, ep, tokens)


def divisors(n: int) -> tuple[int, ...]:
    """All numbers that divide n, rising."""
    return tuple(i for i in range(1, n + 1) if n % i == 0)


@lru_cache(maxsize=16)
def curve(loads: ExpertLoads) -> LoadCurve:
    """The load curve of a popularity under contiguous placement.

    Never falls with ep: the hottest of finer ranks holds at least the mean of the hottest coarser one. (Sizes
    that do not divide each other could break that by a little; the running maximum is taken.)
    """
    eps = divisors(loads.num_experts)
    tokens = np.asarray(TOKEN_GRID)
    ranks, experts = [], []
    for ep in eps:
        placement = contiguous(loads, ep)
        mean, variance = rank_moments(loads, placement, ep)
        share = loads.top_k / ep
        ranks.append([float(_over(mean, variance, n, share, loads, ep)) for n in tokens])
        experts.append(_fullest(loads, mean, ep, tokens))
    rank_table = np.maximum(np.maximum.accumulate(np.asarray(ranks), axis=0), 1.0)
    return LoadCurve(
        num_experts=loads.num_experts, top_k=loads.top_k, eps=eps,
        rank_over_mean=tuple(map(tuple, rank_table.tolist())),
        expert_over_mean=tuple(map(tuple, np.maximum(np.asarray(experts), 1.0).tolist())),
    )  # fmt: skip


def _over(mean: Floats, variance: Floats, tokens: float, share: float, loads: ExpertLoads, ep: int) -> Any:
    """Expected hottest over mean at so many tokens, averaged over layers, rows of padding included."""
    most, _ = hottest(mean * tokens, variance * tokens)
    if loads.pad_to > 1:
        # half a tile per local expert on average, more relative to few rows
        most = most + (loads.pad_to - 1) / 2.0 * loads.num_experts / ep
    return most.mean() / (share * tokens)


def _fullest(loads: ExpertLoads, mean: Floats, ep: int, tokens: Floats) -> list[float]:
    """Fullest expert of the rank with the most popular experts over that rank's mean expert, by tokens."""
    local = loads.num_experts // ep
    chance = loads.chance.reshape(loads.num_layers, ep, local)
    chosen = chance[np.arange(loads.num_layers), mean.argmax(axis=1)]
    variance = freed(chosen * (1.0 - chosen)) * loads.clumping
    out = []
    for n in tokens:
        most, _ = hottest(chosen * n, variance * n)
        out.append(float((most / np.maximum(chosen.mean(axis=1) * n, 1e-300)).mean()))
    return out
