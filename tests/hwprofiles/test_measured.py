"""The measured tables: exact on their grid, monotone, array-transparent, small and sourced."""

from __future__ import annotations

import csv
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hwprofiles
from hwprofiles.errors import UserError
from hwprofiles.forms.dispatch import Exchange, dispatch_forms
from hwprofiles.measured import tables

ROOT = Path(hwprofiles.__file__).parent / "measured"
DEVICES = ("a100", "h100", "h200", "b200", "gb200")
PAIRS = [(device, dtype) for device in DEVICES for dtype in tables(device).dtypes()]


def read(device: str, name: str) -> tuple[list[str], list[list[str]]]:
    with (ROOT / device / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], rows[1:]


@pytest.mark.parametrize("device", DEVICES)
def test_gemm_reproduces_the_shipped_table(device: str) -> None:
    header, rows = read(device, "gemm.csv")
    m = np.array([float(name[1:-2]) for name in header[3:]])
    for dtype in tables(device).dtypes():
        part = np.array([[float(cell) for cell in row[1:]] for row in rows if row[0] == dtype])
        time_s, provenance = tables(device).gemm_s(m, part[:, :1], part[:, 1:2], dtype, cast=True)
        np.testing.assert_allclose(time_s, part[:, 2:], rtol=1e-9)
        assert provenance == "interpolated"


@pytest.mark.parametrize(("device", "dtype"), PAIRS)
def test_gemm_time_hardly_falls_when_a_size_grows(device: str, dtype: str) -> None:
    """Between measured points waves fill and residuals change, so a little is allowed, as in the measurements."""
    rng = np.random.default_rng(7)
    size = np.exp(rng.uniform(np.log(1.0), np.log(1e5), (3, 4000)))
    before, _ = tables(device).gemm_s(size[0], size[1], size[2], dtype)
    for axis in range(3):
        grown = size.copy()
        grown[axis] *= np.exp(rng.uniform(0.0, 2.0, 4000))
        after, _ = tables(device).gemm_s(grown[0], grown[1], grown[2], dtype)
        assert np.all(after >= before * 0.8)
        assert np.mean(after < before * 0.999) < 0.15


@pytest.mark.parametrize(("device", "dtype"), PAIRS)
def test_the_cast_is_a_part_of_what_was_measured(device: str, dtype: str) -> None:
    m, n, k = np.meshgrid([256.0, 4096.0, 30000.0], [512.0, 7168.0], [512.0, 7168.0])
    whole, alone = (tables(device).gemm_s(m, n, k, dtype, cast=cast)[0] for cast in (True, False))
    if dtype == "bf16":
        np.testing.assert_array_equal(whole, alone)
    else:
        share = 1.0 - alone / whole
        assert np.all((share > 0.0) & (share < 0.9))
        assert np.all(np.diff(share, axis=0) < 0.0)  # the wider the result, the less the cast counts


PEAKS = [("a100", 312e12), ("h100", 989e12), ("h200", 989e12), ("b200", 2250e12), ("gb200", 2500e12)]


@pytest.mark.parametrize(("device", "peak_flop_per_s"), PEAKS)
def test_bf16_gemm_stays_below_the_datasheet_peak(device: str, peak_flop_per_s: float) -> None:
    m, n, k = np.meshgrid([256.0, 4096.0, 50000.0], [512.0, 7168.0, 40000.0], [512.0, 7168.0, 20000.0])
    time_s, _ = tables(device).gemm_s(m, n, k, "bf16")
    assert np.all(2 * m * n * k / time_s < peak_flop_per_s)


def test_gemm_outside_the_grid() -> None:
    t = tables("h100")
    edge, _ = t.gemm_s(32768, 8192, 8192, "bf16")
    far, provenance = t.gemm_s(2**25, 8192, 8192, "bf16")
    assert provenance == "extrapolated"
    # far outside the form alone counts: the rate of long kernels
    assert far == pytest.approx(t.gemm["bf16"].form.time_s(2**25, 8192, 8192), rel=0.01)
    assert far == pytest.approx(1024 * edge, rel=0.15)
    smallest, _ = t.gemm_s(8192, 256, 7168, "bf16")
    thin, provenance = t.gemm_s(8192, 64, 7168, "bf16")
    assert 0.3 * smallest < thin <= smallest and provenance == "extrapolated"
    assert t.gemm_s(0, 4096, 4096, "bf16")[0] == 0.0
    assert t.gemm_s(np.array([64, 1e6]), 4096, 4096, "bf16")[1] == "extrapolated"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PAIRS), st.lists(st.tuples(*[st.integers(1, 10**6)] * 3), min_size=1, max_size=5))
