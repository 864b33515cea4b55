"""Records of jobs that share: the rows each may take, what there is to share, and the choice with its proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OBJECTIVES = ("throughput", "makespan", "cost")
ANY_POOL = ""  # rows that name no pool, where there is one


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One way to run a job: so many devices of a pool, for so long, for so much. rate: what weighs in throughput, by
    default one over the time; usd None: no price."""

    label: str
    devices: int
    time_s: float
    usd: float | None
    rate: float
    pool: str = ANY_POOL


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job and its rows. weight: of its rate in the throughput. deadline_s: of its own; optional: it need not run
    (for throughput)."""

    name: str
    rows: tuple[JobRow, ...]
    weight: float = 1.0
    deadline_s: float | None = None
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What jobs that run side by side share. devices: by pool; None: not limited. deadline_s: of every job."""

    objective: str = "throughput"
    devices: Mapping[str, int] | None = None
    budget_usd: float | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The choice. rows: of each job, None where it does not run. value: of the objective; bound: none is better; gap:
    |value - bound| over the larger of them. status: "optimal" or "limit". greedy: value of the simple choice beside it,
    None where it found none.
    """

    shared: Shared
    jobs: tuple[Job, ...]
    rows: tuple[JobRow | None, ...]
    value: float
    bound: float
    gap: float
    status: str
    greedy: float | None
    nodes: int
    solver: str
    seconds: float = field(default=0.0, compare=False)

    @property
    def devices(self) -> dict[str, int]:
        """Devices in use, by pool."""
        used: dict[str, int] = {}
        for row in self.rows:
            if row is not None:
                used[row.pool] = used.get(row.pool, 0) + row.devices
        return used

    @property
    def usd(self) -> float | None:
        """What all jobs cost; None where one has no price."""
        prices = [row.usd for row in self.rows if row is not None]
        return None if None in prices else sum(p for p in prices if p is not None)

    @property
    def time_s(self) -> float:
        """When the last job ends."""
        return max((row.time_s for row in self.rows if row is not None), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, SI units."""
        return {
            "objective": self.shared.objective,
            "limits": {"devices": None if self.shared.devices is None else dict(self.shared.devices),
                       "budget_usd": self.shared.budget_usd, "deadline_s": self.shared.deadline_s},
            "jobs": [
                {"name": job.name, "weight": job.weight, "candidates": len(job.rows),
                 "row": None if row is None else asdict(row)}
                for job, row in zip(self.jobs, self.rows, strict=True)
            ],
            "value": self.value, "bound": self.bound, "gap": self.gap, "status": self.status, "greedy": self.greedy,
            "devices": self.devices, "usd": self.usd, "time_s": self.time_s, "nodes": self.nodes,
            "solver": self.solver, "timing": {"seconds": self.seconds},
        }  # fmt: skip
