"""Intervals of predictions, by what a prediction shares with the runs it was calibrated on.

`hwprofiles/fitted/intervals.toml` (written by calibration/distances.py) names the models, devices, releases and
trainers of those runs and holds, per class of distance, the bounds of measured over predicted that hold 80 % of the
residuals of runs left out of the fit in just that way. Own measured runs narrow them (`Adjustment`,
made by calibration/anchors.py).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from hwprofiles import catalogue
from hwprofiles.folders import is_own
from hwprofiles.specs import DeviceSpec, SoftwareProfile
from sim.report import Adjustment, Estimate, Report

# Nearest first. A class further out is never narrower than one that shares more (calibration/intervals.py).
# Classes with measured residuals of the same predictions; further ones are made of them (`limits`).
DISTANCES = ("same", "new model", "new release", "new device", "new model and device", "new trainer")

BOTH = "new trainer and device"
SCALED = "scaled device"
SCALED_BOTH = "new trainer and scaled device"
VENDOR = "new vendor"
# Classes that hold others.
MADE_OF: Mapping[str, tuple[str, ...]] = {
    BOTH: ("new model and device", "new trainer"), SCALED: ("new model and device",),
    SCALED_BOTH: (SCALED, "new trainer"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Novelty:
    """What a prediction does not share with the calibrated runs. release: its release, of a trainer that they do share,
    or what a switch of it is set to: a release with `unknown` switches is as good as new. scaled: all its kernels are
    those of another device, scaled; vendor: of a device of another vendor."""

    model: bool
    device: bool
    release: bool
    trainer: bool
    scaled: bool = False
    vendor: bool = False

    @property
    def distance(self) -> str:
        """The class: the worst of what is new; a new release or trainer counts with a new model as without."""
        if self.vendor:
            return VENDOR
        if self.scaled:
            return SCALED_BOTH if self.trainer else SCALED
        if self.trainer:
            return BOTH if self.device else "new trainer"
        if self.device:
            return "new model and device" if self.model else "new device"
        return "new release" if self.release else "new model" if self.model else "same"


@lru_cache(maxsize=1)
def fitted_intervals() -> Mapping[str, Any]:
    """The file as it is shipped."""
    path = resources.files("hwprofiles") / "fitted" / "intervals.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def scaled_bounds() -> Mapping[str, Any]:
    """Bounds by kind of model of runs predicted on scaled kernels (hwprofiles/fitted/scaled.toml)."""
    path = resources.files("hwprofiles") / "fitted" / "scaled.toml"
    return dict(tomllib.loads(path.read_text(encoding="utf-8"))["step"])


@lru_cache(maxsize=1)
def vendor_widening() -> float:
    """Exponent on the bounds of a device with another vendor's kernels (hwprofiles/fitted/vendors.toml says why)."""
    path = resources.files("hwprofiles") / "fitted" / "vendors.toml"
    return float(tomllib.loads(path.read_text(encoding="utf-8"))["widening"])


def forget() -> None:
    """Read the file anew at the next prediction (for the calibration that has just written it)."""
    fitted_intervals.cache_clear()


def novelty(model: str, device: DeviceSpec, software: SoftwareProfile) -> Novelty:
    """What is new, by the name of the model, the kernel tables of the device and the name of the release.

    A release whose profile leaves switches `unknown` counts as new however many of its runs were calibrated on: what a
    run has them set to is not known, and the values assumed for them carry the error of that guess. A switch that a
    run's own columns state is no longer unknown. A device that borrows another chip's tables, or has a profile of its
    own, is new: no run was measured on it (the same chip with other memory is not).
    """
    known = fitted_intervals()
    borrowed = is_own(device.measured) or device.measured.lower() != device.name.lower().split("-")[0]
    trainer = software.trainer not in known["trainers"]
    return Novelty(
        model=model not in known["models"], device=borrowed or device.measured not in known["devices"],
        release=not trainer and (software.name not in known["releases"] or bool(software.unknown)), trainer=trainer,
        scaled=bool(device.scaled_from) and not device.measured, vendor=_other_vendor(device),
    )  # fmt: skip


