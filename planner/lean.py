"""Slower plans that need less memory: the front of lower bound against peak memory, and its event runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.ranks import Laying
from planner.runs import Runs
from planner.table import Candidate, Table, tie_key
from sim.mesh import RankMap
from sim.report import Report


def fit_front(table: Table) -> list[Candidate]:
    """Rows that fit and that no other row beats in both bound and peak, fastest first."""
    front: list[Candidate] = []
    for block, bound, peak, ranks in zip(table.blocks, table.bounds, table.peaks, table.ranks, strict=True):
        order = np.lexsort((peak, bound))
        before = np.minimum.accumulate(np.concatenate([[np.inf], peak[order][:-1]]))
        for i in order[peak[order] < before]:
            front.append(
                Candidate(plan=block.plan(int(i)), bound_s=float(bound[i]), peak_bytes=float(peak[i]), ranks=ranks)
            )
    kept: list[Candidate] = []
    for item in sorted(front, key=lambda c: (c.bound_s, c.peak_bytes, tie_key(c.plan))):
        if not kept or item.peak_bytes < kept[-1].peak_bytes:
            kept.append(item)
    return kept


def lean_runs(
    table: Table, run: Runs, layings: Mapping[RankMap, Laying], most: int
) -> tuple[tuple[Report, float], ...]:
    """(report, bound) of at most `most` plans of the front that were not run yet, evenly along it; those that fit."""
    if most <= 0:
        return ()
    front = [c for c in fit_front(table) if (c.plan, c.ranks) not in run.steps]
    if len(front) > most:
        front = [front[i] for i in sorted({round(i * (len(front) - 1) / max(1, most - 1)) for i in range(most)})]
    done = [(layings[c.ranks].simulate(c.plan), c.bound_s) for c in front]
    return tuple((report, bound_s) for report, bound_s in done if report.fits)
