"""Seconds of compute ops from measured kernel tables; memory-bound ops from bytes and floors.

All functions take numbers or numpy columns. Table times are bursts at locked clocks; `Factors.clock`
turns them into what a long training step sustains.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.factors import Factors
from hwprofiles.forms.grouped import GroupedForm, operand_bytes
from hwprofiles.measured import KernelTables
from hwprofiles.scaling import grouped_of
from hwprofiles.specs import DeviceSpec
from sim.ops import Op


class ComputeCost:
    """Costs of gemm, grouped_gemm, attention and memory ops on one device."""

    def __init__(
        self,
        device: DeviceSpec,
        tables: KernelTables,
        factors: Factors,
        *,
        attention_kernel: str = "latest",
        plain_torch: bool = False,
        neighbours: bool = True,
    ) -> None:
        """plain_torch: memory-bound kernels are those whose classes were measured, where they were.
        neighbours: other ranks compute at the same time."""
        self.device = device
        self._plain_torch = plain_torch
        self.attention_kernel = attention_kernel
        self.tables = tables
        self.factors = factors
        self.provenance: set[str] = set()
        # a part with a lower power limit sustains a lower clock; 0: the limit is not stated
        share = min(1.0, device.power_w / factors.reference_power_w) if device.power_w else 1.0
        self.clock = factors.clock * share**factors.clock_power_exponent
        self._memory_share = 1.0
        if neighbours:
            self.clock /= factors.together_compute
            self._memory_share = factors.together_memory
        self._bandwidth = device.mem_bytes_per_s * factors.mem_efficiency / self._memory_share

    def seconds(self, op: Op, precision: str = "") -> Any:
        """Device seconds of a compute op alone. precision: what the run trains in ("" = not in 16 bits)."""
        if op.rests_on:
            self.provenance.add(op.rests_on)
        clock = self.clock * (self.factors.clock_16bit if precision in SIXTEEN_BITS else 1.0)
        if op.kind == "gemm":
            return self._gemm(op, clock)
        if op.kind == "grouped_gemm":
            return self._grouped(op, clock)
        if op.kind == "attention":
            return self._attention(op)
        return self._memory(op)

    def _memory(self, op: Op) -> Any:
        """The measured time of the op's class; else bytes over the rate."""
        back = op.pass_ in ("backward", "wgrad")
        if self._plain_torch and op.kernel:
            pass_ = MEASURED_PASS.get(op.kernel, "backward" if back else "forward")
            seconds = self.tables.memory_s(op.kernel, pass_, op.kernel_bytes)
            if seconds is not None:
                self.provenance.add(f"memory-bound {'backward' if back else 'kernels'}: measured")
                return seconds * self._memory_share
        if back:
            self.provenance.add("memory-bound backward (bytes over the memory's rate): assumed")
        return self.memory_s(op.bytes, op.kernels)

    def memory_s(self, nbytes: Any, kernels: Any) -> Any:
        """Bytes over the achieved HBM rate, plus the device-side floor of each kernel."""
        return np.asarray(nbytes, float) / self._bandwidth + np.asarray(kernels) * self.factors.kernel_floor_s

    def _table_gemm(self, m: Any, n: Any, k: Any, dtype: str, clock: float) -> Any:
        seconds, provenance = self.tables.gemm_s(m, n, k, dtype)
        self.provenance.add(f"gemm {dtype}: {provenance}")
        if dtype == "fp8" and "fp8_block" in self.tables.gemm:
            # two libraries' 8-bit kernels were measured; a trainer's library picks the faster per shape
            other, _ = self.tables.gemm_s(m, n, k, "fp8_block")
            seconds = np.minimum(seconds, other)
        return seconds / clock

    def _gemm(self, op: Op, clock: float) -> Any:
        alone = self._table_gemm(op.m, op.n, op.k, op.dtype, clock)
        if np.any(np.asarray(op.count) != 1):
            # a batched GEMM fills the device: rate of one GEMM with the rows of all, floors once
            alone = self._table_gemm(op.m * op.count, op.n, op.k, op.dtype, clock)
        if op.pass_ in GRADIENTS:
            name, words = GRADIENTS[op.pass_]
            ratio, rests_on = self.tables.gemm_pass(op.dtype, name)
            self.provenance.add(f"gemm {op.dtype}, {words}: {rests_on}")
            alone = alone * ratio
        if np.any(op.row_bytes):
            alone = alone * self._unaligned(op.row_bytes)
        # accumulating into the main gradient is an epilogue: it follows the last product of each tile
        return alone + np.asarray(op.bytes, float) / self._bandwidth

    def _unaligned(self, row_bytes: Any) -> Any:
        """How much longer a product takes whose operand has rows of these bytes: asynchronous copies and matrix loads
        move 16 bytes at a time, or with more instructions 4; rows at odd multiples of 2 bytes allow neither."""
        loss = self.factors.unaligned_gemm
        rest = np.mod(row_bytes, FULL_COPY_BYTES)
        if np.any(rest):
            self.provenance.add("gemm with unpadded rows: assumed to lose what it did on A100")
        return np.where(rest == 0, 1.0, np.where(np.mod(rest, WORD_BYTES) == 0, loss["words"], loss["halves"]))

    def _grouped(self, op: Op, clock: float) -> Any:
        """Fused: one grouped kernel (`hwprofiles.forms.grouped`). Unfused: one GEMM after the other, each at its own
        (small) size, and at least the time to read every expert's weights."""
        if op.fused:
            alone = self._fused(op) / clock
        else:
            floor = op.groups * op.n * op.k * operand_bytes(op.dtype) / self._bandwidth
            alone = np.maximum(op.groups * self._table_gemm(op.m, op.n, op.k, op.dtype, clock), floor)
        return alone + np.asarray(op.bytes, float) / self._bandwidth

    @cached_property
    def _grouped_forms(self) -> Mapping[str, GroupedForm]:
        return grouped_of(self.device, self.tables.device)

    def _fused(self, op: Op) -> Any:
        """Raises UserError where no grouped kernel was fitted for the dtype."""
        forms = self._grouped_forms
        dtype = SCALED_AS.get(op.dtype, op.dtype)
        if dtype not in forms:
            have = ", ".join(forms)
            raise UserError(
                f"no grouped GEMM was fitted for dtype '{dtype}' on {self.tables.scaled or self.tables.device}; "
                f"use one of: {have}",
                where="dtype",
            )
        form = forms[dtype]
        n, k, rows = (op.m, op.n, op.k) if op.pass_ == "wgrad" else (op.n, op.k, op.m)
        if not form.covers(rows * op.groups, n, k):
            self.provenance.add(f"grouped GEMM {dtype}: extrapolated")
        rests_on = "interpolated" if op.pass_ in ("forward", "recompute") else form.backward
        if op.pass_ == "wgrad":
            self.provenance.add(f"grouped GEMM {dtype}, weight gradient: {rests_on}")
            return form.wgrad_s(op.k * op.groups, op.groups, op.m, op.n, op.m_max)
        if op.pass_ == "backward":
            self.provenance.add(f"grouped GEMM {dtype}, input gradient: {rests_on}")
            return form.dgrad_s(op.m * op.groups, op.groups, op.n, op.k, op.m_max)
        self.provenance.add(f"grouped GEMM {dtype}: {rests_on}")
        return form.product_s(op.m * op.groups, op.groups, op.n, op.k, op.m_max)

    def _attention(self, op: Op) -> Any:
        mla = op.dqk != op.dv
        forward_flop = op.flop if op.pass_ != "backward" else op.flop / 2.5
        if op.window is not None:
            # kernels work in whole tiles: a window costs one tile more than the pairs it needs
            forward_flop = forward_flop * (op.window + ATTENTION_TILE) / op.window
        sizes = {
            "batch": op.batch, "seq": op.seq, "heads": op.heads, "kv_heads": op.kv_heads, "dqk": op.dqk, "dv": op.dv,
            "flop": forward_flop,
        }  # fmt: skip
        whole = np.asarray(self.tables.attention_s(**sizes))
        exponentials = self.tables.attention_exponentials_s(whole, **sizes)
        products = whole - exponentials
        if self.attention_kernel != "latest":
            products = products / self.factors.attention_fa2_rate
        if self.attention_kernel == "triton":
            products = products * self.factors.attention_triton["backward" if op.pass_ == "backward" else "forward"]
        if op.pass_ == "backward":
            older = self.attention_kernel != "latest" or self.factors.attention_fa2_rate == 1.0
            ratio, provenance = self.tables.attention_backward_ratio(op.seq, mla, fa2=older)
            self.provenance.add(f"attention backward over forward: {provenance}")
            products = products * ratio
        # a kernel that leaves most of the tensor cores idle stays below the power limit: it runs at the burst clock
        seconds = (products + exponentials) / (1.0 if self.attention_kernel == "triton" else self.clock)
        if op.dtype == "fp8":
            seconds = seconds / self.factors.fp8_attention_speedup
        if self._plain_torch:  # the call as it was measured, launch and all
            return seconds
        return seconds + op.kernels * self.factors.kernel_floor_s


# Kernel that stands for a dtype without one: MX scales are applied inside the product, as the block scales are.
SCALED_AS = {"mxfp8": "fp8_block"}
# Backward products by pass of an op: the harness's name, and words for what it makes.
GRADIENTS = {"backward": ("dgrad", "input gradient"), "wgrad": ("wgrad", "weight gradient")}
SIXTEEN_BITS = ("bf16", "fp16")
# Classes that are measured in one pass only, whichever pass of a layer they run in.
MEASURED_PASS = {
    "residual": "forward", "grad_accumulate": "forward", "copy": "forward", "grad_norm_clip": "update",
    "fused_adam": "update", "cast_16": "update", "clear": "update",
}  # fmt: skip
FULL_COPY_BYTES, WORD_BYTES = 16, 4  # largest and smallest asynchronous copy of a thread
ATTENTION_TILE = 128  # keys per tile of the flash-attention kernels
