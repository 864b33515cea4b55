"""The event engine: tasks in, trace out. It knows streams, links and memory, and no model."""

from sim.engine.core import COMPUTE_STREAM, DeadlockError, Engine, Task, run
from sim.engine.links import water_fill

__all__ = ["COMPUTE_STREAM", "DeadlockError", "Engine", "Task", "run", "water_fill"]
