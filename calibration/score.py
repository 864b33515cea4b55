"""Scores of predicted runs: one case per key (median of its rows), errors per class, rank agreement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from calibration.validate import Row

MIN_GROUP = 3  # cases a rank-agreement group needs
RANKED_BY = ("model", "gpu", "n_gpus", "seq_len")  # what the cases of a rank group have in common


def cases_of(rows: Iterable[Row], *, ranked: bool = False) -> list[Row]:
    """Scored rows with a measurement, one per case key: the median measured and predicted value and bounds.

    ranked: the rows that rank agreement counts instead, which need not be exact in level.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if (row.ranked if ranked else row.scored) and row.error is not None:
            groups[row.key].append(row)
    out = []
    for members in groups.values():
        measured, predicted, low, high = (
            float(np.median(known)) if (known := [x for r in members if (x := getattr(r, name)) is not None]) else None
            for name in ("measured", "predicted", "low", "high")
        )
        assert measured is not None and predicted is not None
        error = predicted / measured - 1.0
        out.append(replace(members[0], measured=measured, predicted=predicted, low=low, high=high, error=error))
    return out


def errors(cases: Sequence[Row]) -> dict[str, float]:
    """Mean and median absolute error, bias, share within the interval, count."""
    if not cases:
        return {"cases": 0}
    err = np.array([c.error for c in cases], float)
    inside = [
        c.low <= c.measured <= c.high
        for c in cases
        if c.low is not None and c.high is not None and c.measured is not None
    ]
    return {
        "cases": len(cases), "mape": float(np.mean(np.abs(err))), "median_ape": float(np.median(np.abs(err))),
        "p90_ape": float(np.quantile(np.abs(err), 0.9)), "bias": float(np.mean(err)),
        "coverage": float(np.mean(inside)) if inside else float("nan"),
    }  # fmt: skip


def by(cases: Sequence[Row], name: str) -> dict[str, dict[str, float]]:
    """Errors per value of a group field."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for case in cases:
        groups[case.group.get(name, "")].append(case)
    return {k: errors(v) for k, v in sorted(groups.items())}


def mean_over(cases: Sequence[Row], name: str) -> float:
    """Mean over groups of each group's MAPE, so that no source or model decides."""
    groups = by(cases, name)
    return float(np.mean([g["mape"] for g in groups.values()])) if groups else float("nan")


def told_apart(cases: Sequence[Row]) -> list[Row]:
    """Cases of one rank group with one and the same prediction as one, its measured value their median.

    They are runs of one configuration on systems or releases that differ in nothing the simulator is told: no
    prediction could order them.
    """
    alike: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for case in cases:
        alike[(*(case.group.get(k, "") for k in RANKED_BY), f"{case.predicted:.9g}")].append(case)
    return [replace(g[0], measured=float(np.median([m.measured for m in g if m.measured]))) for g in alike.values()]


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    """Kendall tau (b) of one group of equal model, GPU, GPU count and sequence, from the slowest measured case on."""

    name: tuple[str, str, str, str]
    cases: tuple[Row, ...]
    tau: float

    @property
    def wrong(self) -> list[tuple[Row, Row]]:
        """Pairs (slower, faster as measured) that the prediction has in the other order, or level."""
        return [
            (one, other)
            for i, one in enumerate(self.cases)
            for other in self.cases[i + 1 :]
            if (one.measured or 0.0) < (other.measured or 0.0) and (one.predicted or 0.0) >= (other.predicted or 0.0)
        ]


def rank_groups(cases: Sequence[Row]) -> list[RankGroup]:
    """Every group with enough cases. One whose predictions are all equal has tau 0: nothing was ranked."""
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for case in cases:
        model, gpu, count, seq = (case.group.get(k, "") for k in RANKED_BY)
        groups[model, gpu, count, seq].append(case)
    out = []
    for name, members in groups.items():
        if len(members) >= MIN_GROUP:
            tau = kendalltau([m.measured for m in members], [m.predicted for m in members]).statistic
            ordered = tuple(sorted(members, key=lambda m: (m.measured or 0.0, m.id)))
            out.append(RankGroup(name=name, cases=ordered, tau=float(tau) if np.isfinite(tau) else 0.0))
    return out


def rank_agreement(cases: Sequence[Row]) -> dict[str, float]:
    """Mean Kendall tau over `rank_groups`, and how many there are."""
    taus = [group.tau for group in rank_groups(cases)]
    return {"groups": len(taus), "mean_tau": float(np.mean(taus)) if taus else float("nan")}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything `validate` prints."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.status] += 1
    cases = cases_of(r for r in rows if r.measure != "peak_bytes")
    out: dict[str, Any] = {"rows": len(rows), "status": dict(sorted(counts.items())), "all": errors(cases)}
    classes = {"moe": ("arch", "moe"), "dense": ("arch", "dense"), "dense_1b": ("class", "dense")}
    for title, (name, wanted) in classes.items():
        mine = [c for c in cases if c.group.get(name) == wanted]
        if mine:
            out[title] = {
                **errors(mine), "mean_over_models": mean_over(mine, "model"),
                "mean_over_sources": mean_over(mine, "source"),
            }  # fmt: skip
    out["rank"] = rank_agreement(cases_of((r for r in rows if r.measure != "peak_bytes"), ranked=True))
    for name in ("model", "gpu", "release", "source", "distance"):
        out[f"by_{name}"] = by(cases, name)
    known = [r for r in rows if r.measured is not None and r.predicted is not None and r.scored]
    feasible = [r for r in known if r.measure == "fits"]
    if feasible:
        out["feasibility"] = balanced_accuracy(feasible)
    peaks = [r for r in rows if r.measure == "peak_bytes" and r.error is not None and r.scored]
    if peaks:
        out["peak_memory"] = {
            "rows": len(peaks), "mape": float(np.mean([abs(r.error or 0.0) for r in peaks])),
            "by_source": {k: float(np.mean([abs(r.error or 0.0) for r in g])) for k, g in _sources(peaks).items()},
        }  # fmt: skip
    return out


def _sources(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group.get("source", "")].append(row)
    return dict(sorted(groups.items()))


def balanced_accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean of the share of fits and of OOM outcomes predicted right; None, with a note, where one is missing."""
    yes = [r.predicted == r.measured for r in rows if r.measured == 1.0]
    no = [r.predicted == r.measured for r in rows if r.measured == 0.0]
    out: dict[str, Any] = {"rows": len(rows), "fits": len(yes), "oom": len(no)}
    if yes and no:
        return {**out, "balanced_accuracy": (float(np.mean(yes)) + float(np.mean(no))) / 2.0}
    missing = "OOM row" if yes else "row that fits" if no else "row"
    return {**out, "balanced_accuracy": None, "note": f"no {missing} is scored: nothing to balance"}
