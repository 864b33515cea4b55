"""What a part does in its own order: the stretches of compute and communication `part_time` adds up.

The same ops at the same prices, kept apart by the place they have in a layer, so that the layer-level run can lay
them out one after the other (`sim.cost.slots`). Exposed communication is what `part_time` leaves of it; all-to-alls
are given whole, for what hides them is the layout's business. For numbers only, one plan at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from sim.build.context import Context
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, PartTime
from sim.model import MoESpec
from sim.ops import Op

Busy = tuple[tuple[str, float], ...]
EXCHANGES = ("counts", "dispatch", "combine")
TINY_S = 1e-15


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of one stream. kind: "attention", "router", "experts", "shared", "unpermute", "mlp", "ends",
    "recompute", "wgrad" (compute), or "tp", "cp", "ep", "etp", "dp", "host". links: (link, seconds it takes of it),
    from "scale_up" out, as far as it uses them."""

    name: str
    kind: str
    seconds: float
    links: Busy = ()

    @property
    def is_compute(self) -> bool:
        """Whether SMs do it (a communication kernel beside it takes some of them away)."""
        return self.kind not in NOT_COMPUTE


# Ops of an exchange that do not stand between dispatch and combine: the cast before it, the rows a tensor-parallel
# group gets back after it.
AROUND = {"dispatch.quantise": "router", "dispatch.tp.bwd": "router", "combine.tp": "unpermute"}
NOT_COMPUTE = ("tp", "cp", "ep", "etp", "dp", "host")
Places = dict[str, list[Segment]]


@dataclass(frozen=True, kw_only=True)
class PartSegments:
    """Segments of one part by pass and place.

    passes["forward" | "recompute" | "backward" | "wgrad"][place]; exchange[pass][name]: an all-to-all, whole.
    launch_s[direction]: what launching takes longer than the device, at the end of the direction. saved_bytes: kept
    from forward to backward. routed: the part exchanges tokens.
    """

    passes: dict[str, Places]
    exchange: dict[str, dict[str, Segment]]
    launch_s: dict[str, float]
    host_s: dict[str, float]
    saved_bytes: float
    routed: bool
    edge_s: dict[str, float] = field(default_factory=dict)

    def at(self, pass_: str, *places: str) -> list[Segment]:
        """Segments of some places, one place after the other."""
        return [segment for place in places for segment in self.passes[pass_].get(place, ())]

    def of_layer(self, number: int) -> PartSegments:
        """The same with the number of its layer in every name, as a timeline shows it."""

        def named(segment: Segment) -> Segment:
            return replace(segment, name=f"L{number} {segment.name}")

        passes = {
            pass_: {place: [named(segment) for segment in mine] for place, mine in places.items()}
            for pass_, places in self.passes.items()
        }
        exchange = {
            pass_: {name: named(segment) for name, segment in ops.items()} for pass_, ops in self.exchange.items()
        }
        return replace(self, passes=passes, exchange=exchange)


def place_of(op: Op) -> str:
    """Where in its layer an op stands."""
    name = op.name
    if name.startswith("fsdp_"):
        return "shards"
    if op.kind == "collective" and op.axis == "ep":
        return next(word for word in EXCHANGES if name.startswith(word))
    if op.scope == "attn":
        return "attention"
    if op.scope in ("mlp", "ends"):
        return op.scope
    if name in AROUND:
        return AROUND[name]
    if name.startswith("shared"):
        if op.kind != "collective":
            return "shared 2" if name.startswith("shared_fc2") else "shared 1"
        # entering a tensor-parallel region gathers on the way forward, reduces on the way back
        return "shared 1" if (".all_gather" in name) == (op.pass_ in ("forward", "recompute")) else "shared 2"
    if name.startswith("unpermute"):
        return "unpermute"
    if op.scope == "moe_router" or name.startswith("permute") or name.removesuffix(".again") == "row_order":
        return "router"
    return "experts"


