"""Upper bounds of the flow between two layers that equal parts can keep; summed over pairs they bound the whole chain.

Counting: with S experts to a part, an expert keeps at most its S largest flows (rows, columns). Spectral: with
M_d = [[0, A], [A^T, 0]] + diag(d), q1 = 1 / sqrt(2 E) and P the projector that removes (1, 1) and (1, -1), equal parts
keep at most S (q1^T M_d q1 + sum of the N - 1 largest eigenvalues of P M_d P) - sum(d) / 2 for every d; d follows the
subgradient g_i = S (sum_j v_ij^2 + 1 / (2 E)) - 1 / 2 (Donath and Hoffman, 1973, bounds of equal partitions).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from planner.placement.records import Floats

STEPS = 14
LANCZOS_TOLERANCE = 1e-3  # of eigenvalues that only choose the next step
FIRST_STEP = 0.45  # of the value, along the first subgradient; then falling with the root of the step


def counting_bound(flow: Floats, parts: int) -> float:
    """Rows and columns keep at most their largest S flows."""
    size = len(flow) // parts
    rows = np.sort(flow, axis=1)[:, -size:].sum()
    columns = np.sort(flow, axis=0)[-size:].sum()
    return float(min(rows, columns))


def spectral_bound(flow: Floats, parts: int, steps: int = STEPS) -> float:
    """The bound at the best d of the subgradient steps, which run in single precision; the bound itself in double."""
    if parts < 2:
        return float(flow.sum())
    scale = float(flow.sum()) or 1.0
    share = flow / scale
    n = 2 * len(flow)
    d, best_d, best, step = np.zeros(n), np.zeros(n), np.inf, 0.0
    vectors: Any = None
    for k in range(max(1, steps)):
        value, slope, vectors = _at(share, parts, d, vectors)
        if value < best:
            best, best_d = value, d
        norm = float(slope @ slope)
        if norm < 1e-12:
            break
        if k == 0:
            step = FIRST_STEP * value / norm
        d = d - step / np.sqrt(1.0 + k) * slope
    return _value(share, parts, best_d) * scale


def _at(share: Floats, parts: int, d: Floats, start: Any) -> tuple[float, Floats, Any]:
    """(value at d, its subgradient, eigenvectors), near enough to choose the next d by; from eigenvectors nearby."""
    projected, first = _projected(share, d, np.float32)
    count = len(projected)
    begin = np.ones(count, dtype=np.float32) if start is None else start.sum(axis=1)
    if parts - 1 <= count // 8:
        try:
            values, vectors = eigsh(projected, parts - 1, which="LA", tol=LANCZOS_TOLERANCE, v0=begin)
        except ArpackNoConvergence:
            values, vectors = _largest(projected, parts - 1)
    else:
        values, vectors = _largest(projected, parts - 1)
    size, wide = len(share) // parts, vectors.astype(np.float64)
    value = size * (first + float(values.sum(dtype=np.float64))) - float(d.sum()) / 2.0
    return value, size * ((wide**2).sum(axis=1) + 1.0 / count) - 0.5, vectors


def _largest(projected: Any, many: int) -> tuple[Any, Any]:
    count = len(projected)
    found: Any = eigh(projected, subset_by_index=[count - many, count - 1])
    return found[0], found[1]


def _value(share: Floats, parts: int, d: Floats) -> float:
    """The bound at d in double precision."""
    projected, first = _projected(share, d, np.float64)
    count = len(projected)
    values: Any = eigh(projected, subset_by_index=[count - (parts - 1), count - 1], eigvals_only=True)
    return len(share) // parts * (first + float(values.sum())) - float(d.sum()) / 2.0


def _projected(share: Floats, d: Floats, precision: Any) -> tuple[Any, float]:
    """(P M_d P, q1^T M_d q1)."""
    experts = len(share)
    n = 2 * experts
    shifted = np.zeros((n, n), dtype=precision)
    shifted[:experts, experts:] = share
    shifted[experts:, :experts] = share.T
    shifted[np.arange(n), np.arange(n)] = d
    q = np.full((n, 2), 1.0 / np.sqrt(n), dtype=precision)
    q[experts:, 1] *= -1.0
    side = q.T @ shifted
    projected = shifted - q @ side
    projected -= (projected @ q) @ q.T
    return (projected + projected.T) / 2.0, float(side[0] @ q[:, 0])


def kept_by_pair(flow: Floats, parts: int, steps: int = STEPS) -> tuple[Floats, str]:
    """(flow [L - 1] that no equal parts of two adjacent layers exceed, kind) of flow [L - 1, E, E]."""
    most, spectral = np.zeros(len(flow)), 0
    for i, pair in enumerate(flow):
        counted = counting_bound(pair, parts)
        by_values = spectral_bound(pair, parts, steps) if parts > 1 else counted
        spectral += by_values < counted
        most[i] = min(counted, by_values, float(pair.sum()))
    return most, "eig_diag" if 2 * spectral >= len(flow) else "rlt_matching"


def kept_bound(flow: Floats, parts: int, steps: int = STEPS) -> tuple[float, str]:
    """(flow that no chain of equal parts exceeds, kind) over all pairs of layers of flow [L - 1, E, E]."""
    most, kind = kept_by_pair(flow, parts, steps)
    return float(most.sum()), kind