def _other_vendor(device: DeviceSpec) -> bool:
    """Whether the kernels are another vendor's: scaled from its device, where a vendor that is not stated counts as
    another, or its tables as they are."""
    if device.scaled_from:
        return _vendor_of(device.scaled_from) != device.vendor
    if is_own(device.measured) or not device.vendor:
        return False
    return _vendor_of(device.measured) != device.vendor


@cache
def _vendor_of(name: str) -> str:
    return catalogue.device(name).vendor


def limits(distance: str, *, is_moe: bool) -> tuple[float, float]:
    """(low, high) of measured over predicted step time that hold 80 % in a class of distance.

    A new trainer on a new device: what holds both classes. Scaled kernels: what holds a new device and the published
    runs predicted on such kernels (a device left out of the fit keeps its own ones). Another vendor's kernels: what
    holds a new trainer and scaled kernels, its logarithms times `vendor_widening`.
    """
    kind = "moe" if is_moe else "dense"
    if distance == VENDOR:
        low, high = limits(SCALED_BOTH, is_moe=is_moe)
        return low ** vendor_widening(), high ** vendor_widening()
    if distance in MADE_OF:
        pair = [limits(name, is_moe=is_moe) for name in MADE_OF[distance]]
        if distance == SCALED:
            entry = scaled_bounds()[kind]
            pair.append((float(entry["low"]), float(entry["high"])))
        return min(low for low, _ in pair), max(high for _, high in pair)
    entry = fitted_intervals()["step"][kind][distance]
    return float(entry["low"]), float(entry["high"])


def interval(
    step_s: float, *, model: str, is_moe: bool, device: DeviceSpec, software: SoftwareProfile
) -> Estimate:  # fmt: skip
    """80 % interval around a predicted step time."""
    low, high = limits(novelty(model, device, software).distance, is_moe=is_moe)
    return Estimate(value=step_s, low=step_s * low, high=step_s * high)


def peak_interval(peak_bytes: float) -> Estimate:
    """80 % interval around a predicted peak memory, from published peaks (no parameter is fitted to them)."""
    entry = fitted_intervals()["memory"]
    return Estimate(value=peak_bytes, low=peak_bytes * float(entry["low"]), high=peak_bytes * float(entry["high"]))


def anchored(value: Estimate, adjustment: Adjustment) -> Estimate:
    """A time after anchoring: moved by the factor, its bounds nearer in the logarithm by the share that is left."""
    moved = value.value * adjustment.factor
    low, high = (
        moved * math.exp(adjustment.share * math.log(bound / value.value)) for bound in (value.low, value.high)
    )
    return Estimate(value=moved, low=low, high=high)


def adjusted(report: Report, adjustment: Adjustment) -> Report:
    """The report with every second of the step (and what follows from it) moved by the anchors' one factor.

    The shares of the breakdown stay as simulated: anchors say how long a step took, not where the time went. The
    trace and the use of the links stay those of the simulation.
    """
    by = adjustment.factor
    noise = report.imbalance
    return replace(
        report,
        step_s=anchored(report.step_s, adjustment),
        tokens_per_s_per_gpu=_inverse(report.tokens_per_s_per_gpu, adjustment),
        mfu=_inverse(report.mfu, adjustment),
        tflops_per_gpu=report.tflops_per_gpu / by,
        usd_per_step=None if report.usd_per_step is None else report.usd_per_step * by,
        breakdown={name: seconds * by for name, seconds in report.breakdown.items()},
        exposed_comm_s={axis: seconds * by for axis, seconds in report.exposed_comm_s.items()},
        bound_s=report.bound_s * by,
        imbalance=None
        if noise is None
        else replace(
            noise, balanced_step_s=noise.balanced_step_s * by, step_p10_s=noise.step_p10_s * by,
            step_p50_s=noise.step_p50_s * by, step_p90_s=noise.step_p90_s * by, step_p99_s=noise.step_p99_s * by,
        ),
        anchored=adjustment,
    )  # fmt: skip


def _inverse(rate: Estimate, adjustment: Adjustment) -> Estimate:
    """A rate after anchoring: as one over a time."""
    return anchored(rate.inverse(1.0), adjustment).inverse(1.0)
