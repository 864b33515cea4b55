"""What to do: candidate layouts, hard rules, search with a certificate, explanation.

Names load on first use: `planner.cli` passes through here, and its `--help` must not wait for numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.export import Handover, export_plan, write_export
    from planner.export.handover import handover_of
    from planner.frames import breakdown_table, memory_table, plans_table
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
    "breakdown_table",
    "export_plan",
    "find_plans",
    "handover_of",
    "load_plan",
    "memory_table",
    "place_experts",
    "plan_json",
    "plan_record",
    "plans_table",
    "read_instance",
    "save_plan",
    "write_export",
]

_HOMES = {
    "Instance": "planner.placement.records",
    "Placement": "planner.placement.records",
    "PlacementResult": "planner.placement.records",
    "place_experts": "planner.placement.answer",
    "read_instance": "planner.placement.read",
    "Handover": "planner.export",
    "export_plan": "planner.export",
    "write_export": "planner.export",
    "handover_of": "planner.export.handover",
    "plans_table": "planner.frames",
    "breakdown_table": "planner.frames",
    "memory_table": "planner.frames",
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
