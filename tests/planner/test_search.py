"""The search against brute force, its certificate, its limits, and its errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import NoPlanError, UserError
from planner import find_plans, search
from planner.rules import apply, context, rules_of
from planner.search import OUT_OF_MEMORY_EVENT, PlanResult
from planner.space import space
from planner.table import NOT_LAID_OUT, OUT_OF_MEMORY, build_table, in_order, tie_key
from sim.columns import Columns
from sim.plan import Plan
from sim.report import OutOfMemory, Report
from tests.planner.toy import (
    CAPACITY_BYTES,
    Rows,
    make_cluster,
    make_model,
    make_software,
    make_workload,
    toy_bound_s,
    toy_peak_bytes,
    toy_report,
    toy_screen,
    toy_step_s,
)

WORLD: dict[str, Any] = {
    "model": make_model(),
    "cluster": make_cluster(),
    "software": make_software(),
    "workload": make_workload(),
}
TOY: dict[str, Any] = {"simulate_fn": toy_report, "screen_fn": toy_screen, "capacity_bytes": CAPACITY_BYTES}


def legal(**fixed: Any) -> list[Plan]:
    """Every plan of the table that keeps the rules, by enumeration."""
    ctx = context(**WORLD)
    out: list[Plan] = []
    for block in space(WORLD["model"], WORLD["cluster"], WORLD["workload"], fixed, WORLD["software"]):
        mask, _ = apply(block, ctx, rules_of("megatron-lm"))
        out += [block.plan(int(i)) for i in np.flatnonzero(mask)]
    return out


def feasible(**fixed: Any) -> list[Plan]:
    """Those that fit."""
    return [p for p in legal(**fixed) if toy_peak_bytes(p) <= CAPACITY_BYTES]


def find(**options: Any) -> PlanResult:
    """find_plans in the toy world."""
    return find_plans(**WORLD, **(TOY | options))


@pytest.mark.parametrize("fixed", [{}, {"tp": 1}, {"ep": 8, "micro_batch_seqs": 2}, {"recompute": ("full",)}])
@pytest.mark.parametrize("top", [1, 5])
def test_search_equals_brute_force(fixed: dict[str, Any], top: int) -> None:
    want = sorted((toy_step_s(p), tie_key(p)) for p in feasible(**fixed))[:top]
    result = find(fixed=fixed, top=top, max_simulated=None)
    assert [p.report.step_s.value for p in result.plans] == [step for step, _ in want]
    assert result.search.certificate == "exact" and result.search.gap == 0.0
    assert [p.rank for p in result.plans] == list(range(1, len(want) + 1))


def test_search_stops_early_and_says_so() -> None:
    result = find(max_simulated=None)
    assert result.search.stopped == "bound"
    assert result.search.simulated < result.search.fits / 2
    assert result.search.bound_s == result.plans[0].report.step_s.value
    assert all(c.bound_s >= result.plans[-1].report.step_s.value for c in result.next_best)


def test_on_a_limit_the_gap_is_the_answer() -> None:
    result = find(max_simulated=1, top=1)
    left = sorted(toy_bound_s(p) for p in feasible())[1]
    best = result.plans[0].report.step_s.value
    assert left < best  # the toy's noise leaves a gap after one run
    assert result.search.stopped == "limit" and result.search.certificate == "gap"
    assert result.search.gap == pytest.approx((best - left) / best)
    assert result.warnings and "faster may exist" in result.warnings[0]


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(1, 60))
def test_the_bound_holds_at_every_limit(limit: int) -> None:
    result = find(max_simulated=limit, top=3, fixed={"recompute": ()})
    optimum = min(toy_step_s(p) for p in feasible(recompute=()))
    assert result.search.bound_s <= optimum <= result.plans[0].report.step_s.value
    if result.search.certificate in ("exact", "best exact"):
        assert result.plans[0].report.step_s.value == optimum


def test_best_may_be_proven_before_the_rest() -> None:
    full = find(max_simulated=None, top=1)
    result = find(max_simulated=full.search.simulated, top=50)
    assert result.search.certificate == "best exact" and result.search.gap == 0.0


def test_a_bound_above_the_step_voids_the_certificate() -> None:
    def bad(columns: Columns) -> Rows:
        rows = toy_screen(columns)
        return Rows(rows.bound_s * 2, rows.peak_bytes, rows.fits)

    result = find(screen_fn=bad, max_simulated=None)
    assert result.search.certificate == "void" and "no certificate" in result.warnings[0]


def test_every_raw_candidate_is_accounted_for() -> None:
    search = find().search
    assert search.raw == search.fits + sum(search.rejected.values())
    assert search.legal == search.fits + search.rejected[OUT_OF_MEMORY]
    assert search.fits == len(feasible())


def test_rows_that_cannot_be_laid_out_are_not_called_out_of_memory() -> None:
    def partial(columns: Columns) -> Rows:
        rows = toy_screen(columns)
        lost = columns.vpp > 1
        return Rows(np.where(lost, np.inf, rows.bound_s), np.where(lost, np.inf, rows.peak_bytes), rows.fits & ~lost)

    search = find(screen_fn=partial).search
    assert search.rejected[NOT_LAID_OUT] == sum(p.vpp > 1 for p in legal())
    assert search.raw == search.fits + sum(search.rejected.values())


def test_memory_found_out_by_the_event_run_is_a_rejection() -> None:
    first = find(max_simulated=None).plans[0].report.plan

    def short(plan: Plan) -> Report:
        return toy_report(plan, fits=plan != first)

    result = find(simulate_fn=short, max_simulated=None)
    assert result.search.rejected[OUT_OF_MEMORY_EVENT] == 1
    assert first not in [p.report.plan for p in result.plans]
    assert result.misfits[0].plan == first and result.misfits[0].need_bytes == 12.0


def test_an_interrupt_keeps_what_was_found() -> None:
    calls: list[Plan] = []

    def stop_at_third(plan: Plan) -> Report:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(plan)
        return toy_report(plan)

    result = find(simulate_fn=stop_at_third)
    assert result.search.stopped == "interrupted" and result.search.simulated == 3
    assert {p.report.plan for p in result.plans} == set(calls)


@pytest.mark.parametrize("later", ["front_runs", "neighbours_of"])
def test_an_interrupt_of_what_follows_the_runs_keeps_them(later: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    whole = find(max_simulated=None, lean=3)
    monkeypatch.setattr(search, later, stop)
    result = find(max_simulated=None, lean=3)
    assert result.search == replace(whole.search, stopped="interrupted")
    assert result.plans == whole.plans and result.neighbours == ()


def test_an_interrupt_after_misfits_only_is_an_interrupt() -> None:
    seen: list[Plan] = []

    def event_run(plan: Plan) -> Report:
        if seen:
            raise KeyboardInterrupt
        seen.append(plan)
        return replace(toy_report(plan), out_of_memory=OutOfMemory(lane=0, tag="a", need_bytes=2.0, have_bytes=1.0))

    with pytest.raises(KeyboardInterrupt):
        find(simulate_fn=event_run)


def test_an_interrupt_before_anything_was_found_is_an_interrupt() -> None:
    def stop(plan: Plan) -> Report:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(simulate_fn=stop)


def test_no_plan_counts_the_rules_and_names_the_nearest() -> None:
    def tight(columns: Columns) -> Rows:
        rows = toy_screen(columns)
        return Rows(rows.bound_s, rows.peak_bytes, rows.peak_bytes < 0)

    with pytest.raises(NoPlanError) as caught:
        find(screen_fn=tight)
    text = "\n".join(caught.value.problems)
    assert caught.value.exit_code == 3
    assert "lost to world-product" in text and "lost to out of memory" in text and "nearest:" in text


def test_no_plan_when_a_pin_is_impossible() -> None:
    with pytest.raises(NoPlanError, match="world-product"):
        find(fixed={"pp": 3})
    with pytest.raises(UserError, match="tpp"):
        find(fixed={"tpp": 3})


def test_no_plan_when_every_event_run_is_short_of_memory() -> None:
    def short(plan: Plan) -> Report:
        return toy_report(plan, fits=False)

    with pytest.raises(NoPlanError, match="event run"):
        find(simulate_fn=short, fixed={"tp": 1, "pp": 2, "recompute": ()}, max_simulated=None)
    with pytest.raises(NoPlanError, match="raise the limit"):
        find(simulate_fn=short, max_simulated=2)


def test_equal_times_go_by_the_explicit_order() -> None:
    def flat(columns: Columns) -> Rows:
        rows = toy_screen(columns)
        return Rows(np.ones(len(columns)), rows.peak_bytes, rows.fits)

    result = find(screen_fn=flat, simulate_fn=lambda plan: toy_report(plan, step_s=1.0), max_simulated=None)
    plans = [p.report.plan for p in result.plans]
    assert plans == sorted(feasible(), key=tie_key)[: len(plans)]


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(1, 80))
def test_a_partial_order_is_the_head_of_the_full_order(limit: int) -> None:
    def coarse(columns: Columns) -> Rows:
        rows = toy_screen(columns)
        return Rows(np.round(rows.bound_s, 1), rows.peak_bytes, rows.fits)  # many ties

    blocks = list(
        space(WORLD["model"], WORLD["cluster"], WORLD["workload"], {"micro_batch_seqs": 1}, WORLD["software"])
    )
    table = build_table(blocks, context(**WORLD), rules_of("megatron-lm"), coarse, None)
    everything = in_order(table, None)
    assert in_order(table, limit) == everything[:limit]
    assert everything == sorted(everything, key=lambda c: (c.bound_s, tie_key(c.plan)))


def test_what_memory_would_buy_is_the_cheapest_that_may_be_faster() -> None:
    result = find(max_simulated=None)
    best = result.plans[0].report.step_s.value
    misses = [p for p in legal() if toy_peak_bytes(p) > CAPACITY_BYTES and toy_bound_s(p) < best]
    assert misses
    assert result.fast_misfits[0].need_bytes == min(map(toy_peak_bytes, misses))
    needs = [m.need_bytes for m in result.fast_misfits]
    assert needs == sorted(needs) and all(m.bound_s < best for m in result.fast_misfits)


def test_progress_is_told() -> None:
    said: list[tuple[str, int, int | None]] = []
    find(progress=lambda *step: said.append(step), max_simulated=4)
    assert [s for s in said if s[0] == "simulating"] == [("simulating", i, 4) for i in range(4)]
    assert said[0][0] == "screening"


def test_neighbours_give_a_reason_for_each_degree() -> None:
    result = find(max_simulated=None, fixed={"cp": 1})
    changes = {n.change.split()[0] for n in result.neighbours}
    assert "cp" not in changes and {"tp", "pp", "ep", "micro_batch_seqs"} <= changes
    assert all(n.outcome and n.what for n in result.neighbours)
    step = result.plans[0].report.step_s.value
    assert all(n.step_s >= step for n in result.neighbours if n.step_s is not None)


def test_a_larger_cluster_changes_nothing_but_the_table() -> None:
    big = find_plans(**(WORLD | {"cluster": replace(WORLD["cluster"], num_nodes=4)}), **TOY)
    assert all(p.report.plan.num_devices == 32 for p in big.plans)
