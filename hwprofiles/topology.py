"""The cluster as links, bottom up: what a pair or a group of devices crosses, and what each device then gets.

A cluster is a tree of equal groups: scale-up domain, then the groups of the fabric levels (leaf, pod, site). Every
answer follows from the sizes of the groups, so that 16,384 devices cost what 16 do. `hwprofiles.cluster_graph` has
the same structure as a networkx graph. Devices are numbered node by node.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, FabricLevel, LinkSpec

SCALE_UP, SCALE_OUT = "scale_up", "scale_out"


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One kind of link of a cluster, seen from a device.

    name: "scale_up", "scale_out" or the fabric level whose groups it leaves. reach: devices of a group that need no
    higher link. bytes_per_s: one direction, of each device when all use it at once. latency_s: of one small message
    whose highest link this is; step_s: this link's part of it. rails: switches that the reach is divided over (1 =
    all meet in one).
    """

    name: str
    reach: int
    bytes_per_s: float
    latency_s: float
    step_s: float
    rails: int


class Hop(NamedTuple):
    """One link on a path: its name, way ("up" from the device, "down" to it), bytes/s of one device, seconds."""

    link: str
    way: str
    bytes_per_s: float
    latency_s: float


def tiers(cluster: ClusterSpec) -> tuple[Tier, ...]:
    """Links of a cluster from the device up: scale-up, scale-out, then one per fabric level."""
    return _tiers(_shape(cluster))


def device_bytes_per_s(cluster: ClusterSpec, link: LinkSpec) -> float:
    """Bytes/s, one direction, that `link` leaves each device when all use it at once.

    A link shared by a node is divided over its devices, one shared by the fabric over all.
    """
    users = {"device": 1, "node": cluster.devices_per_node, "fabric": cluster.num_devices}
    return link.bytes_per_s / users[link.shared_by]


def link_rates(cluster: ClusterSpec) -> dict[str, float]:
    """Link name -> bytes/s, one direction, of one device when all use it: what an event run takes as capacities."""
    return {tier.name: tier.bytes_per_s for tier in tiers(cluster)}