def test_columns_equal_scalars(pair: tuple[str, str], shapes: list[tuple[int, int, int]]) -> None:
    device, dtype = pair
    t, size = tables(device), np.array(shapes).T
    whole, _ = t.gemm_s(size[0], size[1], size[2], dtype)
    np.testing.assert_allclose(whole, [t.gemm_s(m, n, k, dtype)[0] for m, n, k in shapes], rtol=1e-9)
    batch, seq, heads = np.minimum(size, [[64], [65536], [128]])
    core = t.attention_s(batch, seq, heads, 8, 128, 128)
    single = [t.attention_s(*row, 8, 128, 128) for row in zip(batch, seq, heads, strict=True)]
    np.testing.assert_allclose(core, single, rtol=1e-9)
    ring, _ = t.collective_s("all_gather", heads, size[0])
    single = [t.collective_s("all_gather", *row)[0] for row in zip(heads, size[0], strict=True)]
    np.testing.assert_allclose(ring, single, rtol=1e-9)


def test_numbers_give_float64() -> None:
    t = tables("h100")
    assert isinstance(t.gemm_s(4096, 4096, 4096, "bf16")[0], np.float64)
    assert isinstance(t.attention_s(1, 4096, 32, 8, 128, 128), np.float64)
    assert isinstance(t.mla_s(1, 4096, 128), np.float64)


def test_gb200_is_never_slower_than_b200() -> None:
    rng = np.random.default_rng(3)
    m, n, k = np.exp(rng.uniform(np.log(1.0), np.log(1e5), (3, 3000)))
    for dtype in tables("b200").dtypes():
        slow, fast = (tables(device).gemm_s(m, n, k, dtype)[0] for device in ("b200", "gb200"))
        assert (
            np.all(fast <= slow * 1.1) and np.median(fast / slow) <= 1.0
        )  # at measured sizes never, see calibration.carry


def test_mxfp8_is_the_better_of_both_fp8_kernels() -> None:
    t = tables("b200")
    m, n, k = np.meshgrid([64.0, 1024.0, 8192.0], [512.0, 4096.0], [2048.0, 7168.0])
    both = np.minimum(t.gemm_s(m, n, k, "fp8")[0], t.gemm_s(m, n, k, "fp8_block")[0])
    assert np.all(t.gemm_s(m, n, k, "mxfp8")[0] <= both * 1.05)
    assert "mxfp8" not in tables("h100").dtypes()


