"""The event engine: tasks in, trace out. It knows streams, links and memory, and no model."""

from sim.engine.core import DeadlockError, Engine, run
from sim.engine.graph import COMPUTE_STREAM, Graph, Task, Work
from sim.engine.links import water_fill

__all__ = ["COMPUTE_STREAM", "DeadlockError", "Engine", "Graph", "Task", "Work", "run", "water_fill"]
