"""One row for each job under what they share: a multiple-choice knapsack, by integer programme.

sum_r x_jr = 1 (at most 1 for an optional job); sum of devices over the rows of a pool at most the pool; sum of USD at
most the budget; rows beyond a deadline are not there. Throughput: max sum of weight x rate. Cost: min sum of USD.
Makespan: min T >= sum_r time_jr x_jr, and among the choices of that T the cheapest by USD and devices, in a second
programme.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from hwprofiles.errors import NoPlanError
from planner.placement.solver import Solved, solve, solver_name
from planner.share.greedy import greedy_rows
from planner.share.records import Job, JobRow, Shared, Sharing

NODES = 20_000
GAP = 1e-9
SCALE = 1000.0  # objectives near this number, so that absolute tolerances of the solver are small
Rows = Sequence[JobRow | None]


def value_of(rows: Rows, jobs: Sequence[Job], shared: Shared) -> float:
    """What the objective says of a choice: larger is better for throughput, smaller for the others."""
    taken = [(job, row) for job, row in zip(jobs, rows, strict=True) if row is not None]
    if shared.objective == "throughput":
        return sum(job.weight * row.rate for job, row in taken)
    if shared.objective == "cost":
        return sum(row.usd or 0.0 for _, row in taken)
    return max((row.time_s for _, row in taken), default=0.0)


def keeps(rows: Rows, jobs: Sequence[Job], shared: Shared) -> bool:
    """Whether a choice keeps all limits (deadlines apart: rows beyond them are left out before)."""
    if any(row is None and not job.optional for job, row in zip(jobs, rows, strict=True)):
        return False
    if shared.devices is not None:
        for pool, most in shared.devices.items():
            if sum(row.devices for row in rows if row is not None and row.pool == pool) > most:
                return False
    spent = sum(row.usd or 0.0 for row in rows if row is not None)
    return shared.budget_usd is None or spent <= shared.budget_usd * (1.0 + GAP)


def share(jobs: Sequence[Job], shared: Shared, *, seed: int = 0, nodes: int = NODES) -> Sharing:
    """The best choice. Raises NoPlanError where none keeps the limits, with the limit that stands in the way."""
    began = time.perf_counter()
    open_ = [_in_time(job, shared) for job in jobs]
    _refuse_empty(jobs, open_, shared)
    found = _programme(jobs, open_, shared, seed, nodes)
    if found is None:
        raise NoPlanError(_why(jobs, open_, shared), search={"jobs": len(jobs)})
    solved, rows, bound = found
    simple = greedy_rows(jobs, open_, shared, keeps, value_of)
    greedy = None if simple is None else value_of(simple, jobs, shared)
    sign = -1.0 if shared.objective == "throughput" else 1.0
    value = value_of(rows, jobs, shared)
    if simple is not None and greedy is not None and sign * greedy < sign * value * (1.0 - sign * GAP):
        rows, value = list(simple), greedy  # the programme was stopped early
    bound = sign * min(sign * bound, sign * value)
    return Sharing(
        shared=shared, jobs=tuple(jobs), rows=tuple(rows), value=value, bound=bound, status=solved.status,
        gap=abs(value - bound) / max(abs(value), abs(bound), 1e-300), greedy=greedy, nodes=solved.nodes,
        solver=solver_name(), seconds=time.perf_counter() - began,
    )  # fmt: skip


def _in_time(job: Job, shared: Shared) -> list[JobRow]:
    """Rows that keep both deadlines and run on a pool there is."""
    limits = [limit for limit in (job.deadline_s, shared.deadline_s) if limit is not None]
    last = min(limits, default=float("inf"))
    known = shared.devices
    return [row for row in job.rows if row.time_s <= last and (known is None or row.pool in known)]


def _programme(
    jobs: Sequence[Job], rows: Sequence[Sequence[JobRow]], shared: Shared, seed: int, nodes: int
) -> tuple[Solved, list[JobRow | None], float] | None:
    """(what the solver says, the rows, the bound of the objective); None where nothing keeps the limits."""
    if shared.objective == "throughput":
        return _solved(jobs, rows, shared, lambda job, row: -job.weight * row.rate, seed, nodes, sign=-1.0)
    if shared.objective == "cost":
        return _solved(jobs, rows, shared, lambda job, row: row.usd or 0.0, seed, nodes)
    first = _solved(jobs, rows, shared, None, seed, nodes)
    if first is None:
        return None
    solved, chosen, bound = first
    last = value_of(chosen, jobs, shared) * (1.0 + GAP)
    soon = [[row for row in mine if row.time_s <= last] for mine in rows]
    dear = all(row.usd is not None for mine in soon for row in mine)
    cheapest = _solved(jobs, soon, shared, lambda job, row: row.usd if dear and row.usd is not None else row.devices,
                       seed, nodes)  # fmt: skip
    return solved, chosen if cheapest is None else cheapest[1], bound


def _solved(
    jobs: Sequence[Job], rows: Sequence[Sequence[JobRow]], shared: Shared,
    price: Callable[[Job, JobRow], float] | None, seed: int, nodes: int, *, sign: float = 1.0,
) -> tuple[Solved, list[JobRow | None], float] | None:  # fmt: skip
    """One programme that makes the sum of prices least; price None: the time of the last job instead."""
    import pulp

    problem = pulp.LpProblem("share", pulp.LpMinimize)
    x = [
        [pulp.LpVariable(f"x{j}_{r}", cat="Binary") for r in range(len(mine))] for j, mine in enumerate(rows)
    ]  # fmt: skip
    every = [(job, row, x[j][r]) for j, job in enumerate(jobs) for r, row in enumerate(rows[j])]
    costs = [abs(row.time_s if price is None else price(job, row)) for job, row, _ in every]
    unit = max(costs, default=0.0) / SCALE or 1.0
    if price is None:
        last = pulp.LpVariable("last", lowBound=0.0)
        problem += last, "time_of_the_last"
        for j, mine in enumerate(rows):
            terms = [(x[j][r], row.time_s / unit) for r, row in enumerate(mine)]
            problem += pulp.LpAffineExpression(terms) <= last, f"ends_{j}"
    else:
        problem.setObjective(pulp.LpAffineExpression([(v, price(job, row) / unit) for job, row, v in every]))
    for j, job in enumerate(jobs):
        one = pulp.lpSum(x[j])
        problem += (one <= 1 if job.optional else one == 1), f"one_row_{j}"
    _limits(pulp, problem, every, shared)
    solved = solve(problem, nodes=nodes, gap=GAP, seed=seed)
    if solved.status == "infeasible":
        return None
    chosen = [
        next((row for r, row in enumerate(mine) if x[j][r].value() > 0.5), None) for j, mine in enumerate(rows)
    ]  # fmt: skip
    return solved, chosen, sign * solved.bound * unit


def _limits(pulp: Any, problem: Any, every: Sequence[tuple[Job, JobRow, Any]], shared: Shared) -> None:
    """Devices of each pool and money."""
    for i, (pool, most) in enumerate((shared.devices or {}).items()):
        terms = [(v, row.devices) for _, row, v in every if row.pool == pool]
        problem += pulp.LpAffineExpression(terms) <= most, f"devices_{i}"
    if shared.budget_usd is not None:
        shares = [(v, (row.usd or 0.0) / shared.budget_usd) for _, row, v in every]
        problem += pulp.LpAffineExpression(shares) <= 1.0, "budget"


def _refuse_empty(jobs: Sequence[Job], rows: Sequence[Sequence[JobRow]], shared: Shared) -> None:
    """Raise NoPlanError for jobs of which no row is left."""
    late = []
    for job, mine in zip(jobs, rows, strict=True):
        if not mine and not job.optional:
            soonest = min(row.time_s for row in job.rows)
            late.append(
                f"{job.name}: none of its {len(job.rows)} rows keeps its deadline on a pool there is; the soonest takes"
                f" {soonest / 86400:.3g} days; move the deadline, or add rows with more devices"
            )
    if late:
        raise NoPlanError(late, search={"jobs": len(jobs)})


def _why(jobs: Sequence[Job], rows: Sequence[Sequence[JobRow]], shared: Shared) -> list[str]:
    """The limits that even the least rows break, else that they break only together."""
    said = []
    must = [mine for job, mine in zip(jobs, rows, strict=True) if not job.optional]
    if shared.devices is not None:
        least = sum(min(row.devices for row in mine) for mine in must)
        there = sum(shared.devices.values())
        if least > there:
            said.append(f"the jobs need {least:,} devices at least, {there:,} are shared; raise them or drop a job")
    if shared.budget_usd is not None:
        cheap = sum(min(row.usd or 0.0 for row in mine) for mine in must)
        if cheap > shared.budget_usd:
            said.append(f"the jobs cost {cheap:,.0f} USD at least, the budget is {shared.budget_usd:,.0f}; raise it")
    return said or ["no choice keeps devices, budget and deadlines together, though each can be kept alone; raise one"]
