"""The answer over several types of devices as a file: what was asked, plans with the pool of each stage, the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.specs import LinkSpec
from planner.mixed.refine import MixedPlan
from planner.mixed.rows import TypeQuestion
from planner.mixed.search import MixedResult
from planner.planfile import digests_of, plan_record
from planner.schema import MIX_FORMAT, check_mixed
from sim.report import Report
from sim.workload import workload_fields


def mixed_json(
    found: MixedResult, types: Sequence[TypeQuestion], alone: Sequence[Report | str], *, between: LinkSpec | None,
    target: str, fixed: Mapping[str, Any], top: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The answer as JSON-ready values, SI units; alone: the best plan of each pool by itself, or why there is none."""
    first = types[0].question
    options = {"fixed": dict(fixed), "routing": first.routing.source, "top": top, "seed": seed}
    link = None if between is None else {"bytes_per_s": between.bytes_per_s, "latency_s": between.latency_s}
    pools = [
        {
            "cluster": t.cluster.name, "devices": t.devices, "software": t.question.software.name,
            "digests": digests_of(
                first.model, t.cluster, t.question.software, first.workload, target, {**options, "between": link}
            ),
        }
        for t in types
    ]  # fmt: skip
    return {
        "format": MIX_FORMAT, "kind": "mix", "model": first.model.name,
        "inputs": {"model": first.model.name, "pools": pools, "between": link, "target": target,
                   "workload": workload_fields(first.workload), "options": options},
        "pools": [
            {"cluster": name, "devices": count, "alone": _alone(report)}
            for name, count, report in zip(found.names, found.devices, alone, strict=True)
        ],
        "plans": [_plan(found, p, i + 1) for i, p in enumerate(found.plans)],
        "search": {"raw": found.raw, "legal": found.legal, "tried": found.tried, "bound_s": found.bound_s,
                   "gap": found.gap, "stopped": found.stopped, "rejected": dict(found.rejected)},
        "warnings": list(found.warnings), "timing": {"seconds": found.seconds},
    }  # fmt: skip


def _plan(found: MixedResult, p: MixedPlan, rank: int) -> dict[str, Any]:
    pools = [found.names[at] for at in p.where]
    loads = [{"pool": pool} | asdict(load) for pool, load in zip(pools, p.loads, strict=True)]
    game = {"way": p.game.way, "objective_s": p.game.objective_s, "bound_s": p.game.bound_s, "gap": p.game.gap,
            "status": p.game.status}  # fmt: skip
    more = {"pool_of_stage": pools, "even_s": p.even_s, "programme": game, "stage_loads": loads}
    return plan_record(p.report, rank=rank, bound_s=p.bound_s) | more


def _alone(report: Report | str) -> dict[str, Any]:
    if isinstance(report, str):
        return {"label": None, "step_s": None, "why": report}
    return {"label": report.plan.label(), "step_s": report.step_s.value, "why": ""}


def is_mixed(data: Any) -> bool:
    """Whether the JSON of a file is an answer over several types of devices."""
    return isinstance(data, Mapping) and "pools" in data and "plans" in data


def mixed_from(data: Mapping[str, Any], *, where: str = "") -> Mapping[str, Any]:
    """The answer of a file. Raises UserError on values that no answer has."""
    if data.get("format") != MIX_FORMAT:
        raise UserError(f"not an answer of `moecast mix` of format {MIX_FORMAT}; write it again", where=where)
    check_mixed(data, where=where)
    return data
