"""Time of a dense GEMM from its sizes: tiles, waves, memory, the cast of an operand, and few fitted numbers.

C[m,n] = A[m,k] B[k,n] is cut into output tiles; a multiprocessor works on one tile at a time:

    waves   = tail ceil(tiles / multiprocessors) + (1 - tail) max(tiles / multiprocessors, 1)
    compute = waves tile_rows tile_cols 2 (k + ramp_k) multiprocessors / (flop_per_s efficiency(tile))

for the tile shape that gives the least (libraries choose by such a rule). Smaller tiles re-use less and reach
a lower rate. Operands and result pass through memory once, and

    time = start + (compute^4 + memory^4)^(1/4) + cast

The measured 8-bit and 4-bit calls begin with casting A from 16 bits; `cast` is that pass, proportional to m k
once A no longer fits the cache. It is known apart so that a layer which casts for itself can leave it out.
`throttle` is how much slower the clock of long kernels is, around the duration `throttle_s`; `two_waves` is what
some libraries lose when 128 x 128 tiles make just more than one wave (they step down to a small tile).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from hwprofiles.interpolate import Floats, Grid, cell, multilinear

# Output tiles of one multiprocessor (rows x columns) and how many halvings of the largest they are.
TILES = (((256, 128), 0), ((128, 256), 0), ((128, 128), 1), ((64, 128), 2), ((128, 64), 2), ((64, 64), 3))
# Distance in ln(m), ln(n), ln(k) over which a residual of the form loses its meaning (factor e): of the lengths tried
# on left-out pairs and left-out large m of every shipped table, the ones with the least errors.
LENGTHS = (1.5, 3.0, 3.0)
BLEND = 4.0  # norm that joins compute and memory: one percent apart from the maximum at a ratio of two


@dataclass(frozen=True, kw_only=True)
class GemmForm:
    """Parameters of one device and dtype.

    tile_efficiency: rate of a 128 x 128 tile over that of the largest; small_efficiency: of each further halving.
    element_bytes: of an operand (known, not fitted); the result has `result_bytes` per element.
    """

    multiprocessors: float
    element_bytes: float
    result_bytes: float
    start_s: float
    flop_per_s: float
    bytes_per_s: float
    tile_efficiency: float
    small_efficiency: float
    ramp_k: float
    tail: float
    two_waves: float
    throttle: float
    throttle_s: float
    cast_s: float
    cache_elements: float

    def time_s(self, m: Any, n: Any, k: Any) -> Floats:
        """Seconds of the call as measured, with the cast of A where the dtype has one."""
        return self.product_s(m, n, k) + self.cast_of_a_s(m, k)

    def product_s(self, m: Any, n: Any, k: Any) -> Floats:
        """Seconds of the product alone."""
        m, n, k = (np.asarray(x, dtype=np.float64) for x in (m, n, k))
        per_tile = 2.0 * (k + self.ramp_k) * self.multiprocessors / self.flop_per_s
        compute = reduce(np.minimum, (self._tiled_s(m, n, shape, halvings) for shape, halvings in TILES)) * per_tile
        if self.two_waves != 1.0:
            pair = np.ceil(np.ceil(m / 128) * np.ceil(n / 128) / self.multiprocessors) == 2
            compute = compute * np.where(pair, self.two_waves, 1.0)
        late = compute / self.throttle_s
        compute = compute * (1.0 + self.throttle * late / (1.0 + late))
        memory = (self.element_bytes * (m * k + k * n) + self.result_bytes * m * n) / self.bytes_per_s
        # the larger one factored out: no overflow
        top, low = np.maximum(compute, memory), np.minimum(compute, memory)
        joint: Floats = top * (1.0 + (low / np.maximum(top, 1e-300)) ** BLEND) ** (1.0 / BLEND)
        return self.start_s + joint

    def cast_of_a_s(self, m: Any, k: Any) -> Floats:
        """Seconds of casting A[m,k] from 16 bits in front of the product; 0 where nothing is cast."""
        elements = np.asarray(m, dtype=np.float64) * np.asarray(k, dtype=np.float64)
        result: Floats = self.cast_s * elements * elements / (elements + self.cache_elements)
        return result

    def _tiled_s(self, m: Floats, n: Floats, shape: tuple[int, int], halvings: int) -> Floats:
        """Tile area one multiprocessor works through, at the rate of the largest tile."""
        rows, cols = shape
        efficiency = 1.0 if halvings == 0 else self.tile_efficiency * self.small_efficiency ** (halvings - 1)
        load = np.ceil(m / rows) * np.ceil(n / cols) / self.multiprocessors
        waves = self.tail * np.ceil(load) + (1.0 - self.tail) * np.maximum(load, 1.0)
        result: Floats = waves * (rows * cols / efficiency)
        return result


@dataclass(frozen=True, kw_only=True, eq=False)
class GemmSurface:
    """The form times the measured residual: what a GEMM of one dtype takes.

    `residual` holds ln(measured / form) on the grid of measured sizes. Between its points it is
    interpolated, below them held (a thinner product is not slower), above them it fades with the distance: a
    measured size is met exactly and a far larger one rests on the form.
    """

    form: GemmForm
    axes: tuple[Floats, ...]
    residual: Floats

    @classmethod
    def of(cls, form: GemmForm, grid: Grid) -> GemmSurface:
        """The surface through a grid of measured times over ln m, ln n, ln k."""
        m, n, k = np.meshgrid(*(np.round(np.exp(axis)) for axis in grid.log_axes), indexing="ij")
        return cls(form=form, axes=grid.log_axes, residual=grid.log_time - np.log(form.time_s(m, n, k)))

    def time_s(self, m: Any, n: Any, k: Any, *, cast: bool) -> tuple[Floats, bool]:
        """Seconds at sizes of at least one, and whether all of them lie within the measured ones.

        Without `cast` the share of the form's cast of A is taken out.
        """
        m, n, k = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (m, n, k)))
        logs = tuple(np.log(x) for x in (m, n, k))
        edge = tuple(np.clip(x, axis[0], axis[-1]) for x, axis in zip(logs, self.axes, strict=True))
        log_ratio = multilinear(self.residual, [cell(axis, x) for axis, x in zip(self.axes, edge, strict=True)])
        beyond = [x - e for x, e in zip(logs, edge, strict=True)]
        above = sum((np.maximum(b, 0.0) / length) ** 2 for b, length in zip(beyond, LENGTHS, strict=True))
        product = self.form.product_s(m, n, k)
        whole = product + self.form.cast_of_a_s(m, k) if cast else product
        result: Floats = whole * np.exp(log_ratio * np.exp(-np.sqrt(above)))
        return result, not any(np.any(np.abs(b) > 1e-9) for b in beyond)
