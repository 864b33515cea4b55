"""The guess to beat: one constant model-FLOP utilisation per GPU and precision, the best in hindsight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from calibration.validate import Row


def best_constant(ratios: Sequence[float]) -> float:
    """The factor c that minimises the mean of |c a - 1| over ratios a: a weighted median of 1 / a.

    >>> best_constant([1.0, 1.0, 4.0])
    1.0
    >>> best_constant([2.0])
    0.5
    """
    a = np.sort(np.asarray(ratios, float))[::-1]
    weight = np.cumsum(a)
    return float(1.0 / a[int(np.searchsorted(weight, weight[-1] / 2.0))])


def constant_mfu(cases: Sequence[Row], ideal: Mapping[str, float], fields: Sequence[str]) -> list[Row]:
    """Cases as a constant MFU predicts them. ideal: tokens/s/GPU at 100 % MFU by case key.

    fields: group fields that share one constant. It is fitted to the same cases, which no prediction may
    do: it flatters the baseline. The constant goes into `reason`.
    """
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for case in cases:
        groups[tuple(case.group.get(f, "") for f in fields)].append(case)
    out = []
    for members in groups.values():
        known = [(c, c.measured) for c in members if c.measured is not None]
        mfu = best_constant([ideal[c.key] / measured for c, measured in known])
        for case, measured in known:
            value = mfu * ideal[case.key]
            out.append(
                replace(case, predicted=value, error=value / measured - 1.0, low=None, high=None, reason=f"{mfu:.4f}")
            )
    return out
