"""Conformal bounds: order statistics, coverage on what was not seen, the file, and how predictions read it."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import intervals
from calibration.intervals import KINDS, NEARER, Residual
from calibration.spread import shipped_spread, spread_from
from hwprofiles import catalogue
from sim.interval import DISTANCES, Novelty, interval, limits, novelty, peak_interval


def residual(ratio: float, *, kind: str = "moe", distance: str = "same", group: str = "g", **more: float) -> Residual:
    return Residual(
        kind=kind, distance=distance, residual=math.log(ratio), group=group, source=group, model=group, device="d",
        release="r", **more,
    )  # fmt: skip


DENSE = residual(1.0, kind="dense", group="dense")


def test_bounds_are_the_order_statistics_of_the_rule() -> None:
    ratios = [0.5 + 0.05 * i for i in range(19)]  # n + 1 = 20: the 2nd and the 18th
    assert intervals.conformal(list(reversed(ratios))) == (pytest.approx(0.55), pytest.approx(1.35))


def test_equal_weights_change_nothing_and_a_light_run_decides_little() -> None:
    ratios = [0.5 + 0.05 * i for i in range(19)]
    assert intervals.conformal(ratios, [0.3] * 19) == intervals.conformal(ratios)
    heavy = intervals.conformal([*ratios, 9.0, 9.0, 9.0], [1.0] * 19 + [0.01] * 3)
    assert heavy[1] < 1.5 < intervals.conformal([*ratios, 9.0, 9.0, 9.0])[1]


def test_few_residuals_give_their_range() -> None:
    assert intervals.conformal([0.9, 1.3]) == (0.9, 1.3)
    with pytest.raises(ValueError, match="no residuals"):
        intervals.conformal([])


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=60))
def test_bounds_hold_the_prediction_and_four_in_five(ratios: list[float]) -> None:
    low, high = intervals.conformal(ratios)
    assert low <= 1.0 <= high
    assert sum(low <= r <= high for r in ratios) >= 0.8 * len(ratios)


def test_coverage_of_new_draws_is_eighty_percent() -> None:
    rng = np.random.default_rng(7)
    inside = []
    for _ in range(400):
        draws = np.exp(rng.normal(0.0, 0.15, 61))
        low, high = intervals.conformal(draws[:-1].tolist())
        inside.append(low <= draws[-1] <= high)
    assert 0.75 < np.mean(inside) < 0.88  # 0.8 plus at most 2 / (n + 1), and four standard errors of 400 draws


def test_a_class_that_shares_less_is_never_narrower() -> None:
    near = [residual(1.0 + 0.02 * i) for i in range(-9, 10)]
    far = [residual(1.0, distance="new model") for _ in range(19)]  # luck: all exact
    got = intervals.bounds([*near, *far, DENSE])["moe"]
    assert got["new model"] == got["same"]
    assert got["new trainer"] == got["same"]  # no run of its own: what the nearer classes say
    for distance in DISTANCES:
        for nearer in NEARER[distance]:
            assert got[distance][0] <= got[nearer][0] and got[nearer][1] <= got[distance][1]


def test_coverage_is_of_bounds_that_have_not_seen_the_group() -> None:
    """Groups far apart: each lies outside the bounds of the other, though all lie inside their own."""
    slow = [residual(1.5 + 0.01 * i, group="slow") for i in range(5)]
    fast = [residual(0.5 + 0.01 * i, group="fast") for i in range(5)]
    dense = [residual(1.0, kind="dense", group=f"d{i}") for i in range(2)]
    everything = [*slow, *fast, *dense]
    assert intervals.covered(everything, intervals.bounds(everything)) == 1.0
    found = intervals.coverages(everything)
    assert [(c.kind, c.distance, c.coverage) for c in found] == [("moe", "same", 0.0), ("dense", "same", 1.0)]
    assert intervals.pooled(found) == pytest.approx(2 / 12)


def test_exchangeable_groups_are_covered_by_class() -> None:
    rng = np.random.default_rng(11)
    rows = [
        residual(float(np.exp(rng.normal(0.0, sd))), kind=kind, distance=distance, group=f"g{i % 20}")
        for kind in KINDS
        for distance, sd in (("same", 0.05), ("new model", 0.1), ("new device", 0.2))
        for i in range(200)
    ]
    found = {(c.kind, c.distance): c for c in intervals.coverages(rows)}
    assert all(0.7 < c.coverage < 0.9 for c in found.values())
    assert found[("moe", "same")].half_width < found[("moe", "new model")].half_width
    more = intervals.extra(rows, intervals.bounds(rows))["moe"]
    assert more["device"] == pytest.approx((0.2 / 0.05) ** 2 - 1.0, rel=0.35)
    assert more["device_common"] < 0.1  # the residuals of a device's models have nothing in common


def test_what_models_share_is_the_product_of_their_residuals() -> None:
    a, b = (residual(math.exp(x), distance="new device", group=name) for x, name in ((0.2, "a"), (0.3, "b")))
    assert intervals.shared_variance([a, b], ("device",)) == pytest.approx(0.06)
    assert intervals.shared_variance([a, replace(b, device="e")], ("device",)) == 0.0


def test_file_names_its_source_and_repeats() -> None:
    rows = [residual(1.0 + 0.01 * i) for i in range(-9, 10)] + [DENSE]
    found = intervals.bounds(rows)
    known = {"models": ["b", "a", "a"], "devices": ["h100"], "releases": ["r"], "trainers": ["t"]}
    args = (found, {("moe", "same"): 19}, (0.9, 1.1, 4), shipped_spread())
    text = intervals.render(*args, date="2026-01-02", known=known)
    data = tomllib.loads(text)
    assert text == intervals.render(*args, date="2026-01-02", known=known)
    assert data["models"] == ["a", "b"]
    entry = data["step"]["moe"]["same"]
    assert (entry["low"], entry["high"]) == pytest.approx(found["moe"]["same"], abs=1e-4) and entry["cases"] == 19
    assert data["memory"] == {"low": 0.9, "high": 1.1, "rows": 4}
    assert spread_from(data["anchors"]) == shipped_spread()
    assert set(data["source"]) == {"kind", "title", "where", "date", "licence", "note"} and all(data["source"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_classes_are_ordered_and_hold_the_prediction(kind: str) -> None:
    for distance in DISTANCES:
        low, high = limits(distance, is_moe=kind == "moe")
        assert low < 1.0 < high
        for nearer in NEARER[distance]:
            inner = limits(nearer, is_moe=kind == "moe")
            assert low <= inner[0] and inner[1] <= high


@pytest.mark.parametrize("is_moe", [True, False])
def test_prediction_reads_the_shipped_bounds(is_moe: bool) -> None:
    device, software = catalogue.device("H100"), catalogue.software("megatron-bridge-26.04")
    got = interval(2.0, model="DeepSeek-V3", is_moe=is_moe, device=device, software=software)
    low, high = limits("same", is_moe=is_moe)
    assert (got.value, got.low, got.high) == pytest.approx((2.0, 2.0 * low, 2.0 * high))
    peak = peak_interval(10.0)
    assert peak.low < peak.value == 10.0 < peak.high


def test_distance_is_what_a_prediction_does_not_share() -> None:
    h100, a100, borrowed = (catalogue.device(name) for name in ("H100", "A100-40GB", "H800"))
    known = catalogue.software("megatron-bridge-26.04")
    release, trainer = replace(known, name="26.99"), replace(known, name="mine", trainer="mine")
    model, other = "DeepSeek-V3", "a model of one's own"
    assert novelty(model, h100, known).distance == novelty(model, a100, known).distance == "same"
    assert novelty(other, h100, known).distance == "new model"
    assert novelty(model, h100, release).distance == novelty(other, h100, release).distance == "new release"
    assert novelty(model, borrowed, known).distance == "new device"
    assert novelty(other, borrowed, release).distance == "new model and device"
    assert novelty(other, borrowed, trainer).distance == "new trainer and device"
    assert novelty(other, h100, trainer).distance == "new trainer"
    assert novelty(model, catalogue.device("H200"), known).device  # tables of its own, but no run
    assert Novelty(model=False, device=False, release=False, trainer=False).distance == "same"


@pytest.mark.parametrize("is_moe", [True, False])
def test_another_vendors_kernels_are_the_widest_class(is_moe: bool) -> None:
    """Bounds of every other class lie inside those of a device scaled from another vendor's, strictly."""
    low, high = limits("new vendor", is_moe=is_moe)
    for distance in (*DISTANCES, "new trainer and device"):
        inner = limits(distance, is_moe=is_moe)
        assert low < inner[0] and inner[1] < high
    assert limits("new trainer and device", is_moe=is_moe)[1] >= limits("new trainer", is_moe=is_moe)[1]


