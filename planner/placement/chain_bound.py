"""Upper bounds of the flow between two layers that equal parts can keep; summed over pairs they bound the whole chain.

Counting: with S experts to a part, an expert keeps at most its S largest flows (rows, columns).

Spectral: with A' = A + U, M = [[0, A'], [A'^T, 0]] + diag(d), q1 = 1 / sqrt(2 E) and P the projector that removes
(1, 1) and (1, -1), equal parts keep at most S (q1^T M q1 + sum of the N - 1 largest eigenvalues of P M P) - sum(d) / 2
for every d (Donath and Hoffman, 1973, bounds of equal partitions) and every U >= 0: U prices that two experts never
share less than no part (rows y >= 0 of the semidefinite relaxation; Povh and Rendl, 2007, SIAM J. Optim. 18). With V
the eigenvectors and y = 2 S (V_1 V_2^T + 1 / (2 E)), the subgradients are S (sum_j v_ij^2 + 1 / (2 E)) - 1 / 2 and y.

Steps run in single precision on a block of vectors that follows the eigenvectors; the bound itself is worked out in
double precision from all eigenvalues, at the mean of the later d and U.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh

from planner.placement.records import Floats

STEPS = 36
SPARE = 8  # vectors of the block beyond those that count
DEGREE = 8  # of the filter that pulls the block towards the eigenvectors from one step to the next
MARGIN = 1.1  # of the spectrum below, as the block sees only part of the one above
POWERS = 8
FIRST_TURNS = 3  # filters of the first step
STEP = 0.7  # of the way to the target along the subgradient, then falling with the root of the step
MOMENTUM = 0.3  # of the direction before
HALVED = 60  # steps after which it has halved
PRICE = 0.05  # steps of U beside those of d, whose subgradient has far fewer entries
TARGET = 0.93  # of the present value, where nothing is known that is kept


def counting_bound(flow: Floats, parts: int) -> float:
    """Rows and columns keep at most their largest S flows."""
    size = len(flow) // parts
    rows = np.sort(flow, axis=1)[:, -size:].sum()
    columns = np.sort(flow, axis=0)[-size:].sum()
    return float(min(rows, columns))


def spectral_bound(flow: Floats, parts: int, steps: int = STEPS, reached: float | None = None) -> float:
    """The bound of flow [E, E] after so many steps; reached: flow that some parts keep, which steps aim at."""
    if parts < 2:
        return float(flow.sum())
    unit = (float(flow.sum()) or 1.0) / (2 * len(flow))  # entries near one in single precision
    search = _Search((flow / unit).astype(np.float32), parts)
    target = None if reached is None else reached / unit
    for k in range(steps):
        search.step(k, target, counted=2 * k >= steps)
    return search.bound(flow / unit) * unit


class _Search:
    """d [2 E] and U [E, E] of one pair of layers, the block [2 E, m] near the leading eigenvectors, sums of later
    steps."""

    def __init__(self, flow: Any, parts: int) -> None:
        self.flow, self.experts = flow, len(flow)
        self.size, self.lead = self.experts // parts, parts - 1
        self.even: Any = np.full(self.experts, 1.0 / self.experts, dtype=np.float32)
        n = 2 * self.experts
        self.d: Any = np.zeros(n, dtype=np.float32)
        self.u: Any = np.zeros_like(flow)
        self.way: tuple[Any, Any] = self.d, self.u
        self.sums: tuple[Any, Any, int] = np.zeros(n), np.zeros(flow.shape), 0
        wide = self.lead + SPARE
        self.dense = 2 * wide >= n  # so few experts that all eigenvectors cost no more
        start = np.random.default_rng(0).standard_normal((n, min(wide, n)))
        self.block: Any = np.linalg.qr(self._project(start.astype(np.float32)))[0]
        self.norm = self._norm()

    def _norm(self) -> float:
        """The largest singular value of the centred flow, from below, by powers."""
        at, norm = self.block[: self.experts, 0], 0.0
        for _ in range(POWERS):
            ahead = self.flow.T @ at
            at = self.flow @ (ahead - ahead.mean())
            at = at - at.mean()
            norm = float(np.linalg.norm(at))
            at = at / max(norm, 1e-30)
        return float(np.sqrt(norm))

    def step(self, k: int, target: float | None, *, counted: bool) -> None:
        """One subgradient step; `counted` steps enter the mean that the bound is taken at."""
        prices = self.flow + self.u
        top, vectors = self._leading(prices, FIRST_TURNS if k == 0 else 1)
        n = 2 * self.experts
        first = (2.0 * float(prices.sum()) + float(self.d.sum())) / n
        value = self.size * (first + top) - float(self.d.sum()) / 2.0
        goal = TARGET * value if target is None else target
        of_d = self.size * ((vectors**2).sum(axis=1) + np.float32(1.0 / n)) - np.float32(0.5)
        of_u = 2 * self.size * (vectors[: self.experts] @ vectors[self.experts :].T + np.float32(1.0 / n))
        np.copyto(of_u, np.float32(0.0), where=(self.u <= 0.0) & (of_u > 0.0))
        if counted:
            d, u, many = self.sums
            u += self.u
            self.sums = d + self.d, u, many + 1
        of_d += np.float32(MOMENTUM) * self.way[0]
        of_u += np.float32(MOMENTUM) * self.way[1]
        self.way = of_d, of_u
        norm = float(of_d @ of_d) + PRICE * float(np.vdot(of_u, of_u))
        length = STEP * max(0.0, value - goal) / max(norm, 1e-12) / np.sqrt(1.0 + 3.0 * k / HALVED)
        self.d = self.d - np.float32(length) * of_d
        ahead = np.float32(-length * PRICE) * of_u
        ahead += self.u
        self.u = np.maximum(ahead, np.float32(0.0), out=ahead)

    def bound(self, flow: Floats) -> float:
        """The bound at the mean of the counted steps (of none: at d = 0, U = 0), in double precision."""
        d, u, many = self.sums
        d, prices = d / max(1, many), flow + u / max(1, many)
        values: Any = eigh(_projected(prices, d), eigvals_only=True)
        first = (2.0 * float(prices.sum()) + float(d.sum())) / len(d)
        return self.size * (first + float(values[-self.lead :].sum())) - float(d.sum()) / 2.0

    def _leading(self, prices: Any, turns: int) -> tuple[float, Any]:
        """(sum of the leading eigenvalues, their vectors [2 E, N - 1]), near enough to choose the next step by."""
        if self.dense:
            found: Any = eigh(_projected(prices.astype(np.float64), self.d.astype(np.float64)))
            return float(found[0][-self.lead :].sum()), found[1][:, -self.lead :].astype(np.float32)
        back = np.ascontiguousarray(prices.T)
        values = self._turned(prices, back)
        for _ in range(turns):
            self.block = np.linalg.qr(self._filtered(prices, back, values))[0]
            values = self._turned(prices, back)
        return float(values[-self.lead :].sum()), self.block[:, -self.lead :]

    def _turned(self, prices: Any, back: Any) -> Any:
        """Values of P M P within the block, rising; the block is turned to their vectors."""
        small = self.block.T @ self._times(prices, back, self.block)
        values, turn = np.linalg.eigh((small + small.T) / 2.0)
        self.block = self.block @ turn
        return values

    def _filtered(self, prices: Any, back: Any, values: Any) -> Any:
        """A Chebyshev polynomial of P M P times the block: small below the block's values, large above."""
        high, top = float(values[0]), float(values[-1])
        least = float(self.d.min())
        # |[[0, A], [A^T, 0]]| is at most its largest value - min(d)
        low = least - MARGIN * max(top - least, self.norm)
        middle, half = np.float32((high + low) / 2.0), np.float32(max((high - low) / 2.0, 1e-6))
        before, now = self.block, (self._times(prices, back, self.block) - middle * self.block) / half
        for _ in range(DEGREE - 1):
            before, now = now, (2.0 / half) * (self._times(prices, back, now) - middle * now) - before
        return now

    def _times(self, prices: Any, back: Any, block: Any) -> Any:
        out = np.empty_like(block)
        out[: self.experts] = prices @ block[self.experts :]
        out[self.experts :] = back @ block[: self.experts]
        out += self.d[:, None] * block
        return self._project(out)

    def _project(self, block: Any) -> Any:
        for half in (block[: self.experts], block[self.experts :]):
            half -= self.even @ half
        return block


