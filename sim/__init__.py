"""What happens: model, plan and cluster in, step time, memory and timeline out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.run import simulate as simulate
    from sim.scenario import Scenario as Scenario

__all__ = ["Scenario", "simulate"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that reading a catalogue does not load the simulator."""
    if name == "simulate":
        from sim.run import simulate

        return simulate
    if name == "Scenario":
        from sim.scenario import Scenario

        return Scenario
    raise AttributeError(f"module 'sim' has no attribute {name!r}")
