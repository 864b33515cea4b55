"""The clock of a run in 16 bits: which kernels it slows, on which devices, in which runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles import catalogue
from sim.cost.model import CostModel
from sim.ops import Op

PRODUCT = Op(name="fc1", kind="gemm", m=4096, n=14336, k=4096, flop=2.0 * 4096 * 14336 * 4096)
EXPERTS = Op(name="fc1", kind="grouped_gemm", fused=True, groups=8, m=1024, n=4096, k=2048)
NORM = Op(name="norm", kind="memory", bytes=1e9)


def cost_on(gpu: str) -> CostModel:
    return CostModel(catalogue.cluster(gpu, gpus=8), catalogue.software("megatron-lm"))


@pytest.mark.parametrize("gpu", ["B200", "GB200"])
def test_products_of_a_run_in_16_bits_are_slower_than_the_same_products_in_8_bit_runs(gpu: str) -> None:
    cost = cost_on(gpu)
    share = cost.factors.clock_16bit
    assert 0.85 < share < 1.0
    for op in (PRODUCT, EXPERTS):
        assert cost.device_s(op, "bf16") == pytest.approx(cost.device_s(op, "mxfp8") / share)
        assert cost.device_s(op) == cost.device_s(op, "mxfp8")


@pytest.mark.parametrize("gpu", ["A100", "H100", "H200"])
def test_older_devices_hold_one_clock(gpu: str) -> None:
    cost = cost_on(gpu)
    assert cost.factors.clock_16bit == 1.0
    assert cost.device_s(PRODUCT, "bf16") == cost.device_s(PRODUCT, "fp8")


def test_what_moves_bytes_keeps_its_time() -> None:
    cost = cost_on("B200")
    assert cost.device_s(NORM, "bf16") == cost.device_s(NORM, "mxfp8")
    summed = replace(PRODUCT, bytes=1e9)
    for run in ("bf16", "mxfp8"):
        more = cost.device_s(summed, run) - cost.device_s(PRODUCT, run)
        assert more == pytest.approx(float(cost.compute.memory_s(1e9, 0)))
