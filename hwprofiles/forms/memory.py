"""Time of a memory-bound kernel class from the bytes it must move: the measured points, interpolated.

`bytes` are those of a kernel that reads each input once and writes each output once. What an eager sequence
of small kernels moves besides is in the measured time, so that the rate may lie far below the memory's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.interpolate import Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryCurve:
    """One class and pass: measured bytes (rising) and seconds; `floor_s` is what no bytes at all would take."""

    floor_s: float
    bytes: Floats
    time_s: Floats

    def seconds(self, nbytes: Any) -> Floats:
        """Seconds to move `nbytes`.

        Between measured sizes log(time) is linear in log(bytes); above the largest its rate is held; below the
        smallest the time falls in proportion to the bytes, down to the floor.
        """
        asked = np.asarray(nbytes, dtype=np.float64)
        low, high = self.bytes[0], self.bytes[-1]
        inside = np.exp(np.interp(np.log(np.clip(asked, low, high)), np.log(self.bytes), np.log(self.time_s)))
        floor = min(self.floor_s, float(self.time_s[0]))
        small = floor + (self.time_s[0] - floor) * asked / low
        result: Floats = np.where(asked < low, small, inside * np.maximum(asked / high, 1.0))
        return np.where(asked > 0.0, result, 0.0)
