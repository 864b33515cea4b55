"""The simple choice beside the programme's: start small, then take the change that helps most, as long as one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.share.records import Job, JobRow, Shared

Rows = list[JobRow | None]


def greedy_rows(
    jobs: Sequence[Job], rows: Sequence[Sequence[JobRow]], shared: Shared,
    keeps: Callable[[Rows, Sequence[Job], Shared], bool], value_of: Callable[[Rows, Sequence[Job], Shared], float],
) -> Rows | None:  # fmt: skip
    """From the fewest devices, or the least money, of every job: single rows changed while that helps; None where
    neither start keeps the limits."""
    sign = -1.0 if shared.objective == "throughput" else 1.0
    starts: list[Rows] = [
        [min(mine, key=lambda row: (row.devices, row.time_s), default=None) for mine in rows],
        [min(mine, key=lambda row: (row.usd or 0.0, row.devices), default=None) for mine in rows],
    ]
    if all(job.optional for job in jobs):
        starts.append([None] * len(jobs))
    found: list[Rows] = []
    for now in starts:
        if not keeps(now, jobs, shared):
            continue
        better = True
        while better:
            better = False
            best = sign * value_of(now, jobs, shared)
            for j, mine in enumerate(rows):
                for row in mine:
                    tried = [*now[:j], row, *now[j + 1 :]]
                    worth = sign * value_of(tried, jobs, shared)
                    if worth < best - 1e-12 * abs(best) and keeps(tried, jobs, shared):
                        now, best, better = tried, worth, True
        found.append(now)
    return min(found, key=lambda each: sign * value_of(each, jobs, shared), default=None)
