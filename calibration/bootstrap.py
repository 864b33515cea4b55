"""How sure the scores themselves are: bootstrap intervals that resample whole groups of runs.

Runs of one model from one source share their mistakes, so a group (source, model) is drawn as a whole (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, ch. 8 and 13). Seeded: same cases, same intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from calibration.validate import Row

Array = npt.NDArray[np.float64]

SEED, DRAWS = 7, 2000
SHARE = 0.95  # of the draws that an interval holds
CLOSE = 0.10  # the error that "within 10 %" means

STATISTICS: Mapping[str, Callable[[Array], float]] = {
    "mape": lambda e: float(np.mean(np.abs(e))),
    "bias": lambda e: float(np.mean(e)),
    "p90_ape": lambda e: float(np.quantile(np.abs(e), 0.9)),
    "close": lambda e: float(np.mean(np.abs(e) <= CLOSE)),
}


def intervals(cases: Sequence[Row], *, draws: int = DRAWS) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) of every statistic of `STATISTICS` over the errors of the cases; empty without cases.

    Bounds: percentiles of `draws` resamples, each as many groups as there are, drawn with replacement.
    """
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case in cases:
        assert case.error is not None
        groups[(case.group.get("source", ""), case.group.get("model", ""))].append(case.error)
    if not groups:
        return {}
    parts = [np.array(groups[name]) for name in sorted(groups)]
    whole = np.concatenate(parts)
    random = np.random.default_rng(SEED)
    picks = random.integers(len(parts), size=(draws, len(parts)))
    samples = [np.concatenate([parts[i] for i in pick]) for pick in picks]
    tail = 100.0 * (1.0 - SHARE) / 2.0
    out = {}
    for name, statistic in STATISTICS.items():
        low, high = np.percentile([statistic(sample) for sample in samples], (tail, 100.0 - tail))
        out[name] = statistic(whole), float(low), float(high)
    return out
