"""What surrounds a plan: each degree doubled or halved, and why that neighbour was not chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from planner.ranks import Laying, spread
from planner.rules import Context, Rule, violations
from planner.table import NOT_LAID_OUT, OUT_OF_MEMORY, SAME_GROUPS, ScreenFn
from sim.build.order import SPLIT_SCHEDULES
from sim.columns import columns_of
from sim.mesh import RankMap
from sim.plan import Plan

MOVED = ("tp", "cp", "pp", "vpp", "ep", "etp", "micro_batch_seqs")


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """One change of the best plan and its outcome.

    outcome: a rule id, "out of memory", "not laid out", "slower" (its bound or its simulated step exceeds the best),
    "same groups" (another rank order that changes no group) or "not better in sight" (its bound is lower, but it was
    not simulated). what: the reason in words.
    """

    change: str
    outcome: str
    what: str
    bound_s: float | None = None
    step_s: float | None = None
    need_bytes: float | None = None


def moved(plan: Plan, name: str, value: int, world: int) -> Plan:
    """The plan with one degree changed; dp, edp and the schedule that goes with vpp follow."""
    degree: dict[str, Any] = {name: value}
    if name == "vpp" and plan.schedule not in SPLIT_SCHEDULES:
        degree["schedule"] = "interleaved" if value > 1 else "1f1b"
    if name == "pp" and value == 1:
        degree |= {"vpp": 1, "schedule": "1f1b"}
    changed = replace(plan, **degree)
    dp = max(1, world // (changed.tp * changed.cp * changed.pp))
    edp = max(1, world // (changed.etp * changed.ep * changed.pp))
    return replace(changed, dp=dp, edp=edp)


def neighbours_of(
    best: Plan,
    best_s: float,
    laying: Laying,
    rules: Sequence[Rule],
    simulated_s: Mapping[tuple[Plan, RankMap], float],
    fixed: Mapping[str, Any],
    others: Sequence[Laying] = (),
) -> tuple[Neighbour, ...]:
    """Every single-degree doubling and halving of `best` that is not pinned, with its outcome, and every rank order.

    laying: the rank map of the best plan; others: those with another order on the same devices.
    """
    ctx, screen_fn = laying.ctx, laying.screen
    of_map = {plan: step for (plan, ranks), step in simulated_s.items() if ranks == laying.ranks}
    out: list[Neighbour] = []
    for name in MOVED:
        if name in fixed:
            continue
        old = int(getattr(best, name))
        for value in (old // 2, old * 2):
            if value < 1 or (value < old and old % 2):
                continue
            plan = moved(best, name, value, ctx.world)
            out.append(_outcome(f"{name} {old} -> {value}", plan, best_s, ctx, rules, screen_fn, of_map))
    row = columns_of([best])[0]
    lies = spread(row, ctx.cluster, laying.ranks)
    for other in others:
        change = f"rank order {laying.ranks.order} -> {other.ranks.order}"
        steps = {plan: step for (plan, ranks), step in simulated_s.items() if ranks == other.ranks}
        found = _outcome(change, best, best_s, other.ctx, rules, other.screen, steps)
        legal = found.outcome in ("slower", "not better in sight")
        if legal and np.array_equal(spread(row, ctx.cluster, other.ranks), lies):
            found = Neighbour(change=change, outcome=SAME_GROUPS, what="every group lies as it does now")
        out.append(found)
    return tuple(out)


def _outcome(
    change: str,
    plan: Plan,
    best_s: float,
    ctx: Context,
    rules: Sequence[Rule],
    screen_fn: ScreenFn,
    simulated_s: Mapping[Plan, float],
) -> Neighbour:
    broken = violations(plan, ctx, rules)
    if broken:
        return Neighbour(change=change, outcome=broken[0].rule, what=broken[0].what)
    if plan in simulated_s:
        step = simulated_s[plan]
        return Neighbour(change=change, outcome="slower", what=f"simulated at {step:.4g} s", step_s=step)
    row = screen_fn(columns_of([plan])[0])
    bound, peak = float(row.bound_s[0]), float(row.peak_bytes[0])
    if not isfinite(bound):
        return Neighbour(change=change, outcome=NOT_LAID_OUT, what="layers cannot be spread over the stages")
    if not bool(row.fits[0]):
        what = f"needs {peak / 2**30:.1f} GiB per device"
        return Neighbour(change=change, outcome=OUT_OF_MEMORY, what=what, bound_s=bound, need_bytes=peak)
    outcome = "slower" if bound >= best_s else "not better in sight"
    return Neighbour(
        change=change, outcome=outcome, what=f"cannot be faster than {bound:.4g} s", bound_s=bound, need_bytes=peak
    )
