"""The cluster graph: counts, capacities and the step at the edge of a domain."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster, names
from hwprofiles.errors import UserError
from hwprofiles.topology import bisection_bytes_per_s, bottleneck, device_bytes_per_s, graph, num_domains

PRESETS = names("clusters")


@given(st.sampled_from(PRESETS), st.integers(1, 4096))
def test_groups_hold_every_device_once_and_stay_few(preset: str, nodes: int) -> None:
    one = cluster(preset)
    made = cluster(preset, gpus=nodes * one.devices_per_node)
    net = graph(made)
    devices = [d for _, d in net.nodes(data=True) if d["kind"] == "device"]
    assert sum(d["count"] for d in devices) == made.num_devices
    assert sum(d["count"] for _, d in net.nodes(data=True) if d["kind"] == "domain") == num_domains(made)
    assert sum(d["count"] for _, d in net.nodes(data=True) if d["kind"] == "host") == made.num_nodes
    assert net.number_of_nodes() <= 7
    assert nx.is_connected(net)


@given(st.sampled_from(PRESETS), st.integers(1, 512))
def test_network_capacity_of_the_graph_is_that_of_the_devices(preset: str, nodes: int) -> None:
    made = cluster(preset, gpus=nodes * cluster(preset).devices_per_node)
    out = [d for _, _, d in graph(made).edges(data=True) if d["link"] == made.scale_out.name]
    total = sum(d["bytes_per_s"] * d["count"] for d in out)
    assert total == pytest.approx(made.num_devices * device_bytes_per_s(made, made.scale_out))


@pytest.mark.parametrize("preset", PRESETS)
def test_crossing_the_domain_is_a_step(preset: str) -> None:
    made = cluster(preset, gpus=cluster(preset).domain_devices * 2)
    rates = [device_bytes_per_s(made, bottleneck(made, span)) for span in range(1, made.num_devices + 1)]
    inside, outside = rates[: made.domain_devices], rates[made.domain_devices :]
    assert set(inside) == {made.scale_up.bytes_per_s}
    assert len(set(outside)) == 1
    assert outside[0] < inside[0]


def test_edges_say_rate_latency_and_source() -> None:
    made = cluster("p4d", gpus=16)
    edge = graph(made).edges["device:full", "fabric"]
    assert edge["bytes_per_s"] == 50e9
    assert edge["shared_by"] == "node"
    assert edge["count"] == 2
    assert edge["source"] == made.source.kind
    assert edge["latency_s"] == made.scale_out.latency_s
    assert device_bytes_per_s(made, made.scale_out) == 50e9 / 8


def test_a_partly_filled_domain_is_a_group_of_its_own() -> None:
    net = graph(cluster("gb200", gpus=256))
    assert net.nodes["device:full"]["count"] == 216
    assert net.nodes["device:rest"] == {"kind": "device", "count": 40, "per_domain": 40}
    assert net.nodes["host:rest"]["count"] == 10


def test_one_node_has_no_network_bottleneck_and_bisects_inside() -> None:
    node = cluster("h100", gpus=8)
    assert bottleneck(node, 8) == node.scale_up
    assert bisection_bytes_per_s(node) == 4 * 450e9
    assert bisection_bytes_per_s(cluster("h100", gpus=16)) == 8 * 50e9


def test_the_graph_of_16k_devices_is_that_of_two_nodes() -> None:
    small, large = graph(cluster("h100", gpus=16)), graph(cluster("h100", gpus=16384))
    assert set(small.edges) == set(large.edges)


@pytest.mark.parametrize("span", [0, -1, 17])
def test_a_span_outside_the_cluster_is_refused(span: int) -> None:
    with pytest.raises(UserError, match="give 1 to 16"):
        bottleneck(cluster("h100", gpus=16), span)
