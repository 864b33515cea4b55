"""Variances of the effects behind left-out errors, estimated from pairs of runs.

Pairs of runs that share something are drawn together: each pair's two residuals are taken as bivariate Student t, so
that a few runs the simulator misses by half do not decide (a composite likelihood: Varin, Reid and Firth, Statistica
Sinica 21, 2011). Blocks of pairs (two setups) count by the root of their size, and each kind of pair (same setup, same
model on the device, same release on the device) counts equally.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from calibration.spread import Situation, Spread, differences, posterior
from sim.interval import Novelty

Array = npt.NDArray[np.float64]
TAILS = 4.0  # degrees of freedom of the Student t
FREE = ("v_model", "v_setup", "v_release", "v_noise", "l_seq", "l_devices", "l_tokens", "p_precision", "q_layout")
START = (3e-3, 1e-3, 1e-4, 4e-4, 4.0, 8.0, 6.0, 0.3, 0.3)
LARGEST = (0.2, 0.2, 0.2, 0.2, 32.0, 32.0, 32.0, 8.0, 8.0)
SMALLEST = (1e-6, 1e-6, 1e-6, 1e-6, 0.5, 0.5, 0.5, 1e-2, 1e-2)
DIGITS = 3  # kept: more are not known, and fewer depend on the machine
SHARE = 0.8  # that intervals hold
SETUP = ("device", "release", "model")
NOTHING_NEW = Novelty(model=False, device=False, release=False, trainer=False)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A run and its left-out log(measured / predicted step time). limits: bounds it is predicted with, where they are
    not those of its kind (of the `limits` that `fit_spread` takes)."""

    run: Situation
    residual: float
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """Pairs as columns: residuals, differences, whether setup or model are shared, weight."""

    residuals: Array
    differences: Array
    release: Array
    model: Array
    weight: Array


def _pairs(observed: Sequence[Observed]) -> _Pairs:
    rows = []
    for place, one in enumerate(observed):
        for other in observed[:place]:
            a, b = one.run, other.run
            release, model = a.release == b.release, a.model == b.model
            if a.device == b.device and (release or model):
                block = tuple(sorted(tuple(getattr(run, name) for name in SETUP) for run in (a, b)))
                rows.append((one.residual, other.residual, differences(a, b), release, model, block))
    sizes = Counter(row[5] for row in rows)
    weight = np.array([sizes[row[5]] ** -0.5 for row in rows])
    shared = np.array([row[3:5] for row in rows], float).reshape(-1, 2).T
    for kind in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
        mine = (shared[0] == kind[0]) & (shared[1] == kind[1])
        if mine.any():
            weight[mine] /= weight[mine].sum()
    return _Pairs(
        residuals=np.array([row[:2] for row in rows]).T, differences=np.array([row[2] for row in rows], float).T,
        release=shared[0], model=shared[1], weight=weight,
    )  # fmt: skip


def fit_spread(
    observed: Sequence[Observed], *, limits: Mapping[bool, tuple[float, float]], repeat_sd: float,
    extra: Mapping[str, Mapping[str, float]],
) -> Spread:  # fmt: skip
    """Variances and lengths that fit the pairs best, and the factor on widths that holds 80 % after one anchor.

    limits: bounds of measured over predicted of runs nothing is left out for, by is_moe. repeat_sd: of equal
    runs: the least noise. extra: as in `Spread`. Deterministic. Raises ValueError where no two runs share a device and
    a model or release.
    """
    pairs = _pairs(observed)
    if not len(pairs.weight):
        raise ValueError("no two runs share a device and a model or release")
    smallest = tuple(
        max(repeat_sd**2, low) if name == "v_noise" else low for name, low in zip(FREE, SMALLEST, strict=True)
    )
    bounds = [(math.log(low), math.log(high)) for low, high in zip(smallest, LARGEST, strict=True)]
    start = [max(low, math.log(value)) for value, (low, _) in zip(START, bounds, strict=True)]

    def cost(x: Array) -> float:
        s = Spread(**dict(zip(FREE, np.exp(x), strict=True)), factor=1.0, extra=extra)
        cross = s.v_release * pairs.release
        cross = cross + pairs.model * np.exp(-s.unlike(*pairs.differences)) * (s.v_model + s.v_setup * pairs.release)
        own = s.v_whole
        det = own * own - cross * cross
        a, b = pairs.residuals
        distance = (own * (a * a + b * b) - 2.0 * cross * a * b) / det
        terms = 0.5 * np.log(det) + (TAILS + 2.0) / 2.0 * np.log1p(distance / TAILS)
        return float(pairs.weight @ terms)

    best = minimize(cost, start, method="L-BFGS-B", bounds=bounds)
    values = {name: float(f"{math.exp(x):.{DIGITS}g}") for name, x in zip(FREE, best.x, strict=True)}
    spread = Spread(**values, factor=1.0, extra=extra)
    return replace(spread, factor=_factor(spread, observed, limits))


