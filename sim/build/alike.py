"""Event runs of equal step profiles, run once: two settings of a plan that lay it out alike are one run.

A search meets such pairs next to each other (their bounds are equal), so the last few runs are all that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sim.build.lanes import simulate_lanes
from sim.build.profile import StepProfile
from sim.report import Trace

KEPT = 2  # runs: a long pipeline's spans take tens of MB


@dataclass(frozen=True, eq=False)
class _ByValue:
    """A profile as a key: mappings inside it have no hash, so that it stands under a few of its numbers."""

    profile: StepProfile

    def __hash__(self) -> int:
        p = self.profile
        return hash((p.schedule, p.pp, p.vpp, p.num_micro_batches, p.chunks[0][0].forward_s))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByValue) and self.profile == other.profile


@lru_cache(maxsize=KEPT)
def _run(asked: _ByValue) -> Trace:
    return simulate_lanes(asked.profile)


def simulate_once(profile: StepProfile) -> Trace:
    """`sim.build.lanes.simulate_lanes`; the same trace for an equal profile. Micro-batches that differ (`stretch`) are
    run each time. Raises as `sim.build.tasks.simulate_step` does."""
    return simulate_lanes(profile) if profile.stretch is not None else _run(_ByValue(profile))
