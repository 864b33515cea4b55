"""The cluster as a networkx graph: groups of identical parts and the links between them.

One vertex stands for all parts that are alike (a template and a count), so the graph of 16,384 devices has as many
vertices as that of 512. Where the last group of a level is only partly filled it is a vertex of its own ("rest").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, LinkSpec
from hwprofiles.topology import SCALE_OUT, SCALE_UP, device_bytes_per_s, tiers

TOP = "fabric"
_Up = tuple[str, float, float, str, str]  # link, bytes/s of a device, latency, shared_by, source


@dataclass(frozen=True)
class _Block:
    """`count` groups of `devices` devices each; `label` is "full" or "rest"."""

    label: str
    count: int
    devices: int


def graph(cluster: ClusterSpec) -> nx.Graph[str]:
    """The cluster as a graph of groups of parts.

    Vertices carry `kind` (device, domain, pcie, host, nic, switch, fabric), `count` (parts in the group; a host is one
    processor where `node.sockets` is stated), for devices `per_domain` and for switches `level`. Edges carry `link`
    (the name of its tier in `hwprofiles.topology`, or of the host link), `bytes_per_s` (one direction, of one part of
    the lower end), `latency_s`, `shared_by`, `count` (such links in the cluster) and `source` (how the figure was
    obtained). The vertex "fabric" is what joins the outermost groups; it does not block. A level without uplinks
    joins its groups to nothing.
    """
    net: nx.Graph[str] = nx.Graph(name=cluster.name, device=cluster.device)
    for block in _blocks(cluster.num_devices, cluster.domain_devices):
        _add_domain(net, cluster, block)
    _add_switches(net, cluster)
    return net


def with_use(net: nx.Graph[str], use: Mapping[str, float]) -> nx.Graph[str]:
    """A copy whose edges carry `use`: for each link name, its busy share of a step (0 to 1); unnamed links 0.

    For reports that colour links. Raises UserError for a name that no edge has, or a share outside 0 to 1.
    """
    named = {data["link"] for _, _, data in net.edges(data=True)}
    problems = [f"no link {name!r}; the graph has {', '.join(sorted(named))}" for name in sorted(set(use) - named)]
    problems += [
        f"use of {name!r} = {share}: give a share from 0 to 1" for name, share in use.items() if not 0 <= share <= 1
    ]
    if problems:
        raise UserError(problems, where=str(net.graph["name"]))
    made = net.copy()
    for _, _, data in made.edges(data=True):
        data["use"] = float(use.get(data["link"], 0.0))
    return made


def _blocks(devices: int, size: int) -> list[_Block]:
    """Groups of `size` devices: the full ones, and the last where it is partly filled."""
    full, rest = divmod(devices, size)
    groups = [_Block("full", full, size), _Block("rest", 1, rest)]
    return [group for group in groups if group.count and group.devices]


def _add_domain(net: nx.Graph[str], cluster: ClusterSpec, block: _Block) -> None:
    """Devices of one group of domains, their NVSwitch, PCIe switches, hosts and network ports."""
    devices = block.count * block.devices
    per_node = cluster.devices_per_node
    nodes = block.count * -(-block.devices // per_node) if block.devices >= per_node else -(-devices // per_node)
    device, domain, host, nic = (f"{kind}:{block.label}" for kind in ("device", "domain", "host", "nic"))
    net.add_node(device, kind="device", count=devices, per_domain=block.devices)
    net.add_node(domain, kind="domain", count=block.count)
    net.add_node(host, kind="host", count=nodes * max(cluster.node.sockets, 1))
    _connect(net, cluster, device, domain, SCALE_UP, cluster.scale_up, devices)
    below = device
    if cluster.node.pcie_switches:
        switches = nodes * cluster.node.pcie_switches
        below = f"pcie:{block.label}"
        net.add_node(below, kind="pcie", count=switches)
        _connect(net, cluster, device, below, cluster.host_link.name, cluster.host_link, devices)
        rate = device_bytes_per_s(cluster, cluster.host_link) * devices / switches
        _edge(net, below, host, cluster.host_link.name, rate, 0.0, "pcie", switches, cluster.source.kind)
    else:
        _connect(net, cluster, device, host, cluster.host_link.name, cluster.host_link, devices)
    ports = nodes * cluster.node.nics if cluster.node.nics else nodes if _by_node(cluster) else devices
    net.add_node(nic, kind="nic", count=ports)
    rate = device_bytes_per_s(cluster, cluster.scale_out) * devices / ports
    _edge(net, below, nic, SCALE_OUT, rate, 0.0, cluster.scale_out.shared_by, ports, cluster.source.kind)


def _add_switches(net: nx.Graph[str], cluster: ClusterSpec) -> None:
    """Switches of every level over the groups they serve, and the links between them."""
    rates = {tier.name: tier.bytes_per_s for tier in tiers(cluster)}
    link = cluster.scale_out
    up: _Up = (SCALE_OUT, rates[SCALE_OUT], link.latency_s, link.shared_by, cluster.source.kind)
    size, below = cluster.domain_devices, _blocks(cluster.num_devices, cluster.domain_devices)
    prefix = "nic"
    for level in cluster.fabric:
        here = _blocks(cluster.num_devices, level.devices)
        for block in here:
            count = block.count * level.rails
            name = f"{level.name}:{block.label}"
            net.add_node(name, kind="switch", level=level.name, count=count, devices=block.devices)
        _join(net, up, prefix, size, below, {f"{level.name}:{block.label}": block for block in here})
        if level.name not in rates:  # no way out of this level
            return
        source = (level.source or cluster.source).kind
        up = (level.name, rates[level.name], level.latency_s, level.shared_by, source)
        prefix, size, below = level.name, level.devices, here
    net.add_node(TOP, kind="fabric", count=1)
    _join(net, up, prefix, size, below, {TOP: _Block("full", 1, cluster.num_devices)})


def _join(
    net: nx.Graph[str], up: _Up, prefix: str, size: int, below: list[_Block], above: Mapping[str, _Block]
) -> None:
    """Edges from each kind of group of `size` devices to the kinds of groups above that hold it."""
    name, rate, latency_s, shared_by, source = up
    for block in below:
        one = f"{prefix}:{block.label}"
        parts_each = net.nodes[one]["count"] / block.count
        for other, over in above.items():
            # sizes divide, so that only the last group of each level is partly filled
            groups = over.count * (over.devices // size if block.label == "full" else over.devices % size > 0)
            if groups:
                part_rate = rate * block.devices / parts_each
                _edge(net, one, other, name, part_rate, latency_s, shared_by, round(parts_each * groups), source)


def _by_node(cluster: ClusterSpec) -> bool:
    return cluster.scale_out.shared_by == "node"


def _connect(
    net: nx.Graph[str], cluster: ClusterSpec, one: str, other: str, name: str, link: LinkSpec, count: int
) -> None:
    """An edge with a link of the cluster, one per device, at what each device gets of it."""
    _edge(
        net, one, other, name, device_bytes_per_s(cluster, link), link.latency_s, link.shared_by, count,
        cluster.source.kind,
    )  # fmt: skip


def _edge(net: nx.Graph[str], one: str, other: str, *values: Any) -> None:
    names = ("link", "bytes_per_s", "latency_s", "shared_by", "count", "source")
    net.add_edge(one, other, **dict(zip(names, values, strict=True)))
