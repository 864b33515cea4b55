"""From an instance to a placement with its certificate: `place_experts`, the door of this package."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.placement.baselines import baseline_figures, baseline_placements, contiguous_placement
from planner.placement.chain_bound import STEPS
from planner.placement.clock import LayerClock, Machine
from planner.placement.flows import crossing, same_node_pairs
from planner.placement.grouped import plan_grouped_layer
from planner.placement.load import LayerPlan, plan_layer
from planner.placement.records import (
    Certificate,
    Floats,
    Instance,
    LayerFigures,
    Placement,
    PlacementResult,
    gpu_time,
)
from planner.placement.replan import check_previous, matched, moved_experts, replan
from planner.placement.replan_bound import least_after
from planner.placement.scoring import check_held_out, load_gain
from planner.placement.seconds import fastest, seconds_bound
from planner.placement.solver import solver_name
from planner.placement.timed import time_figures, weight_bytes
from planner.placement.traffic import Routed, place_for_traffic
from planner.placement.uneven import plan_uneven_layer
from planner.placement.worst_link import worst_links

Progress = Callable[[str, float, float | None], None]
TRAFFIC = ("dispatch", "chain")
SPLITS = ("even", "free")
SECONDS = "seconds of experts and exchanges of all MoE layers"
CLOSE_FOR_CHAINS = 2e-3  # over its bound: near enough for loads that give way to traffic afterwards
STEPS_IN_SECONDS = 20  # of the bound of the flow, where seconds decide and it is one term of several
TIGHTER = (1.004, 1.015)  # GPU loads over the bound at which dispatch is placed too when seconds decide
OBJECTIVES = ("load", "time")
CHAIN_OBJECTIVES = ("total", "worst-link")


def place_experts(
    instance: Instance, *, traffic: str = "dispatch", split: str = "even", previous: Placement | None = None,
    max_moves: int | None = None, seed: int = 0, machine: Machine | None = None, objective: str = "load",
    held_out: Instance | None = None, progress: Progress | None = None, chain_objective: str = "total",
) -> PlacementResult:  # fmt: skip
    """Place the experts of every layer; every answer carries a bound that no placement beats.

    traffic: "dispatch" (tokens start and end at their own rank in every layer; uses coactivation where it is there) or
    "chain" (tokens travel from one layer's experts to the next's; uses transitions). split: shares of replicas,
    "even" or "free". previous: the placement in use; GPUs are renamed so that little moves, or, with max_moves, it is
    bettered by so many moves at most (for loads alone, shares even). machine: where it runs, for seconds beside the
    answer; objective "time" chooses by them, never slower than the baselines. held_out: counts of the same layers that
    the placement is not made from, to score its gain on. chain_objective: "total" (flow between layers that changes
    part) or "worst-link" (the largest flow between two parts, summed over pairs of layers). Ctrl-C ends the search:
    layers that were not reached are balanced greedily and the answer says so.
    Raises UserError on an option that is not known.
    """
    problems = []
    if traffic not in TRAFFIC:
        problems.append(f"traffic {traffic!r} is not known; use one of: {', '.join(TRAFFIC)}")
    if split not in SPLITS:
        problems.append(f"split {split!r} is not known; use one of: {', '.join(SPLITS)}")
    if objective not in OBJECTIVES:
        problems.append(f"objective {objective!r} is not known; use one of: {', '.join(OBJECTIVES)}")
    elif objective == "time" and machine is None:
        problems.append("objective time needs a machine; give a cluster and a model")
    if chain_objective not in CHAIN_OBJECTIVES:
        known = ", ".join(CHAIN_OBJECTIVES)
        problems.append(f"chain objective {chain_objective!r} is not known; use one of: {known}")
    elif chain_objective != "total" and (traffic != "chain" or objective == "time"):
        problems.append(f"chain objective {chain_objective} is for chain traffic and objective load; leave it out")
    if problems:
        raise UserError(problems, where="place_experts")
    if held_out is not None:
        check_held_out(instance, held_out)
    clock = None if machine is None else LayerClock(instance, machine, traffic=traffic)
    if previous is not None:
        check_previous(instance, previous, max_moves)
    started = time.perf_counter()
    close = CLOSE_FOR_CHAINS if traffic == "chain" and instance.transitions is not None and max_moves is None else 0.0
    close = close if _no_traffic(instance, traffic) is None else 0.0
    plans, stopped = _by_layer(instance, split, seed, progress, close)
    placement = Placement(
        experts=np.stack([plan.experts for plan in plans]), share=np.stack([plan.share for plan in plans])
    )
    routed, why = None, _no_traffic(instance, traffic)
    if stopped == "done" and why is None and not instance.slots:
        try:
            steps = STEPS if objective == "load" else STEPS_IN_SECONDS
            routed = place_for_traffic(
                instance, plans, traffic=traffic, seed=seed, progress=progress, steps=steps,
                worst_link=chain_objective == "worst-link",
            )  # fmt: skip
        except KeyboardInterrupt:
            stopped, why = "interrupted", "stopped by the user before traffic was placed; loads alone are balanced"
    if routed is not None:
        placement = routed.placement
    if previous is not None and max_moves is not None:
        spent = replan(instance, previous, max_moves=max_moves, progress=progress)
        placement, routed = spent.placement, None
        stopped = "interrupted" if spent.stopped else stopped
        why = (
            "moves are spent on loads alone"
            if instance.transitions is not None or instance.coactivation is not None
            else why
        )
        if spent.stopped:
            why = "stopped by the user before all moves were tried; what was found by then is given"
    elif (
        previous is not None
        and routed is None
        and instance.num_groups == 1
        and not instance.speed
        and not instance.slots
    ):
        placement = matched(previous, placement)
    rivals = baseline_placements(instance, seed)
    if clock is not None and objective == "time" and max_moves is None and stopped == "done":
        alone = Placement(experts=np.stack([p.experts for p in plans]), share=np.stack([p.share for p in plans]))
        tighter = [] if routed is None or traffic == "chain" else [
            other.placement for slack in TIGHTER
            if (other := place_for_traffic(instance, plans, traffic=traffic, seed=seed, slack=slack)) is not None
        ]  # fmt: skip
        placement = fastest(clock, [placement, alone, *tighter, *rivals.values()])
    done = _answer(instance, placement, plans, seed, stopped, routed, why, previous, rivals)
    certificate = done.certificate
    if previous is not None and max_moves is not None and objective == "load":
        within = least_after(instance, previous, max_moves)[0]
        if within > certificate.lower_bound:
            within = min(within, certificate.objective)
            certificate = replace(certificate, lower_bound=within, bound_kind="combinatorial")
    start = previous or contiguous_placement(instance)
    if clock is not None:
        if progress is not None:
            progress("timing", 0, None)
        bound = seconds_bound(clock, np.array([p.bound for p in plans]), None if routed is None else routed.kept)
        time_ = time_figures(
            clock, start, placement, baselines=rivals, bound=bound, moved_from=previous, seed=seed
        )  # fmt: skip
        certificate = replace(certificate, time=time_, limits=(*certificate.limits, *_too_large(clock)))
        if objective == "time":
            certificate = replace(
                certificate, objective_of=SECONDS, objective=time_.after_s, lower_bound=time_.lower_bound_s,
                bound_kind=time_.bound_kind,
            )  # fmt: skip
    if held_out is not None:
        certificate = replace(certificate, held_out=load_gain(held_out, start, placement, seed=seed))
    seconds = time.perf_counter() - started
    return PlacementResult(
        instance=instance, placement=done.placement, layers=done.layers, certificate=certificate,
        stopped=stopped, replanned=previous is not None, timing={"seconds": seconds},
    )  # fmt: skip


def _too_large(clock: LayerClock) -> tuple[str, ...]:
    """Where the weights alone of a GPU's experts exceed its memory."""
    instance, have = clock.instance, clock.cost.usable_bytes
    need = weight_bytes(clock) * instance.slots_per_gpu * instance.num_layers
    if need <= have:
        return ()
    return (
        f"16-bit weights of {instance.slots_per_gpu} experts in each of {instance.num_layers} layers take "
        f"{need / 2**30:.0f} GiB of a GPU that has {have / 2**30:.0f}; give fewer layers (one pipeline stage), or more "
        "GPUs",
    )


