"""The form of the dense GEMM: its limits are those of a machine with tiles, waves and a memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.forms.gemm import GemmForm, GemmSurface
from hwprofiles.interpolate import Grid

PLAIN = GemmForm(
    multiprocessors=100.0,
    element_bytes=2.0,
    result_bytes=2.0,
    start_s=0.0,
    flop_per_s=1e15,
    bytes_per_s=1e30,
    tile_efficiency=0.9,
    small_efficiency=0.8,
    ramp_k=0.0,
    tail=1.0,
    two_waves=1.0,
    throttle=0.0,
    throttle_s=1e-3,
    cast_s=0.0,
    cache_elements=1.0,
)
SIZES = st.integers(1, 20000)


def test_whole_waves_of_the_largest_tile_reach_the_peak() -> None:
    m, n, k = 256 * 10, 128 * 10, 4096  # 100 tiles on 100 multiprocessors
    assert PLAIN.time_s(m, n, k) == pytest.approx(2.0 * m * n * k / 1e15)
    assert PLAIN.time_s(m, n, k / 2) == pytest.approx(PLAIN.time_s(m, n, k) / 2)


def test_one_tile_more_than_a_wave_costs_a_wave_of_smaller_tiles_at_most() -> None:
    m, n, k = 256 * 10, 128 * 10, 4096
    full = PLAIN.time_s(m, n, k)
    over = PLAIN.time_s(m + 1, n, k)
    assert full < over <= 2 * full
    # 64 x 64 tiles: 41 x 20 of them, nine waves of a 64th of the area at 0.9 x 0.8 x 0.8 of the rate
    smallest = np.ceil(41 * 20 / 100) * 64 * 64 / (0.9 * 0.8 * 0.8) * 2 * k * 100 / 1e15
    assert over <= smallest
    assert replace(PLAIN, tail=0.0).time_s(m + 1, n, k) < over  # tiles of other work fill the tail


def test_memory_bounds_a_thin_product() -> None:
    form = replace(PLAIN, bytes_per_s=1e12)
    m, n, k = 1, 8192, 8192
    assert form.time_s(m, n, k) == pytest.approx(2.0 * (m * k + k * n + m * n) / 1e12, rel=0.01)


def test_throttling_saturates() -> None:
    slow = replace(PLAIN, throttle=0.3)
    short, long = (256 * 10, 128 * 10, 64), (256 * 10000, 128 * 100, 65536)
    assert slow.time_s(*short) == pytest.approx(PLAIN.time_s(*short), rel=0.01)
    assert slow.time_s(*long) == pytest.approx(1.3 * PLAIN.time_s(*long), rel=0.01)


def test_the_cast_reads_a_once_it_leaves_the_cache() -> None:
    form = replace(PLAIN, cast_s=1e-12, cache_elements=1e6)
    assert form.cast_of_a_s(1e5, 1e4) == pytest.approx(1e-3, rel=0.01)
    assert form.cast_of_a_s(10, 10) < 1e-4 * 100 * 1e-12 + 1e-18
    assert form.time_s(512, 512, 512) - form.product_s(512, 512, 512) == pytest.approx(form.cast_of_a_s(512, 512))


@given(SIZES, SIZES, SIZES, st.integers(0, 2), st.integers(1, 5000))
def test_the_form_never_falls(m: int, n: int, k: int, axis: int, more: int) -> None:
    form = replace(PLAIN, bytes_per_s=2e12, start_s=1e-6, throttle=0.2, tail=0.7, ramp_k=100.0)
    size = [m, n, k]
    before = form.time_s(*size)
    size[axis] += more
    assert form.time_s(*size) >= before * (1 - 1e-12)


def test_a_surface_meets_its_grid_and_fades_to_the_form() -> None:
    axes = tuple(np.log(np.array(a)) for a in ([256.0, 1024.0, 4096.0], [512.0, 2048.0], [512.0, 4096.0]))
    m, n, k = np.meshgrid(*(np.exp(a) for a in axes), indexing="ij")
    measured = PLAIN.time_s(m, n, k) * 1.5
    surface = GemmSurface.of(PLAIN, Grid(log_axes=axes, log_time=np.log(measured)))
    got, inside = surface.time_s(m, n, k, cast=True)
    np.testing.assert_allclose(got, measured, rtol=1e-9)
    assert inside
    between, inside = surface.time_s(2000, 1000, 1000, cast=True)
    assert between == pytest.approx(1.5 * PLAIN.time_s(2000, 1000, 1000)) and inside
    far, inside = surface.time_s(4096.0 * 1e6, 2048, 4096, cast=True)
    assert far == pytest.approx(PLAIN.time_s(4096.0 * 1e6, 2048, 4096), rel=1e-3) and not inside
    thin, inside = surface.time_s(256, 8, 512, cast=True)
    assert thin == pytest.approx(1.5 * PLAIN.time_s(256, 8, 512)) and not inside
