"""Strong and weak scaling: the best plan on every number of devices, and what doubling them gave.

Strong: the batch stays, so the step gets shorter. Weak: the batch grows with the devices, so the rate does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec
from planner.planfile import plan_fields, plan_from
from planner.question.read import Question
from planner.rules import check
from planner.search import PlanResult
from sim.plan import Plan
from sim.report import Estimate
from sim.run import simulate
from sim.scenario import Scenario

Mode = Literal["strong", "weak"]
MODES: tuple[Mode, ...] = ("strong", "weak")
Search = Callable[[ClusterSpec, int], PlanResult]
Smaller = Callable[[ClusterSpec, int, Plan], str]
ABOVE = 1.005  # efficiency that asks for a reason


@dataclass(frozen=True, kw_only=True)
class ScalePoint:
    """The best plan on so many devices. tokens_per_s: of all devices. speedup, efficiency: over the first point that
    has a plan; efficiency is tokens per second and device over that point's. why: there is no plan, and these are None.
    """

    devices: int
    global_batch_seqs: int
    label: str = ""
    plan: dict[str, Any] | None = None
    rank_order: str = ""
    step_s: Estimate | None = None
    tokens_per_s: Estimate | None = None
    mfu: float | None = None
    bubble_fraction: float | None = None
    exposed_share: float | None = None
    peak_mem_bytes: float | None = None
    usd_per_step: float | None = None
    certificate: str = ""
    gap: float | None = None
    speedup: float | None = None
    efficiency: float | None = None
    why: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one mode, by number of devices."""

    mode: Mode
    points: tuple[ScalePoint, ...]


def scale(
    mode: Mode, clusters: Sequence[ClusterSpec], batch_seqs: int, search: Search, smaller: Smaller | None = None
) -> Curve:
    """The curve of one mode over clusters of growing size.

    batch_seqs: of the first cluster, in weak scaling; of all in strong. search(cluster, batch): the best plan; a
    UserError (no plan, a batch that fits no plan) is a point without one. smaller(cluster, batch, plan): what keeps a
    plan from a smaller cluster, asked where a point has more tokens per second and device than the first one.
    """
    first = clusters[0].num_devices
    points: list[ScalePoint] = []
    start: ClusterSpec | None = None
    for cluster in clusters:
        batch = batch_seqs if mode == "strong" else batch_seqs * cluster.num_devices // first
        found = _point(cluster, batch, search, next((p for p in points if p.tokens_per_s), None))
        if found.efficiency is not None and found.efficiency > ABOVE and start is not None and smaller is not None:
            of = next(p for p in points if p.tokens_per_s)
            assert found.plan is not None
            found = replace(found, note=smaller(start, of.global_batch_seqs, plan_from(found.plan)))
        faster = [p for p in points if p.tokens_per_s and found.tokens_per_s
                  and p.tokens_per_s.value > found.tokens_per_s.value]  # fmt: skip
        if faster:
            found = replace(found, note=f"slower than {faster[0].devices:,} GPUs; leave the rest idle")
        start = cluster if start is None and found.tokens_per_s is not None else start
        points.append(found)
    return Curve(mode=mode, points=tuple(points))


def on_fewer(plan: Plan, devices: int) -> Plan | None:
    """The same layout on fewer devices, data parallelism cut; None where it does not divide."""
    dp, rest = divmod(plan.dp * devices, plan.num_devices)
    edp, left = divmod(plan.edp * devices, plan.num_devices)
    if rest or left or not dp or not edp:
        return None
    return replace(plan, dp=dp, edp=edp, fsdp_shard=min(plan.fsdp_shard, dp))


def smaller_of(question: Question) -> Smaller:
    """What keeps a plan from a smaller cluster, by rule, by memory or by seconds, of a question of any size."""

    def said(cluster: ClusterSpec, batch: int, plan: Plan) -> str:
        there = f"on {cluster.num_devices:,} GPUs"
        less = on_fewer(plan, cluster.num_devices)
        if less is None:
            return f"its layout has no whole data parallelism {there}"
        workload = replace(question.workload, global_batch_seqs=batch)
        s = Scenario(
            model=question.model, cluster=cluster, software=question.software, workload=workload, plan=less,
            routing=question.routing.at_ep(less.ep),
        )  # fmt: skip
        broken = check(less, s.model, cluster, s.software, workload, target=question.target)
        if broken:
            return f"its layout breaks {broken[0].rule} {there}"
        report = simulate(s, trace=False)
        if not report.fits:
            need, have = report.peak_mem_bytes / 2**30, report.usable_mem_bytes / 2**30
            return f"its layout does not fit {there}: {need:.1f} GiB of {have:.1f}"
        return f"its layout takes {report.step_s.value:.4g} s {there}, where it is not the fastest"

    return said


def _point(cluster: ClusterSpec, batch: int, search: Search, start: ScalePoint | None) -> ScalePoint:
    devices = cluster.num_devices
    try:
        result = search(cluster, batch)
    except UserError as error:
        return ScalePoint(devices=devices, global_batch_seqs=batch, why=error.problems[0])
    best = result.plans[0].report
    rate = best.tokens_per_s_per_gpu.scaled(devices)
    base = rate if start is None or start.tokens_per_s is None else start.tokens_per_s
    speedup = rate.value / base.value
    grown = devices / (devices if start is None else start.devices)
    return ScalePoint(
        devices=devices, global_batch_seqs=batch, label=best.plan.label(), plan=plan_fields(best.plan),
        rank_order=best.ranks.order, step_s=best.step_s, tokens_per_s=rate, mfu=best.mfu.value,
        bubble_fraction=best.bubble_fraction,
        exposed_share=sum(best.exposed_comm_s.values()) / best.step_s.value, peak_mem_bytes=best.peak_mem_bytes,
        usd_per_step=best.usd_per_step, certificate=result.search.certificate, gap=result.search.gap, speedup=speedup,
        efficiency=speedup / grown,
    )  # fmt: skip


def curves_json(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Curves as JSON, SI units."""
    return [asdict(curve) for curve in curves]
