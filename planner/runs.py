"""Event runs of the screened candidates in order of their bound, until nothing that is left can matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.ranks import Laying
from planner.table import Candidate, Progress, tie_key
from sim.mesh import DEFAULT_MAP, RankMap
from sim.plan import Plan
from sim.report import Report

BOUND_TOLERANCE = 1e-9  # relative; a step below its own bound by more than rounding voids the certificate


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A candidate that memory rejects: bytes needed and bytes there on its fullest device."""

    plan: Plan
    need_bytes: float
    have_bytes: float
    bound_s: float
    ranks: RankMap = DEFAULT_MAP


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Outcome of the event runs.

    done: (step, report, bound) of plans that fit, best first; left: candidates that were not run, by bound. stopped:
    "bound", "table", "limit" or "interrupted". void: runs that came out below their bound. steps: of every run.
    """

    done: tuple[tuple[float, Report, float], ...]
    left: tuple[Candidate, ...]
    simulated: int
    stopped: str
    misfits: tuple[Misfit, ...]
    void: tuple[str, ...]
    steps: Mapping[tuple[Plan, RankMap], float]

    @property
    def next_bound_s(self) -> float:
        """The smallest bound of what was not run."""
        return self.left[0].bound_s if self.left else float("inf")


def event_runs(
    ordered: Sequence[Candidate],
    layings: Mapping[RankMap, Laying],
    top: int,
    limit: int | None,
    progress: Progress | None,
) -> Runs:
    """Simulate in order of bound until the next bound reaches the `top`-th best step, or the limit.

    The limit holds for the first of `layings`, and once more for all others together: further maps take no event runs
    from the first, and the answer is never worse for them.
    """
    first = next(iter(layings))
    most = None if limit is None else limit * min(2, len(layings))
    done: list[tuple[float, Report, float]] = []
    misfits: list[Misfit] = []
    void: list[str] = []
    left: list[Candidate] = []
    steps: dict[tuple[Plan, RankMap], float] = {}
    spent = {True: 0, False: 0}
    stopped = "table"
    for place, candidate in enumerate(ordered):
        if len(done) >= top and candidate.bound_s >= done[top - 1][0]:
            stopped = "limit" if left else "bound"
            left += ordered[place:]
            break
        if limit is not None and spent[candidate.ranks == first] >= limit:
            left.append(candidate)
            stopped = "limit"
            continue
        try:
            if progress is not None:
                progress("simulating", sum(spent.values()), most)
            report = layings[candidate.ranks].simulate(candidate.plan)
        except KeyboardInterrupt:
            stopped = "interrupted"
            left += ordered[place:]
            break
        spent[candidate.ranks == first] += 1
        step = report.step_s.value
        if step < candidate.bound_s * (1 - BOUND_TOLERANCE):
            void.append(f"{candidate.plan.label()}: simulated {step:.6g} s below its bound {candidate.bound_s:.6g} s")
        if report.out_of_memory is not None:
            short = report.out_of_memory
            misfits.append(
                Misfit(
                    plan=candidate.plan, need_bytes=short.need_bytes, have_bytes=short.have_bytes,
                    bound_s=candidate.bound_s, ranks=candidate.ranks,
                )
            )  # fmt: skip
            continue
        steps[candidate.plan, candidate.ranks] = step
        # a plan is listed once per rank order, under the node order that suits it best
        like = [d for d in done if d[1].plan == report.plan and d[1].ranks.order == report.ranks.order]
        if like and like[0][0] <= step:
            continue
        done = [d for d in done if d not in like] + [(step, report, candidate.bound_s)]
        done.sort(key=lambda item: (item[0], tie_key(item[1].plan)))
    return Runs(
        done=tuple(done),
        left=tuple(left),
        simulated=sum(spent.values()),
        stopped=stopped,
        misfits=tuple(misfits),
        void=tuple(void),
        steps=steps,
    )
