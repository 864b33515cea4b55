"""Rank order and host map: where the members of a group sit, and which links of the fabric they cross."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster
from hwprofiles.errors import UserError
from hwprofiles.hostmap import HostMap, host_map, map_from_nodes, read_host_map
from hwprofiles.specs import ClusterSpec
from sim.mesh import AXES, RankMap, fabric_slowdown, group, levels, pipelines_agree
from sim.plan import Plan

powers = st.sampled_from([1, 2, 4])
ORDERS = ["-".join(names) for names in itertools.permutations(("tp", "cp", "ep", "dp", "pp"))]
CLOSED = cluster("hgx-h100-2to1")


def sized(made: ClusterSpec, devices: int) -> ClusterSpec:
    return cluster(made.name, gpus=max(devices, made.devices_per_node))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Degrees that multiply to the same number of ranks in both meshes."""
    tp, cp, dp, pp = (draw(powers) for _ in range(4))
    inner = tp * cp * dp
    etp = draw(st.sampled_from([n for n in (1, 2) if inner % n == 0]))
    ep = draw(st.sampled_from([n for n in (1, 2, 4, 8) if inner // etp % n == 0]))
    return Plan(tp=tp, cp=cp, dp=dp, pp=pp, etp=etp, ep=ep, edp=inner // etp // ep)


def enumerated(plan: Plan, axis: str, order: str) -> list[list[int]]:
    """Groups of an axis, rank by rank: the definition."""
    expert = axis in ("etp", "ep", "edp")
    names = RankMap(order=order).axes(expert=expert)
    inside = set(axis.split("_"))
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in range(plan.num_devices):
        left, place = rank, {}
        for name in names:
            left, place[name] = divmod(left, getattr(plan, name))
        groups.setdefault(tuple(v for k, v in place.items() if k not in inside), []).append(rank)
    return list(groups.values())


def most_inside(groups: list[list[int]], block: int, device: Any = lambda rank: rank) -> int:
    """Members per block of the group that is spread over most blocks."""
    spread = max(len({device(rank) // block for rank in members}) for members in groups)
    return -(-len(groups[0]) // spread)


@given(plans(), st.sampled_from(AXES), st.sampled_from(ORDERS))
def test_groups_are_those_of_the_definition_in_every_order(plan: Plan, axis: str, order: str) -> None:
    made = sized(CLOSED, plan.num_devices)
    grp = group(plan, axis, made, RankMap(order=order))
    members = enumerated(plan, axis, order)
    assert grp.size == len(members[0])
    assert grp.intra == most_inside(members, 8)
    assert grp.within == (most_inside(members, 32),)


@given(plans(), st.sampled_from(AXES), st.sampled_from([1, 2, 8, 72]))
def test_the_default_order_is_the_closed_formula(plan: Plan, axis: str, domain: int) -> None:
    strides = {
        "tp": 1, "cp": plan.tp, "dp": plan.tp * plan.cp, "pp": plan.tp * plan.cp * plan.dp, "etp": 1,
        "ep": plan.etp, "edp": plan.etp * plan.ep, "tp_cp": 1, "dp_cp": plan.tp,
    }  # fmt: skip
    made = dataclasses.replace(cluster("dgx-h100"), num_nodes=128, domain_devices=domain)
    grp = group(plan, axis, made)
    assert grp.intra == min(grp.size, max(1, domain // strides[axis]))
    assert grp.within == ()


def test_sizes_that_do_not_divide_a_domain_keep_their_formula() -> None:
    made = sized(cluster("dgx-h100"), 96)
    assert group(Plan(cp=3, dp=4, pp=8), "dp_cp", made).intra == 8
    assert group(Plan(tp=2, dp=6, pp=8, ep=6, edp=2), "ep", made).intra == 6
    assert group(Plan(tp=3, dp=32), "dp", made).intra == 2


@given(st.lists(plans(), min_size=1, max_size=6), st.sampled_from(AXES), st.sampled_from(ORDERS))
def test_columns_give_what_single_plans_give(many: list[Plan], axis: str, order: str) -> None:
    class Block:
        def __getattr__(self, name: str) -> Any:
            return np.array([getattr(plan, name) for plan in many])

    made = sized(CLOSED, 1024)
    column = group(Block(), axis, made, RankMap(order=order))
    for row, plan in enumerate(many):
        one = group(plan, axis, made, RankMap(order=order))
        assert (column.size[row], column.intra[row], column.within[0][row]) == (one.size, one.intra, one.within[0])


def test_experts_stay_in_the_domain_and_stages_cross_racks() -> None:
    made = cluster("gb200-nvl72-pod")
    plan = Plan(tp=1, dp=72, pp=8, ep=72)
    assert group(plan, "ep", made).intra == 72
    stages = group(plan, "pp", made)
    assert (stages.intra, stages.within) == (1, (8,))
    inside_out = RankMap(order="pp-tp-cp-ep-dp")
    assert group(plan, "pp", made, inside_out).intra == 8
    assert group(plan, "ep", made, inside_out).intra == 9


@given(plans(), st.sampled_from(ORDERS))
def test_pipelines_agree_is_what_the_meshes_say(plan: Plan, order: str) -> None:
    ranks = RankMap(order=order)
    inside = []
    for expert in (False, True):
        names = ranks.axes(expert=expert)
        inside.append(np.prod([getattr(plan, n) for n in names[: names.index("pp")]]))
    assert bool(pipelines_agree(plan, ranks)) == (plan.pp == 1 or inside[0] == inside[1])
    assert pipelines_agree(plan)


@pytest.mark.parametrize("order", ["tp-cp-ep-dp", "tp-cp-ep-dp-dp", "", "tp,cp,ep,dp,pp", "tp-cp-ep-dp-pp-vpp"])
def test_wrong_orders_are_refused(order: str) -> None:
    with pytest.raises(UserError, match="name tp, cp, ep, dp and pp once each"):
        RankMap(order=order)


@given(plans(), st.sampled_from(AXES), st.randoms(use_true_random=False))
def test_permuting_devices_inside_nodes_changes_nothing(plan: Plan, axis: str, random: Any) -> None:
    made = sized(CLOSED, plan.num_devices)
    devices = []
    for first in range(0, plan.num_devices, 8):
        node = list(range(first, min(first + 8, plan.num_devices)))
        random.shuffle(node)
        devices += node
    assert group(plan, axis, made, RankMap(hosts=host_map(devices))) == group(plan, axis, made)


@given(plans(), st.sampled_from(AXES), st.randoms(use_true_random=False))
def test_a_host_map_counts_the_most_spread_group(plan: Plan, axis: str, random: Any) -> None:
    made = sized(CLOSED, plan.num_devices)
    devices = list(range(plan.num_devices))
    random.shuffle(devices)
    grp = group(plan, axis, made, RankMap(hosts=host_map(devices)))
    members = enumerated(plan, axis, "tp-cp-ep-dp-pp")
    for found, block in ((grp.intra, 8), (grp.within[0], 32)):
        assert found == most_inside(members, block, lambda rank: devices[rank])


def test_ranks_dealt_round_the_nodes_lose_the_domain() -> None:
    made, plan = cluster("hgx-h100-2to1", gpus=64), Plan(tp=8, dp=8, ep=8, edp=8)
    dealt = RankMap(hosts=host_map([rank % 8 * 8 + rank // 8 for rank in range(64)]))
    assert group(plan, "tp", made).intra == 8
    assert group(plan, "tp", made, dealt).intra == 1
    assert group(plan, "tp", made, dealt).within == (4,)
    with pytest.raises(UserError, match="holds 64 ranks, the plan has 32"):
        group(Plan(tp=8, dp=4), "tp", made, dealt)


def test_levels_of_a_group_name_members_rates_and_latency() -> None:
    made = cluster("h100-roce-pods", gpus=6144)
    found = levels(made, group(Plan(tp=8, dp=768, ep=8, edp=768), "dp", made))
    assert [x.name for x in found] == ["scale_up", "scale_out", "rack", "pod"]
    assert [int(x.members) for x in found] == [1, 2, 384, 768]
    assert [x.bytes_per_s for x in found] == [450e9, 50e9, 50e9, 50e9 / 7]
    assert [x.latency_s for x in found] == pytest.approx([2e-6, 5e-6, 6e-6, 7e-6])
    assert [x.name for x in levels(cluster("h100"), group(Plan(), "tp", cluster("h100")))] == ["scale_up", "scale_out"]


def test_slowdown_is_the_most_loaded_uplink_of_a_brute_force_count() -> None:
    made, plan = cluster("hgx-h100-2to1", gpus=128), Plan(dp=128, ep=64, edp=2)
    grp = group(plan, "ep", made)
    port, uplink = np.zeros(128), np.zeros(4)
    for members in enumerated(plan, "ep", "tp-cp-ep-dp-pp"):
        for one, other in itertools.permutations(members, 2):
            port[one] += one // 8 != other // 8
            uplink[one // 32] += one // 32 != other // 32
    seconds = uplink.max() / (32 * 25e9), port.max() / 50e9
    assert fabric_slowdown(made, grp, "spread") == pytest.approx(max(1.0, seconds[0] / seconds[1]))
    ring_up, ring_port = 1 / (32 * 25e9), 1 / (8 * 50e9)  # a ring of consecutive ranks leaves each block once
    assert fabric_slowdown(made, grp, "ring") == max(1.0, ring_up / ring_port)


@given(plans(), st.sampled_from(AXES), st.floats(1.0, 8.0), st.sampled_from(["spread", "ring"]))
def test_slowdown_grows_with_oversubscription_and_is_one_without(plan: Plan, axis: str, more: float, how: Any) -> None:
    made = sized(CLOSED, plan.num_devices)
    grp = group(plan, axis, made)
    flat = dataclasses.replace(made, fabric=())
    assert fabric_slowdown(flat, group(plan, axis, flat), how) == 1
    level = made.fabric[0]
    worse = dataclasses.replace(
        made, fabric=(dataclasses.replace(level, oversubscription=level.oversubscription * more),)
    )
    assert fabric_slowdown(worse, grp, how) >= fabric_slowdown(made, grp, how) >= 1
    if grp.size <= grp.within[0]:
        assert fabric_slowdown(worse, grp, how) == 1


def test_host_maps_are_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    by_rank, by_node = tmp_path / "rank.csv", tmp_path / "node.csv"
    by_rank.write_text("rank,device\n1,0\n0,2\n2,1\n3,3\n")
    by_node.write_text("node,ranks\n1,0 3\n0,1 2\n")
    want = HostMap(devices=(2, 0, 1, 3))
    assert read_host_map(str(by_rank), num_devices=4, devices_per_node=2) == want
    assert read_host_map(str(by_node), num_devices=4, devices_per_node=2) == want == map_from_nodes([[1, 2], [0, 3]])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "rank,device\n0,0\n1,0\n2,9\n",
            ["rank 3: missing", "device 0: twice", "device 9: out of range", "device 1, 2"],
        ),
        ("node,ranks\n0,0 1\n1,2\n2,3 4\n", ["node 2: out of range", "node 1: list 2 ranks", "rank 4: out of range"]),
        ("node,ranks\n0,0 x\n1,-2 3\n", ["line 2 reads '0,0 x'", "line 3"]),
        ("rank,device\n0,1.5\n", ["line 2"]),
        ("gpu\n0\n", ["starts with 'gpu'"]),
        ("", ["the header must be"]),
        ("rank,device\n", ["rank 0, 1, 2, 3: missing"]),
        ("rank,device\n\n,1\n0 1,2\n0,1,2\n", ["line 3", "line 4", "line 5"]),
        (f"rank,device\n0,{'9' * 5000}\n", ["line 2"]),
    ],
)
def test_bad_host_maps_are_refused_with_every_problem(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = tmp_path / "map.csv"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_host_map(str(file), num_devices=4, devices_per_node=2)
    assert caught.value.where == str(file)
    for part in parts:
        assert any(part in problem for problem in caught.value.problems), part


def test_maps_made_in_code_and_missing_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 1: twice"):
        host_map([1, 1])
    with pytest.raises(UserError, match="different numbers of ranks"):
        map_from_nodes([[0, 1], [2]])
    with pytest.raises(UserError, match="cannot be read"):
        read_host_map(str(tmp_path / "none.csv"), num_devices=4, devices_per_node=2)
