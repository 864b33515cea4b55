"""The answer of a search: its plans, what was done, what is proven; and the error where nothing fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hwprofiles.errors import NoPlanError
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.energy import EnergyProof
from planner.front import Front
from planner.neighbours import Neighbour
from planner.rules import Context, Rule
from planner.runs import Misfit, Runs
from planner.stage_plan.refine import Refinement
from planner.table import NOT_LAID_OUT, OUT_OF_MEMORY, Candidate, Table
from planner.variants import Chosen
from sim.model import ModelSpec
from sim.report import Report
from sim.workload import Workload

OUT_OF_MEMORY_EVENT = "out of memory (event run)"
NEXT_KEPT = 3

Certificate = Literal["exact", "best exact", "gap", "void"]


@dataclass(frozen=True, kw_only=True)
class RankedPlan:
    """A simulated plan and its place; rank 1 is the fastest. chosen: what it runs with where variants were searched;
    None: with what was asked."""

    rank: int
    report: Report
    bound_s: float
    chosen: Chosen | None = None


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """What the search did and what it proves.

    bound_s: no plan of the table is faster than this. gap: (best - bound_s) / best.
    certificate: "exact" - no candidate outside the list beats its last plan; "best exact" - the
    same of the first plan only; "gap" - stopped early, gap remains; "void" - an event run came out
    below its bound, so nothing is proven. stopped: "bound" | "table" | "limit" | "interrupted".
    """

    raw: int
    legal: int
    fits: int
    simulated: int
    bound_s: float
    gap: float
    certificate: Certificate
    stopped: str
    rejected: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """The answer of `find_plans`; `planner.planfile.plan_json` writes it down.

    variants: what `planner.variants` searched beside the table. lean: slower plans that need less memory or may take
    less energy, where they were asked for, rank 0; front, energy: what they prove. stages: how the layers of the
    stages were chosen, where that was asked for; then the bound, gap and certificate of `search` are those of free
    stages.
    """

    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    target: str
    options: Mapping[str, Any]
    plans: tuple[RankedPlan, ...]
    search: SearchSummary
    rules: tuple[Rule, ...] = field(repr=False)
    next_best: tuple[Candidate, ...]
    misfits: tuple[Misfit, ...]
    fast_misfits: tuple[Misfit, ...]
    neighbours: tuple[Neighbour, ...]
    warnings: tuple[str, ...]
    timing: Mapping[str, float]
    lean: tuple[RankedPlan, ...] = ()
    front: Front | None = None
    variants: tuple[Mapping[str, Any], ...] = ()
    stages: Refinement | None = None
    energy: EnergyProof | None = None

    def software_of(self, plan: RankedPlan) -> SoftwareProfile:
        """The profile that one of its plans runs with."""
        return self.software if plan.chosen is None else plan.chosen.software

    def workload_of(self, plan: RankedPlan) -> Workload:
        """The workload that one of its plans runs."""
        return self.workload if plan.chosen is None else plan.chosen.workload


def misfits_of(candidates: Sequence[Candidate], capacity: float) -> tuple[Misfit, ...]:
    """What memory rejects, with what it needs and what is there."""
    return tuple(
        Misfit(plan=c.plan, need_bytes=c.peak_bytes, have_bytes=capacity, bound_s=c.bound_s, ranks=c.ranks)
        for c in candidates
    )


def no_plan(
    table: Table,
    rejected: Mapping[str, int],
    rules: Sequence[Rule],
    capacity: float,
    ctx: Context,
    run: Runs | None = None,
) -> NoPlanError:
    """The error of an empty answer: counts per rule, the nearest misses, what would help."""
    counts = dict(rejected or table.rejected)
    text = {rule.id: rule for rule in rules}
    said = [
        f"no plan for {ctx.model.name} on {ctx.world} devices of {ctx.cluster.name} with {ctx.software.name}: "
        f"all {table.raw} candidates were rejected"
        if run is None or run.stopped != "limit"
        else f"no plan within {run.simulated} event runs of {table.fits} candidates; raise the limit"
    ]
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if name in text:
            said.append(f"{count} lost to {name}: {text[name].text} ({text[name].where}); {text[name].remedy}")
        elif name == NOT_LAID_OUT:
            said.append(f"{count} lost to {name}: layers cannot be spread over the stages; lower --pp or --vpp")
        else:
            said.append(f"{count} lost to {name}: peak memory above {capacity / 2**30:.1f} GiB")
    misses = (*(run.misfits[:NEXT_KEPT] if run else ()), *misfits_of(table.nearest, capacity))
    for miss in misses[:NEXT_KEPT]:
        over = (miss.need_bytes - miss.have_bytes) / 2**30
        setting = ", ".join(miss.plan.recompute) or "no recompute"
        said.append(
            f"nearest: {miss.plan.label()} ({setting}) needs {miss.need_bytes / 2**30:.1f} GiB of "
            f"{miss.have_bytes / 2**30:.1f} GiB, {over:.1f} GiB too much"
        )
    if counts.get(OUT_OF_MEMORY) or counts.get(OUT_OF_MEMORY_EVENT):
        said.append("use more devices, free --recompute, --pp or --ep, shorten the sequence or raise the ZeRO stage")
    done = {
        "raw": table.raw,
        "legal": table.legal,
        "fits": table.fits - (len(run.misfits) if run else 0),
        "simulated": run.simulated if run else 0,
        "stopped": run.stopped if run else "table",
        "rejected": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    }
    return NoPlanError(said, search=done)
