"""A published or own run as a case: what is known of its configuration, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.model import ModelSpec
from sim.plan import Plan
from sim.routing import Routing
from sim.scenario import Scenario
from sim.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run. `known` holds plan fields the row states; `assumed` what was filled by a stated rule.

    scored: counts in errors (an exact figure without doubt); ranked: counts in rank agreement (without doubt).
    measure: what the source measured ("tokens_per_s_gpu", "step_s", "peak_bytes", "fits").
    """

    id: str
    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    known: Mapping[str, Any]
    assumed: Mapping[str, str] = field(default_factory=dict)
    measure: str
    group: Mapping[str, str]
    measured: float | None = None
    weight_key: str = ""
    scored: bool = True
    ranked: bool = True
    routing: Routing = Routing()

    def scenario(self, plan: Plan) -> Scenario:
        """The run under a plan."""
        return Scenario(
            model=self.model, cluster=self.cluster, software=self.software, workload=self.workload, plan=plan,
            routing=self.routing,
        )  # fmt: skip


class NotStated(UserError):
    """A source leaves open what nothing can fill: the row is undetermined, not uncovered."""


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A row that cannot be predicted, and why ("unsupported" or "undetermined")."""

    id: str
    status: str
    reason: str
    group: Mapping[str, str]
