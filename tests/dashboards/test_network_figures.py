"""The drawing of a network has its parts, its links their rates and use, and gains are drawn as they are."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards import figures_network as drawn
from hwprofiles import catalogue
from hwprofiles.cluster_graph import graph
from hwprofiles.specs import ClusterSpec
from hwprofiles.topology import tiers
from planner.elastic import Gain

USE = {"scale_up": 0.3, "scale_out": 0.85, "not of this cluster": 0.5}


def dgx(gpus: int) -> ClusterSpec:
    return catalogue.cluster("dgx-h100", gpus=gpus)


def test_a_small_cluster_is_drawn_part_by_part() -> None:
    found = drawn.drawing(dgx(16), USE)
    kinds = [data["kind"] for _, data in found.net.nodes(data=True)]
    assert not found.groups
    assert {k: kinds.count(k) for k in set(kinds)} == {"device": 16, "domain": 2, "host": 2, "nic": 16, "fabric": 1}
    # every device hangs on one domain, every domain on eight devices
    links = [(a, b) for a, b, data in found.net.edges(data=True) if data["link"] == "scale_up"]
    assert len(links) == 16 and all(found.net.degree(v) == 8 for v in found.net if v.startswith("domain"))
    assert nx.is_connected(found.net)


def test_a_large_cluster_is_groups_with_counts() -> None:
    cluster = catalogue.cluster("h100-two-sites")
    found = drawn.drawing(cluster, {})
    assert found.groups and set(found.net) == set(graph(cluster))
    names = [
        text for t in drawn.network(cluster, {}).data if t.mode == "markers+text" for text in map(str.strip, t.text)
    ]
    assert {"4,096 × H100", "512 × scale-up domain", "2 × site switch"} <= set(names)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(catalogue.names("clusters"))), st.integers(1, 3))
def test_every_cluster_has_a_drawing_without_two_parts_in_one_place(name: str, nodes: int) -> None:
    cluster = replace(catalogue.cluster(name), num_nodes=nodes)
    found = drawn.drawing(cluster, USE)
    places = [(round(x, 6), round(y, 6)) for x, y in found.at.values()]
    assert len(set(places)) == len(places) == found.net.number_of_nodes()
    assert drawn.network(cluster, USE).layout.height <= 900


@pytest.mark.parametrize("gpus", [16, 4096])
def test_links_carry_the_colour_of_their_use_and_say_their_rate(gpus: int) -> None:
    figure = drawn.network(dgx(gpus), USE)
    lines = {t.name: t.line.color for t in figure.data if t.mode == "lines"}
    assert set(lines) == {"scale_up", "scale_out", "host"}
    wanted = drawn.sample_colorscale(drawn.USE_SCALE, [0.3, 0.85, 0.0])
    assert [lines["scale_up"], lines["scale_out"], lines["host"]] == wanted
    hovers = [h for t in figure.data if t.name == "scale_out" and t.customdata for h in t.customdata]
    assert hovers and all("50.0 GB/s one way" in h and "busy 85.0% of the step" in h for h in hovers)
    assert "Busiest in the step is scale_out, 85.0%" in drawn.network_words(dgx(gpus), USE)


def test_shares_above_one_are_drawn_as_full() -> None:
    found = drawn.drawing(dgx(8), {"scale_up": 1.4})
    assert {d["use"] for _, _, d in found.net.edges(data=True) if d["link"] == "scale_up"} == {1.0}


def test_the_table_names_every_tier_with_what_it_moved() -> None:
    cluster = catalogue.cluster("h100-two-sites")
    rows = drawn.link_table(cluster, {"leaf": {"bytes": 2.0**30, "utilisation": 0.125}})
    assert [r["link"] for r in rows] == [t.name for t in tiers(cluster)]
    leaf = next(r for r in rows if r["link"] == "leaf")
    assert (leaf["moved per device and step"], leaf["busy %"], leaf["links"]) == ("1.00 GiB", 12.5, 128)


def gain(what: str, more: float | None) -> Gain:
    return Gain(what=what, factor=1.1, of="same plan", step_s=1.0, gain=more, elasticity=-0.1)


def test_gains_are_bars_with_the_most_telling_on_top() -> None:
    gains = [gain("a", 0.001), gain("b", 0.05), gain("c", 0.0), gain("none", None)]
    (bars,) = drawn.gains_bar(gains).data
    assert isinstance(bars, go.Bar)
    assert list(bars.y) == ["c", "a", "b"] and list(bars.x) == pytest.approx([0.0, 0.1, 5.0])
    assert drawn.gains_words(gains).startswith("The same plan with one rate raised by 10%: most by b, +5.00%")
    assert drawn.gains_words(gains).endswith("next to nothing by c.")
    assert (
        "No rate" in drawn.gains_bar([]).layout.annotations[0].text and drawn.gains_words([]) == "No rate was raised."
    )
