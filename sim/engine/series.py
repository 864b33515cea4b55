"""Loads of links over time: the engine's own steps, and traffic that was not run laid on top of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

Loads = Mapping[tuple[int, str], tuple[tuple[float, float], ...]]  # of (lane, link): (time_s, bytes/s from then on)
Moved = tuple[tuple[int, str], float, float, float]  # (lane, link), from_s, to_s, bytes


def with_moved(rates: Loads, moved: Iterable[Moved]) -> Loads:
    """Loads of links with more bytes ((lane, link), from_s, to_s, bytes) on them, each spread evenly over its time."""
    changes: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for key, start_s, end_s, size in moved:
        if end_s > start_s and size > 0.0:
            rate = size / (end_s - start_s)
            changes[key] += [(start_s, rate), (end_s, -rate)]
    out = dict(rates)
    for key, steps in changes.items():
        levels = [0.0, *(rate for _, rate in out.get(key, ()))]
        steps += [(at_s, after - before) for (at_s, after), before in zip(out.get(key, ()), levels, strict=False)]
        out[key] = _steps(steps)
    return dict(sorted(out.items()))


def _steps(changes: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Changes (time_s, bytes/s more or less) as steps (time_s, bytes/s from then on); rounding is no load."""
    least = 1e-9 * max(abs(change) for _, change in changes)
    out: list[tuple[float, float]] = []
    rate = 0.0
    for at_s, change in sorted(changes):
        rate += change
        level = rate if rate > least else 0.0
        if out and out[-1][0] == at_s:
            out.pop()
        if level != (out[-1][1] if out else 0.0):
            out.append((at_s, level))
    return tuple(out)
