"""Intervals of predictions: quantiles of left-out residuals, by distance from what was calibrated.

`hwprofiles/fitted/intervals.toml` holds, per class, the 10 % and 90 % quantiles of measured over predicted
step time from leave-one-model-out predictions; a class without enough rows takes the wider parent.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Any

from hwprofiles.specs import DeviceSpec, SoftwareProfile
from sim.report import Estimate


@lru_cache(maxsize=1)
def _classes() -> dict[str, Any]:
    path = resources.files("hwprofiles") / "fitted" / "intervals.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def interval(step_s: float, *, is_moe: bool, device: DeviceSpec, software: SoftwareProfile) -> Estimate:
    """80 % interval around a predicted step time.

    Class: "moe" or "dense"; widened by `borrowed` where the device borrows another's tables and by
    `unknown_switch` once per release switch that is not known.
    """
    data = _classes()
    entry = data["moe" if is_moe else "dense"]
    low, high = float(entry["low"]), float(entry["high"])
    widen = 1.0
    if device.measured.lower() != device.name.lower():
        widen *= float(data["borrowed"])
    if software.unknown:
        widen *= float(data["unknown_switch"])
    return Estimate(value=step_s, low=step_s * (1.0 - (1.0 - low) * widen), high=step_s * (1.0 + (high - 1.0) * widen))
