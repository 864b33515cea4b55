"""What failures leave of a long run: checkpoint interval, expected time and its spread, in closed form.

Failures of a cluster are a Poisson process with mean time `mtbf_s` between them. Work is done in segments of
`interval_s`, each followed by a checkpoint of `cost_s`; a failure loses the segment under way and takes `restart_s`, in
which the next failure may strike. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
Future Generation Computer Systems 22 (2006); Young, Communications of the ACM 17 (1974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import lambertw

HOPELESS = 50.0  # a segment so many times longer than the mean time between failures does not end (e^50)
SHORT = 1e-4  # segments over the mean time between failures: below it a series is more exact than the difference


def system_mtbf_s(node_mtbf_s: float, nodes: int) -> float:
    """Mean seconds between failures of any of `nodes` nodes that fail independently."""
    return node_mtbf_s / nodes


def young_interval_s(cost_s: float, mtbf_s: float) -> float:
    """Young's interval of work between checkpoints in seconds: sqrt(2 C M).

    >>> young_interval_s(2.0, 100.0)
    20.0
    """
    return math.sqrt(2.0 * cost_s * mtbf_s)


def daly_interval_s(cost_s: float, mtbf_s: float) -> float:
    """Daly's interval of work between checkpoints in seconds (his equation 37); M where a checkpoint takes over 2 M."""
    if cost_s >= 2.0 * mtbf_s:
        return mtbf_s
    x = cost_s / (2.0 * mtbf_s)
    return young_interval_s(cost_s, mtbf_s) * (1.0 + math.sqrt(x) / 3.0 + x / 9.0) - cost_s


def exact_interval_s(cost_s: float, mtbf_s: float) -> float:
    """The interval in seconds that makes `expected_s` least: M (1 + W(-exp(-1 - C/M))), W Lambert's function.

    From the zero of the derivative of (exp((t + C)/M) - 1)/t.
    """
    return mtbf_s * (1.0 + float(lambertw(-math.exp(-1.0 - cost_s / mtbf_s)).real))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and variance of a duration, in seconds and their square."""

    mean_s: float
    variance_s2: float


def _lost(length_s: float, mtbf_s: float) -> Spread:
    """Time into a piece of work at which a failure strikes, given that one does before its end."""
    x = length_s / mtbf_s
    if x < SHORT:
        return Spread(mean_s=length_s * (0.5 - x / 12.0), variance_s2=length_s**2 / 12.0)
    success = math.exp(-x)
    failure = -math.expm1(-x)
    mean = mtbf_s - length_s * success / failure
    square = (2.0 * mtbf_s**2 - success * (length_s**2 + 2.0 * length_s * mtbf_s + 2.0 * mtbf_s**2)) / failure
    return Spread(mean_s=mean, variance_s2=max(0.0, square - mean**2))


def repeated(length_s: float, mtbf_s: float, repair: Spread | None = None) -> Spread:
    """Time until a piece of work ends that starts again after each failure, with `repair` before every new attempt.

    Attempts that fail are geometric in number; each costs the time until its failure and the repair.
    """
    if length_s <= 0.0:
        return Spread(mean_s=0.0, variance_s2=0.0)
    if length_s / mtbf_s > HOPELESS:
        return Spread(mean_s=math.inf, variance_s2=math.inf)
    fix = repair or Spread(mean_s=0.0, variance_s2=0.0)
    success = math.exp(-length_s / mtbf_s)
    failures, spread = math.expm1(length_s / mtbf_s), -math.expm1(-length_s / mtbf_s) / success**2
    lost = _lost(length_s, mtbf_s)
    each = lost.mean_s + fix.mean_s
    return Spread(
        mean_s=length_s + failures * each,
        variance_s2=failures * (lost.variance_s2 + fix.variance_s2) + spread * each**2,
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A long run under failures. Parts sum to total_s: work, checkpoints, rework (lost since the last checkpoint),
    restarts. sd_s: standard deviation of the total; failures: expected number."""

    interval_s: float
    total_s: float
    sd_s: float
    work_s: float
    checkpoint_s: float
    rework_s: float
    restart_s: float
    failures: float

    @property
    def goodput(self) -> float:
        """Share of the time that is work that counts."""
        return self.work_s / self.total_s


def expected_s(work_s: float, interval_s: float, cost_s: float, mtbf_s: float, restart_s: float) -> float:
    """Mean seconds of a run: M exp(R/M) (exp((t + C)/M) - 1) T/t (Daly's complete model); inf where it does not end."""
    if max(interval_s + cost_s, restart_s) / mtbf_s > HOPELESS:
        return math.inf
    return mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((interval_s + cost_s) / mtbf_s) * work_s / interval_s


def long_run(work_s: float, *, cost_s: float, mtbf_s: float, restart_s: float, interval_s: float | None = None) -> Run:
    """A run of `work_s` seconds of work. interval_s: work between checkpoints (default: Daly's).

    mtbf_s may be inf (no failures): then no checkpoint is taken unless an interval is given.
    """
    if math.isinf(mtbf_s):
        written = 0.0 if interval_s is None else work_s / interval_s * cost_s
        return Run(
            interval_s=work_s if interval_s is None else interval_s, total_s=work_s + written, sd_s=0.0, work_s=work_s,
            checkpoint_s=written, rework_s=0.0, restart_s=0.0, failures=0.0,
        )  # fmt: skip
    least = mtbf_s * 1e-6  # free checkpoints: the interval of the limit
    interval = max(daly_interval_s(cost_s, mtbf_s), least) if interval_s is None else interval_s
    interval = min(interval, work_s)
    segments = work_s / interval
    repair = repeated(restart_s, mtbf_s)
    segment = repeated(interval + cost_s, mtbf_s, repair)
    total = segments * segment.mean_s
    if math.isinf(total):
        return Run(interval_s=interval, total_s=total, sd_s=total, work_s=work_s, checkpoint_s=segments * cost_s,
                   rework_s=total, restart_s=total, failures=total)  # fmt: skip
    repairs = segments * math.expm1((interval + cost_s) / mtbf_s) * repair.mean_s
    written = segments * cost_s
    return Run(
        interval_s=interval, total_s=total, sd_s=math.sqrt(segments * segment.variance_s2), work_s=work_s,
        checkpoint_s=written, rework_s=total - work_s - written - repairs, restart_s=repairs, failures=total / mtbf_s,
    )  # fmt: skip