def _no_traffic(instance: Instance, traffic: str) -> str | None:
    """Why traffic that is known is not placed for; None where it is, or where none is known."""
    known = instance.transitions if traffic == "chain" else instance.coactivation
    if known is None:
        return None
    reasons = {
        "with different speeds": bool(instance.speeds.min() < instance.speeds.max()),
        "with different slots": bool(instance.slots),
        "with groups of experts": instance.num_groups > 1 and instance.num_nodes > 1,
    }
    found = [text for text, holds in reasons.items() if holds]
    return f"traffic is not placed for {' and '.join(found)}; loads alone are balanced" if found else None


def _by_layer(
    instance: Instance, split: str, seed: int, progress: Progress | None, close: float
) -> tuple[list[LayerPlan], str]:
    """Load and replication of every layer on its own."""
    plans: list[LayerPlan] = []
    stopped, quick = "done", False
    for i, load in enumerate(instance.loads):
        try:
            if progress is not None and not quick:
                progress("balancing layers", i, instance.num_layers)
            plans.append(_layer(instance, load, split, seed, quick, close))
        except KeyboardInterrupt:
            stopped, quick = "interrupted", True
            plans.append(_layer(instance, load, split, seed, quick, close))
    return plans, stopped


def _layer(instance: Instance, load: Floats, split: str, seed: int, quick: bool, close: float) -> LayerPlan:
    sizes: dict[str, Any] = {
        "slots": instance.slots_per_gpu,
        "speeds": instance.speeds,
        "split": split,
        "seed": seed,
        "quick": quick,
    }
    if instance.slots:
        return plan_uneven_layer(
            load, slots=instance.gpu_slots, speeds=instance.speeds, split=split, seed=seed, quick=quick
        )  # fmt: skip
    if instance.num_groups > 1 and instance.num_nodes > 1:
        return plan_grouped_layer(load, groups=instance.num_groups, nodes=instance.num_nodes, **sizes)
    return plan_layer(load, close=close, **sizes)


