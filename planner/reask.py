"""The question of a plan file, asked again: its names read in the catalogues, its options as they were.

What cannot be read again (a model from a file, routing from counts) is given anew; the digest says whether it is the
same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.export.handover import handover_from
from planner.planfile import digest_of, digests_of
from planner.ranks import rank_maps
from planner.search import DEFAULT_MAX_SIMULATED, PlanResult, find_plans
from planner.training import with_price
from sim.mesh import RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from sim.routing import Routing, parse_routing, resolve
from sim.scenario import Scenario
from sim.workload import Workload

STALE = "what was read is not what the plan was made of"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Everything a search depends on, and the plan a file ranks first. stale: "" or what differs from the file."""

    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    routing: Routing
    plan: Plan
    ranks: RankMap
    fixed: Mapping[str, Any]
    target: str
    maps: tuple[RankMap, ...]
    seed: int
    max_simulated: int | None
    stages: str
    stale: str

    def scenario(self, plan: Plan | None = None, ranks: RankMap | None = None) -> Scenario:
        """The plan of the file (or another) as a scenario."""
        return Scenario(
            model=self.model, cluster=self.cluster, software=self.software, workload=self.workload,
            plan=plan or self.plan, routing=self.routing, ranks=ranks or self.ranks,
        )  # fmt: skip

    def search(
        self, cluster: ClusterSpec | None = None, fixed: Mapping[str, Any] | None = None, *, lean: int = 0
    ) -> PlanResult:
        """The search of the file on another cluster, or with more choices fixed; the first plan alone, and lean ones.

        Raises NoPlanError.
        """
        return find_plans(
            self.model, cluster or self.cluster, self.software, self.workload, fixed={**self.fixed, **(fixed or {})},
            target=self.target, top=1, max_simulated=self.max_simulated, seed=self.seed, routing=self.routing,
            ranks=self.maps, lean=lean, stages=self.stages,
        )  # fmt: skip


def asked_again(
    data: Mapping[str, Any],
    *,
    rank: int = 1,
    model: str | None = None,
    cluster: str | None = None,
    software: str | None = None,
    routing: str | None = None,
) -> Asked:
    """The question of a plan file (`planner.planfile.load_plan`). Names that are given replace those of the file.

    Raises UserError where something cannot be read again.
    """
    given, _ = handover_from(data, rank=rank, model=model, cluster=cluster, software=software)
    asked, plans = given, data["plans"]
    if plans[rank - 1].get("chosen"):  # the plan runs with more than was asked, of which the digests are
        plain = {**data, "plans": [{**plan, "chosen": None} for plan in plans]}
        asked, _ = handover_from(plain, rank=rank, model=model, cluster=cluster, software=software)
    inputs = data["inputs"]
    options = dict(inputs.get("options", {}))
    goal = options.get("goal") or {}
    machines = with_price(given.cluster, goal.get("price_usd_per_s"))
    loads = _routing(routing or str(options.get("routing", "balanced")), given.model, int(options.get("seed", 0)))
    now = digests_of(given.model, machines, asked.software, asked.workload, str(inputs["target"]), options)
    then = inputs.get("digests") or {}
    differ = [name for name, digest in now.items() if then.get(name, digest) != digest]
    if not then and inputs.get("digest") != digest_of(
        given.model, machines, asked.software, asked.workload, str(inputs["target"]), options
    ):
        differ.append("some input")
    if loads.source != options.get("routing", loads.source):
        differ.append("routing")
    orders = options.get("rank_orders") or [given.ranks.order]
    maps = tuple(each for order in orders for each in rank_maps(str(inputs["target"]), order, (given.ranks.hosts,)))
    fixed = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(options.get("fixed", {})).items()}
    return Asked(
        model=given.model, cluster=machines, software=given.software, workload=given.workload, routing=loads,
        plan=given.plan, ranks=given.ranks, fixed=fixed, target=str(inputs["target"]), maps=maps,
        seed=int(options.get("seed", 0)), max_simulated=options.get("max_simulated", DEFAULT_MAX_SIMULATED),
        # only the first plan is asked for: further layouts need not be refined as well
        stages="uniform" if options.get("stages", "uniform") == "uniform" else "auto",
        stale=f"{STALE} ({', '.join(differ)})" if differ else "",
    )  # fmt: skip


def _routing(text: str, model: ModelSpec, seed: int) -> Routing:
    if text == Routing().source:
        return Routing()
    try:
        return resolve(parse_routing(text), model, seed=seed)
    except UserError as error:
        raise UserError(
            [f"{problem} (give --routing where the plan was made with a file)" for problem in error.problems]
        ) from None


def with_device(cluster: ClusterSpec, **fields: Any) -> ClusterSpec:
    """The cluster with fields of its device changed."""
    from hwprofiles.catalogue import device_of

    return replace(cluster, device_spec=replace(device_of(cluster), **fields))
