"""The cluster graph: counts, capacities and the step at the edge of a domain."""

from __future__ import annotations

import dataclasses

import networkx as nx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster, names
from hwprofiles.cluster_graph import graph, with_use
from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec
from hwprofiles.topology import (
    bisection_bytes_per_s,
    bottleneck,
    device_bytes_per_s,
    fabric_problems,
    num_domains,
    tiers,
)

PRESETS = names("clusters")


def of_nodes(preset: str, nodes: int) -> ClusterSpec:
    one = cluster(preset)
    largest = min((level.devices for level in one.fabric if not level.bytes_per_s), default=10**9)
    assume(nodes * one.devices_per_node <= largest)
    return cluster(preset, gpus=nodes * one.devices_per_node)


@given(st.sampled_from(PRESETS), st.integers(1, 4096))
def test_groups_hold_every_device_once_and_stay_few(preset: str, nodes: int) -> None:
    made = of_nodes(preset, nodes)
    net = graph(made)
    count: dict[str, int] = {}
    for _, data in net.nodes(data=True):
        count[data["kind"]] = count.get(data["kind"], 0) + data["count"]
    assert count["device"] == made.num_devices
    assert count["domain"] == num_domains(made)
    assert count["host"] == made.num_nodes * max(made.node.sockets, 1)
    assert count.get("pcie", 0) == made.num_nodes * made.node.pcie_switches
    for level in made.fabric:
        groups = [d["count"] for _, d in net.nodes(data=True) if d.get("level") == level.name]
        assert sum(groups) == -(-made.num_devices // level.devices) * level.rails
    assert net.number_of_nodes() <= 11 + 2 * len(made.fabric)
    assert nx.is_connected(net)


@given(st.sampled_from(PRESETS), st.integers(1, 512))
def test_every_tier_of_the_graph_carries_what_the_devices_get(preset: str, nodes: int) -> None:
    made = of_nodes(preset, nodes)
    net = graph(made)
    ports = {n for n, d in net.nodes(data=True) if d["kind"] == "nic"}
    for tier in tiers(made)[1:]:
        ups = [
            data
            for one, other, data in net.edges(data=True)
            if data["link"] == tier.name and not {one, other} & {"pcie:full", "pcie:rest", "device:full", "device:rest"}
        ]
        total = sum(data["bytes_per_s"] * data["count"] for data in ups)
        assert total == pytest.approx(made.num_devices * tier.bytes_per_s)
    out = [d for n in ports for _, _, d in net.edges(n, data=True)]
    assert {d["link"] for d in out} == {"scale_out"}


@pytest.mark.parametrize("preset", PRESETS)
def test_crossing_the_domain_is_a_step(preset: str) -> None:
    one = cluster(preset)
    # where no level is oversubscribed or far away, all that matters is the edge of the domain
    made = dataclasses.replace(one, num_nodes=max(1, one.domain_devices * 2 // one.devices_per_node))
    rates = [device_bytes_per_s(made, bottleneck(made, span)) for span in range(1, made.num_devices + 1)]
    inside, outside = rates[: made.domain_devices], rates[made.domain_devices :]
    assert set(inside) == {made.scale_up.bytes_per_s}
    assert len(set(outside)) == 1
    assert outside[0] < inside[0]


def test_edges_say_rate_latency_and_source() -> None:
    made = cluster("p4d", gpus=16)
    edge = graph(made).edges["nic:full", "fabric"]
    assert edge["bytes_per_s"] == 50e9
    assert edge["shared_by"] == "node"
    assert edge["count"] == 2
    assert edge["source"] == made.source.kind
    assert edge["latency_s"] == made.scale_out.latency_s
    assert device_bytes_per_s(made, made.scale_out) == 50e9 / 8


def test_a_level_may_have_a_source_of_its_own() -> None:
    net = graph(cluster("h100-two-sites"))
    assert net.edges["site:full", "fabric"]["source"] == "assumed"
    assert net.edges["site:full", "fabric"]["bytes_per_s"] == 3.2e12 / 8
    assert net.edges["leaf:full", "site:full"]["source"] == "datasheet"
    assert net.edges["leaf:full", "site:full"]["count"] == 16 * 8


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


@pytest.mark.parametrize("preset", ["h100", "dgx-h100-superpod"])
def test_the_graph_of_16k_devices_is_that_of_two_groups(preset: str) -> None:
    small, large = graph(cluster(preset, gpus=4096)), graph(cluster(preset, gpus=16384))
    assert set(small.edges) == set(large.edges)
    assert large.nodes["device:full"]["count"] == 16384
    if preset == "dgx-h100-superpod":  # leaf switches and cables of the reference architecture at 64 scalable units
        assert large.nodes["leaf:full"]["count"] == 512
        assert large.edges["nic:full", "leaf:full"]["count"] == 16384


def test_use_colours_links_and_refuses_what_is_none() -> None:
    net = graph(cluster("dgx-h100-superpod", gpus=512))
    used = with_use(net, {"scale_out": 0.5, "leaf": 1.0})
    assert used.edges["nic:full", "leaf:full"]["use"] == 0.5
    assert used.edges["leaf:full", "pod:rest"]["use"] == 1.0
    assert used.edges["device:full", "domain:full"]["use"] == 0.0
    assert not any("use" in data for _, _, data in net.edges(data=True))
    with pytest.raises(UserError) as caught:
        with_use(net, {"spine": 0.5, "leaf": 1.5})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_shipped_fabrics_have_no_problems(preset: str) -> None:
    assert fabric_problems(cluster(preset)) == []


@pytest.mark.parametrize("span", [0, -1, 17])
def test_a_span_outside_the_cluster_is_refused(span: int) -> None:
    with pytest.raises(UserError, match="give 1 to 16"):
        bottleneck(cluster("h100", gpus=16), span)