def _answer(
    instance: Instance,
    placement: Placement,
    plans: list[LayerPlan],
    seed: int,
    stopped: str,
    routed: Routed | None,
    why: str | None,
    previous: Placement | None,
    rivals: Mapping[str, Placement],
) -> PlacementResult:
    fullest = gpu_time(instance, placement).max(axis=1)
    layers = tuple(
        LayerFigures(layer=number, max_load=float(most), bound=min(plan.bound, float(most)), bound_kind=plan.bound_kind)
        for number, most, plan in zip(instance.layers, fullest, plans, strict=True)
    )
    over = np.array([figure.max_load / figure.bound - 1.0 if figure.bound > 0.0 else 0.0 for figure in layers])
    mean = instance.loads.sum(axis=1) / instance.speeds.sum()
    kinds = {figure.bound_kind for figure in layers}
    cross = crossing(instance, placement)
    limits = tuple(dict.fromkeys(text for plan in plans for text in plan.limits))
    if why is not None:
        limits = (*limits, why)
    elif stopped != "done":
        limits = (*limits, "stopped by the user; the layers not reached are balanced greedily")
    objective, lower, kind = float(sum(f.max_load for f in layers)), float(sum(f.bound for f in layers)), kinds.pop()
    objective_of = "max GPU load, summed over layers"
    if kinds:
        kind = "combinatorial"
    if routed is not None and routed.crossing_bound is not None and cross is not None:
        objective_of = f"share of the flow between layers that changes {'GPU' if instance.num_nodes == 1 else 'node'}"
        objective, lower = cross[1] if instance.num_nodes == 1 else cross[0], routed.crossing_bound
        lower, kind = min(lower, objective), str(routed.kind)
    links = worst_links(instance, placement)
    busiest = None if links is None or instance.transitions is None else float(links.sum() / instance.transitions.sum())
    if routed is not None and routed.link_bound is not None and busiest is not None:
        between = "GPUs" if instance.num_nodes == 1 else "nodes"
        objective_of = f"share of the flow between layers on the busiest link between {between}"
        objective, lower, kind = busiest, min(routed.link_bound, busiest), str(routed.kind)
    certificate = Certificate(
        objective_of=objective_of, objective=objective, lower_bound=lower, bound_kind=kind,
        worst_layer=float(over.max()), mean_layer=float(over.mean()),
        max_over_mean=float((fullest / mean).mean()),
        cross_node=None if cross is None else cross[0], cross_gpu=None if cross is None else cross[1],
        same_node_pairs=same_node_pairs(instance, placement), worst_link=busiest,
        solver=solver_name(), seed=seed, limits=limits, baselines=baseline_figures(instance, rivals),
        digest=instance.digest,
        moved_experts=0 if previous is None else moved_experts(previous.experts, placement.experts),
    )  # fmt: skip
    return PlacementResult(
        instance=instance, placement=placement, layers=layers, certificate=certificate, stopped=stopped
    )
