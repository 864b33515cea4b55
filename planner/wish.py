"""What would have to be true for a wished configuration to be the plan.

The wish fixes some choices; the rest is searched. What comes out is compared with the best plan: which rule forbids
it, how much memory it lacks, by how much it is slower, and which rate of the machine would have to be how much higher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hwprofiles.catalogue import device_of
from hwprofiles.errors import NoPlanError, UserError
from hwprofiles.factors import Factors
from planner.elastic import rates_of, step_with
from planner.planfile import plan_fields
from planner.reask import Asked, with_device
from planner.rules import rules_of
from planner.search import OUT_OF_MEMORY_EVENT, PlanResult
from planner.space import FREE_FIELDS
from planner.table import OUT_OF_MEMORY
from sim.cost.model import CostModel
from sim.plan import RECOMPUTE_MODULES

NAMES = {"micro_batch": "micro_batch_seqs", "zero": "zero_stage"}
MOST = 16.0  # a rate so many times higher is another machine
PRECISE = 1.01  # factors are found to a per cent
MEMORY_TRIED = 8.0  # times the memory of the device


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that would make the wish come true alone. factor None: not even `MOST` times as much."""

    what: str
    factor: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The best plan with the wish, or why there is none. step_s: of it; best_s: of the plan of the file.

    verdict: "is the plan", "faster" (the question had asked for something else), "slower", "out of memory" or "breaks
    rules".
    """

    wished: Mapping[str, Any]
    verdict: str
    label: str
    plan: Mapping[str, Any] | None
    step_s: float | None
    best_s: float
    needs: tuple[Need, ...]


def read_wish(text: str) -> dict[str, Any]:
    """`tp=1,pp=8,recompute=full` as fields of a plan; modules of recompute are joined by +. Raises UserError."""
    found: dict[str, Any] = {}
    problems = []
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        field = NAMES.get(name, name)
        if not equals or field not in FREE_FIELDS:
            known = ", ".join(sorted({*FREE_FIELDS, *NAMES} - set(NAMES.values())))
            problems.append(f"{part.strip()[:40]!r}: write NAME=VALUE with one of {known}")
        elif field == "recompute":
            modules = [] if value == "none" else value.split("+")
            if any(module not in (*RECOMPUTE_MODULES, "full") for module in modules):
                problems.append(f"recompute={value[:40]}: use none, full or modules joined by +")
            found[field] = tuple(m for m in (*RECOMPUTE_MODULES, "full") if m in modules)
        elif field == "schedule":
            found[field] = value
        elif field == "account_ends":
            found[field] = value.lower() in ("1", "true", "yes")
        elif value.isdecimal():
            found[field] = int(value)
        else:
            problems.append(f"{name}={value[:40]}: give a whole number")
    if problems:
        raise UserError(problems, where="--wish")
    return found


def wish(asked: Asked, wished: Mapping[str, Any], best_s: float) -> Wish:
    """What would have to be true. best_s: step of the file's plan, as the file says it."""
    base = step_with(asked, None, 1.0)
    try:
        found = asked.search(fixed=wished)
    except NoPlanError as error:
        return _impossible(asked, wished, best_s, base, error)
    report = found.plans[0].report
    if report.plan == asked.plan and report.ranks == asked.ranks:
        return _granted(wished, found, "is the plan", best_s, best_s, ())
    step_s = best_s * report.step_s.value / base
    if step_s <= best_s:
        pinned = [name for name, value in wished.items() if asked.fixed.get(name, value) != value]
        if step_s < best_s and pinned:
            names = ", ".join(f"{name} {asked.fixed[name]}" for name in pinned)
            text = f"it is {1.0 - step_s / best_s:.2%} faster: the plan of the file was asked for with {names}"
            needs = (Need(what="nothing", factor=1.0, text=text),)
            return _granted(wished, found, "faster", step_s, best_s, needs)
        needs = (Need(what="nothing", factor=1.0, text="it is as fast: the search ended before it, or ties"),)
        return _granted(wished, found, "is the plan", step_s, best_s, needs)
    return _granted(wished, found, "slower", step_s, best_s, _rates(asked, found))


