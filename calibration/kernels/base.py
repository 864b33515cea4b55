"""What every kernel family reports about its fit: errors, and which points were left out for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative errors of predicted over measured times: how many, their median and 90th percentile (0.06 = 6 %)."""

    cases: int
    median: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Errors of points that the fit and its table had not seen.

    `kind` says what was left out whole: `config` (a configuration), `top_decade` (sizes above a tenth of
    the largest measured) or a family's own; `dtype_or_kind` a dtype or a kind of kernel.
    """

    kind: str
    device: str
    family: str
    dtype_or_kind: str
    cases: int
    median: float
    p90: float


def errors(predicted: Floats, measured: Floats) -> Errors:
    """Relative errors of `predicted` against `measured` (seconds, same shape). Raises ValueError where empty."""
    if not len(measured):
        raise ValueError("no measured points to compare with")
    off = np.abs(predicted / measured - 1.0)
    return Errors(cases=len(off), median=float(np.median(off)), p90=float(np.quantile(off, 0.9)))
