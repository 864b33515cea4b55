"""Time of a grouped GEMM (the experts of an MoE layer) from its sizes and its most loaded expert.

One kernel multiplies the rows of every local expert with its weight. Per expert, with rows r, width n, depth k:

    compute = 2 (r + pad) (n + edge_n) (k + edge_k) / flop_per_s      pad = pad_rows (1 - exp(-r / pad_rows))
    memory  = (weights + traffic (inputs + outputs)) / bytes_per_s
    time    = floor + sum over experts of (compute^sharpness + memory^sharpness)^(1 / sharpness)

`pad` is the part of the last row tile that holds no rows, `edge_n` the same along n, `edge_k` the start and end of a
tile; `tail_tiles` tiles of 128 x 128 stand for the last, partly filled wave. Every expert's weight passes
through memory once, whatever its rows: that is what a few hot experts cannot hide. The rows of the experts
fall as a power of their rank, from `m_max` down, with the stated sum:

    r(u) = m_max (1 - u)^(m_max / mean - 1),  0 <= u <= 1

which is even for m_max = mean. Since the norm is convex and the rest linear in r, uneven rows
never cost less than even ones. The weight gradient sums over the rows: there r is the depth.

Numbers or numpy columns; parameters in `grouped.toml` of the device (`hwprofiles.folders`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.folders import fitted_file
from hwprofiles.forms.grouped_residual import Residual, log_sizes, residuals
from hwprofiles.interpolate import Floats

TILE = 128  # rows and columns of the output tile that `tail_tiles` counts
OUTPUT_BYTES = 2.0  # per element of a result, whatever the operands are
# Bytes per operand element; 4-bit operands carry one scale byte per 16 elements.
OPERAND_BYTES: Mapping[str, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "nvfp4": 0.5 + 1 / 16}
EIGHT_BIT_BYTES = 1.0
ROUNDING = 1e-9  # a fullest expert above the mean by less is even
# Experts that stand for all, from the fullest to the emptiest: Gauss-Legendre points of 1 - u, exact for polynomials.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(5)
SHARE, WEIGHT = (_POINTS + 1.0) / 2.0, _WEIGHTS / 2.0


def operand_bytes(dtype: str) -> float:
    """Bytes per element of an operand of `dtype` (every 8-bit format: one)."""
    return OPERAND_BYTES.get(dtype, EIGHT_BIT_BYTES)


@dataclass(frozen=True, kw_only=True)
class GroupedForm:
    """Parameters of one device and dtype.

    flop_per_s: rate of an endless tile; bytes_per_s: memory rate of the kernel; floor_s: the shortest kernel.
    dgrad, wgrad: time of those passes over that of a forward pass of the same shape. backward: "measured",
    or "assumed" where only forward kernels were measured (both factors are then 1). domain: measured ranges.
    """

    operand_bytes: float
    flop_per_s: float
    bytes_per_s: float
    pad_rows: float
    edge_n: float
    edge_k: float
    tail_tiles: float
    traffic: float
    sharpness: float
    floor_s: float
    dgrad: float = 1.0
    wgrad: float = 1.0
    backward: str = "assumed"
    domain: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def covers(self, rows: Any, n: Any, k: Any) -> bool:
        """Whether rows per rank and the two widths lie within the measured ones (a hair of rounding allowed).

        The domain states the widths of a layer (hidden, ffn) or of the kernels themselves (n, k).
        """
        ends = [self.domain[name] for name in ("n", "k", "hidden", "ffn") if name in self.domain]
        low, high = min((e[0] for e in ends), default=0.0), max((e[1] for e in ends), default=np.inf)
        if "ffn" in self.domain:
            high = 2.0 * high  # gate and up projections are one product
        limits = ((rows, self.domain.get("rows", (0.0, np.inf))), (n, (low, high)), (k, (low, high)))
        return all(
            bool(np.all((np.asarray(x) >= ends[0] * (1 - ROUNDING)) & (np.asarray(x) <= ends[1] * (1 + ROUNDING))))
            for x, ends in limits
        )

    def product_s(self, rows: Any, groups: Any, n: Any, k: Any, m_max: Any = None) -> Floats:
        """Seconds of y[rows, n] = x[rows, k] w[expert][n, k]^T over `groups` experts, forward.

        rows: of all local experts; m_max: of the fullest (None: all alike). No rows take no time.
        """
        rows, groups, n, k = _floats(rows, groups, n, k)
        mean = rows / np.maximum(groups, 1e-9)
        cell = 2.0 * (n + self.edge_n) * (k + self.edge_k) * groups / self.flop_per_s
        tail = 2.0 * self.tail_tiles * TILE * TILE * (k + self.edge_k) / self.flop_per_s
        moved = self.traffic * (self.operand_bytes * k + OUTPUT_BYTES * n) * groups / self.bytes_per_s
        weights = self.operand_bytes * groups * n * k / self.bytes_per_s
        return self._experts(mean, groups, m_max, (cell, cell * self._pad(mean) + tail), (moved, weights))

    def wgrad_s(self, rows: Any, groups: Any, n: Any, k: Any, m_max: Any = None) -> Floats:
        """Seconds of dw[expert][n, k] = dy[rows, n]^T x[rows, k] over `groups` experts; arguments as `product_s`."""
        rows, groups, n, k = _floats(rows, groups, n, k)
        mean = rows / np.maximum(groups, 1e-9)
        cell = 2.0 * (n + self.edge_n) * (k + self.edge_n) * groups / self.flop_per_s
        # the sum over rows can be split, so that a last wave of long tiles does not wait
        tail = 2.0 * self.tail_tiles * TILE * TILE * self.edge_k / self.flop_per_s
        moved = self.traffic * self.operand_bytes * (n + k) * groups / self.bytes_per_s
        result = self.traffic * OUTPUT_BYTES * groups * n * k / self.bytes_per_s
        time_s = self._experts(mean, groups, m_max, (cell, cell * self.edge_k + tail), (moved, result))
        scaled: Floats = time_s * self.wgrad
        return scaled

    def dgrad_s(self, rows: Any, groups: Any, n: Any, k: Any, m_max: Any = None) -> Floats:
        """Seconds of the input gradient: a product like `product_s`, n being the columns of its own result."""
        scaled: Floats = GroupedForm.product_s(self, rows, groups, n, k, m_max) * self.dgrad
        return scaled

    def _pad(self, rows: Floats) -> Floats:
        padded: Floats = self.pad_rows * -np.expm1(-rows / self.pad_rows)
        return padded

    def _experts(
        self, mean: Floats, groups: Floats, m_max: Any, compute: tuple[Floats, Floats], memory: tuple[Floats, Floats]
    ) -> Floats:
        """Floor plus the norm of (compute, memory), each given as (per row of the mean expert, rest), over experts."""
        parts = compute[0] * mean, compute[1], memory[0] * mean, memory[1]
        if m_max is None or not np.any(np.asarray(m_max) > mean * (1.0 + ROUNDING)):
            time_s = self._norm(parts[0] + parts[1], parts[2] + parts[3])
        else:
            # the fullest expert holds between the mean and everything
            peak = np.clip(np.asarray(m_max, float) / np.maximum(mean, 1e-9), 1.0, np.maximum(groups, 1.0))
            loads = SHARE ** (np.asarray(peak)[..., None] - 1.0)
            loads = loads / (loads * WEIGHT).sum(axis=-1, keepdims=True)
            wide = [np.asarray(part)[..., None] for part in parts]
            norm = self._norm(wide[0] * loads + wide[1], wide[2] * loads + wide[3])
            time_s = (norm * WEIGHT).sum(axis=-1)
        return np.where(mean > 0.0, time_s + self.floor_s, 0.0)

    def _norm(self, compute: Floats, memory: Floats) -> Floats:
        top, low = np.maximum(compute, memory), np.minimum(compute, memory)
        # the larger one factored out: no overflow whatever the sharpness
        joint: Floats = top * (1.0 + (low / np.maximum(top, 1e-300)) ** self.sharpness) ** (1.0 / self.sharpness)
        return joint


@dataclass(frozen=True, kw_only=True)
class GroupedSurface(GroupedForm):
    """The form times what kernels measured alone differ by from it, by pass (forward, dgrad, wgrad)."""

    residual: Mapping[str, Residual]

    @classmethod
    def of(cls, form: GroupedForm, residual: Mapping[str, Residual]) -> GroupedSurface:
        """The surface over `form`."""
        return cls(residual=residual, **{item.name: getattr(form, item.name) for item in fields(GroupedForm)})

    def product_s(self, rows: Any, groups: Any, n: Any, k: Any, m_max: Any = None) -> Floats:
        """See `GroupedForm.product_s`."""
        return super().product_s(rows, groups, n, k, m_max) * self._factor("forward", rows, groups, n, k, m_max)

    def wgrad_s(self, rows: Any, groups: Any, n: Any, k: Any, m_max: Any = None) -> Floats:
        """See `GroupedForm.wgrad_s`."""
        return super().wgrad_s(rows, groups, n, k, m_max) * self._factor("wgrad", rows, groups, n, k, m_max)

    def dgrad_s(self, rows: Any, groups: Any, n: Any, k: Any, m_max: Any = None) -> Floats:
        """See `GroupedForm.dgrad_s`."""
        return super().dgrad_s(rows, groups, n, k, m_max) * self._factor("dgrad", rows, groups, n, k, m_max)

    def _factor(self, pass_: str, rows: Any, groups: Any, n: Any, k: Any, m_max: Any) -> Floats:
        residual = self.residual.get(pass_)
        return np.ones(()) if residual is None else residual.factor(log_sizes(rows, groups, n, k, m_max))


def _floats(*values: Any) -> tuple[Floats, ...]:
    return tuple(np.asarray(value, dtype=np.float64) for value in values)


@cache
def grouped_forms(folder: str) -> Mapping[str, GroupedForm]:
    """Forms of a measured device folder by dtype. Raises UserError where none were fitted or the source is missing."""
    path = fitted_file(folder, "grouped.toml")
    if not path.is_file():
        raise UserError(
            f"no grouped GEMM was fitted for measured device {folder!r}: measure it (moecast calibrate measure "
            "--family grouped_gemm) and fit it (moecast calibrate fit)",
            where=str(path),
        )
    try:
        forms = forms_in(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        own = residuals(folder)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"cannot be read ({type(error).__name__}: {error}); write it anew with `moecast calibrate fit`"
        raise UserError(problem, where=str(path)) from None
    return {dtype: GroupedSurface.of(form, own[dtype]) if dtype in own else form for dtype, form in forms.items()}


def forms_in(data: Mapping[str, Any], where: str) -> Mapping[str, GroupedForm]:
    """Forms by dtype of a read `grouped.toml`. Raises UserError without its source."""
    if "source" not in data:
        raise UserError("no [source] table: every data file states where its figures come from", where=where)
    names = {field.name for field in fields(GroupedForm)} - {"domain"}
    sections = {dtype: section for dtype, section in data.items() if dtype != "source"}
    return {
        dtype: GroupedForm(
            **{key: value for key, value in section.items() if key in names},
            domain={name: (float(ends[0]), float(ends[1])) for name, ends in section.get("domain", {}).items()},
        )
        for dtype, section in sections.items()
    }
