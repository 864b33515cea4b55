"""Costs: what an op list takes in seconds, link bytes and memory. No clock, no contention."""

from sim.cost.model import CostModel

__all__ = ["CostModel"]