@pytest.mark.parametrize("device", DEVICES)
def test_attention_reproduces_the_shipped_table(device: str) -> None:
    t = tables(device)
    for name, dims in (("attention.csv", (128, 128)), ("mla.csv", (192, 128))):
        header, rows = read(device, name)
        seq = np.array([float(column[3:-2]) for column in header[2:]])
        for kind, bh, *cells in rows:
            heads = int(bh)
            if kind == "mla":
                time_s = t.mla_s(1, seq, heads)
            else:
                time_s = t.attention_s(1, seq, heads, heads if kind == "mha" else heads // 8, *dims)
            np.testing.assert_allclose(time_s, [float(cell) for cell in cells], rtol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_attention_time_never_falls(device: str) -> None:
    t, rng = tables(device), np.random.default_rng(11)
    batch, seq = np.exp(rng.uniform(0.0, 4.0, 3000)), np.exp(rng.uniform(np.log(16), np.log(131072), 3000))
    for kv_heads in (4, 16, 32):
        base = t.attention_s(batch, seq, 32, kv_heads, 128, 128)
        assert np.all(t.attention_s(batch * 1.7, seq, 32, kv_heads, 128, 128) >= base * (1 - 1e-6))
        assert np.all(t.attention_s(batch, seq * 1.7, 32, kv_heads, 128, 128) >= base * (1 - 1e-6))
    base = t.mla_s(batch, seq, 16)
    assert np.all(t.mla_s(batch * 1.7, seq, 16) >= base * (1 - 1e-6))
    assert np.all(t.mla_s(batch, seq * 1.7, 16) >= base * (1 - 1e-6))


def test_attention_prices_flop_at_the_measured_rate() -> None:
    t = tables("h100")
    causal = t.attention_s(1, 8192, 32, 8, 128, 128)
    assert t.attention_s(1, 8192, 32, 8, 128, 128, flop=2 * 32 * 8192**2 * 256) == pytest.approx(2 * causal)
    assert t.attention_s(1, 8192, 32, 8, 64, 64) > causal / 2
    assert t.attention_s(1, 8192, 32, 32, 128, 128) >= causal
    # Far beyond the grid only the tile products count: four times the FLOPs, four times the time.
    far = t.attention_s(1, 2**20, 32, 8, 128, 128)
    assert t.attention_s(1, 2**21, 32, 8, 128, 128) == pytest.approx(4 * far, rel=5e-3)


def test_attention_backward_says_where_it_was_measured() -> None:
    h100 = tables("h100")
    ratio, provenance = h100.attention_backward_ratio(4096, mla=True)
    assert ratio == pytest.approx((3778.75 + 256.25 + 219.25) / 1237, rel=2e-3) and provenance == "measured"
    assert h100.attention_backward_ratio(np.array([4096, 8192]), mla=True)[1] == "assumed"
    assert h100.attention_backward_ratio(4096, mla=False)[1] == "assumed"
    assert tables("b200").attention_backward_ratio(4096, mla=True) == (ratio, "assumed")
    for mla in (False, True):  # five matrix products against two: never below 2.5
        assert h100.attention_backward_ratio(4096, mla)[0] > 2.5
    own = {
        **h100.backward,
        "core": {**h100.backward["core"], "measured_seq": [1024, 4096], "measured_ratio": [3.0, 2.0]},
    }
    mine = replace(h100, backward=own)
    assert mine.attention_backward_ratio(2048, mla=False) == (pytest.approx(2.5), "measured")
    assert mine.attention_backward_ratio(8192, mla=False) == (2.0, "assumed")


@pytest.mark.parametrize("device", DEVICES)
def test_collectives(device: str) -> None:
    t = tables(device)
    header, rows = read(device, "collectives.csv")
    size = np.array([float(name[1:-2]) for name in header[2:]])
    for op, group, *cells in rows:
        time_s, provenance = t.collective_s(op, int(group), size)
        np.testing.assert_allclose(time_s, [float(cell) for cell in cells], rtol=1e-9)
        assert provenance == "interpolated"
    dense = np.exp(np.linspace(np.log(64), np.log(1e11), 2000))
    for op in t.collectives:
        for num_gpus in (2, 3, 4, 6, 8, 16, 72):
            time_s, provenance = t.collective_s(op, num_gpus, dense)
            assert np.all(np.diff(time_s) >= -1e-6 * time_s[1:]) and np.all(time_s > 0)
            assert provenance == "extrapolated"
        assert t.collective_s(op, 1, 1e9)[0] == 0.0


def test_wide_groups_agree_with_the_measured_alltoall_of_nvl72() -> None:
    """The (n-1)/n rule from 4 GPUs against TensorRT-LLM's own all-to-all kernels on 64: within 30 %."""
    t = tables("gb200")
    x = Exchange(tokens=65536, hidden=7168, top_k=8, experts=256, ranks=64, even=True)
    rack = dispatch_forms("gb200")["rack", "combine"].parts(x)
    rate = 65536 * 8 * 63 / 64 * 7168 * 2 / float(rack.nvlink_s)
    size = float(2**30)
    assert size * 63 / 64 / t.collective_s("alltoall", 64, size)[0] == pytest.approx(rate, rel=0.3)


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(UserError, match="bf16"):
        tables("a100").gemm_s(1, 1, 1, "fp8")
    with pytest.raises(UserError, match="all_reduce"):
        tables("a100").collective_s("gossip", 2, 1)
    with pytest.raises(UserError, match="gb200"):
        tables("nowhere")


def test_side_tables() -> None:
    h100 = tables("h100")
    rows = h100.moe_rows()
    assert set(rows["dtype"]) == {"bf16", "fp8", "fp8_block"} and rows["time_s"].min() > 0


def test_every_file_has_a_source_and_all_are_small() -> None:
    total = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    assert total < 3e6
    for device in DEVICES:
        described = tomllib.loads((ROOT / device / "source.toml").read_text(encoding="utf-8"))
        covered = {name for entry in described.values() for name in entry["files"]}
        assert covered == {path.name for path in (ROOT / device).glob("*.csv")}
        for source in tables(device).sources.values():
            assert source.title and source.where and source.date and source.licence and source.note
