"""Node lists: blocks of the fabric become places on the cluster, and every mistake is reported at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster
from hwprofiles.errors import UserError
from hwprofiles.hostmap import HostMap
from hwprofiles.nodes import level_nodes, map_of, read_nodes
from hwprofiles.specs import ClusterSpec, FabricLevel


def two_levels() -> ClusterSpec:
    """Leaves of four nodes of eight devices, pods of three leaves."""
    base = cluster("hgx-h100-2to1")
    leaf = base.fabric[0]
    return replace(base, fabric=(leaf, FabricLevel(name="pod", devices=96, bytes_per_s=1e10, latency_s=1e-6)))


def written(folder: Path, text: str) -> str:
    file = folder / "nodes.csv"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_places_keep_the_blocks_apart_in_any_order_of_lines(tmp_path: Path) -> None:
    made = two_levels()
    assert level_nodes(made) == {"pod": 12, "leaf": 4}
    text = "leaf,node,pod\nx,n0,P\ny,n1,P\nx,n2,Q\nx,n3,P\ny,n4,P\n"
    nodes = read_nodes(written(tmp_path, text), made)
    assert nodes.names == ("n0", "n1", "n2", "n3", "n4")
    assert nodes.blocks == (("P", "x"), ("P", "y"), ("Q", "x"), ("P", "x"), ("P", "y"))
    assert nodes.slots == (0, 4, 12, 1, 5)  # leaf x of pod Q is another than leaf x of pod P
    found = map_of(nodes, (0, 3, 1), 8)
    assert found.devices == (*range(16), *range(32, 40))
    assert found.nodes == ("n0", "n3", "n1") and found.runs() == ((0, 16), (32, 8))


@given(st.lists(st.integers(0, 5), max_size=40).map(lambda sizes: [size * 2 + i % 2 for i, size in enumerate(sizes)]))
def test_runs_say_the_devices_and_the_digest_follows_them(devices: list[int]) -> None:
    one = HostMap(devices=tuple(devices), source="a")
    assert tuple(first + i for first, count in one.runs() for i in range(count)) == one.devices
    assert one.digest == HostMap(devices=tuple(devices), source="b").digest
    assert one.digest != HostMap(devices=(*devices, 99)).digest


def test_a_domain_of_several_nodes_is_a_level(tmp_path: Path) -> None:
    made = cluster("gb200-nvl72", gpus=72)
    assert level_nodes(made)["domain"] == 18
    nodes = read_nodes(written(tmp_path, "node,domain\na,1\nb,2\nc,1\n"), replace(made, fabric=()))
    assert nodes.slots == (0, 18, 1)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "node,leaf,pod\na,L,P\na,L,P\nb,L\nc,,P\n",
            ["node a stands there twice", "line 4", "line 5", "lists 1 nodes"],
        ),
        (
            "node,rack,pod\na,L,P\na,,P\nb,L,P\nb,L,P\n",
            [
                "'leaf' is missing",
                "'rack' is no level of the cluster",
                "line 3",
                "node b stands there twice",
                "lists 2",
            ],
        ),
        ("node,leafs,pod\na,L,P\n", ["did you mean 'leaf'", "'leaf' is missing"]),
        ("node,leaf,pod,pod\na,L,P,P\n", ["'pod' stands there twice"]),
        ("", ["is empty; the header must be 'node,pod,leaf'"]),
        ("node,leaf,pod\n" + "".join(f"n{i},L,P\n" for i in range(5)), ["leaf L has more nodes than the 4"]),
        ("node,leaf,pod\n" + "".join(f"n{i},{i},P\n" for i in range(4)), ["P has more blocks of leaf"]),
        ("node,leaf,pod\na,L,P\n", ["lists 1 nodes, 3 are needed", "--gpus to 8"]),
    ],
)
def test_mistakes_are_listed_together(text: str, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_nodes(written(tmp_path, text), two_levels(), needed=3)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert all(";" in problem or ":" in problem for problem in caught.value.problems)  # each with its remedy


def test_blocks_that_no_link_joins_are_refused(tmp_path: Path) -> None:
    base = cluster("hgx-h100-2to1", gpus=32)
    alone = replace(base, fabric=(replace(base.fabric[0], bytes_per_s=0.0),))
    read_nodes(written(tmp_path, "node,leaf\na,L\nb,L\n"), alone)
    with pytest.raises(UserError, match="no link leaves a leaf"):
        read_nodes(written(tmp_path, "node,leaf\na,L\nb,M\n"), alone)


def test_files_that_cannot_be_read_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_nodes(str(tmp_path / "none.csv"), two_levels())
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00node")
    with pytest.raises(UserError, match="not a CSV"):
        read_nodes(str(tmp_path / "b.csv"), two_levels())


def test_an_empty_list_does_not_ask_for_no_gpus(tmp_path: Path) -> None:
    path = tmp_path / "nodes.csv"
    path.write_text("node,leaf,pod\n")
    with pytest.raises(UserError) as caught:
        read_nodes(str(path), two_levels(), needed=3)
    assert "--gpus to 0" not in str(caught.value) and "under the header" in str(caught.value)