@pytest.mark.parametrize("is_moe", [True, False])
@pytest.mark.parametrize("name", ["H100 PCIe", "V100", "B300", "L4"])
def test_scaled_kernels_are_wider_than_a_new_device_with_its_own(name: str, *, is_moe: bool) -> None:
    """What is left out of the fit keeps its kernels; bounds of scaled ones hold runs predicted without them."""
    device, known = catalogue.device(name), catalogue.software("megatron-bridge-26.04")
    mine = replace(known, name="mine", trainer="mine")
    assert novelty("DeepSeek-V3", device, known).distance == "scaled device"
    assert novelty("DeepSeek-V3", device, mine).distance == "new trainer and scaled device"
    own, scaled = limits("new model and device", is_moe=is_moe), limits("scaled device", is_moe=is_moe)
    assert scaled[0] <= own[0] and own[1] < scaled[1]
    assert scaled[1] / scaled[0] > 1.1 * own[1] / own[0]
    for wider, inner in (("new trainer and scaled device", "scaled device"), ("new vendor", "scaled device")):
        low, high = limits(wider, is_moe=is_moe)
        assert low <= scaled[0] and scaled[1] <= high, (wider, inner)


def test_partly_measured_devices_do_not_count_as_scaled() -> None:
    """GB300 takes only what its tables lack from GB200."""
    known = catalogue.software("megatron-bridge-26.04")
    assert novelty("DeepSeek-V3", catalogue.device("GB300"), known).distance == "new device"


