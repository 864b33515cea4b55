"""Strong and weak scaling: the best plan on every number of devices, and what doubling them gave.

Strong: the batch stays, so the step gets shorter. Weak: the batch grows with the devices, so the rate does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec
from planner.planfile import plan_fields
from planner.search import PlanResult
from sim.report import Estimate

Mode = Literal["strong", "weak"]
MODES: tuple[Mode, ...] = ("strong", "weak")
Search = Callable[[ClusterSpec, int], PlanResult]


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


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one mode, by number of devices."""

    mode: Mode
    points: tuple[ScalePoint, ...]


def scale(mode: Mode, clusters: Sequence[ClusterSpec], batch_seqs: int, search: Search) -> Curve:
    """The curve of one mode over clusters of growing size.

    batch_seqs: of the first cluster, in weak scaling; of all in strong. search(cluster, batch): the best plan; a
    UserError (no plan, a batch that fits no plan) is a point without one.
    """
    first = clusters[0].num_devices
    points: list[ScalePoint] = []
    for cluster in clusters:
        batch = batch_seqs if mode == "strong" else batch_seqs * cluster.num_devices // first
        points.append(_point(cluster, batch, search, next((p for p in points if p.tokens_per_s), None)))
    return Curve(mode=mode, points=tuple(points))


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
