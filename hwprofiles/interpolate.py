"""Multilinear interpolation of logarithms on a rectangular grid.

Kernel times behave like powers of their sizes over most of a grid, so logarithms are interpolated:
a power law is reproduced exactly, and a table that does not decrease along an axis stays so between
its points. Everything takes numpy arrays of one common shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cell = tuple[NDArray[np.intp], Floats]


def cell(log_axis: Floats, log_x: Floats) -> Cell:
    """Grid cell and weight (0 to 1) of each `log_x`; points outside are clamped to the edge."""
    last = len(log_axis) - 2
    if last < 0:
        return np.zeros(log_x.shape, dtype=np.intp), np.zeros(log_x.shape)
    index = np.clip(np.searchsorted(log_axis, log_x, side="right") - 1, 0, last)
    low = log_axis[index]
    weight = np.clip((log_x - low) / (log_axis[index + 1] - low), 0.0, 1.0)
    return index, weight


def multilinear(table: Floats, cells: Sequence[Cell]) -> Floats:
    """Interpolate `table` (one dimension per cell) at the given cells."""
    flat = table.ravel()
    strides = [int(np.prod(table.shape[axis + 1 :])) for axis in range(table.ndim)]
    origin = sum(index * stride for (index, _), stride in zip(cells, strides, strict=True))
    ones = [1 if size > 1 else 0 for size in table.shape]
    total: Floats = np.zeros(cells[0][1].shape)
    for corner in product((0, 1), repeat=len(cells)):
        offset = sum(side * one * stride for side, one, stride in zip(corner, ones, strides, strict=True))
        value = flat.take(origin + offset)
        for side, (_, weight) in zip(corner, cells, strict=True):
            value = value * (weight if side else 1.0 - weight)
        total += value
    return total


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Times on a rectangular grid: `log_time` has one dimension per axis of `log_axes`."""

    log_axes: tuple[Floats, ...]
    log_time: Floats

    def clamp(self, *logs: Floats) -> tuple[Floats, ...]:
        """Each coordinate moved to the nearest point of the grid."""
        return tuple(np.clip(x, axis[0], axis[-1]) for x, axis in zip(logs, self.log_axes, strict=True))

    def inside(self, *logs: Floats) -> bool:
        """True where every point lies within the grid (a hair of rounding allowed)."""
        pairs = zip(logs, self.log_axes, strict=True)
        return all(x.size == 0 or (x.min() >= a[0] - 1e-9 and x.max() <= a[-1] + 1e-9) for x, a in pairs)

    def time_s(self, *logs: Floats) -> Floats:
        """Seconds at the given logarithms of the coordinates, clamped to the grid."""
        cells = [cell(axis, x) for x, axis in zip(logs, self.log_axes, strict=True)]
        result: Floats = np.exp(multilinear(self.log_time, cells))
        return result
