"""Plans of a search over variants (`planner.wide`), whose turn has come: bounded by other settings of their layout, by
their own run where nobody shares a link, then run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from planner.grounds import Priced
from planner.like import ROUNDING, LikeRuns, Pieces
from planner.ranks import Laying, Question
from planner.result import OUT_OF_MEMORY_EVENT
from planner.runs import BOUND_TOLERANCE, Runs
from planner.table import Progress, Table
from planner.variants import Axes
from planner.wide_answer import Ran, Setting
from sim.build.stages import StageContent, stage_contents
from sim.columns import columns_of
from sim.cost.stage_prices import Priced as StagePrices
from sim.cost.state import LocalParams
from sim.mesh import RankMap
from sim.plan import Plan
from sim.routing.layers import own_loads
from sim.run import Simulation
from sim.screen import Screener

MOST_RUNS = 300  # event runs of the whole search, those that only bound others included


class PlanRuns:
    """The heap, what was run so far, and the plans of it. It begins with the runs of the table."""

    def __init__(
        self, axes: Axes, question: Question, maps: Sequence[RankMap], table: Table, run: Runs,
        layings: Mapping[RankMap, Laying], *, limit: int | None = MOST_RUNS, top: int = 1,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.question, self.limit, self.top, self.progress = question, limit, top, progress
        made = {m: each.screen for m, each in layings.items() if isinstance(each.screen, Screener)}
        self.grounds = [
            Priced(ground, axes, question, maps, None if at else made) for at, ground in enumerate(axes.grounds)
        ]
        self.done = [Ran(step_s=s, report=r, bound_s=b, setting=Setting()) for s, r, b in run.done]
        self.best_s = min((each.step_s for each in self.done), default=np.inf)
        self.likes = LikeRuns()
        self.runs, self.void, self.stopped = run.simulated, list(run.void), run.stopped
        self.fits = table.fits - len(run.misfits)
        self.lost: dict[str, int] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._at_s = 0.0
        self._contents: dict[Any, tuple[tuple[StageContent, ...], ...]] = {}
        self._ends: dict[Any, Any] = {}
        self._ran: set[tuple[Setting, RankMap, Plan]] = set()
        self._near: list[tuple[float, int, Setting, RankMap, Plan, Pieces]] = []  # slower than the best at their time
        for candidate in run.left:
            if candidate.bound_s < self.best_s:
                self._push(candidate.bound_s, self._plan, Setting(), candidate.ranks, candidate.plan)

    def _push(self, bound_s: float, open_: Callable[..., None], *what: Any) -> None:
        self._number += 1
        heapq.heappush(self._heap, (bound_s, self._number, open_, what))

    @property
    def spent(self) -> int:
        """Event runs so far."""
        return self.runs + self.likes.simulated

    @property
    def spent_all(self) -> bool:
        """Whether no event run is left."""
        return self.limit is not None and self.spent >= self.limit

    def _say(self) -> None:
        if self.progress is not None:
            self.progress("simulating variants", self.spent, self.limit)

    def _count(self, reason: str, count: int) -> None:
        if count:
            self.lost[reason] = self.lost.get(reason, 0) + count

    def _plan(self, setting: Setting, ranks: RankMap, plan: Plan, apart: Pieces | None = None) -> None:
        """A plan whose turn it is: bounded by other settings of its layout, then by its own run where nobody shares a
        link, then run. apart: its pieces, where the former were done."""
        bound_s, layout = self._at_s, (replace(plan, recompute=()), ranks, setting.ground)
        if (setting, ranks, plan) in self._ran:
            return
        if apart is None:
            pieces = self.pieces(setting, ranks, plan)
            like_s = self.likes.bound_s(layout, pieces, self.best_s)
            if like_s > bound_s * (1.0 + ROUNDING):
                if like_s < self.best_s * (1.0 - 2.0 * ROUNDING):
                    self._push(like_s, self._plan, setting, ranks, plan)
                return
            self._say()
            apart_s = self.likes.apart_s(layout, pieces, self.simulation(setting, ranks, plan).profile())
            if apart_s < self.best_s:
                self._push(max(bound_s, apart_s), self._plan, setting, ranks, plan, pieces)
            else:
                self._near.append((apart_s, len(self._near), setting, ranks, plan, pieces))
            return
        self._run(setting, ranks, plan, apart, bound_s)

    def _run(self, setting: Setting, ranks: RankMap, plan: Plan, apart: Pieces, bound_s: float) -> None:
        """The event run of a plan."""
        layout = (replace(plan, recompute=()), ranks, setting.ground)
        self._say()
        self._ran.add((setting, ranks, plan))
        report = self.simulation(setting, ranks, plan).report(trace=False)
        step_s = report.step_s.value
        self.runs += 1
        if step_s < bound_s * (1.0 - BOUND_TOLERANCE):
            self.void.append(f"{plan.label()}: simulated {step_s:.6g} s below its bound {bound_s:.6g} s")
        self.likes.ran(layout, apart, step_s)
        if report.out_of_memory is not None:
            self.fits -= 1
            self._count(OUT_OF_MEMORY_EVENT, 1)
            return
        self.done.append(Ran(step_s=step_s, report=report, bound_s=bound_s, setting=setting))
        self.best_s = min(self.best_s, step_s)

    def simulation(self, setting: Setting, ranks: RankMap, plan: Plan) -> Simulation:
        """A plan under its settings."""
        laying = self.grounds[setting.ground].laying(setting.share, setting.away, ranks)
        return Simulation(laying.scenario(plan))

    def pieces(self, setting: Setting, ranks: RankMap, plan: Plan) -> Pieces:
        """What the run of a plan adds up. What ends its step beside the optimizer is the same for all its layout."""
        shape = (plan.pp, plan.vpp, plan.account_ends, plan.schedule)
        q = self.question
        if shape not in self._contents:
            self._contents[shape] = stage_contents(
                q.model, plan.pp, plan.vpp, account_ends=plan.account_ends,
                mtp=q.workload.with_mtp and q.model.mtp_layers > 0, own=own_loads(q.model, q.routing),
                schedule=plan.schedule,
            )  # fmt: skip
        rows = self._contents[shape]
        contents = list(dict.fromkeys(content for row in rows for content in row))
        screener = self.grounds[setting.ground].screener(setting.share, setting.away, ranks)
        one = columns_of([plan])[0]
        prices, parameters = screener.pass_prices(one, contents)
        key = (replace(plan, recompute=()), ranks, setting.ground, setting.share)
        if key not in self._ends:
            held = np.array([[row.count(content) for content in contents] for row in rows])
            dense, routed, _, *more = (held @ field for field in parameters)
            params = LocalParams(dense=dense, routed=routed, more=tuple(more))
            self._ends[key] = np.atleast_2d(screener.update_s(one.take(np.zeros(len(rows), dtype=np.int64)), params))
        return Pieces(passes=_passes(prices), ends=self._ends[key])

    def run_next(self) -> None:
        """Event runs of what follows the best: other layouts, each under the best settings that were met."""
        left = self.top - 1
        for apart_s, _, setting, ranks, plan, pieces in sorted(self._near, key=lambda near: near[:2]):
            met: dict[Any, float] = {}
            for each in self.done:
                at = _listed_as(each.report.plan, each.report.ranks)
                met[at] = min(met.get(at, np.inf), each.step_s)
            last_s = sorted(met.values())[self.top - 1] if len(met) >= self.top else np.inf
            if left and apart_s < min(met.get(_listed_as(plan, ranks), np.inf), last_s):
                left -= 1
                self._say()
                self._run(setting, ranks, plan, pieces, apart_s)


def _listed_as(plan: Plan, ranks: RankMap) -> tuple[Plan, str]:
    """What is listed once: a layout in an order of ranks."""
    return replace(plan, recompute=()), ranks.order


def _passes(prices: StagePrices) -> Any:
    """Seconds of every kind of pass from prices: whole, and where the backward is split, either part."""
    p = prices
    alone = [p.forward_s, p.backward_s, p.paired_forward_s, p.paired_backward_s]
    if p.wgrad_s is not None:
        alone += [p.wgrad_s, p.backward_s - p.wgrad_s, p.paired_backward_s - p.wgrad_s]
    return np.concatenate(alone).ravel()