@pytest.mark.parametrize("is_moe", [True, False])
@pytest.mark.parametrize("trainer", ["megatron-bridge-26.04", "mine"])
def test_never_narrower_than_scaled_inside_a_vendor(trainer: str, *, is_moe: bool) -> None:
    profile = catalogue.software("megatron-bridge-26.04")
    profile = profile if trainer == profile.name else replace(profile, name=trainer, trainer=trainer)
    inside = replace(catalogue.device("MI300X"), vendor=catalogue.device("H200").vendor)
    for model in ("DeepSeek-V3", "a model of one's own"):
        near, far, unstated = (
            interval(1.0, model=model, is_moe=is_moe, device=device, software=profile)
            for device in (inside, catalogue.device("MI300X"), replace(inside, vendor=""))
        )
        assert far.low < near.low < 1.0 < near.high < far.high
        assert (unstated.low, unstated.high) == (far.low, far.high)


def test_vendors_of_the_catalogue() -> None:
    known = catalogue.software("megatron-lm")
    devices = [catalogue.device(name) for name in catalogue.names("devices")]
    assert all(device.vendor for device in devices)
    other = {device.name for device in devices if novelty("", device, known).vendor}
    assert other == {device.name for device in devices if device.vendor != "NVIDIA"}
    borrowed = replace(catalogue.device("H800"), vendor="AMD")
    assert novelty("", borrowed, known).vendor and not novelty("", replace(borrowed, vendor=""), known).vendor
    assert not novelty("", replace(borrowed, measured="/my/tables"), known).vendor  # measured on itself


def test_unknown_switches_make_a_known_release_as_good_as_new() -> None:
    device, known = catalogue.device("H100"), catalogue.software("megatron-bridge-26.04")
    guessed, model = replace(known, unknown=("cuda_graph",)), "DeepSeek-V3"
    assert novelty(model, device, known).distance == "same"
    assert novelty(model, device, guessed).distance == novelty("mine", device, guessed).distance == "new release"
    assert novelty(model, device, replace(guessed, name="mine", trainer="mine")).distance == "new trainer"
    for is_moe in (True, False):
        plain, wide = (
            interval(1.0, model=model, is_moe=is_moe, device=device, software=s) for s in (known, guessed)
        )  # fmt: skip
        assert wide.low <= plain.low and wide.high >= plain.high
        assert (wide.low, wide.high) == limits("new release", is_moe=is_moe)


def test_a_switch_that_a_run_states_is_no_longer_unknown() -> None:
    device, profile = catalogue.device("H100"), catalogue.software("nemo-25.04", device="H100")
    assert profile.unknown and novelty("Llama3-70B", device, profile).distance == "new release"
    assert novelty("Llama3-70B", device, replace(profile, unknown=())).distance == "same"
