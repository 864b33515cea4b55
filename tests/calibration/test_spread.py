"""The posterior of a prediction given own runs: closed forms, monotone width, what anchors share and do not."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.spread import Situation, Spread, machine_variance, posterior, shipped_spread
from calibration.spread_fit import NOTHING_NEW, Observed, crossed_anchors, fit_spread, nearest, needed, one_anchor

NO_MORE = {"device": 0.0, "device_common": 0.0, "trainer": 0.0, "trainer_common": 0.0}
EXTRA = {"device": 3.0, "device_common": 1.0, "trainer": 2.0, "trainer_common": 0.5}
SPREAD = Spread(
    v_model=0.004, v_setup=0.002, v_release=0.001, v_noise=0.0005, l_seq=4.0, l_devices=8.0, l_tokens=6.0,
    p_precision=0.3, q_layout=0.5, factor=1.0, extra={"moe": EXTRA, "dense": NO_MORE},
)  # fmt: skip
RUN = Situation(
    model="m", is_moe=False, device="H100", release="r1", trainer="t", precision="bf16", seq_tokens=4096, devices=64,
    micro_batch_tokens=4096, layout=(1, 2),
)  # fmt: skip


def test_one_anchor_is_the_closed_form() -> None:
    anchor = replace(RUN, seq_tokens=8192, devices=256, precision="fp8", layout=(2, 2), micro_batch_tokens=8192)
    near = math.exp(-(1 / 4 + 2 / 8 + 1 / 6 + 0.3 + 0.5))
    cross = 0.001 + near * 0.006
    whole = 0.0075
    got = posterior(SPREAD, [anchor], [0.2], RUN, NOTHING_NEW)
    assert got.prior == pytest.approx(whole)
    assert got.mean == pytest.approx(cross / whole * 0.2)
    assert got.variance == pytest.approx(whole - cross**2 / whole)
    assert got.weights == (pytest.approx(cross / whole),)


def test_repeats_of_one_run_are_averaged() -> None:
    """n equal anchors: the shared part over itself plus the noise over n."""
    shared, noise = 0.007, 0.0005
    got = posterior(SPREAD, [RUN] * 4, [0.1, 0.2, 0.1, 0.2], RUN, NOTHING_NEW)
    assert got.mean == pytest.approx(shared / (shared + noise / 4) * 0.15)
    assert got.variance == pytest.approx(shared + noise - shared**2 / (shared + noise / 4))


def test_less_alike_says_less() -> None:
    other_release = replace(RUN, release="r2")
    other_model = replace(RUN, model="n")
    other_device = replace(RUN, device="A100")
    weights = [
        posterior(SPREAD, [a], [0.1], RUN, NOTHING_NEW).mean / 0.1
        for a in (RUN, replace(RUN, layout=(9, 9)), other_release, other_model, other_device)
    ]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0.0  # nothing is silently carried to another device
    assert weights[3] == pytest.approx(0.001 / 0.0075)


runs = st.builds(
    replace, st.just(RUN), model=st.sampled_from("mn"), release=st.sampled_from(["r1", "r2"]),
    seq_tokens=st.sampled_from([1024, 4096, 65536]), devices=st.sampled_from([8, 64]),
    precision=st.sampled_from(["bf16", "fp8"]), layout=st.sampled_from([(1, 2), (4, 4)]),
)  # fmt: skip


@given(st.lists(runs, min_size=1, max_size=6), st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6))
def test_more_anchors_never_widen(anchors: list[Situation], residuals: list[float]) -> None:
    widths = [posterior(SPREAD, anchors[:n], residuals[:n], RUN, NOTHING_NEW).variance for n in range(len(anchors) + 1)]
    assert all(b <= a + 1e-12 for a, b in pairwise(widths))
    assert widths[-1] >= SPREAD.v_noise and widths[0] == pytest.approx(SPREAD.v_whole)


def test_a_slow_machine_is_learnt_from_runs_that_agree() -> None:
    """Three runs of other models, far too slow: the machine is, and every prediction on it moves nearly as far."""
    others = [replace(RUN, model=name, layout=(i, i)) for i, name in enumerate("abc")]
    slow = posterior(SPREAD, others, [0.24, 0.25, 0.26], RUN, NOTHING_NEW)
    assert slow.mean == pytest.approx(0.25, abs=0.02) and slow.variance <= slow.prior
    usual = posterior(SPREAD, others, [0.08, -0.05, 0.06], RUN, NOTHING_NEW)
    assert abs(usual.mean) < 0.02  # errors of models, not of the machine
    elsewhere = posterior(SPREAD, [replace(a, device="A100") for a in others], [0.25] * 3, RUN, NOTHING_NEW)
    assert elsewhere.mean == 0.0


def test_a_slow_machine_takes_two_runs_that_nothing_else_explains() -> None:
    sigma = math.sqrt(SPREAD.v_whole)
    assert machine_variance(np.array([[SPREAD.v_whole]]), np.ones(1), np.array([6.0 * sigma])) == 0.0
    own, far = SPREAD.v_whole * np.eye(2), np.array([6.0, 6.0]) * sigma
    assert machine_variance(own, np.ones(2), far / 3.0) == 0.0
    assert machine_variance(own, np.ones(2), far) == pytest.approx(35.5 * SPREAD.v_whole, rel=0.1)
    assert machine_variance(own, np.zeros(2), far) == 0.0


def test_an_anchor_that_was_predicted_right_only_narrows() -> None:
    got = posterior(SPREAD, [RUN], [0.0], RUN, NOTHING_NEW)
    assert got.mean == 0.0 and got.variance < got.prior


def test_a_new_device_shares_its_effect_with_all_its_models() -> None:
    new = replace(NOTHING_NEW, device=True)
    target, anchor = replace(RUN, is_moe=True), replace(RUN, is_moe=True, model="n", release="r9", trainer="u")
    got = posterior(SPREAD, [anchor], [0.2], target, new)
    whole = 0.0075 * (1.0 + 3.0)
    assert got.prior == pytest.approx(whole)
    assert got.mean == pytest.approx(0.0075 * 3.0 / whole * 0.2)
    elsewhere = posterior(SPREAD, [replace(anchor, device="A100")], [0.2], target, new)
    assert elsewhere.mean == 0.0 and elsewhere.variance == elsewhere.prior


def test_a_new_trainer_is_shared_in_part() -> None:
    new = replace(NOTHING_NEW, trainer=True)
    target = replace(RUN, is_moe=True)
    other = posterior(SPREAD, [replace(target, model="n")], [0.2], target, new)
    assert other.mean == pytest.approx((0.001 + 0.0075) / (3.0 * 0.0075) * 0.2)
    same = posterior(SPREAD, [target], [0.2], target, new)
    assert same.variance == pytest.approx(3.0 * 0.0075 - (3.0 * 0.0075 - 0.0005) ** 2 / (3.0 * 0.0075))


places = st.builds(
    replace, runs, device=st.sampled_from(["H100", "A100"]), trainer=st.sampled_from("tu"), is_moe=st.booleans()
)


@given(st.lists(places, min_size=1, max_size=7), places, st.booleans(), st.booleans())
def test_effects_are_a_covariance_whatever_is_new(
    anchors: list[Situation], target: Situation, device: bool, trainer: bool
) -> None:
    """Runs on other new machines beside the target's: variances stay above covariances, so widths only shrink."""
    new = replace(NOTHING_NEW, device=device, trainer=trainer)
    got = posterior(SPREAD, anchors, [0.05] * len(anchors), target, new)
    assert 0.0 < got.variance <= got.prior
    one_less = posterior(SPREAD, anchors[:-1], [0.05] * (len(anchors) - 1), target, new)
    assert got.variance <= one_less.variance + 1e-12
    assert abs(got.mean) <= 0.05 * sum(map(abs, got.weights)) + 1e-12