def part_segments(
    cost: CostModel, ctx: Context, ops: Iterable[Op], part: PartTime, moe: MoESpec | None = None, *,
    stragglers: float = 1.0,
) -> PartSegments:  # fmt: skip
    """Lay out the ops of one part. part: their sum, from `part_time`; stragglers: see `StepCost.stragglers`.

    Compute and exposed communication of a direction add up to `part.device_s`, all-to-alls at their exposed length,
    each longer by the share that ranks of several nodes wait for each other.
    """
    names = tuple(cost.comm.link_rates())
    rows: dict[str, list[tuple[str, Segment]]] = {"forward": [], "recompute": [], "backward": [], "wgrad": []}
    exchange: dict[str, dict[str, Segment]] = {name: {} for name in rows}
    loose: dict[str, Busy] = {FORWARD: (), BACKWARD: ()}  # of collectives that have no exchange of their own
    for op in ops:
        way = FORWARD if op.pass_ == "forward" else BACKWARD
        place = place_of(op)
        if op.kind != "collective":
            seconds = float(cost.device_s(op, ctx.dtype))
            kind = op.pass_ if op.pass_ in ("recompute", "wgrad") else place.partition(" ")[0]
            rows[op.pass_].append((place, Segment(name=kind, kind=kind, seconds=seconds)))
            continue
        limit, groups = (moe.top_k_groups, moe.num_groups) if moe and moe.num_groups > 1 else (0, 0)
        top_k = round(moe.rows_per_token) if moe else 1
        t = cost.comm_time(op, ctx.plan, top_k=top_k, group_limit=limit, groups=groups, routing=ctx.routing)
        alone_s = float(t.alone_s)
        busy = tuple((n, float(s)) for n, s in zip(names, (t.up_s, *t.network_s), strict=True) if np.any(s > 0.0))
        if op.axis == "ep":
            found = exchange[op.pass_].get(place, Segment(name=place, kind="ep", seconds=0.0))
            exchange[op.pass_][place] = replace(
                found, seconds=found.seconds + alone_s, links=_joined(found.links, busy)
            )
            continue
        loose[way] = _joined(loose[way], busy)
        key = (way, op.axis, op.overlap)
        if key in part.left and float(part.comm[key]) > 0.0:
            exposed_s = alone_s * float(part.left[key]) / float(part.comm[key])
            rows[op.pass_].append((place, Segment(name=op.name, kind=_axis(op.axis), seconds=exposed_s)))
    passes = {name: _places(mine, backward=name in ("backward", "wgrad")) for name, mine in rows.items()}
    for way in (FORWARD, BACKWARD):
        left = float(part.exposed[way].get("dp", 0.0)) - _of_kind(passes, way, "dp")
        if left > TINY_S:
            passes[way].setdefault("shards", []).append(Segment(name="sharded parameters", kind="dp", seconds=left))
    wait_s = float(part.exposed[FORWARD].get("host", 0.0))
    if wait_s > 0.0:
        passes["forward"].setdefault("router", []).append(Segment(name="read counts", kind="host", seconds=wait_s))
    made = PartSegments(
        passes=passes, exchange=exchange, saved_bytes=float(part.saved), routed=bool(exchange["forward"]),
        host_s={way: float(part.host[way]) for way in (FORWARD, BACKWARD)},
        launch_s={way: float(part.duration_s(way)) - float(part.device_s(way)) for way in (FORWARD, BACKWARD)},
        edge_s={way: float(seconds) for way, seconds in part.edge_s.items()},
    )  # fmt: skip
    return _slower(_with_links(made, loose), stragglers)


def _axis(axis: str) -> str:
    return {"dp_cp": "dp", "edp": "dp"}.get(axis, axis)


def _of_kind(passes: dict[str, Places], way: str, kind: str) -> float:
    names = ("forward",) if way == FORWARD else ("recompute", "backward", "wgrad")
    return sum(s.seconds for n in names for place in passes[n].values() for s in place if s.kind == kind)


def _places(rows: list[tuple[str, Segment]], *, backward: bool) -> Places:
    """Neighbours of one kind joined; the backward pass runs its ops from last to first."""
    out: Places = {}
    for place, segment in reversed(rows) if backward else rows:
        if segment.seconds <= TINY_S:
            continue
        mine = out.setdefault(place, [])
        if mine and mine[-1].kind == segment.kind:
            mine[-1] = replace(mine[-1], seconds=mine[-1].seconds + segment.seconds)
        else:
            mine.append(segment)
    return out


def _with_links(made: PartSegments, loose: dict[str, Busy]) -> PartSegments:
    """Link seconds of collectives outside the all-to-alls spread over the work and waiting of their direction."""
    passes = dict(made.passes)
    for way, names in ((FORWARD, ("forward",)), (BACKWARD, ("recompute", "backward", "wgrad"))):
        total = sum(s.seconds for n in names for place in passes[n].values() for s in place if s.kind != "host")
        if not loose[way] or total <= 0.0:
            continue
        for name in names:
            passes[name] = {
                place: [
                    s
                    if s.kind == "host"
                    else replace(s, links=tuple((n, b * s.seconds / total) for n, b in loose[way]))
                    for s in mine
                ]
                for place, mine in passes[name].items()
            }
    return replace(made, passes=passes)


def _joined(one: Busy, other: Busy) -> Busy:
    """Seconds by link added up."""
    out = dict(one)
    for link, seconds in other:
        out[link] = out.get(link, 0.0) + seconds
    return tuple(out.items())


def _slower(made: PartSegments, factor: float) -> PartSegments:
    """Everything longer by a factor; links carry the same bytes."""
    if factor == 1.0:
        return made

    def longer(segments: list[Segment]) -> list[Segment]:
        return [replace(s, seconds=s.seconds * factor) for s in segments]

    return replace(
        made,
        passes={name: {at: longer(mine) for at, mine in places.items()} for name, places in made.passes.items()},
        exchange={
            name: {at: replace(s, seconds=s.seconds * factor) for at, s in mine.items()}
            for name, mine in made.exchange.items()
        },
        launch_s={way: seconds * factor for way, seconds in made.launch_s.items()},
        host_s={way: seconds * factor for way, seconds in made.host_s.items()},
        edge_s={way: seconds * factor for way, seconds in made.edge_s.items()},
    )
