"""Rank maps as part of a candidate: which orders and node orders are tried, and what prices a plan under each.

Two maps that put every group of a plan on like devices cost the same: such a plan is priced under the first only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.hostmap import HostMap
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.rules import RANK_ORDERS, Context, context, rules_of
from planner.table import ScreenFn
from sim import run
from sim.columns import Columns, columns_of
from sim.cost.prices import distinct
from sim.mesh import AXES, RankMap, boundaries, group
from sim.model import ModelSpec
from sim.pipelines import Pipelines
from sim.plan import Plan
from sim.report import Report
from sim.routing import Routing
from sim.scenario import Scenario
from sim.screen import Screener
from sim.workload import Workload

SimulateFn = Callable[[Plan], Report]
_DEGREES = ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp")


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What a plan is priced for: everything of a scenario but the plan and the ranks."""

    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    routing: Routing

    @cached_property
    def pipelines(self) -> Pipelines:
        """Pipelines of its plans, the same under every rank map."""
        return Pipelines(self.model, self.workload, self.routing)


@dataclass(frozen=True, kw_only=True, eq=False)
class Laying:
    """One rank map and what prices plans under it. `given_*`: functions to use instead of the simulator's; prepared: a
    screening of this very question that was made before."""

    ranks: RankMap
    question: Question
    given_screen: ScreenFn | None = None
    given_simulate: SimulateFn | None = None
    prepared: Screener | None = None

    @cached_property
    def ctx(self) -> Context:
        """What the rules compare."""
        q = self.question
        return context(q.model, q.cluster, q.software, q.workload, self.ranks)

    @cached_property
    def screen(self) -> ScreenFn:
        """Bound and memory of a block; one screener for all blocks, as it remembers prices."""
        q = self.question
        return (
            self.given_screen
            or self.prepared
            or Screener(
                q.model, q.cluster, q.software, q.workload, routing=q.routing, ranks=self.ranks, pipelines=q.pipelines
            )
        )

    def simulate(self, plan: Plan) -> Report:
        """The event run of one plan."""
        if self.given_simulate is not None:
            return replace(self.given_simulate(plan), ranks=self.ranks)
        report: Report = run.simulate(self.scenario(plan), trace=False)
        return report

    def scenario(self, plan: Plan) -> Scenario:
        """One plan under this map."""
        q = self.question
        return Scenario(
            model=q.model, cluster=q.cluster, software=q.software, workload=q.workload, plan=plan,
            routing=q.routing.at_ep(plan.ep), ranks=self.ranks,
        )  # fmt: skip


def rank_maps(target: str, order: str | None = None, hosts: Sequence[HostMap | None] = (None,)) -> tuple[RankMap, ...]:
    """The maps to choose among: `order`, or every order the target runs, over each host map; the defaults first.

    Raises UserError for an unknown target or an order that names other axes.
    """
    rules_of(target)
    orders = RANK_ORDERS[target] if order is None else (order,)
    return tuple(RankMap(order=name, hosts=each) for name in orders for each in hosts)


def maps_that_differ(maps: Sequence[RankMap], cluster: ClusterSpec) -> tuple[RankMap, ...]:
    """Without those of which no plan can tell: in one scale-up domain only the first stands."""
    alone = cluster.num_devices <= cluster.domain_devices and all(each.hosts is None for each in maps)
    return tuple(maps[:1]) if alone else tuple(dict.fromkeys(maps))


def spread(plans: Columns, cluster: ClusterSpec, ranks: RankMap) -> NDArray[np.int64]:
    """How the groups of each plan lie on the cluster, a line each: members in a domain and in each block of a level,
    then the links between neighbouring pipeline stages and how many ranks share them.

    All a step's cost sees of a rank map, so equal lines mean equal steps.
    """
    first, which = distinct([getattr(plans, name) for name in _DEGREES])
    few = plans.take(first)
    groups = [group(few, axis, cluster, ranks) for axis in AXES]
    columns = [np.broadcast_to(n, len(first)) for grp in groups for n in (grp.intra, *grp.within)]
    stages = boundaries(few, cluster, ranks)
    shares = np.rint(stages.senders * cluster.num_devices)[:, stages.which]
    columns += [*stages.highest[stages.which].T, *shares]
    lines: NDArray[np.int64] = np.stack(columns, axis=1).astype(np.int64)[which]
    return lines


def best_map(scenario: Scenario, maps: Sequence[RankMap]) -> RankMap:
    """The map of the shortest event run of one plan; equal steps go to the map that stands first."""
    if len(maps) == 1:
        return maps[0]
    row = columns_of([scenario.plan])[0]
    tried: dict[tuple[Any, ...], RankMap] = {}
    for ranks in maps:
        tried.setdefault((ranks.order, *spread(row, scenario.cluster, ranks)[0].tolist()), ranks)
    if len(tried) == 1:
        return maps[0]
    return min(tried.values(), key=lambda m: run.simulate(replace(scenario, ranks=m), trace=False).step_s.value)
