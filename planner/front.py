"""The Pareto front of step and memory over a whole table: event runs where it is least certain, and the gap left.

A row that was not run may be on the front unless a simulated plan that needs no more memory takes no longer than the
row's bound. Its gap is how much shorter than the best such plan its bound is; the gap of the front is the largest of
any row. The row of the largest gap is run next: at gap 0 the front is exact. Money and devices follow: on one cluster
a longer step never costs less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.ranks import Laying
from planner.runs import Runs
from planner.table import Candidate, Table
from sim.mesh import RankMap
from sim.report import Report

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Front:
    """runs: (report, bound) of the further event runs whose plans fit. gap: no row of the table is faster by more, at
    no more memory than a simulated plan; open: rows that may still be on the front."""

    runs: tuple[tuple[Report, float], ...]
    gap: float
    open: int


def front_runs(table: Table, run: Runs, layings: Mapping[RankMap, Laying], most: int) -> Front:
    """At most `most` further event runs; `run`: those of the search."""
    bound, peak = np.concatenate(table.bounds), np.concatenate(table.peaks)
    block = np.concatenate([np.full(len(b), i) for i, b in enumerate(table.blocks)])
    row = np.concatenate([np.arange(len(b)) for b in table.blocks])
    points = [(report.peak_mem_bytes, step_s) for step_s, report, _ in run.done]
    left = np.ones(len(bound), dtype=bool)
    known = {*run.steps, *((each.plan, each.ranks) for each in run.misfits)}
    met, found = set(known), list[tuple[Report, float]]()
    while True:
        gaps = np.where(left, gaps_of(bound, peak, points), 0.0)
        if gaps.max(initial=0.0) <= 0.0:
            break
        # of equal gaps the leanest row first: what nothing simulated is as lean as has a gap of 1
        worst = int(np.lexsort((bound, peak, -gaps))[0])
        ranks = table.ranks[block[worst]]
        plan = table.blocks[block[worst]].plan(int(row[worst]))
        if (plan, ranks) in met:  # its own step stands among the points, or it did not fit
            left[worst] = False
            continue
        if len(met) - len(known) >= most:
            break
        met.add((plan, ranks))
        left[worst] = False
        candidate = Candidate(plan=plan, bound_s=float(bound[worst]), peak_bytes=float(peak[worst]), ranks=ranks)
        report = layings[ranks].simulate(candidate.plan)
        if report.fits:
            points.append((report.peak_mem_bytes, report.step_s.value))
            found.append((report, candidate.bound_s))
    gaps = np.where(left, gaps_of(bound, peak, points), 0.0)
    return Front(runs=tuple(found), gap=float(gaps.max(initial=0.0)), open=int(np.count_nonzero(gaps > 0.0)))


def gaps_of(bound: Floats, peak: Floats, points: list[tuple[float, float]]) -> Floats:
    """Of each row: 1 - bound / step of the fastest simulated plan that needs no more memory; at least 0, 1 without one.

    points: (peak bytes, step) of the plans.
    """
    ordered = sorted(points)
    size = np.array([p for p, _ in ordered])
    fastest = np.minimum.accumulate(np.array([s for _, s in ordered]))
    place = np.searchsorted(size, peak, side="right") - 1
    step = np.where(place >= 0, fastest[np.maximum(place, 0)], np.inf)
    out: Floats = np.maximum(0.0, 1.0 - bound / step)
    return out
