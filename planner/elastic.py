"""What a little more of everything would give: each rate of the machine raised, the plan simulated again.

The gain of a rate is of the same plan; of memory and of one more node it is of the best plan of a new search, as the
same plan gains nothing by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from hwprofiles.catalogue import device_of
from hwprofiles.errors import UserError
from hwprofiles.factors import Factors
from hwprofiles.specs import ClusterSpec
from planner.reask import Asked, with_device
from sim.cost.model import CostModel
from sim.mesh import RankMap
from sim.plan import Plan
from sim.run import Simulation

MORE = 1.1
Change = Callable[[CostModel, ClusterSpec, float], tuple[ClusterSpec, Factors]]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One thing raised. factor: by how much. step_s: the step then, of the plan named; gain: tokens per second more
    (0.05 = 5 %). elasticity: d log(step) / d log(rate), -1 where all of the step waits for it; None where a step in
    the machine's size makes no ratio. note: why there is no figure, or what else changes."""

    what: str
    factor: float
    of: Literal["same plan", "new search"]
    step_s: float | None
    gain: float | None
    elasticity: float | None = None
    label: str = ""
    note: str = ""


def _flop_rate(cost: CostModel, cluster: ClusterSpec, by: float) -> tuple[ClusterSpec, Factors]:
    """Kernel tables are times: the clock turns them into the rate that is sustained."""
    return cluster, replace(cost.factors, clock=cost.factors.clock * by)


def _memory_rate(cost: CostModel, cluster: ClusterSpec, by: float) -> tuple[ClusterSpec, Factors]:
    return with_device(cluster, mem_bytes_per_s=cost.device.mem_bytes_per_s * by), cost.factors


def _host_speed(cost: CostModel, cluster: ClusterSpec, by: float) -> tuple[ClusterSpec, Factors]:
    return with_device(cluster, host_speed=cost.device.host_speed * by), cost.factors


def _link(name: Literal["scale_up", "scale_out", "host_link"]) -> Change:
    def change(cost: CostModel, cluster: ClusterSpec, by: float) -> tuple[ClusterSpec, Factors]:
        link = getattr(cluster, name)
        made: ClusterSpec = replace(cluster, **{name: replace(link, bytes_per_s=link.bytes_per_s * by)})
        return made, cost.factors

    return change


def _level(at: int) -> Change:
    def change(cost: CostModel, cluster: ClusterSpec, by: float) -> tuple[ClusterSpec, Factors]:
        levels = list(cluster.fabric)
        levels[at] = replace(levels[at], bytes_per_s=levels[at].bytes_per_s * by)
        return replace(cluster, fabric=tuple(levels)), cost.factors

    return change


def rates_of(cluster: ClusterSpec) -> dict[str, Change]:
    """Every rate of a machine that a step may wait for, by name."""
    levels = {f"{level.name} bandwidth": _level(i) for i, level in enumerate(cluster.fabric) if level.bytes_per_s > 0}
    return {
        "FLOP/s": _flop_rate,
        "memory bandwidth": _memory_rate,
        "scale-up bandwidth": _link("scale_up"),
        "scale-out bandwidth": _link("scale_out"),
        **levels,
        "host link bandwidth": _link("host_link"),
        "host speed": _host_speed,
    }


def step_with(asked: Asked, change: Change | None, by: float, plan: Plan | None = None, ranks: RankMap | None = None
              ) -> float:  # fmt: skip
    """Simulated seconds of a plan (default: the file's) with one rate changed."""
    scenario = asked.scenario(plan, ranks)
    cost = CostModel(scenario.cluster, scenario.software, ranks=scenario.ranks)
    if change is not None:
        cluster, factors = change(cost, scenario.cluster, by)
        cost = CostModel(cluster, scenario.software, override=factors, ranks=scenario.ranks)
        scenario = replace(scenario, cluster=cluster)
    return Simulation(scenario, cost=cost).report(trace=False).step_s.value


def rate_gains(
    asked: Asked, file_step_s: float, by: float = MORE, tell: Callable[[str], None] | None = None
) -> Iterator[Gain]:
    """The same plan with each rate raised, most telling first. file_step_s: what the file says (anchors in it); tell:
    called with the name of each rate before it is simulated."""
    base = step_with(asked, None, 1.0)
    found = []
    for what, change in rates_of(asked.cluster).items():
        if tell is not None:
            tell(what)
        ratio = step_with(asked, change, by) / base
        found.append(
            Gain(what=what, factor=by, of="same plan", step_s=file_step_s * ratio, gain=1.0 / ratio - 1.0,
                 elasticity=math.log(ratio) / math.log(by), label=asked.plan.label())
        )  # fmt: skip
    yield from sorted(found, key=lambda g: -(g.gain or 0.0))


def size_gains(asked: Asked, file_step_s: float, by: float = MORE) -> Iterator[Gain]:
    """More memory on each device, and one more node: the best plan of a new search."""
    base = step_with(asked, None, 1.0)
    mem_bytes = device_of(asked.cluster).mem_bytes * by
    yield _searched(asked, "memory", by, with_device(asked.cluster, mem_bytes=mem_bytes), base, file_step_s)
    nodes = asked.cluster.num_nodes
    if asked.ranks.hosts is not None:
        note = "the host map names the nodes; a further one is not on it"
        yield Gain(what="one more node", factor=(nodes + 1) / nodes, of="new search", step_s=None, gain=None, note=note)
        return
    more = replace(asked.cluster, num_nodes=nodes + 1)
    yield _searched(asked, "one more node", (nodes + 1) / nodes, more, base, file_step_s)


def _searched(asked: Asked, what: str, by: float, cluster: ClusterSpec, base_s: float, file_step_s: float) -> Gain:
    """The batch stays as it is, so a shorter step is more tokens per second by as much."""
    try:
        best = asked.search(cluster).plans[0].report
    except UserError as error:
        return Gain(what=what, factor=by, of="new search", step_s=None, gain=None, note=f"no plan: {error.problems[0]}")
    ratio = best.step_s.value / base_s
    same = best.plan == asked.plan
    return Gain(
        what=what, factor=by, of="new search", step_s=file_step_s * ratio, gain=1.0 / ratio - 1.0,
        label=best.plan.label(), note="the same plan stays best" if same else "",
    )  # fmt: skip
