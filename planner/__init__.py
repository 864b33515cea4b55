"""What to do: candidate layouts, hard rules, search with a certificate, explanation.

Names load on first use: `planner.cli` passes through here, and its `--help` must not wait for numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.export import Handover, export_plan
    from planner.placement.answer import place_experts
    from planner.placement.read import read_instance
    from planner.placement.records import Instance, Placement, PlacementResult
    from planner.planfile import load_plan, plan_json, plan_record, save_plan
    from planner.search import PlanResult, find_plans

__all__ = [
    "Handover",
    "Instance",
    "Placement",
    "PlacementResult",
    "PlanResult",
    "export_plan",
    "find_plans",
    "load_plan",
    "place_experts",
    "plan_json",
    "plan_record",
    "read_instance",
    "save_plan",
]

_HOMES = {
    "Instance": "planner.placement.records",
    "Placement": "planner.placement.records",
    "PlacementResult": "planner.placement.records",
    "place_experts": "planner.placement.answer",
    "read_instance": "planner.placement.read",
    "Handover": "planner.export",
    "export_plan": "planner.export",
    "PlanResult": "planner.search",
    "find_plans": "planner.search",
    "load_plan": "planner.planfile",
    "plan_json": "planner.planfile",
    "plan_record": "planner.planfile",
    "save_plan": "planner.planfile",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
