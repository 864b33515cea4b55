"""Routing of tokens to experts: popularity per layer, loads on ranks, their noise, and what a step sees of it.

`Routing` is what scenarios hold. `parse_routing` and `resolve` make one from what a user typed; `loads`, `place` and
`sample` say what a popularity puts on ranks; `distribution` turns the noise into quantiles of the step.
"""

from __future__ import annotations

from sim.routing.curve import LoadCurve
from sim.routing.loads import ExpertLoads
from sim.routing.popularity import Drift
from sim.routing.record import Routing
from sim.routing.spec import RoutingSpec, parse_routing, resolve

__all__ = ["Drift", "ExpertLoads", "LoadCurve", "Routing", "RoutingSpec", "parse_routing", "resolve"]
