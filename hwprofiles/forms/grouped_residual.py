"""What grouped kernels measured alone differ by from `hwprofiles.forms.grouped`, around the measured sizes."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.folders import measured_file
from hwprofiles.interpolate import Floats

# Distance in the logs of (rows per expert, experts, n, k, fullest over mean) at which a residual has fallen to 1/e:
# as the dense GEMM's for rows, n and k; shorter for unevenness, with which kernels change.
LENGTHS = (1.5, 3.0, 3.0, 3.0, 1.0)


def log_sizes(rows: Any, groups: Any, n: Any, k: Any, m_max: Any) -> Floats:
    """Logs of (rows per expert, experts, n, k, fullest over mean) on the last axis; m_max None: all hold the mean."""
    rows, groups, n, k = (np.maximum(np.asarray(value, dtype=np.float64), 1e-9) for value in (rows, groups, n, k))
    mean = rows / groups
    peak = mean if m_max is None else np.maximum(np.asarray(m_max, dtype=np.float64), mean)
    result: Floats = np.log(np.stack(np.broadcast_arrays(mean, groups, n, k, peak / mean), axis=-1))
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Residual:
    """ln(measured / form) of one pass: weight x exp(-distance), summed over measured points; 0 far from all."""

    sizes: Floats
    weights: Floats

    def factor(self, at: Floats) -> Floats:
        """Measured over form at sizes `at`, as `log_sizes` gives them."""
        total = np.zeros(at.shape[:-1])
        for known, weight in zip(self.sizes, self.weights, strict=True):
            total += weight * np.exp(-np.sqrt((((at - known) / LENGTHS) ** 2).sum(axis=-1)))
        result: Floats = np.exp(total)
        return result


def residuals(folder: str) -> dict[str, dict[str, Residual]]:
    """By dtype and pass (forward, dgrad, wgrad), from grouped.csv; {} where only fused layers were measured."""
    path = measured_file(folder, "grouped.csv")
    if not path.is_file():
        return {}
    found: dict[tuple[str, str], list[list[float]]] = {}
    for dtype, pass_, *numbers in list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]:
        found.setdefault((dtype, pass_), []).append([float(number) for number in numbers])
    result: dict[str, dict[str, Residual]] = {}
    for (dtype, pass_), lines in found.items():
        rows, groups, n, k, m_max, weights = np.array(lines).T
        made = Residual(sizes=log_sizes(rows, groups, n, k, m_max), weights=weights)
        result.setdefault(dtype, {})[pass_] = made
    return result
