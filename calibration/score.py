"""Scores of predicted runs: one case per key (median of its rows), errors per class, rank agreement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from calibration.validate import Row

MIN_GROUP = 3  # cases a rank-agreement group needs


def cases_of(rows: Iterable[Row]) -> list[Row]:
    """Scored rows with a measurement, one per case key: the median measured and predicted value."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.scored and row.error is not None:
            groups[row.key].append(row)
    out = []
    for members in groups.values():
        measured = float(np.median([r.measured for r in members if r.measured is not None]))
        predicted = float(np.median([r.predicted for r in members if r.predicted is not None]))
        out.append(replace(members[0], measured=measured, predicted=predicted, error=predicted / measured - 1.0))
    return out


def errors(cases: Sequence[Row]) -> dict[str, float]:
    """Mean and median absolute error, bias, share within the interval, count."""
    if not cases:
        return {"cases": 0}
    err = np.array([c.error for c in cases], float)
    inside = [c.low <= c.measured <= c.high for c in cases if c.low is not None and c.high is not None and c.measured is not None]
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


def rank_agreement(cases: Sequence[Row]) -> dict[str, float]:
    """Mean Kendall tau within groups of equal model, GPU, count and sequence with enough cases."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for case in cases:
        groups[tuple(case.group.get(k, "") for k in ("model", "gpu", "n_gpus", "seq_len"))].append(case)
    taus = []
    for members in groups.values():
        if len(members) >= MIN_GROUP:
            tau = kendalltau([m.measured for m in members], [m.predicted for m in members]).statistic
            if np.isfinite(tau):
                taus.append(float(tau))
    return {"groups": len(taus), "mean_tau": float(np.mean(taus)) if taus else float("nan")}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything `validate` prints."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.status] += 1
    cases = cases_of(rows)
    out: dict[str, Any] = {"rows": len(rows), "status": dict(sorted(counts.items())), "all": errors(cases)}
    for arch in ("moe", "dense"):
        mine = [c for c in cases if c.group.get("arch") == arch]
        if mine:
            out[arch] = {
                **errors(mine), "mean_over_models": mean_over(mine, "model"),
                "mean_over_sources": mean_over(mine, "source"),
            }  # fmt: skip
    out["rank"] = rank_agreement(cases)
    for name in ("model", "gpu", "release", "source"):
        out[f"by_{name}"] = by(cases, name)
    feasible = [r for r in rows if r.measure == "fits" and r.measured is not None and r.predicted is not None and r.scored]
    if feasible:
        out["feasibility"] = balanced_accuracy(feasible)
    return out


def balanced_accuracy(rows: Sequence[Row]) -> dict[str, float]:
    """Mean of the share of fits and of OOM outcomes predicted right."""
    yes = [r.predicted == r.measured for r in rows if r.measured == 1.0]
    no = [r.predicted == r.measured for r in rows if r.measured == 0.0]
    rates = [float(np.mean(x)) for x in (yes, no) if x]
    return {"rows": len(rows), "fits": len(yes), "oom": len(no), "balanced_accuracy": float(np.mean(rates))}