def made(rng: np.random.Generator, groups: int, each: int, truth: Spread) -> list[Observed]:
    """Runs of `groups` setups with residuals of the model itself."""
    out = []
    for g in range(groups):
        members = [
            replace(RUN, model=f"m{g}", seq_tokens=1024 * 2 ** int(rng.integers(0, 6)), devices=2 ** int(k % 4 + 3))
            for k in range(each)
        ]
        cov = np.array([[truth.covariance(a, b, NOTHING_NEW, RUN) for b in members] for a in members])
        np.fill_diagonal(cov, truth.v_whole)
        values = rng.multivariate_normal(np.zeros(each), cov)
        out += [Observed(run=m, residual=float(v)) for m, v in zip(members, values, strict=True)]
    return out


def test_planted_variances_are_found_and_one_anchor_holds_what_it_says() -> None:
    truth = replace(SPREAD, v_setup=0.0, v_release=0.0, v_model=0.009, v_noise=0.0009, l_seq=8.0, l_devices=16.0)
    observed = made(np.random.default_rng(3), 40, 5, truth)
    limits = {False: (math.exp(-1.2816 * truth.v_whole**0.5), math.exp(1.2816 * truth.v_whole**0.5))}
    got = fit_spread(observed, limits=limits, repeat_sd=0.01, extra=SPREAD.extra)
    assert got == fit_spread(observed, limits=limits, repeat_sd=0.01, extra=SPREAD.extra)
    # the Student t reads a Gaussian's variance as about 0.6 of it; what weights rest on is the ratio
    assert got.v_model + got.v_setup > 4.0 * got.v_noise
    pairs = one_anchor(got, observed)
    before = np.average(np.abs([x.target.residual for x in pairs]), weights=[x.weight for x in pairs])
    after = np.average(np.abs([x.after for x in pairs]), weights=[x.weight for x in pairs])
    assert after < 0.75 * before
    share = [got.factor * x.left**0.5 for x in pairs]
    inside = [needed(x.after, limits[False]) <= s for x, s in zip(pairs, share, strict=True)]
    assert 0.78 <= np.mean(inside) <= 0.9
    assert 1.0 <= got.factor < 1.5


