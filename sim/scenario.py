"""A scenario: everything one simulated step depends on, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.build.context import Context
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from sim.routing import Routing
from sim.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Model, cluster, trainer software, workload, plan and routing of one training step.

    ranks: the order of the parallel axes over the ranks, and the device of each rank.
    """

    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    plan: Plan
    routing: Routing = Routing()
    ranks: RankMap = DEFAULT_MAP

    def context(self) -> Context:
        """What the op builders need."""
        return Context(
            model=self.model, workload=self.workload, plan=self.plan, software=self.software, routing=self.routing
        )
