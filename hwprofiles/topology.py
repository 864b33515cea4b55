"""The cluster as a graph: groups of identical parts and the links between them.

One vertex stands for all parts that are alike (a template and a count), so the graph of 16,384
devices has as many vertices as that of 16. Where the last scale-up domain is only partly filled
it is a group of its own.
"""

from __future__ import annotations

import networkx as nx

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, LinkSpec


def graph(cluster: ClusterSpec) -> nx.Graph[str]:
    """The cluster as a networkx graph of groups.

    Vertices carry `kind` (device, domain, host, fabric), `count` (parts in the group) and, for
    devices, `per_domain`. Edges carry `link` (its name), `bytes_per_s` (one direction, of one device, or of
    one node where `shared_by` is "node"), `latency_s`, `shared_by`, `count` (such links in the
    cluster) and `source` (kind of the cluster's source). The fabric is one vertex: non-blocking.
    """
    net: nx.Graph[str] = nx.Graph(name=cluster.name, device=cluster.device)
    net.add_node("fabric", kind="fabric", count=1)
    for label, domains, devices in _domain_groups(cluster):
        nodes = -(-devices // cluster.devices_per_node)
        device, domain, host = f"device:{label}", f"domain:{label}", f"host:{label}"
        net.add_node(device, kind="device", count=domains * devices, per_domain=devices)
        net.add_node(domain, kind="domain", count=domains)
        net.add_node(host, kind="host", count=domains * nodes)
        _connect(net, device, domain, cluster.scale_up, domains * devices, cluster)
        _connect(net, device, host, cluster.host_link, domains * devices, cluster)
        ports = domains * (nodes if cluster.scale_out.shared_by == "node" else devices)
        _connect(net, device, "fabric", cluster.scale_out, ports, cluster)
    return net


def bottleneck(cluster: ClusterSpec, span: int) -> LinkSpec:
    """The slowest link that a group of `span` consecutive devices must cross.

    Inside one scale-up domain that is the scale-up link; beyond it, whichever link gives one device
    least: crossing the domain is a step, not a slope. UserError when the cluster is too small.
    """
    have = cluster.num_devices
    if span < 1 or span > have:
        raise UserError(f"span = {span}: give 1 to {have}, the devices of the cluster", where=cluster.name)
    if span <= cluster.domain_devices:
        return cluster.scale_up
    links = (cluster.scale_up, cluster.scale_out)
    return min(links, key=lambda link: device_bytes_per_s(cluster, link))


def device_bytes_per_s(cluster: ClusterSpec, link: LinkSpec) -> float:
    """Bytes/s, one direction, that `link` leaves each device when all use it at once.

    A link shared by a node is divided over its devices, one shared by the fabric over all.
    """
    users = {"device": 1, "node": cluster.devices_per_node, "fabric": cluster.num_devices}
    return link.bytes_per_s / users[link.shared_by]


def num_domains(cluster: ClusterSpec) -> int:
    """Scale-up domains that the devices occupy; the last may be partly filled."""
    return -(-cluster.num_devices // cluster.domain_devices)


def bisection_bytes_per_s(cluster: ClusterSpec) -> float:
    """Bytes/s, one direction, between the two halves of the cluster (non-blocking fabric)."""
    half = cluster.num_devices // 2
    crossing = cluster.scale_up if num_domains(cluster) == 1 else cluster.scale_out
    return half * device_bytes_per_s(cluster, crossing)


def _domain_groups(cluster: ClusterSpec) -> list[tuple[str, int, int]]:
    """(label, domains, devices per domain) of each group of equal domains."""
    full, rest = divmod(cluster.num_devices, cluster.domain_devices)
    groups = [("full", full, cluster.domain_devices), ("rest", 1, rest)]
    return [(label, domains, devices) for label, domains, devices in groups if domains and devices]


def _connect(net: nx.Graph[str], one: str, other: str, link: LinkSpec, count: int, cluster: ClusterSpec) -> None:
    net.add_edge(
        one,
        other,
        link=link.name,
        bytes_per_s=link.bytes_per_s,
        latency_s=link.latency_s,
        shared_by=link.shared_by,
        count=count,
        source=cluster.source.kind,
    )
