"""Intervals of predictions: quantiles of left-out residuals, by distance from what was calibrated.

`hwprofiles/fitted/intervals.toml` (written by calibration/intervals.py) holds, per class, the 10 % and 90 %
quantiles of measured over predicted step time from leave-one-model-out predictions, a widening for trainers
outside the fit (from published runs of such trainers), and two widenings that are assumptions.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Any

from hwprofiles.folders import is_own
from hwprofiles.specs import DeviceSpec, SoftwareProfile
from sim.report import Estimate


@lru_cache(maxsize=1)
def _classes() -> dict[str, Any]:
    path = resources.files("hwprofiles") / "fitted" / "intervals.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def forget() -> None:
    """Read the file anew at the next prediction (for the calibration that has just written it)."""
    _classes.cache_clear()


def widening(device: DeviceSpec, software: SoftwareProfile, *, trainer: bool = True) -> float:
    """Factor on the distance of both bounds from the prediction.

    `borrowed` where the device uses another chip's kernel tables (the same chip with other memory does not
    borrow, nor does one with a profile of its own), `unknown_switch` where any switch of the release is not known,
    `new_trainer` where no run of the fit used this release (trainer=False leaves that one out).
    """
    data = _classes()
    factor = 1.0
    if not is_own(device.measured) and device.measured.lower() != device.name.lower().split("-")[0]:
        factor *= float(data["borrowed"])
    if software.unknown:
        factor *= float(data["unknown_switch"])
    if trainer and software.name not in data["calibrated"]:
        factor *= float(data["new_trainer"])
    return factor


def interval(step_s: float, *, is_moe: bool, device: DeviceSpec, software: SoftwareProfile) -> Estimate:
    """80 % interval around a predicted step time.

    Class: "moe" or "dense"; widened by `widening`.
    """
    entry = _classes()["moe" if is_moe else "dense"]
    widen = widening(device, software)
    low, high = 1.0 + (float(entry["low"]) - 1.0) * widen, 1.0 + (float(entry["high"]) - 1.0) * widen
    return Estimate(value=step_s, low=step_s * low, high=step_s * high)
