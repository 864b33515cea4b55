"""Kernels scaled from another vendor's device are held to what measured devices make of their peaks."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.measured import tables
from hwprofiles.scaling import held_share, median_shares, scale_of, sustained_share, tables_of
from hwprofiles.specs import DeviceSpec

MEASURED = [d for d in map(catalogue.device, catalogue.names("devices")) if d.measured.lower() == d.name.lower()]
SCALED = [d for d in map(catalogue.device, catalogue.names("devices")) if d.scaled_from and not d.measured]


@pytest.mark.parametrize("dtype", sorted(median_shares()))
def test_the_shipped_share_is_the_median_of_the_measured_devices(dtype: str) -> None:
    found = [d for d in MEASURED if dtype in tables(d.measured).gemm and dtype in d.peak_flop_per_s]
    assert len(found) >= 3
    assert median_shares()[dtype] == pytest.approx(median(sustained_share(d.name, dtype) for d in found), abs=1e-3)


def share(device: DeviceSpec, dtype: str) -> float:
    """Of the peak that the form of a scaled device sustains, at the clock of its source."""
    scale = scale_of(device)
    assert scale is not None
    own = tables_of(device).gemm[dtype].form.flop_per_s / device.peak_flop_per_s[dtype]
    source = catalogue.device(scale.source)
    return (
        sustained_share(source.name, dtype)
        * own
        * source.peak_flop_per_s[dtype]
        / (tables(source.measured).gemm[dtype].form.flop_per_s)
    )


@pytest.mark.parametrize("device", SCALED, ids=lambda d: d.name)
def test_no_other_vendors_device_is_better_than_the_median(device: DeviceSpec) -> None:
    """Inside a vendor nothing is held back, and nobody is lifted to the median."""
    scale = scale_of(device)
    assert scale is not None
    for dtype in tables_of(device).gemm:
        if dtype not in device.peak_flop_per_s or dtype not in median_shares():
            continue
        at_source = sustained_share(scale.source, dtype)
        wanted = min(at_source, median_shares()[dtype]) if scale.foreign else at_source
        assert share(device, dtype) == pytest.approx(wanted)


def test_only_long_products_are_held() -> None:
    """A TPU's launch floor and memory-bound products stay what the ratios say."""
    v5p = catalogue.device("TPU v5p")
    free = replace(v5p, vendor=catalogue.device(v5p.scaled_from).vendor)
    scale = scale_of(v5p)
    assert scale is not None and held_share("bf16", scale) == pytest.approx(0.712 / 0.842, rel=2e-3)
    long, tiny = ((np.array(8192.0),) * 3, (np.array(16.0), np.array(64.0), np.array(64.0)))
    held = [float(tables_of(v5p).gemm_s(*size, "bf16")[0] / tables_of(free).gemm_s(*size, "bf16")[0])
            for size in (long, tiny)]  # fmt: skip
    assert held[0] == pytest.approx(1 / held_share("bf16", scale), rel=0.01)
    assert held[1] == pytest.approx(1.0, abs=0.05)
