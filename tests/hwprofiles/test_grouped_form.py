"""The grouped GEMM form: uneven rows, monotone sizes, limits that theory gives, and its parameter files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles.errors import UserError
from hwprofiles.forms.grouped import GroupedForm, grouped_forms

DEVICES = ("a100", "h100", "h200", "b200", "gb200")
FORMS = [(folder, dtype, form) for folder in DEVICES for dtype, form in grouped_forms(folder).items()]
EVERY = pytest.mark.parametrize("form", [x[2] for x in FORMS], ids=[f"{x[0]}-{x[1]}" for x in FORMS])
SIZES = {"rows": 8192.0, "groups": 16.0, "n": 3072.0, "k": 2048.0}
PASSES = ("product_s", "dgrad_s", "wgrad_s")


@EVERY
@pytest.mark.parametrize("name", PASSES)
def test_uneven_rows_never_cost_less(form: GroupedForm, name: str) -> None:
    """Over sizes from weight-bound to compute-bound: time rises with the fullest expert, from the even time on."""
    time_s = getattr(form, name)
    rng = np.random.default_rng(0)
    rows, groups = 2.0 ** rng.uniform(4, 18, 300), np.round(2.0 ** rng.uniform(0, 8, 300))
    n, k = 2.0 ** rng.uniform(7, 15, 300), 2.0 ** rng.uniform(7, 14, 300)
    last = time_s(rows, groups, n, k)
    for factor in (1.0, 1.1, 1.5, 2.0, 4.0, 16.0, 1e3):
        uneven = time_s(rows, groups, n, k, factor * rows / groups)
        assert np.all(uneven >= last * (1 - 1e-12))
        last = uneven
    one = time_s(rows, 1.0, n, k, 5 * rows)
    np.testing.assert_allclose(one, time_s(rows, 1.0, n, k))  # a single expert holds all rows anyway


@EVERY
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("grown", SIZES)
def test_time_never_falls_when_a_size_grows(form: GroupedForm, name: str, grown: str) -> None:
    axis = SIZES[grown] * np.geomspace(1 / 64, 64, 400)
    for peak in (1.0, 3.0):
        sizes = SIZES | {grown: axis}
        time_s = getattr(form, name)(**sizes, m_max=peak * sizes["rows"] / sizes["groups"])
        assert np.all(np.diff(time_s) >= -1e-12 * time_s[1:])


@EVERY
def test_limits(form: GroupedForm) -> None:
    """Endless tiles run at the stated rate, a row per expert costs its weights, no rows cost nothing."""
    rows, wide = 2.0**22, 2.0**15
    flop_s = 2.0 * rows * wide * wide / form.flop_per_s
    assert float(form.product_s(rows, 1, wide, wide)) == pytest.approx(flop_s, rel=0.05)
    weights_s = 64 * wide * wide * form.operand_bytes / form.bytes_per_s
    # the padded tile may cost as much as the weights it waits for
    assert weights_s < float(form.product_s(64, 64, wide, wide)) < 2.0 * weights_s
    assert float(form.product_s(0.0, 8, 1024, 1024)) == 0.0 and float(form.wgrad_s(0.0, 8, 1024, 1024)) == 0.0


def test_the_expert_sum_is_that_of_a_power_of_the_rank() -> None:
    """Brute force over 4096 experts whose rows fall as the documented power of their rank."""
    form = GroupedForm(
        operand_bytes=2.0, flop_per_s=1e15, bytes_per_s=3e12, pad_rows=64.0, edge_n=16.0, edge_k=64.0, tail_tiles=0.0,
        traffic=1.0, sharpness=3.0, floor_s=0.0,
    )  # fmt: skip
    groups, mean, peak, n, k = 4096, 150.0, 3.0, 2048.0, 1024.0
    u = (np.arange(groups) + 0.5) / groups
    r = peak * mean * (1.0 - u) ** (peak - 1.0)
    pad = 64.0 * (1.0 - np.exp(-mean / 64.0))
    compute = 2.0 * (r + pad) * (n + 16.0) * (k + 64.0) / 1e15
    memory = (2.0 * n * k + 2.0 * r * (n + k)) / 3e12
    exact = ((compute**3 + memory**3) ** (1 / 3)).sum()
    assert float(form.product_s(groups * mean, groups, n, k, peak * mean)) == pytest.approx(exact, rel=1e-4)


def test_columns_give_what_numbers_give() -> None:
    form = grouped_forms("h100")["bf16"]
    rows, peak = np.array([64.0, 4096.0, 65536.0]), np.array([20.0, 256.0, 9000.0])
    together = form.product_s(rows, 16, 3072, 2048, peak)
    apart = [float(form.product_s(r, 16, 3072, 2048, p)) for r, p in zip(rows, peak, strict=True)]
    np.testing.assert_allclose(together, apart, rtol=1e-14)


def test_gradients_scale_as_measured() -> None:
    form = replace(grouped_forms("h100")["bf16"], dgrad=1.25, wgrad=1.5)
    plain = grouped_forms("h100")["bf16"]
    size = (8192, 8, 3072, 2048)
    assert float(form.dgrad_s(*size)) == pytest.approx(1.25 * float(plain.product_s(*size)))
    assert float(form.wgrad_s(*size)) == pytest.approx(1.5 * float(plain.wgrad_s(*size)))


def test_an_unfitted_device_says_what_to_do() -> None:
    with pytest.raises(UserError, match="calibrate fit"):
        grouped_forms("nowhere")
