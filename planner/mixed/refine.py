"""The stages of one layout on several types of devices, for one order of the types: chosen, and simulated.

The longest path through the order of the work bounds what any stages take and ranks those that are tried. Where the
software runs micro-batches in pairs a path says nothing, and long orders take too long: there the closed form of
`planner.stage_plan` bounds and chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.specs import LinkSpec
from planner.mixed.game import MOST_NODES, Board, improved, play
from planner.mixed.orders import Order, order_of
from planner.mixed.prices import Prices
from planner.mixed.rows import TypeQuestion
from planner.stage_plan.answer import options_of
from planner.stage_plan.bounds import least_bottleneck_s
from planner.stage_plan.chunked import Rows
from planner.stage_plan.even_out import alike_choices
from planner.stage_plan.free import least_priced_s, step_end_s, work_of
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Floats, Intervals, Ints, Modules
from planner.table import tie_key
from sim.build.stages import layers_per_stage
from sim.columns import Columns
from sim.cost.model import CostModel
from sim.cost.step import StepCost
from sim.mixed import Mixed, MixedSimulation, simulate_mixed
from sim.plan import Plan
from sim.report import Report
from sim.scenario import Scenario

SIMULATED = 2  # choices of stages of an order of the types that are simulated
WORTH = 1.04  # of stages whose path is longer than so many times the best step none is
MUCH = 500_000  # nodes of an order times pairs of virtual stages: more, and only the best stages of a game are improved
GAP = 1e-3  # a choice this near to its bound counts as proved


@dataclass(frozen=True, kw_only=True)
class StageGame:
    """How stages were chosen. objective_s: what their choice minimised, the longest path (way "path") or the closed
    form (way "form"); bound_s: no choice of stages has less; status: optimal or limit."""

    way: str
    objective_s: float
    bound_s: float

    @property
    def gap(self) -> float:
        """(objective - bound) / objective."""
        return max(0.0, 1.0 - self.bound_s / self.objective_s)

    @property
    def status(self) -> str:
        """Whether the choice is proved best by its own measure."""
        return "optimal" if self.gap <= GAP else "limit"


@dataclass(frozen=True, kw_only=True)
class StageLoad:
    """One stage: layers of its virtual stages, seconds of a step that it works, bytes of a rank at their peak and how
    many it may allocate."""

    layers: tuple[int, ...]
    busy_s: float
    peak_bytes: float
    usable_bytes: float


@dataclass(frozen=True, kw_only=True)
class MixedPlan:
    """A simulated plan. where: type of each stage; even_s: the same layout with even stages under the best recompute,
    None where that does not fit; game: how its stages were chosen; bound_s: no stages of this layout, with the types in
    this order, are faster; loads: of each stage, of plans that are listed."""

    report: Report
    where: tuple[int, ...]
    game: StageGame
    bound_s: float
    even_s: float | None = None
    loads: tuple[StageLoad, ...] = ()


def scenario_of(t: TypeQuestion, plan: Plan) -> Scenario:
    """A plan on a type of devices."""
    q = t.question
    return Scenario(
        model=q.model, cluster=q.cluster, software=q.software, workload=q.workload, plan=plan,
        routing=q.routing.at_ep(plan.ep),
    )  # fmt: skip


def loads_of(mixed: Mixed, report: Report) -> tuple[StageLoad, ...]:
    """The stages of a simulated plan, in their order."""
    made, pp = MixedSimulation(mixed), report.plan.pp
    return tuple(
        StageLoad(
            layers=tuple(report.stages[stage::pp]), peak_bytes=float(sum(report.memory[stage].values())),
            busy_s=report.num_micro_batches * sum(c.forward_s + c.backward_s for c in chunks),
            usable_bytes=float(usable),
        )
        for stage, (chunks, usable) in enumerate(zip(made.profile().chunks, made.usable_bytes, strict=True))
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choice:
    """Stages that fit: seconds of their measure, layers of each virtual stage, what they recompute."""

    seconds: float
    counts: tuple[int, ...]
    modules: Modules


class Refiner:
    """Chooses the stages of a block of layouts; their prices are shared. options: recompute settings."""

    def __init__(
        self, types: Sequence[TypeQuestion], rows: Columns, options: Sequence[Modules], *, target: str,
        between: LinkSpec | None, seed: int,
    ) -> None:  # fmt: skip
        self.types, self.target, self.between, self.seed = types, target, between, seed
        self.prices = Prices(types, rows, options)
        self.ends_s = min(
            step_end_s(cost, t.question.software) for cost, t in zip(self.prices.costs, types, strict=True)
        )  # fmt: skip
        self.walks: dict[Order, tuple[Floats, ...]] = {}
        self.paired = any(t.question.software.a2a_overlap for t in types)

    def refine(
        self, row: int, plan: Plan, where: tuple[int, ...], *, beat_s: float = np.inf
    ) -> tuple[tuple[MixedPlan, ...], float]:
        """(simulated plans that fit, a bound for any stages) of one layout and one order of the types.

        The bound need not be the best one where it shows that nothing is faster than `beat_s`. Raises UserError where
        a rule forbids the layout on one of the types.
        """
        homes = [scenario_of(t, plan) for t in self.types]
        columns, forward_s = self.prices.columns(row, where, homes[0], self._allowed(homes, plan), beat_s=beat_s)
        if len(np.unique(columns.slot)) < columns.slots:
            return (), beat_s  # nothing fits, or nothing in less than that; without one to beat inf
        nodes = 2 * columns.slots * columns.num_micro_batches
        if self.paired or nodes > MOST_NODES:
            bound_s, choices, game = self._by_form(homes, columns)
        else:
            bound_s, choices, game = self._by_path(columns, forward_s, plan, beat_s)
        bound_s += self.ends_s
        if game is None or bound_s >= beat_s:
            return (), bound_s
        good = [each for each in choices if each.seconds + self.ends_s < beat_s * WORTH][:SIMULATED]
        reports = [self._simulated(homes, plan, where, each) for each in good]
        fit = sorted((r for r in reports if r.fits), key=lambda r: (r.step_s.value, tie_key(r.plan)))
        made = [MixedPlan(report=report, where=where, game=game, bound_s=bound_s) for report in fit]
        return tuple(made), bound_s

    def _allowed(self, homes: Sequence[Scenario], plan: Plan) -> Ints:
        """Positions of the recompute settings that the target runs on every type. Raises UserError where none is."""
        even = layers_per_stage(len(homes[0].model.layers), plan.pp * plan.vpp, account_ends=True)
        found = []
        for at, modules in enumerate(self.prices.options):
            stated = replace(plan, stages=even, recompute=modules)
            try:
                for home in homes:
                    options_of(replace(home, plan=stated), target=self.target, recompute=modules)
            except UserError as error:
                problem = error
                continue
            found.append(at)
        if not found:
            raise problem
        return np.array(found, dtype=np.int64)

    def _by_path(
        self, columns: Intervals, forward_s: Floats, plan: Plan, beat_s: float
    ) -> tuple[float, list[_Choice], StageGame | None]:
        """(bound, choices, how) by the game of every setting."""
        order = order_of(
            pp=columns.pp, vpp=columns.vpp, num_micro_batches=columns.num_micro_batches, group=plan.micro_batch_group
        )
        bound_s, found, beat_s = np.inf, list[tuple[float, Ints]](), beat_s - self.ends_s
        share, open_boards = Rows(columns).share, list[Board]()
        for option in range(len(columns.options)):
            # of whole layers on each stage: stages are less even than a mixture of them
            least_s = columns.num_micro_batches * least_bottleneck_s(columns, (option,))
            if least_s < beat_s:
                board = Board(columns, forward_s, option, share)
                game = play(board, order, beat_s=beat_s, walks=self.walks.get(order, ()))
                least_s = max(least_s, game.bound_s)
                self.walks[order] = game.walks or self.walks.get(order, ())
                if least_s < beat_s:
                    starts = [path for _, path in game.paths] + _even(board)
                    few = len(order) * columns.slots**2 > MUCH
                    found += [improved(board, order, path) for path in starts[: 1 if few else None]]
                open_boards.append(board)
            bound_s = min(bound_s, least_s)
        if not found and beat_s == np.inf:
            starts = [path for board in open_boards for path in self._fitting(board)]
            found = [(order.longest(open_boards[0].durations(path).tolist())[0], path) for path in starts]
        found.sort(key=lambda item: (item[0], item[1].tolist()))
        if not found:
            return bound_s, [], None
        return bound_s, _choices(columns, found), StageGame(way="path", objective_s=found[0][0], bound_s=bound_s)

    def _fitting(self, board: Board) -> list[Ints]:
        """Stages that fit, where memory ties virtual stages so that those of the game do not."""
        mine = board.columns.take(np.flatnonzero(board.columns.option == board.option))
        choice = solve_stages(mine, seed=self.seed, most_columns=0 if mine.vpp > 1 else None).choice
        return [] if choice is None else _path(board, choice.counts)

    def _by_form(
        self, homes: Sequence[Scenario], columns: Intervals
    ) -> tuple[float, list[_Choice], StageGame | None]:  # fmt: skip
        """(bound, choices, how) by the closed form."""
        costs = [CostModel(s.cluster, s.software, ranks=s.ranks) for s in homes]
        works = [work_of(StepCost(cost, s.context())) for cost, s in zip(costs, homes, strict=True)]
        largest = replace(works[0], share=max(float(work.share) for work in works))
        bound_s = least_priced_s(columns, largest, paired=self.paired)
        solution = solve_stages(columns, seed=self.seed, most_columns=0 if columns.vpp > 1 else None)
        best = solution.choice
        if best is None:
            return (bound_s if solution.status != "infeasible" else np.inf), [], None
        chosen = [
            _Choice(seconds=bound_s, counts=each.counts, modules=each.recompute[0])
            for each in (best, *alike_choices(columns, best.objective_s))
        ]
        least_s = best.objective_s if solution.bound_s is None else solution.bound_s
        distinct = list({(each.counts, each.modules): each for each in chosen}.values())
        return bound_s, distinct, StageGame(way="form", objective_s=best.objective_s, bound_s=least_s)

    def _simulated(self, homes: Sequence[Scenario], plan: Plan, where: tuple[int, ...], choice: _Choice) -> Report:
        laid = replace(plan, stages=choice.counts, recompute=choice.modules, account_ends=False)
        return simulate_mixed(
            Mixed(types=tuple(replace(s, plan=laid) for s in homes), where=where, between=self.between)
        )  # fmt: skip


def _choices(columns: Intervals, found: Sequence[tuple[float, Ints]]) -> list[_Choice]:
    """Distinct choices of paths, in their order."""
    out: dict[tuple[tuple[int, ...], Modules], _Choice] = {}
    for seconds, path in found:
        counts = tuple(int(n) for n in (columns.stop - columns.first)[path])
        modules = columns.options[int(columns.option[path[0]])].recompute
        out.setdefault((counts, modules), _Choice(seconds=seconds, counts=counts, modules=modules))
    return list(out.values())


def _even(board: Board) -> list[Ints]:
    """Even stages, where they fit."""
    return _path(board, layers_per_stage(board.columns.num_layers, board.columns.slots, account_ends=True))


def _path(board: Board, counts: Sequence[int]) -> list[Ints]:
    """The path of these layers, where it fits."""
    stops = np.cumsum(counts)
    path = board.at[np.arange(len(stops)), stops - counts, stops]
    return [path] if path.min() >= 0 and board.columns.fits(path) else []