def _granted(
    wished: Mapping[str, Any], found: PlanResult, verdict: str, step_s: float, best_s: float, needs: tuple[Need, ...]
) -> Wish:
    plan = found.plans[0].report.plan
    return Wish(
        wished=dict(wished), verdict=verdict, label=plan.label(), plan=plan_fields(plan), step_s=step_s, best_s=best_s,
        needs=needs,
    )  # fmt: skip


def _rates(asked: Asked, found: PlanResult) -> tuple[Need, ...]:
    """By what factor each rate alone must rise until the wished plan is as fast as the best one at that rate."""
    report = found.plans[0].report

    def ahead(change: Any, by: float) -> bool:
        return step_with(asked, change, by, report.plan, report.ranks) <= step_with(asked, change, by)

    needs = []
    for what, change in rates_of(asked.cluster).items():
        factor = least_factor(partial(ahead, change))
        text = (
            f"{what} {factor:.3g} times as high, the rest as it is"
            if factor
            else f"not by {what}, even {MOST:g} times as high"
        )
        needs.append(Need(what=what, factor=factor, text=text))
    return tuple(sorted(needs, key=lambda n: n.factor or MOST * 2))


def least_factor(holds: Callable[[float], bool]) -> float | None:
    """The least factor up to MOST from which `holds` is true, to a per cent, if it is true at MOST; else None.

    >>> round(least_factor(lambda by: by >= 3.0), 1)
    3.0
    """
    if not holds(MOST):
        return None
    low, high = 1.0, MOST
    while high / low > PRECISE:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _impossible(asked: Asked, wished: Mapping[str, Any], best_s: float, base_s: float, error: NoPlanError) -> Wish:
    """No plan with the wish: memory that would do, or the rules in the way."""
    lost = error.search.get("rejected", {})
    names = ",".join(f"{name}={value}" for name, value in wished.items())
    if lost.get(OUT_OF_MEMORY) or lost.get(OUT_OF_MEMORY_EVENT):
        have = device_of(asked.cluster).mem_bytes
        try:
            found = asked.search(with_device(asked.cluster, mem_bytes=have * MEMORY_TRIED), fixed=wished, lean=2)
        except NoPlanError:
            needs = (Need(what="memory", factor=None, text=f"more than {MEMORY_TRIED:g} times the memory"),)
            return Wish(wished=dict(wished), verdict="out of memory", label=names, plan=None, step_s=None,
                        best_s=best_s, needs=needs)  # fmt: skip
        lean = min((*found.plans, *found.lean), key=lambda p: (p.report.peak_mem_bytes, p.report.step_s.value)).report
        over = max(0.0, lean.peak_mem_bytes - _usable(asked)) * (1.0 + factors_of(asked).fragmentation)
        step_s = best_s * lean.step_s.value / base_s
        text = (
            f"devices of {(have + over) / 2**30:.1f} GiB instead of {have / 2**30:.1f} GiB hold {lean.plan.label()}, "
            f"whose step would take {step_s:.4g} s"
        )
        return Wish(
            wished=dict(wished), verdict="out of memory", label=lean.plan.label(), plan=plan_fields(lean.plan),
            step_s=step_s, best_s=best_s, needs=(Need(what="memory", factor=1.0 + over / have, text=text),),
        )  # fmt: skip
    rules = {rule.id: rule for rule in rules_of(asked.target)}
    broken = [
        Need(what=name, factor=None, text=f"{rules[name].text}; {rules[name].remedy}" if name in rules else name)
        for name in lost
    ]
    return Wish(wished=dict(wished), verdict="breaks rules", label=names, plan=None, step_s=None, best_s=best_s,
                needs=tuple(broken))  # fmt: skip


def _usable(asked: Asked) -> float:
    return CostModel(asked.cluster, asked.software).usable_bytes


def factors_of(asked: Asked) -> Factors:
    """Calibrated factors of the machine asked about."""
    return CostModel(asked.cluster, asked.software).factors
