"""Scaling curves: what each point is, and what efficiency means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dashboards.figures_scaling import HEADERS, efficiency_curves, scaling_curves, scaling_html, scaling_rows
from hwprofiles import catalogue
from hwprofiles.errors import NoPlanError
from planner.scaling import MODES, Curve, curves_json, on_fewer, scale
from planner.search import PlanResult, find_plans
from sim.plan import Plan
from sim.report import Estimate, Report
from tests.planner.toy import make_model, make_software, make_workload, toy_report, toy_screen

CLUSTERS = [catalogue.cluster("dgx-h100", gpus=n) for n in (8, 16, 32)]
FIXED_S = 1.0


def search(cluster: catalogue.ClusterSpec, batch: int) -> PlanResult:
    """A step of a fixed second and one per eight sequences a device, plus TP."""
    if cluster.num_devices == 16 and batch == 77:
        raise NoPlanError("no such batch")

    def simulate(plan: Plan) -> Report:
        step = FIXED_S + batch / cluster.num_devices / 8 + (plan.tp - 1) + 0.01 * (plan.pp - 1)
        known = Estimate(value=step, low=step * 0.9, high=step * 1.1)
        rate = known.inverse(batch * 4096 / cluster.num_devices)
        return replace(toy_report(plan, step_s=step), step_s=known, tokens_per_s_per_gpu=rate,
                       devices=cluster.num_devices)  # fmt: skip

    return find_plans(
        make_model(), cluster, make_software(), make_workload(global_batch_seqs=64), top=1, simulate_fn=simulate,
        screen_fn=toy_screen, capacity_bytes=10.0,
    )  # fmt: skip


def test_strong_keeps_the_batch_and_weak_grows_it() -> None:
    strong, weak = (scale(mode, CLUSTERS, 64, search) for mode in MODES)
    assert [p.global_batch_seqs for p in strong.points] == [64, 64, 64]
    assert [p.global_batch_seqs for p in weak.points] == [64, 128, 256]
    for curve in (strong, weak):
        first = curve.points[0]
        assert first.speedup == first.efficiency == 1.0
        for p in curve.points:
            assert p.tokens_per_s is not None and first.tokens_per_s is not None and p.step_s is not None
            assert p.tokens_per_s.value == pytest.approx(p.global_batch_seqs * 4096 / p.step_s.value)
            assert p.speedup == pytest.approx(p.tokens_per_s.value / first.tokens_per_s.value)
            assert p.efficiency == pytest.approx(p.speedup * 8 / p.devices)


def test_the_fixed_second_costs_strong_scaling_more() -> None:
    """Amdahl: the fixed part does not shrink; weak scaling does not see it."""
    strong, weak = (scale(mode, CLUSTERS, 64, search) for mode in MODES)
    assert strong.points[2].efficiency == pytest.approx(2.0 / (4 * 1.25), rel=0.1)
    assert weak.points[2].efficiency == pytest.approx(1.0, rel=0.1)


def test_a_count_without_a_plan_is_a_point() -> None:
    curve = scale("strong", CLUSTERS, 77, search)
    assert [p.why for p in curve.points] == ["", "no such batch", ""]
    assert curve.points[2].efficiency is not None
    assert scaling_rows(curve)[1][2] == "no plan"


def test_more_than_ideal_has_a_reason_and_slower_points_say_so() -> None:
    def steps(*seconds: float) -> Any:
        of = dict(zip((8, 16, 32), seconds, strict=True))

        def found(cluster: catalogue.ClusterSpec, batch: int) -> PlanResult:
            result = search(cluster, batch)
            best = result.plans[0]
            step = Estimate(value=of[cluster.num_devices], low=1e-3, high=99.0)
            rate = step.inverse(batch * 4096 / cluster.num_devices)
            report = replace(best.report, step_s=step, tokens_per_s_per_gpu=rate)
            return replace(result, plans=(replace(best, report=report),))

        return found

    asked = []

    def smaller(cluster: catalogue.ClusterSpec, batch: int, plan: Plan) -> str:
        asked.append((cluster.num_devices, batch, plan.num_devices))
        return "does not fit"

    above = scale("strong", CLUSTERS, 64, steps(10.0, 4.0, 2.5), smaller)
    assert [p.note for p in above.points] == ["", "does not fit", ""] and asked == [(8, 64, 16)]
    assert scaling_rows(above)[1][-1].endswith("does not fit")
    falls = scale("strong", CLUSTERS, 64, steps(10.0, 6.0, 7.0), smaller)
    assert [p.note for p in falls.points] == ["", "", "slower than 16 GPUs; leave the rest idle"]


def test_a_layout_on_fewer_devices_keeps_all_but_data_parallelism() -> None:
    plan = Plan(tp=2, pp=4, ep=8, dp=16, edp=4)
    less = on_fewer(plan, 64)
    assert less == replace(plan, dp=8, edp=2) and less.num_devices == 64
    assert on_fewer(plan, 24) is None and on_fewer(plan, 16) is None


def test_figure_and_page_draw_every_point(tmp_path: Any) -> None:
    curves = [scale(mode, CLUSTERS, 64, search) for mode in MODES]
    figure = scaling_curves(curves)
    assert [len(trace.x) for trace in figure.data] == [3, 3, 3, 3]
    assert list(figure.data[0].y) == [p.tokens_per_s.value for p in curves[0].points if p.tokens_per_s]
    shares = efficiency_curves(curves)
    assert [list(trace.y) for trace in shares.data] == [[p.efficiency for p in curve.points] for curve in curves]
    page = scaling_html(curves, "A <model>")
    assert page == scaling_html(curves, "A <model>")
    assert "A &lt;model&gt;" in page and page.count("<table>") == 2
    assert all(len(row) == len(HEADERS) for curve in curves for row in scaling_rows(curve))
    nothing = Curve(mode="strong", points=(replace(curves[0].points[0], tokens_per_s=None, step_s=None, why="x"),))
    assert "no plan" in scaling_curves([nothing]).layout.annotations[0].text
    assert curves_json(curves)[1]["points"][0]["devices"] == 8