@dataclass(frozen=True, kw_only=True)
class OneAnchor:
    """One run predicted with one other as its anchor. after: its residual then; left: posterior over prior variance;
    weight: groups of runs count equally."""

    target: Observed
    anchor: Observed
    after: float
    left: float
    weight: float


def one_anchor(
    spread: Spread, observed: Sequence[Observed], *, within: Sequence[str] = SETUP, other_models: bool = False,
    new: Novelty = NOTHING_NEW,
) -> list[OneAnchor]:  # fmt: skip
    """Every run with every other run that shares the fields `within` as its one anchor; other_models: only with runs of
    another model. new: of the predictions."""
    groups: dict[tuple[str, ...], list[Observed]] = {}
    for each in observed:
        groups.setdefault(tuple(getattr(each.run, name) for name in within), []).append(each)
    out = []
    for members in groups.values():
        chosen = [
            (target, anchor)
            for target in members
            for anchor in members
            if target is not anchor and not (other_models and target.run.model == anchor.run.model)
        ]
        for target, anchor in chosen:
            got = posterior(spread, [anchor.run], [anchor.residual], target.run, new)
            after = target.residual - got.mean
            left = got.variance / got.prior
            out.append(OneAnchor(target=target, anchor=anchor, after=after, left=left, weight=1.0 / len(chosen)))
    return out


def crossed_anchors(
    observed: Sequence[Observed], *, limits: Mapping[bool, tuple[float, float]], repeat_sd: float,
    extra: Mapping[str, Mapping[str, float]],
) -> list[OneAnchor]:  # fmt: skip
    """`one_anchor` within setups, each model with variances estimated from the other models alone."""
    out = []
    for model in sorted({each.run.model for each in observed}):
        rest = [each for each in observed if each.run.model != model]
        try:
            spread = fit_spread(rest, limits=limits, repeat_sd=repeat_sd, extra=extra)
        except ValueError:  # no two of the others share anything: nothing to estimate from
            continue
        out += one_anchor(spread, [each for each in observed if each.run.model == model])
    return out


def nearest(found: Sequence[OneAnchor]) -> list[OneAnchor]:
    """Of each run the anchor that leaves the least variance, with the weight of all its pairs."""
    best: dict[int, OneAnchor] = {}
    weight: Counter[int] = Counter()
    for each in found:
        key = id(each.target)
        weight[key] += each.weight  # type: ignore[assignment]  # a counter adds floats as well
        if key not in best or each.left < best[key].left:
            best[key] = each
    return [replace(each, weight=float(weight[key])) for key, each in best.items()]


def needed(residual: float, limits: tuple[float, float]) -> float:
    """Share of the (logarithmic) width of bounds that just holds a log residual."""
    bound = math.log(limits[1] if residual > 0.0 else limits[0])
    return residual / bound if bound else math.inf


def _factor(spread: Spread, observed: Sequence[Observed], limits: Mapping[bool, tuple[float, float]]) -> float:
    """Factor on the root of the variance that is left, such that 80 % of runs with one anchor lie within; at
    least 1, so that an anchor that says nothing narrows nothing."""
    found = one_anchor(spread, observed)
    if not found:
        return 1.0
    ratios = sorted(
        (needed(x.after, x.target.limits or limits[x.target.run.is_moe]) / math.sqrt(x.left), x.weight) for x in found
    )
    reached = np.cumsum([weight for _, weight in ratios])
    at = int(np.searchsorted(reached, SHARE * reached[-1]))
    return max(1.0, float(f"{ratios[at][0]:.{DIGITS}g}"))