def test_noise_is_at_least_that_of_repeats() -> None:
    same = [Observed(run=RUN, residual=0.1), Observed(run=RUN, residual=0.1)]
    got = fit_spread(same, limits={False: (0.9, 1.1)}, repeat_sd=0.02, extra=SPREAD.extra)
    assert got.v_noise == pytest.approx(0.02**2, rel=0.01)
    with pytest.raises(ValueError, match="no two runs"):
        fit_spread(same[:1], limits={False: (0.9, 1.1)}, repeat_sd=0.02, extra=SPREAD.extra)


def test_nearest_is_the_anchor_that_leaves_least() -> None:
    observed = [Observed(run=replace(RUN, seq_tokens=2**k), residual=0.1) for k in (10, 11, 16)]
    chosen = {x.target.run.seq_tokens: x.anchor.run.seq_tokens for x in nearest(one_anchor(SPREAD, observed))}
    assert chosen == {2**10: 2**11, 2**11: 2**10, 2**16: 2**11}


def test_crossed_anchors_do_not_use_their_own_model() -> None:
    rng = np.random.default_rng(5)
    observed = made(rng, 6, 4, SPREAD)
    args = {"limits": {False: (0.9, 1.1)}, "repeat_sd": 0.01, "extra": SPREAD.extra}
    found = crossed_anchors(observed, **args)
    assert len(found) == 6 * 4 * 3
    others = [o for o in observed if o.run.model != "m0"]
    alone = one_anchor(fit_spread(others, **args), [o for o in observed if o.run.model == "m0"])
    assert [x.after for x in found if x.target.run.model == "m0"] == [x.after for x in alone]
    assert crossed_anchors(observed[:4], **args) == []  # one model: nothing to estimate from


def test_shipped_effects_are_sound() -> None:
    spread = shipped_spread()
    assert 0.0 < spread.v_noise < spread.v_whole < 0.1
    assert spread.factor >= 1.0
    for more in spread.extra.values():
        assert all(0.0 <= more[f"{name}_common"] <= 1.0 and more[name] >= 0.0 for name in ("device", "trainer"))
