"""Fabric levels: rates, paths, bisection against closed forms and maximum flow; what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster
from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, FabricLevel
from hwprofiles.topology import (
    bisection_bytes_per_s,
    bottleneck,
    device_bytes_per_s,
    highest_link,
    link_rates,
    path,
    rail_members,
    tiers,
)

PORT = 50e9
RAILED = ("dgx-h100-superpod", "dgx-a100-superpod", "h800-multiplane", "gb200-nvl72-pod")


def level(name: str, devices: int, **changes: Any) -> FabricLevel:
    plain = FabricLevel(name=name, devices=devices, bytes_per_s=PORT, latency_s=1e-6)
    return dataclasses.replace(plain, **changes)


def fabric(*levels: FabricLevel, nodes: int = 8, per_node: int = 4, domain: int = 4) -> ClusterSpec:
    h100 = cluster("dgx-h100")
    return dataclasses.replace(
        h100, num_nodes=nodes, devices_per_node=per_node, domain_devices=domain, fabric=levels
    )  # fmt: skip


def max_flow(made: ClusterSpec) -> float:
    """Bytes/s from the first half of the devices to the second, on the tree drawn port by port."""
    net: nx.DiGraph[str] = nx.DiGraph()

    def both(one: str, other: str, rate: float) -> None:
        net.add_edge(one, other, capacity=rate)
        net.add_edge(other, one, capacity=rate)

    count = made.num_devices
    for device in range(count):
        both(f"d{device}", f"domain{device // made.domain_devices}", made.scale_up.bytes_per_s)
        first = made.fabric[0].devices if made.fabric else count
        both(f"d{device}", f"0:{device // first}", made.scale_out.bytes_per_s)
        net.add_edge("from", f"d{device}") if device < count // 2 else net.add_edge(f"d{device}", "to")
    for i, here in enumerate(made.fabric):
        above = made.fabric[i + 1].devices if i + 1 < len(made.fabric) else count
        for first in range(0, count, here.devices):
            users = here.devices if here.shared_by == "device" else 1
            both(
                f"{i}:{first // here.devices}",
                f"{i + 1}:{first // above}",
                users * here.bytes_per_s / here.oversubscription,
            )
    return float(nx.maximum_flow_value(net, "from", "to"))


@given(st.sampled_from([1, 2, 3]), st.sampled_from([1.0, 2.0, 3.5]), st.sampled_from([1.0, 4.0]), st.booleans())
def test_bisection_of_a_fat_tree_is_the_maximum_flow(pods: int, leaf: float, pod: float, shared: bool) -> None:
    upper = level("pod", 32, oversubscription=pod, bytes_per_s=5 * PORT, shared_by="group") if shared else level(
        "pod", 32, oversubscription=pod
    )  # fmt: skip
    made = fabric(level("leaf", 8, oversubscription=leaf), upper, nodes=16 * pods)
    assert bisection_bytes_per_s(made) == pytest.approx(max_flow(made))


@given(st.integers(2, 9), st.sampled_from([1.0, 2.0, 7.0]))
def test_bisection_is_never_too_high(nodes: int, ratio: float) -> None:
    made = fabric(level("leaf", 8, oversubscription=ratio), nodes=nodes)
    assert bisection_bytes_per_s(made) <= max_flow(made) * (1 + 1e-9)


def test_closed_forms_of_shipped_fabrics() -> None:
    assert bisection_bytes_per_s(cluster("dgx-h100-superpod", gpus=16384)) == 8192 * PORT
    assert bisection_bytes_per_s(cluster("hgx-h100-2to1", gpus=1024)) == 512 * PORT / 2
    assert bisection_bytes_per_s(cluster("h100-roce-pods", gpus=24576)) == pytest.approx(12288 * PORT / 7)
    assert bisection_bytes_per_s(cluster("h100-two-sites")) == 3.2e12 / 8
    assert bottleneck(cluster("h100-two-sites"), 4096).name == "site"
    assert bottleneck(cluster("h100-two-sites"), 2048).name == "scale_out"
    assert device_bytes_per_s(cluster("hgx-h100-2to1"), bottleneck(cluster("hgx-h100-2to1", gpus=64), 33)) == PORT / 2


def test_a_span_falls_in_steps_at_the_edges_of_groups() -> None:
    made = fabric(level("leaf", 8, oversubscription=2.0), level("pod", 16, oversubscription=4.0), nodes=8)
    rates = [device_bytes_per_s(made, bottleneck(made, span)) for span in range(1, 33)]
    assert rates == [450e9] * 4 + [PORT] * 4 + [PORT / 2] * 8 + [PORT / 4] * 16


def test_path_climbs_to_the_common_group_and_down_again() -> None:
    made = cluster("h100-roce-pods", gpus=6144)
    names = [(hop.link, hop.way) for hop in path(made, 0, 6143)]
    assert names == [
        ("scale_out", "up"), ("rack", "up"), ("pod", "up"), ("pod", "down"), ("rack", "down"), ("scale_out", "down"),
    ]  # fmt: skip
    assert [hop.link for hop in path(made, 0, 7)] == ["scale_up"] * 2
    assert [hop.link for hop in path(made, 0, 8)] == ["scale_out"] * 2
    assert path(made, 5, 5) == ()
    assert sum(hop.latency_s for hop in path(made, 0, 6143)) == pytest.approx(7e-6)
    assert min(hop.bytes_per_s for hop in path(made, 0, 6143)) == PORT / 7


@pytest.mark.parametrize("preset", [*RAILED, "hgx-h100-2to1", "h100-two-sites", "a100-pcie"])
@given(data=st.data())
def test_paths_are_symmetric_and_agree_with_the_tiers(preset: str, data: st.DataObject) -> None:
    made = cluster(preset, gpus=2304) if preset == "gb200-nvl72-pod" else cluster(preset, gpus=4096)
    one, other = (data.draw(st.integers(0, made.num_devices - 1)) for _ in range(2))
    there, back = path(made, one, other), path(made, other, one)
    assert [(h.link, h.bytes_per_s) for h in there] == [(h.link, h.bytes_per_s) for h in back]
    assert sum(h.latency_s for h in there) == pytest.approx(sum(h.latency_s for h in back))
    top = int(highest_link(made, one, other))
    assert top == -1 if one == other else tiers(made)[top].name in {hop.link for hop in there}
    if top >= 0:
        assert one // tiers(made)[top].reach == other // tiers(made)[top].reach


def test_another_rail_is_reached_over_the_own_domain() -> None:
    made = cluster("dgx-h100-superpod", gpus=512)
    assert [hop.link for hop in path(made, 0, 8)] == ["scale_out"] * 2
    assert [hop.link for hop in path(made, 0, 9)] == ["scale_up"] * 2 + ["scale_out"] * 2
    alone = fabric(level("leaf", 16, rails=4), domain=1)  # no NVLink: the leaf above the rails must do it
    assert [hop.link for hop in path(alone, 0, 5)] == ["scale_out", "leaf", "leaf", "scale_out"]
    assert [hop.link for hop in path(alone, 0, 4)] == ["scale_out"] * 2


def test_highest_link_of_columns_is_that_of_pairs() -> None:
    made = cluster("dgx-h100-superpod", gpus=4096)
    others = np.array([0, 3, 8, 9, 255, 256, 2048])
    tops = highest_link(made, np.zeros(7, np.int64), others)
    assert tops.tolist() == [-1, 0, 1, 1, 1, 2, 3]
    assert tops.tolist() == [int(highest_link(made, 0, int(d))) for d in others]


@pytest.mark.parametrize(
    ("size", "stride", "want"), [(8, 1, 1), (32, 8, 32), (64, 4, 32), (48, 2, 12), (512, 1, 32), (4, 256, 1)]
)
def test_members_on_one_rail(size: int, stride: int, want: int) -> None:
    made = cluster("dgx-h100-superpod", gpus=1024)
    ranks = np.arange(size) * stride
    on_first = ranks[ranks // 256 == 0]
    counted = np.bincount(on_first % 8).max()
    assert rail_members(made, size, stride) == want == counted


@given(st.sampled_from(["scale_up", "scale_out", "leaf", "pod"]), st.floats(1.0, 16.0))
def test_more_bandwidth_never_lowers_a_rate(name: str, factor: float) -> None:
    made = fabric(level("leaf", 8, oversubscription=3.0), level("pod", 16, oversubscription=2.0))

    def faster(link: Any) -> Any:
        return dataclasses.replace(link, bytes_per_s=link.bytes_per_s * factor) if link.name == name else link

    better = dataclasses.replace(
        made,
        scale_up=faster(made.scale_up),
        scale_out=faster(made.scale_out),
        fabric=tuple(map(faster, made.fabric)),
    )
    assert all(link_rates(better)[link] >= rate for link, rate in link_rates(made).items())
    assert link_rates(better)[name] == pytest.approx(link_rates(made)[name] * factor)
    assert bisection_bytes_per_s(better) >= bisection_bytes_per_s(made)
    for span in (2, 8, 16, 32):
        least, before = bottleneck(better, span), bottleneck(made, span)
        assert device_bytes_per_s(better, least) >= device_bytes_per_s(made, before)


TEXT = """
name = "mine"
device = "H100"
num_nodes = 16
devices_per_node = 8
domain_devices = {domain}
host_mem_bytes = "2 TB"
[scale_up]
name = "scale_up"
bytes_per_s = "450 GB/s"
latency_s = "2 us"
[scale_out]
name = "scale_out"
bytes_per_s = "{port}"
latency_s = "5 us"
[host_link]
name = "host"
bytes_per_s = "64 GB/s"
latency_s = "2 us"
{more}
[source]
kind = "user"
title = "our lab"
where = "inventory"
date = 2026-01-05
"""
LEAF = '[[fabric]]\nname = "{name}"\ndevices = {devices}\nbytes_per_s = "{rate}"\nlatency_s = "1 us"\n{more}'


def written(folder: Path, *levels: str, domain: int = 8, port: str = "400 Gb/s", node: str = "") -> str:
    file = folder / "mine.toml"
    file.write_text(TEXT.format(domain=domain, port=port, more="\n".join((*levels, node))))
    return str(file)


def leaf(name: str = "leaf", devices: int = 32, rate: str = "400 Gb/s", more: str = "") -> str:
    return LEAF.format(name=name, devices=devices, rate=rate, more=more)


def refused(file: str) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        cluster(file)
    assert caught.value.where == file
    return caught.value.problems


def test_levels_are_read_with_their_units(tmp_path: Path) -> None:
    made = cluster(written(tmp_path, leaf(more="oversubscription = 2\nrails = 8"), leaf("site", 64, "1 Tb/s")))
    assert [x.name for x in made.fabric] == ["leaf", "site"]
    assert made.fabric[0] == level("leaf", 32, oversubscription=2.0, rails=8)
    assert link_rates(made) == {"scale_up": 450e9, "scale_out": PORT, "leaf": PORT / 2, "site": 125e9}


def test_groups_without_a_way_out_are_an_unreachable_pair(tmp_path: Path) -> None:
    (problem,) = refused(written(tmp_path, leaf(rate="0 Gb/s")))
    assert problem.startswith("device 0 and device 32 cannot reach each other")
    assert "'leaf' hold 32 devices" in problem
    assert cluster(written(tmp_path, leaf(devices=128, rate="0 Gb/s"))).num_devices == 128
    with pytest.raises(UserError, match="device 0 and device 16384 cannot reach"):
        cluster("h800-multiplane", gpus=16384 + 256)


def test_rails_that_never_meet_are_an_unreachable_pair(tmp_path: Path) -> None:
    (problem,) = refused(written(tmp_path, leaf(devices=128, rate="0 Gb/s", more="rails = 8"), domain=1))
    assert problem.startswith("device 0 and device 1 cannot reach each other: the 8 rails")


def test_a_path_outside_the_cluster_is_refused() -> None:
    with pytest.raises(UserError, match="no device 64, -1"):
        highest_link(cluster("dgx-h100", gpus=64), np.array([64, 3]), np.array([2, -1]))
    lost = fabric(level("leaf", 8, bytes_per_s=0.0))
    with pytest.raises(UserError, match="device 1 and device 31 cannot reach"):
        path(lost, 1, 31)


def test_all_problems_of_a_fabric_at_once(tmp_path: Path) -> None:
    bad = (
        leaf(devices=12, more="rails = 3\noversubscription = 0.5"),
        leaf("leaf", 48),
        leaf("scale_out", 0, more="latency_s2 = 1"),
    )
    (unknown,) = refused(written(tmp_path, *bad))
    assert "fabric.2.latency_s2" in unknown
    problems = refused(written(tmp_path, *bad[:2], leaf("host", 0), port="0 Gb/s", node="[node]\nnics = 3"))
    assert len(problems) == 8
    for part in (
        "scale_out.bytes_per_s = 0", "multiple of 8", "rails = 3 must divide 8", "oversubscription = 0.5",
        "the name 'leaf' is taken", "the name 'host' is taken", "devices = 0 must be a multiple of 48", "node.nics = 3",
    ):  # fmt: skip
        assert sum(part in problem for problem in problems) == 1, part


def test_wrong_types_of_levels_are_refused(tmp_path: Path) -> None:
    assert "fabric" in refused(written(tmp_path, '[fabric]\nname = "leaf"'))[0]
    problems = refused(written(tmp_path, leaf(devices='"many"', rate="400 Gb")))  # type: ignore[arg-type]
    assert any("fabric.0.devices" in problem for problem in problems)
    assert any("fabric.0.bytes_per_s" in problem for problem in problems)
