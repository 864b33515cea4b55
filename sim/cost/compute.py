"""Seconds of compute ops from measured kernel tables; memory-bound ops from bytes and floors.

All functions take numbers or numpy columns. Table times are bursts at locked clocks; `Factors.clock`
turns them into what a long training step sustains.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwprofiles.factors import Factors
from hwprofiles.measured import KernelTables
from hwprofiles.specs import DeviceSpec
from sim.ops import Op


class ComputeCost:
    """Costs of gemm, grouped_gemm, attention and memory ops on one device."""

    def __init__(
        self, device: DeviceSpec, tables: KernelTables, factors: Factors, *, attention_kernel: str = "latest"
    ) -> None:
        self.device = device
        self.attention_kernel = attention_kernel
        self.tables = tables
        self.factors = factors
        self.provenance: set[str] = set()
        # a part with a lower power limit sustains a lower clock
        share = min(1.0, device.power_w / factors.reference_power_w)
        self.clock = factors.clock * share**factors.clock_power_exponent
        self._bandwidth = device.mem_bytes_per_s * factors.mem_efficiency

    def seconds(self, op: Op) -> Any:
        """Device seconds of a compute op alone."""
        if op.kind == "gemm":
            return self._gemm(op)
        if op.kind == "grouped_gemm":
            return self._grouped(op)
        if op.kind == "attention":
            return self._attention(op)
        return self.memory_s(op.bytes, op.kernels)

    def memory_s(self, nbytes: Any, kernels: Any) -> Any:
        """Bytes over the achieved HBM rate, plus the device-side floor of each kernel."""
        return np.asarray(nbytes, float) / self._bandwidth + np.asarray(kernels) * self.factors.kernel_floor_s

    def _table_gemm(self, m: Any, n: Any, k: Any, dtype: str) -> Any:
        seconds, provenance = self.tables.gemm_s(m, n, k, dtype)
        self.provenance.add(f"gemm {dtype}: {provenance}")
        if dtype == "fp8" and "fp8_block" in self.tables.gemm:
            # two libraries' 8-bit kernels were measured; a trainer's library picks the faster per shape
            other, _ = self.tables.gemm_s(m, n, k, "fp8_block")
            seconds = np.minimum(seconds, other)
        return seconds / self.clock

    def _gemm(self, op: Op) -> Any:
        alone = self._table_gemm(op.m, op.n, op.k, op.dtype)
        if np.any(np.asarray(op.count) != 1):
            # a batched GEMM fills the device: rate of one GEMM with the rows of all, floors once
            alone = self._table_gemm(op.m * op.count, op.n, op.k, op.dtype)
        # accumulating into the main gradient is an epilogue: it follows the last product of each tile
        return alone + np.asarray(op.bytes, float) / self._bandwidth

    def _grouped(self, op: Op) -> Any:
        """Fused: one GEMM over all rows, at least the time to read every expert's weights.
        Unfused: one GEMM after the other, each at its own (small) size."""
        floor = op.groups * op.n * op.k * DTYPE_BYTES[op.dtype] / self._bandwidth
        if op.fused:
            if op.pass_ == "wgrad":
                alone = op.groups * self._table_gemm(op.m, op.n, op.k, op.dtype)
                joint = self._table_gemm(op.m * op.groups, op.n, op.k, op.dtype)
                alone = np.minimum(alone, joint)
            else:
                alone = self._table_gemm(op.m * op.groups, op.n, op.k, op.dtype)
        else:
            alone = op.groups * self._table_gemm(op.m, op.n, op.k, op.dtype)
        return np.maximum(alone, floor) + np.asarray(op.bytes, float) / self._bandwidth

    def _attention(self, op: Op) -> Any:
        mla = op.dqk != op.dv
        forward_flop = op.flop if op.pass_ != "backward" else op.flop / 2.5
        if op.window is not None:
            # kernels work in whole tiles: a window costs one tile more than the pairs it needs
            forward_flop = forward_flop * (op.window + ATTENTION_TILE) / op.window
        seconds = self.tables.attention_s(
            batch=op.batch, seq=op.seq, heads=op.heads, kv_heads=op.kv_heads, dqk=op.dqk, dv=op.dv, flop=forward_flop
        )
        seconds = np.asarray(seconds) / self.clock
        if op.dtype == "fp8":
            seconds = seconds / self.factors.fp8_attention_speedup
        if self.attention_kernel == "fa2":
            seconds = seconds / self.factors.attention_fa2_rate
        if op.pass_ == "backward":
            ratio, provenance = self.tables.attention_backward_ratio(op.seq, mla)
            self.provenance.add(f"attention backward over forward: {provenance}")
            seconds = seconds * ratio
        return seconds + op.kernels * self.factors.kernel_floor_s


ATTENTION_TILE = 128  # keys per tile of the flash-attention kernels
DTYPE_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "mxfp8": 1.0, "nvfp4": 0.5}
