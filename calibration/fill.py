"""Unknown cells of a run: filled with the best feasible choice given the known ones.

Everything here works from the configuration only; measured columns are out of reach, so shuffling
them cannot change a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.case import Case
from hwprofiles.errors import UserError
from planner.rules import apply, rules_of
from planner.rules.base import context
from planner.space import space
from sim.columns import Columns, columns_of
from sim.cost.model import CostModel
from sim.plan import Plan
from sim.screen import screen

DEGREES = ("tp", "cp", "pp", "vpp", "ep", "etp", "micro_batch_seqs")
DECIDING = ("tp", "pp", "ep", "micro_batch_seqs")


@dataclass(frozen=True, kw_only=True)
class Filled:
    """The plan to predict with, the cells that were filled, and whether memory said it fits."""

    plan: Plan
    filled: Mapping[str, Any]
    fits: bool


def schedule_of(vpp: int) -> str:
    """Interleaved where a stage holds several virtual stages."""
    return "interleaved" if vpp > 1 else "1f1b"


def fill(case: Case, cost: CostModel) -> Filled:
    """Best feasible plan that agrees with every known cell.

    Raises UserError when no layout obeys the rules with the known cells.
    """
    known = {k: v for k, v in case.known.items() if v is not None}
    if not case.model.is_moe:
        known.setdefault("ep", 1)
        known.setdefault("etp", 1)
    known.setdefault("etp", 1)
    known.setdefault("cp", 1)
    if known.get("pp") == 1:
        known["vpp"] = 1
    stages = known.pop("stages", None)
    if stages is not None and known.get("pp"):
        slots = len(stages)
        known["vpp"] = max(1, slots // known["pp"]) if slots % known["pp"] == 0 else known.get("vpp", 1)
        if slots != known["pp"] * known["vpp"] or sum(stages) != len(case.model.layers):
            stages = None
    blocks = _blocks(case, known)
    best: tuple[bool, float, Columns, int] | None = None
    for block in blocks:
        seen = screen(case.model, case.cluster, case.software, case.workload, block, routing=case.routing, cost=cost)
        for i in range(len(block)):
            key = float(seen.bound_s[i]) if seen.fits[i] else float(seen.peak_bytes[i])
            fits = bool(seen.fits[i])
            if not np.isfinite(key):
                continue
            if best is None or (fits and not best[0]) or (fits == best[0] and key < best[1] * (1 - 1e-12)):
                best = (fits, key, block, i)
    if best is None:
        raise UserError("no layout obeys the rules with the stated degrees", where=case.id)
    plan = best[2].plan(best[3])
    plan = replace(plan, stages=stages, schedule=schedule_of(plan.vpp))
    filled = {k: getattr(plan, k) for k in (*DEGREES, "recompute") if k not in known}
    return Filled(plan=plan, filled=filled, fits=best[0])


def _blocks(case: Case, known: dict[str, Any]) -> list[Columns]:
    if all(k in known for k in DEGREES) and "recompute" in known:
        world = case.cluster.num_devices
        dense, expert = known["tp"] * known["cp"] * known["pp"], known["etp"] * known["ep"] * known["pp"]
        if world % dense or world % expert:
            raise UserError(
                f"{world} devices do not divide into tp x cp x pp {dense} and etp x ep x pp {expert}", where=case.id
            )
        dp, mbs = world // dense, known["micro_batch_seqs"]
        if case.workload.global_batch_seqs % (dp * mbs):
            raise UserError(f"global batch is not a multiple of micro-batch {mbs} x dp {dp}", where=case.id)
        slots = known["pp"] * known["vpp"]
        known.setdefault("account_ends", len(case.model.layers) % slots != 0)
        plan = Plan(dp=dp, edp=world // expert, **known, schedule=schedule_of(known["vpp"]))
        return list(columns_of([plan]))
    ctx = context(case.model, case.cluster, case.software, case.workload)
    rules = rules_of("layout")
    out = []
    for block in space(case.model, case.cluster, case.workload, known, case.software):
        mask, _ = apply(block, ctx, rules)
        if mask.any():
            out.append(block.take(mask))
    return out
