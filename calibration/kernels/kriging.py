"""What is left of a form at sizes that were not measured: Gaussian-process interpolation of log residuals.

The covariance falls exponentially with distance in the logs of the sizes, so that in one dimension the
prediction is the straight line between neighbours and fades to the form beyond the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NUGGET = 0.02  # variance of a repeat over the variance of residuals: a measured point counts, a lone outlier less


def covariance(a: Floats, b: Floats, lengths: Sequence[float]) -> Floats:
    """exp(-distance) of points a[i, axis] and b[j, axis] with one length per axis."""
    total = sum(((a[:, i, None] - b[None, :, i]) / length) ** 2 for i, length in enumerate(lengths))
    result: Floats = np.exp(-np.sqrt(total))
    return result


def krige(at: Floats, log_sizes: Floats, residual: Floats, lengths: Sequence[float], nugget: float = NUGGET) -> Floats:
    """Residual expected at `at` [point, axis] from those measured at `log_sizes`; towards 0 far from all."""
    if not len(residual):
        return np.zeros(len(at))
    known = covariance(log_sizes, log_sizes, lengths) + nugget * np.eye(len(residual))
    weights = np.linalg.solve(known, residual)
    result: Floats = covariance(at, log_sizes, lengths) @ weights
    return result
