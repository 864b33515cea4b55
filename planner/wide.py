"""One search over every layout under every variant (`planner.variants.Axes`), best first, with a proof over all.

The table as asked is searched before; its best step is the one to beat. A heap holds what is left, each with seconds
that nothing in it goes below, and is opened at the least of them:

    layouts of a ground, some at a time -> with a recompute setting -> with activations on the host -> with shares of
    the optimizer there -> plans -> event runs.

Bounds only rise on the way (`planner.grounds` says why), rows above the best step are dropped, and so are rows that do
not fit with the most on the host. A plan whose layout was run under other settings is bounded by that run
(`planner.like`). When the least of the heap reaches the best step, no variant of any layout is faster.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from planner.grounds import ALL, FREE, Part, allowed, by_size
from planner.ranks import Laying, Question
from planner.rules import Rule
from planner.runs import BOUND_TOLERANCE, Runs
from planner.space import recompute_choices
from planner.table import NOT_LAID_OUT, OUT_OF_MEMORY, Progress, Table, tie_key
from planner.variants import Axes, Chosen
from planner.wide_answer import BEYOND_BEST, OUT_OF_MEMORY_ANYHOW, Ran, Setting, Wide, lines_of, values_of
from planner.wide_runs import MOST_RUNS, PlanRuns
from sim.mesh import RankMap

WAVE_ROWS = 256  # layouts that are opened together
DIVE_WAVES = 2  # of a ground, in which a plan to run at once is looked for
DIVES = 8  # grounds that are looked into so, those of the least bound
DIVE_RUNS = 2  # event runs of each
TIGHTENED = 0.5  # share of all runs that may go to bounds of layouts before their plans are known
Modules = tuple[str, ...]


class WideSearch(PlanRuns):
    """From layouts to plans."""

    def __init__(
        self, axes: Axes, question: Question, maps: Sequence[RankMap], rules: Sequence[Rule], fixed: Mapping[str, Any],
        table: Table, run: Runs, layings: Mapping[RankMap, Laying], *, limit: int | None = MOST_RUNS, top: int = 1,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        super().__init__(axes, question, maps, table, run, layings, limit=limit, top=top, progress=progress)
        self.axes, self.rules, self.fixed, self.table = axes, rules, fixed, table
        self.usual = frozenset(recomputes_of(question, fixed))  # of the table, which has them all
        self.recomputes = axes.recomputes or recomputes_of(question, fixed)
        self.sizes = by_size(axes)
        self.free = FREE if len(axes.shares) > 1 else 0
        self.raw, self.legal = table.raw, table.legal
        self.seen = 0  # rows that were looked at under one setting, or lost under several at once
        self.least: list[float] = []
        self._waves: list[list[list[Part]]] = []  # the first ones of each ground
        self._rest_s = run.left[-1].bound_s if table.fits > run.simulated + len(run.left) and run.left else np.inf

    def run(self) -> str:
        """Open what is left until nothing can be faster; "bound", "limit" or "interrupted"."""
        try:
            for ground in range(len(self.grounds)):
                self._say()
                self._layouts(ground)
            self._dive()
            while self._heap and self._heap[0][0] < self.best_s:
                if self.spent_all:
                    self._at_s = np.inf
                    return "limit"
                self._at_s, _, open_, what = heapq.heappop(self._heap)
                open_(*what)
        except KeyboardInterrupt:
            return "interrupted"
        self._at_s = np.inf
        try:
            self.run_next()
        except KeyboardInterrupt:
            return "interrupted"  # what is proven stands
        return "bound"

    def next_s(self) -> float:
        """Seconds that nothing left goes below."""
        if len(self.least) < len(self.grounds):
            return 0.0  # not even all layouts were looked at
        return min(self._at_s, self._rest_s, self._heap[0][0] if self._heap else np.inf)

    # -- from layouts to plans -------------------------------------------------------------------

    def _settings(self) -> int:
        return len(self.axes.shares) * len(self.axes.away)

    def _own(self, ground: int, *recomputes: Modules) -> int:
        """How many of these recompute settings the table itself holds on this ground."""
        return 0 if ground else sum(each in self.usual for each in recomputes)

    def _layouts(self, ground: int) -> None:
        """All layouts of a ground with bounds for all settings, in waves by bound."""
        parts, raw, lost = self.grounds[ground].layouts(self.fixed, self.rules, self.recomputes)
        times = self._settings() * len(self.recomputes) - self._own(ground, *self.recomputes)
        self.raw += raw * times
        for name, count in lost.items():
            self._lose(name, count * times)
        bounds = np.concatenate([part.bound_s for part in parts]) if parts else np.zeros(0)
        self.least.append(float(bounds.min(initial=np.inf)))
        of = np.repeat(np.arange(len(parts)), [len(part.bound_s) for part in parts])
        row = np.concatenate([np.arange(len(part.bound_s)) for part in parts]) if parts else np.zeros(0, dtype=int)
        order = np.argsort(bounds, kind="stable")
        order = order[bounds[order] < self.best_s]
        self._waves.append([])
        for start in range(0, len(order), WAVE_ROWS):
            wave = order[start : start + WAVE_ROWS]
            mine = [parts[p].take(np.sort(row[wave[of[wave] == p]])) for p in np.unique(of[wave])]
            if start < DIVE_WAVES * WAVE_ROWS:
                self._waves[-1].append(mine)
            for recompute in self.recomputes:
                self._push(float(bounds[wave[0]]), self._recompute, ground, recompute, mine)

    def _dive(self) -> None:
        """Event runs of the most promising plans of each ground as it is: the sooner a good step is known, the fewer
        layouts are worth a bound of their own."""
        usual = [each for each in self.recomputes if each in self.usual]
        for ground in sorted(range(1, len(self.grounds)), key=self.least.__getitem__)[:DIVES]:
            priced, found = self.grounds[ground], list[tuple[float, int, RankMap, Any]]()
            for parts in self._waves[ground]:
                if found and min(float(part.bound_s.min()) for part in parts) >= min(found)[0]:
                    break
                for part, recompute in product([each.below(self.best_s) for each in parts], usual):
                    rows = replace(part.rows, recompute=recompute)
                    rows = rows.take(allowed(rows, priced.laying(0, 0, part.ranks).ctx, self.rules, {}))
                    if len(rows):
                        seen = priced.screener(0, 0, part.ranks)(rows)
                        bound = np.where(seen.fits, seen.bound_s, np.inf)
                        if bound.min() < self.best_s:
                            best = int(bound.argmin())
                            found.append((float(bound[best]), len(found), part.ranks, rows.plan(best)))
            for bound_s, _, ranks, plan in sorted(found, key=lambda each: each[:2])[:DIVE_RUNS]:
                if bound_s < self.best_s and not self.spent_all:
                    setting = Setting(ground=ground)
                    self._run(setting, ranks, plan, self.pieces(setting, ranks, plan), bound_s)

    def _recompute(self, ground: int, recompute: Modules, parts: Sequence[Part]) -> None:
        """Rows under one recompute setting, with any offload."""
        priced, kept, lost = self.grounds[ground], [], 0
        for part in (each.below(self.best_s) for each in parts):
            if not len(part.rows):
                continue
            rows = replace(part.rows, recompute=recompute)
            if len(self.axes.away) > 1:
                fits = priced.relaxed(FREE, ALL, part.ranks, rows).fits
                lost += len(rows) - int(np.count_nonzero(fits))
                part, rows = part.take(np.flatnonzero(fits)), rows.take(np.flatnonzero(fits))
            if len(rows):
                bound = np.maximum(part.bound_s, priced.relaxed(FREE, 0, part.ranks, rows).bound_s)
                kept.append(Part(rows=rows, bound_s=bound, ranks=part.ranks).below(self.best_s))
        self._lose(OUT_OF_MEMORY_ANYHOW, lost * (self._settings() - self._own(ground, recompute)))
        kept = [part for part in kept if len(part.rows)]
        if kept:
            self._push(min(float(part.bound_s.min()) for part in kept), self._tightened, ground, kept)

    @property
    def _all_tightened(self) -> bool:
        """Whether what is left is for plans."""
        return self.limit is not None and self.spent >= TIGHTENED * self.limit

    def _tightened(self, ground: int, parts: Sequence[Part]) -> None:
        """Rows under one recompute setting, their bounds raised by a run of each layout where nobody shares a link,
        under this or another one. It is no plan: whether it fits is not asked."""
        kept = []
        for part in (each.below(self.best_s) for each in parts):
            bound = part.bound_s.copy()
            for i in range(len(bound)):
                plan = part.rows.plan(i)
                layout = (replace(plan, recompute=()), part.ranks, ground)
                if not self.likes.knows(layout) and not self._all_tightened:
                    own = Setting(ground=ground)
                    profile = self.simulation(own, part.ranks, plan).profile()
                    self.likes.apart_s(layout, self.pieces(own, part.ranks, plan), profile)
                    self._say()
                free = self.pieces(Setting(ground=ground, share=self.free), part.ranks, plan)
                bound[i] = max(bound[i], self.likes.bound_s(layout, free, self.best_s))
            kept.append(replace(part, bound_s=bound).below(self.best_s))
        kept = [part for part in kept if len(part.rows)]
        if kept:
            self._push(min(float(part.bound_s.min()) for part in kept), self._offloads, ground, kept)

    def _offloads(self, ground: int, parts: Sequence[Part]) -> None:
        """Rows with activations on the host, each way, with any share of the optimizer there."""
        priced, shares = self.grounds[ground], len(self.axes.shares)
        left: dict[int, list[Part]] = {away: [] for away, _ in self.sizes}
        for part in (each.below(self.best_s) for each in parts):
            fit: dict[int, Any] = {}
            for away, more in self.sizes if len(part.rows) else ():
                # what does not fit with more on the host does not fit
                may = np.flatnonzero(np.logical_and.reduce([fit[each] for each in more], axis=0)
                                     if more else np.ones(len(part.rows), dtype=bool))  # fmt: skip
                fit[away] = np.zeros(len(part.rows), dtype=bool)
                times = shares - (away == 0) * self._own(ground, part.rows.recompute)
                if len(may):
                    seen = priced.relaxed(FREE, away, part.ranks, part.rows.take(may))
                    fit[away][may] = seen.fits
                    bound = np.maximum(part.bound_s[may], seen.bound_s)
                    low = np.flatnonzero(seen.fits & (bound < self.best_s))
                    found = Part(rows=part.rows.take(may[low]), bound_s=bound[low], ranks=part.ranks)
                    left[away] += [found] if len(low) else []
                self._lose(OUT_OF_MEMORY_ANYHOW, int(np.count_nonzero(~fit[away])) * times)
        for away, share in product(sorted(left), range(shares)):
            if kept := left[away]:
                least = min(float(p.bound_s.min()) for p in kept)
                self._push(least, self._share, Setting(ground=ground, share=share, away=away), kept)

    def _share(self, setting: Setting, parts: Sequence[Part]) -> None:
        """Rows under one setting: rules, memory and bound, each that may be faster as a plan."""
        priced = self.grounds[setting.ground]
        for part in (each.below(self.best_s) for each in parts):
            if not len(part.rows) or (setting == Setting() and part.rows.recompute in self.usual):
                continue  # the table's own
            laying = priced.laying(setting.share, setting.away, part.ranks)
            self.seen += len(part.rows)
            rows = part.rows.take(allowed(part.rows, laying.ctx, self.rules, self.lost))
            self.legal += len(rows)
            if not len(rows):
                continue
            seen = priced.screener(setting.share, setting.away, part.ranks)(rows)
            there = np.isfinite(seen.bound_s)
            self._count(NOT_LAID_OUT, int(np.count_nonzero(~there)))
            self._count(OUT_OF_MEMORY, int(np.count_nonzero(there & ~seen.fits)))
            self.fits += int(np.count_nonzero(there & seen.fits))
            for i in np.flatnonzero(there & seen.fits & (seen.bound_s < self.best_s)).tolist():
                self._push(float(seen.bound_s[i]), self._plan, setting, part.ranks, rows.plan(i))

    def _lose(self, reason: str, count: int) -> None:
        """Rows lost under settings that were not looked at one by one."""
        self.seen += count
        self._count(reason, count)

    def answer(self, rejected: Mapping[str, int], *, below_s: float = np.inf) -> Wide:
        """Search, and what was found; of an interrupted table nothing more is searched. rejected: of the table;
        below_s: a step that some plan is known to take."""
        self.best_s = min(self.best_s, below_s * (1.0 + BOUND_TOLERANCE))
        stopped = "interrupted" if self.stopped == "interrupted" else self.run()
        done = sorted(self.done, key=lambda each: (each.step_s, tie_key(each.report.plan)))
        lost = dict(rejected)
        for name, count in self.lost.items():
            lost[name] = lost.get(name, 0) + count
        if (cut := self.raw - self.table.raw - self.seen) > 0:
            lost[BEYOND_BEST] = cut
        floor_s = min(self.best_s, self.next_s())
        told = tuple((ran, self._chosen(ran)) for ran in done)
        values = values_of(self.axes, self.recomputes, self.least)
        return Wide(
            done=told, bound_s=floor_s, stopped=stopped, void=tuple(self.void), raw=self.raw, legal=self.legal,
            fits=self.fits, simulated=self.spent, rejected=dict(sorted(lost.items(), key=lambda i: (-i[1], i[0]))),
            lines=tuple(lines_of(told, values, floor_s)), grounds=tuple(self.grounds),
        )  # fmt: skip

    def _chosen(self, ran: Ran) -> Chosen:
        priced = self.grounds[ran.setting.ground]
        return priced.chosen(ran.setting.share, ran.setting.away, ran.report.plan.recompute)


def recomputes_of(question: Question, fixed: Mapping[str, Any]) -> tuple[Modules, ...]:
    """The settings of the table."""
    return (fixed["recompute"],) if "recompute" in fixed else recompute_choices(question.model, question.software)