def _projected(prices: Floats, d: Floats) -> Floats:
    """P M P in double precision."""
    experts = len(prices)
    n = 2 * experts
    out = np.zeros((n, n))
    out[:experts, experts:] = prices
    out[experts:, :experts] = prices.T
    out[np.arange(n), np.arange(n)] = d
    for rows in (out, out.T):
        for half in (rows[:experts], rows[experts:]):
            half -= half.mean(axis=0)
    return out


def kept_by_pair(flow: Floats, parts: int, steps: int = STEPS, reached: Floats | None = None) -> tuple[Floats, str]:
    """(flow [L - 1] that no equal parts of two adjacent layers exceed, kind) of flow [L - 1, E, E].

    reached [L - 1]: what some parts keep of each; nearer bounds in as many steps.
    """
    most, spectral = np.zeros(len(flow)), 0
    for i, pair in enumerate(flow):
        counted = counting_bound(pair, parts)
        aim = None if reached is None else float(reached[i])
        by_values = spectral_bound(pair, parts, steps, aim) if parts > 1 else counted
        spectral += by_values < counted
        most[i] = min(counted, by_values, float(pair.sum()))
    return most, "eig_diag" if 2 * spectral >= len(flow) else "rlt_matching"


def kept_bound(flow: Floats, parts: int, steps: int = STEPS) -> tuple[float, str]:
    """(flow that no chain of equal parts exceeds, kind) over all pairs of layers of flow [L - 1, E, E]."""
    most, kind = kept_by_pair(flow, parts, steps)
    return float(most.sum()), kind
