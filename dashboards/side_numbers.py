"""Numbers of scenarios side by side: what a plan record says, the best of each, and the change from a baseline.

A record is that of `planner.planfile.plan_record`, or one from a stranger's file: what is no number counts as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.style import gib_text, seconds_text, significant
from planner.compare import Side

SAME = 1e-7  # relative: a smaller change is rounding


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that scenarios are compared by. read: from a side, None where it has none; low: less is better (None:
    neither is); text: as a reader sees it."""

    name: str
    read: Callable[[Side], float | None]
    text: Callable[[float], str]
    low: bool | None = True

    def change(self, value: float, base: float) -> str:
        """The change from the baseline; of a share in points, as a percentage of a percentage misleads."""
        same = abs(value - base) <= SAME * max(abs(value), abs(base))
        return f"{100 * (value - base):+.1f} points" if self.text is percent and not same else change_text(value, base)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure against the baseline. ratio: value / base; better: None where neither is, or nothing changed."""

    name: str
    value: float
    base: float
    text: str
    better: bool | None


def number(value: Any) -> float | None:
    """The value of an estimate or a plain number; None for anything else."""
    found = value.get("value") if isinstance(value, Mapping) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def interval(value: Any) -> tuple[float, float]:
    """(below, above) the value, both 0 where no interval is known."""
    middle = number(value)
    if middle is None or not isinstance(value, Mapping):
        return 0.0, 0.0
    low, high = number(value.get("low")), number(value.get("high"))
    return (0.0, 0.0) if low is None or high is None else (max(0.0, middle - low), max(0.0, high - middle))


def _of(name: str) -> Callable[[Side], float | None]:
    return lambda side: number(side.record.get(name))


def devices_of(side: Side) -> int:
    """GPUs of a side."""
    said = number(side.asked.get("devices"))
    return 0 if said is None else int(said)


def _all_tokens(side: Side) -> float | None:
    rate = number(side.record.get("tokens_per_s_per_gpu"))
    return None if rate is None or not devices_of(side) else rate * devices_of(side)


def usd_per_billion(side: Side) -> float | None:
    """USD of 1e9 tokens, from what a step costs and holds."""
    usd, step, rate = number(side.record.get("usd_per_step")), number(side.record.get("step_s")), _all_tokens(side)
    return None if usd is None or not step or not rate else usd / (rate * step) * 1e9


def _exposed(side: Side) -> float | None:
    found = side.record.get("exposed_comm_s")
    return None if not isinstance(found, Mapping) else sum(number(v) or 0.0 for v in found.values())


def percent(value: float) -> str:
    """A share in percent, one decimal."""
    return f"{100 * value:.1f} %"


def _dollars(value: float) -> str:
    return f"${significant(value, 4)}"


MEASURES: tuple[Measure, ...] = (
    Measure(name="step time", read=_of("step_s"), text=lambda v: seconds_text(v, 4)),
    Measure(name="tokens/s per GPU", read=_of("tokens_per_s_per_gpu"), text=lambda v: significant(v, 4), low=False),
    Measure(name="tokens/s", read=_all_tokens, text=lambda v: significant(v, 4), low=False),
    Measure(name="model FLOP utilisation", read=_of("mfu"), text=percent, low=False),
    Measure(name="TFLOP/s per GPU", read=_of("tflops_per_gpu"), text=significant, low=False),
    Measure(name="USD per step", read=_of("usd_per_step"), text=_dollars),
    Measure(name="USD per 1e9 tokens", read=usd_per_billion, text=_dollars),
    Measure(name="peak memory", read=_of("peak_mem_bytes"), text=gib_text),
    Measure(name="usable memory", read=_of("usable_mem_bytes"), text=gib_text, low=None),
    Measure(name="pipeline bubble", read=_of("bubble_fraction"), text=percent),
    Measure(name="exposed communication", read=_exposed, text=seconds_text),
    Measure(name="GPUs", read=lambda side: float(devices_of(side)) or None, text=lambda v: f"{v:,.0f}", low=None),
)  # fmt: skip


def differences(side: Side, baseline: Side) -> dict[str, Change]:
    """Every figure that both sides have, against the baseline, by name; what did not change says so."""
    out = {}
    for measure in MEASURES:
        value, base = measure.read(side), measure.read(baseline)
        if value is None or base is None:
            continue
        out[measure.name] = Change(name=measure.name, value=value, base=base, text=measure.change(value, base),
                                  better=_better(value, base, measure.low))  # fmt: skip
    return out


def change_text(value: float, base: float) -> str:
    """`+3.2 %` against the baseline, `×2.4` beyond a factor of two, `same`."""
    if abs(value - base) <= SAME * max(abs(value), abs(base)):
        return "same"
    if base == 0.0:
        return "from zero"
    ratio = value / base
    if ratio >= 2.0 or ratio <= 0.5:
        return f"×{significant(ratio)}"
    share = 100 * (ratio - 1.0)
    return f"{share:+.2f} %" if abs(share) < 0.995 else f"{share:+.1f} %"


def _better(value: float, base: float, low: bool | None) -> bool | None:
    if low is None or abs(value - base) <= SAME * max(abs(value), abs(base)):
        return None
    return (value < base) == low


def best_of(measure: Measure, sides: Sequence[Side]) -> set[int]:
    """Places of the sides that are best by a measure; empty where all are alike or none can be better.

    A side that does not fit cannot run, so it is best in nothing where another fits.
    """
    fitting = any(side.record.get("fits") is not False for side in sides)
    found = {
        i: value for i, side in enumerate(sides)
        if (value := measure.read(side)) is not None and not (fitting and side.record.get("fits") is False)
    }  # fmt: skip
    if measure.low is None or len(found) < 2:
        return set()
    best, worst = (pick(found.values()) for pick in ((min, max) if measure.low else (max, min)))
    near = SAME * max(abs(best), abs(worst))
    return set() if abs(best - worst) <= near else {i for i, v in found.items() if abs(v - best) <= near}
