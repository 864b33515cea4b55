"""The attention form against its closed limits, and the tables that it continues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles.forms.attention import TILE, AttentionForm, Curve
from hwprofiles.interpolate import Grid
from hwprofiles.measured import tables

FORM = AttentionForm(
    multiprocessors=100.0, floor_s=5e-6, pair_s=2e-6, tile_s=4e-6, head_s=1e-6, kv_tile_s=3e-6,
    sharpness=2.0, throttle=0.1, throttle_s=5e-3,
)  # fmt: skip
CALM = replace(FORM, throttle=0.0)


def test_a_long_sequence_costs_its_tile_pairs() -> None:
    n = 8192.0
    pairs = 64 * n**2 / 2
    assert CALM.time_s(64, 8, n * TILE) == pytest.approx(pairs * CALM.pair_s / 100.0, rel=2e-3)
    # twice the head dimensions, twice the products; a long kernel runs at the lower clock
    assert CALM.time_s(64, 8, n * TILE, 512.0) == pytest.approx(2 * CALM.time_s(64, 8, n * TILE), rel=2e-3)
    assert FORM.time_s(64, 8, n * TILE) == pytest.approx(1.1 * CALM.time_s(64, 8, n * TILE), rel=1e-3)


def test_a_lone_head_waits_for_its_last_tile() -> None:
    few = replace(CALM, multiprocessors=1e9)  # everything in parallel
    assert few.time_s(1, 1, 4096) == pytest.approx(5e-6 + 32 * 2e-6 + 4e-6)
    assert few.time_s(1, 1, 4000) == few.time_s(1, 1, 4096)  # a part of a tile is a tile


def test_by_hand() -> None:
    share = (16 * (2e-6 * 4**2 / 2 + 4e-6 * 4 + 1e-6) + 2 * 3e-6 * 4) / 100
    longest = 4 * 2e-6 + 4e-6
    assert CALM.time_s(16, 2, 512) == pytest.approx(5e-6 + np.hypot(share, longest))


def test_time_never_falls_when_a_size_grows() -> None:
    rng = np.random.default_rng(5)
    bh, kv, seq = np.exp(rng.uniform(0.0, np.log([[1e4], [1e3], [1e6]]), (3, 5000)))
    base = FORM.time_s(bh, kv, seq)
    for grown in ((1.3 * bh, kv, seq), (bh, 1.3 * kv, seq), (bh, kv, 1.3 * seq)):
        assert np.all(FORM.time_s(*grown) >= base)


def test_a_sharp_corner_does_not_overflow() -> None:
    assert np.isfinite(replace(FORM, sharpness=500.0).time_s(1, 1, 1e6))


def test_outside_a_table_time_goes_as_the_form_does() -> None:
    axes = np.log([8.0, 64.0]), np.log([512.0, 4096.0])
    mesh = np.meshgrid(*(np.exp(axis) for axis in axes), indexing="ij")
    table = 1.5 * FORM.time_s(mesh[0], mesh[0] / 8, mesh[1])  # everything measured half as long again
    curve = Curve(grid=Grid(log_axes=axes, log_time=np.log(table)), form=FORM, group=8.0, dims=256.0)
    bh, seq = np.array([2.0, 8.0, 64.0, 640.0, 640.0]), np.array([512.0, 128.0, 9999.0, 4096.0, 99999.0])
    np.testing.assert_allclose(curve.time_s(bh, seq), 1.5 * FORM.time_s(bh, bh / 8, seq), rtol=1e-9)
    assert curve.time_s(8.0, 512.0) == pytest.approx(table[0, 0])


@pytest.mark.parametrize("device", ["a100", "h100", "h200", "b200", "gb200"])
@pytest.mark.parametrize("kind", ["gqa", "mla"])
def test_a_million_tokens_run_near_the_longest_measured_rate(device: str, kind: str) -> None:
    curve = tables(device).attention[kind]
    growth = curve.time_s(64.0, 2.0**20) / curve.time_s(64.0, 2.0**14)
    assert growth == pytest.approx(64.0**2, rel=0.12)


def test_mla_is_priced_by_its_own_curve_and_the_floor_does_not_shrink_with_the_head() -> None:
    t = tables("h100")
    assert t.attention_s(2, 4096, 128, 128, 192, 128) == t.attention["mla"].time_s(256.0, 4096.0)
    form = t.attention["gqa"].form
    assert t.attention_s(1, 128, 8, 1, 16, 16) > form.floor_s
    large, small = (t.attention_s(1, 65536, 32, 4, d, d) for d in (128, 64))
    assert small / large == pytest.approx(0.5 / t.head_dim_rate[64], rel=0.02)
    assert t.attention_s(1, 0, 32, 4, 128, 128) == 0.0 and t.attention_s(0, 128, 32, 4, 64, 64) == 0.0
