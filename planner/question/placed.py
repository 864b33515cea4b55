"""Placed experts of `simulate` and `plan`: a placement file, or `auto` with its redundant experts; what `plan` writes
of the placement behind its best layout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import UserError

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.placement.records import PlacementResult
    from planner.question.asked import Asked
    from sim.model import ModelSpec
    from sim.plan import Plan
    from sim.routing import Routing

REPLICATING = ("layout", "sglang")  # targets that run several copies of an expert; trainers hold every expert once


def placed_for(asked: Asked, routing: Routing, ep: int | None, cluster: ClusterSpec | None) -> Routing:
    """The routing under --placement: a file, which must be for `ep` GPUs, or "auto", placed for every size."""
    from planner.placement.placefile import load_placement
    from planner.placement.scoring import placed_routing
    from planner.question.read import Problems

    file, problems = asked.placement or "", Problems()
    extra = problems.whole(asked.redundant_experts, "--redundant-experts", lowest=0, highest=100_000) or 0
    if asked.redundant_experts is not None and file != "auto":
        problems.found.append("--redundant-experts goes with --placement auto; a file says where its replicas are")
    if extra and asked.target not in REPLICATING:
        problems.found.append(
            f"--redundant-experts: {asked.target} holds every expert once; leave it out, or give --target sglang"
        )
    if not routing.loads:
        problems.found.append("a placement changes nothing under balanced routing; give --routing")
    if problems.found:
        raise UserError(problems.found, where="--placement")
    if file == "auto":
        from planner.placement.everywhere import placed_everywhere

        nodes = cluster.domain_devices if cluster is not None else 1
        return placed_everywhere(routing, nodes, redundant_experts=extra)
    placement, _ = load_placement(file)
    gpus = placement.experts.shape[1]
    if gpus != ep:
        given = "is not given" if ep is None else f"is {ep}"
        raise UserError(f"the placement is for {gpus} GPUs and --ep {given}; give --ep {gpus}", where="--placement")
    return placed_routing(routing, placement)


def placement_of(routing: Routing, model: ModelSpec, ep: int) -> PlacementResult | None:
    """The placement that `auto` has for a size, layers numbered as in the model; None where nothing is placed."""
    from planner.placement.everywhere import PlacedEverywhere

    found = routing.placement_at(ep) if isinstance(routing, PlacedEverywhere) else None
    if found is None:
        return None
    asked = found.instance
    numbers = tuple(
        i
        for i, layer in enumerate(model.layers)
        if layer.moe is not None and layer.moe.num_experts == asked.num_experts
    )
    if len(numbers) < asked.num_layers:
        return found
    layers = tuple(
        replace(figure, layer=number) for figure, number in zip(found.layers, numbers[: asked.num_layers], strict=True)
    )
    return replace(found, layers=layers)


def with_placement(data: dict[str, Any], result: PlacementResult | None) -> dict[str, Any]:
    """Plan data with the placement of its first plan, as `moecast place` writes it, `timing` apart."""
    if result is None:
        return data
    from planner.placement.placefile import placement_json

    return {**data, "placement": {k: v for k, v in placement_json(result).items() if k != "timing"}}


def replica_warning(result: PlacementResult | None, model: ModelSpec, plan: Plan) -> tuple[str, ...]:
    """What the memory of a plan leaves out: 16-bit weights of replicas on a GPU, in all layers of its stage."""
    if result is None or result.instance.extra_slots <= 0:
        return ()
    from planner.placement.gpus import expert_weight_bytes

    asked = result.instance
    layers = -(-sum(layer.moe is not None for layer in model.layers) // plan.pp)
    more = (asked.slots_per_gpu - asked.num_experts / asked.gpus) * layers
    held = more * expert_weight_bytes(model, asked.num_experts) / plan.etp
    return (
        f"{asked.extra_slots} redundant experts a layer take {held / 2**30:.1f} GiB more of a GPU, which the memory of "
        "the plan leaves out",
    )


def save_placed(result: PlacementResult | None, file: str, ep: int) -> None:
    """Write the placement file of the first plan. Raises UserError where its experts are not placed."""
    from planner.placement.placefile import save_placement

    if result is None:
        raise UserError(
            f"the first plan has ep = {ep}, where experts are not placed; give an --ep that divides the experts",
            where="--placement-out",
        )
    save_placement(result, file)