def num_domains(cluster: ClusterSpec) -> int:
    """Scale-up domains that the devices occupy; the last may be partly filled."""
    return -(-cluster.num_devices // cluster.domain_devices)


def highest_link(cluster: ClusterSpec, one: Any, other: Any) -> Any:
    """Position in `tiers` of the highest link between two devices (or columns of them); -1 = the same device.

    Devices of one group on different rails meet one of two ways: over scale-up to the neighbour on the other's rail,
    which stays at this position, or, where a domain does not hold all rails, through the level above.
    """
    one, other = np.asarray(one), np.asarray(other)
    _check_devices(cluster, one, other)
    return _highest(_shape(cluster), one, other)


def path(cluster: ClusterSpec, one: int, other: int) -> tuple[Hop, ...]:
    """Links from device `one` to device `other` in order; empty for the same device.

    Each link is climbed and descended once; its latency stands on the way up, so that the latencies add up. Between
    rails the message first takes scale-up to the device of its own domain that sits on the other's rail (PXN of NCCL).
    Raises UserError where a number is no device of the cluster or the two cannot reach each other.
    """
    top = int(highest_link(cluster, one, other))
    if top >= len(tiers(cluster)):
        raise UserError(_unreachable(cluster, one, other), where=cluster.name)
    shape = _shape(cluster)
    turns = top > 0 and _tiers(shape)[top].rails > 1 and _rail(shape, one, top) != _rail(shape, other, top)
    return _hops(shape, top, bool(turns))


def bottleneck(cluster: ClusterSpec, span: int) -> LinkSpec:
    """The slowest link that a group of `span` consecutive devices must cross, all devices at once.

    Inside one scale-up domain that is the scale-up link; beyond it, whichever link gives one device
    least: crossing the domain is a step, not a slope. UserError when the cluster is too small.
    """
    have = cluster.num_devices
    if span < 1 or span > have:
        raise UserError(f"span = {span}: give 1 to {have}, the devices of the cluster", where=cluster.name)
    links = (cluster.scale_up, cluster.scale_out, *(_as_link(level) for level in cluster.fabric))
    below = (0, *(tier.reach for tier in tiers(cluster)))
    crossed = [link for link, inside in zip(links, below, strict=False) if span > inside]
    return min(crossed, key=lambda link: device_bytes_per_s(cluster, link))


def bisection_bytes_per_s(cluster: ClusterSpec) -> float:
    """Bytes/s, one direction, between the first and the second half of the cluster, all devices sending.

    Half the devices times the least of the links that every pair crosses: the closed form of a fat tree. A group
    that the cut divides counts as if its devices had to leave it too, so the figure is exact where groups fall
    whole into a half and never too high.
    """
    half = cluster.num_devices // 2
    reach = (0, *(tier.reach for tier in tiers(cluster)))
    crossed = [tier for tier, inside in zip(tiers(cluster), reach, strict=False) if cluster.num_devices > inside]
    return half * min(tier.bytes_per_s for tier in crossed[1:] or crossed)


def members_within(size: Any, stride: Any, reach: int) -> Any:
    """Members of a group of `size` ranks, `stride` apart, that fall into one block of `reach` devices."""
    return np.minimum(size, np.maximum(1, reach // np.asarray(stride)))


def rail_members(cluster: ClusterSpec, size: Any, stride: Any) -> Any:
    """Members of such a group under one switch of the lowest fabric level: those of one group on one rail."""
    first, per_node = tiers(cluster)[1], cluster.devices_per_node
    in_node = members_within(size, stride, per_node)
    rails = np.minimum(in_node, (in_node - 1) * np.asarray(stride) * first.rails // per_node + 1)
    return np.ceil(members_within(size, stride, first.reach) / np.minimum(rails, first.rails))


def fabric_problems(cluster: ClusterSpec) -> list[str]:
    """What is wrong with the levels, counts and links of a cluster, each with its remedy; all at once."""
    problems: list[str] = []
    below, below_name, rails = cluster.domain_devices, "domain_devices", cluster.devices_per_node
    names = [SCALE_UP, SCALE_OUT, cluster.host_link.name, "device", "domain", "host", "nic", "pcie"]  # of the graph
    for i, level in enumerate(cluster.fabric):
        at = f"fabric.{i} ({level.name})"
        if level.name in names:
            problems.append(f"{at}: the name {level.name!r} is taken; name each level and link once")
        names.append(level.name)
        unit = np.lcm(max(below, 1), max(cluster.devices_per_node, 1))
        if level.devices < 1 or level.devices % unit:
            problems.append(
                f"{at}: devices = {level.devices} must be a multiple of {unit}, so that it holds whole nodes and "
                f"whole groups of {below_name} = {below}"
            )
        if level.rails < 1 or rails % level.rails:
            problems.append(
                f"{at}: rails = {level.rails} must divide {rails} (devices of a node, rails of the level below)"
            )
        if level.oversubscription < 1:
            problems.append(
                f"{at}: oversubscription = {level.oversubscription:g}: ports below over ports above; 1 = non-blocking, "
                "raise bytes_per_s for a faster uplink"
            )
        below, below_name, rails = max(level.devices, 1), f"level {level.name!r}", max(level.rails, 1)
    node = cluster.node
    for name, count in (("nics", node.nics), ("pcie_switches", node.pcie_switches), ("sockets", node.sockets)):
        if count and cluster.devices_per_node % count and count % max(cluster.devices_per_node, 1):
            problems.append(
                f"node.{name} = {count} does not fit devices_per_node = {cluster.devices_per_node}: "
                "one must be a multiple of the other"
            )
    if not problems:
        problems += _cut_off(cluster)
    return problems


def _cut_off(cluster: ClusterSpec) -> list[str]:
    """A device that the first one cannot reach; groups are alike, so the first speaks for all."""
    shape = _shape(cluster)
    near = range(2 * max(cluster.domain_devices, cluster.devices_per_node))  # every rail, inside and outside a domain
    others = {*near, *(tier.reach for tier in _tiers(shape)), cluster.num_devices - 1}
    tried = np.array(sorted(d for d in others if d < cluster.num_devices))
    lost = tried[_highest(shape, np.zeros(1, np.int64), tried) == len(_tiers(shape))]
    return [_unreachable(cluster, 0, int(lost[0]))] if len(lost) else []


def _unreachable(cluster: ClusterSpec, one: int, other: int) -> str:
    """The sentence for two devices without a path: which level ends it and what to change."""
    level = next(level for level in cluster.fabric if level.bytes_per_s <= 0)
    if one // level.devices == other // level.devices:
        reason = f"the {level.rails} rails of level {level.name!r} meet neither above it nor inside a scale-up domain"
    else:
        reason = f"groups of level {level.name!r} hold {level.devices} devices"
    return (
        f"device {one} and device {other} cannot reach each other: {reason}, and it has no uplinks (bytes_per_s = 0); "
        "give the level a rate, or num_nodes of the file that fit in one group of it"
    )


def _as_link(level: FabricLevel) -> LinkSpec:
    """The uplinks of a level as a link of one device."""
    return LinkSpec(name=level.name, bytes_per_s=_level_rate(level), latency_s=level.latency_s)


def _level_rate(level: FabricLevel) -> float:
    """Bytes/s of each device of a group when all leave it."""
    users = level.devices if level.shared_by == "group" else 1
    return level.bytes_per_s / users / level.oversubscription


class _Shape(NamedTuple):
    """The fields the answers depend on, hashable (a cluster with a device of its own is not)."""

    devices: int
    per_node: int
    domain: int
    up: LinkSpec
    up_rate: float
    out: LinkSpec
    out_rate: float
    fabric: tuple[FabricLevel, ...]


def _shape(c: ClusterSpec) -> _Shape:
    up_rate, out_rate = device_bytes_per_s(c, c.scale_up), device_bytes_per_s(c, c.scale_out)
    return _Shape(
        c.num_devices, c.devices_per_node, c.domain_devices, c.scale_up, up_rate, c.scale_out, out_rate, c.fabric
    )


@functools.lru_cache(maxsize=256)
def _tiers(shape: _Shape) -> tuple[Tier, ...]:
    """Tiers up to the first level without a way out."""
    latency_s = shape.out.latency_s
    rows = [(SCALE_UP, shape.up_rate, shape.up.latency_s, shape.up.latency_s)]
    rows += [(SCALE_OUT, shape.out_rate, latency_s, latency_s)]
    reach, rails = [shape.domain], [1]
    for level in shape.fabric:
        reach.append(level.devices)
        rails.append(level.rails)
        if level.bytes_per_s <= 0:
            break
        latency_s += level.latency_s
        rows.append((level.name, _level_rate(level), latency_s, level.latency_s))
    else:  # above the last level everything meets
        reach.append(max(shape.devices, reach[-1]))
        rails.append(1)
    return tuple(
        Tier(name=name, reach=within, bytes_per_s=rate, latency_s=seconds, step_s=step_s, rails=parts)
        for (name, rate, seconds, step_s), within, parts in zip(rows, reach, rails, strict=True)
    )


def _highest(shape: _Shape, one: Any, other: Any) -> Any:
    """Position of the highest link between two columns of devices; the number of tiers = unreachable."""
    found = _tiers(shape)
    forwards = shape.domain >= shape.per_node > 1  # a domain holds a device on every rail
    top = np.full(np.broadcast(one, other).shape, len(found))
    for i in range(len(found) - 1, -1, -1):
        meets = one // found[i].reach == other // found[i].reach
        if i > 0 and not forwards:
            meets &= _rail(shape, one, i) == _rail(shape, other, i)
        top = np.where(meets, i, top)
    return np.where(one == other, -1, top)


def _rail(shape: _Shape, device: Any, tier: int) -> Any:
    """Switch of a tier's group that serves a device, by its place in the node."""
    return device % shape.per_node * _tiers(shape)[tier].rails // shape.per_node


@functools.lru_cache(maxsize=256)
def _hops(shape: _Shape, top: int, turns: bool) -> tuple[Hop, ...]:
    """Hops of every pair of devices whose highest link is `top`; `turns`: over scale-up to another rail first."""
    found = _tiers(shape)
    first = _there_and_back(found, 0, 0) if turns else ()
    return first if top < 0 else (*first, *_there_and_back(found, min(top, 1), top))


def _there_and_back(found: tuple[Tier, ...], low: int, high: int) -> tuple[Hop, ...]:
    """Up the links from `low` to `high`, then down again."""
    ups = [Hop(tier.name, "up", tier.bytes_per_s, tier.step_s) for tier in found[low : high + 1]]
    return (*ups, *(Hop(hop.link, "down", hop.bytes_per_s, 0.0) for hop in reversed(ups)))


def _check_devices(cluster: ClusterSpec, *columns: Any) -> None:
    have = cluster.num_devices
    bad = [d for column in columns for d in np.atleast_1d(column[(column < 0) | (column >= have)]).tolist()][:5]
    if bad:
        listed = ", ".join(map(str, bad))
        raise UserError(f"no device {listed}: the cluster has devices 0 to {have - 1}", where=cluster.name)
