"""--rank-order, --host-map and --nodes on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.planner_cli.running import moecast

ASKED = ("--model", "Qwen3-30B-A3B", "--cluster", "hgx-h100-2to1", "--global-batch", "64")
LAYOUT = ("--tp", "4", "--pp", "2", "--ep", "4", "--micro-batch", "1", "--recompute", "none", "--vpp", "1", "--cp", "1")
SCATTERED = "node,leaf\na1,A\nc1,C\nb1,B\nc2,C\na2,A\nc3,C\nb2,B\nc4,C\n"


@pytest.fixture
def nodes(tmp_path: Path) -> str:
    file = tmp_path / "nodes.csv"
    file.write_text(SCATTERED, encoding="utf-8")
    return str(file)


def test_simulate_orders_the_nodes_and_takes_their_number(nodes: str) -> None:
    done = moecast("simulate", *ASKED, *LAYOUT, "--nodes", nodes, "--json", "-")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["devices"] == 64 and data["hosts"][:4] == ["c1", "c2", "c3", "c4"]
    assert data["bound_s"] <= data["step_s"]["value"]
    text = moecast("simulate", *ASKED, *LAYOUT, "--nodes", nodes).out
    assert "nodes c1, c2, c3, c4" in text and "rank order" not in text
    part = moecast("simulate", *ASKED, *LAYOUT, "--nodes", nodes, "--gpus", "32", "--json", "-")
    assert json.loads(part.out)["hosts"] == ["c1", "c2", "c3", "c4"]


def test_plan_says_the_order_in_table_file_page_and_explanation(tmp_path: Path) -> None:
    file, page = tmp_path / "plan.json", tmp_path / "plan.html"
    done = moecast(
        "plan", *ASKED, *LAYOUT, "--gpus", "64", "--rank-order", "tp-cp-ep-pp-dp", "--out", str(file), "--report",
        str(page),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "rank order tp-cp-ep-pp-dp (--use-tp-pp-dp-mapping)" in done.out
    data = json.loads(file.read_text())
    assert {p["rank_order"] for p in data["plans"]} == {"tp-cp-ep-pp-dp"}
    assert not any(n["change"].startswith("rank order") for n in data["neighbours"])
    assert "rank order tp-cp-ep-pp-dp" in page.read_text()
    assert "rank order tp-cp-ep-pp-dp" in moecast("explain", str(file)).out


def test_a_host_map_counts(tmp_path: Path) -> None:
    file = tmp_path / "map.csv"
    file.write_text("rank,device\n" + "".join(f"{r},{r % 8 * 8 + r // 8}\n" for r in range(64)), encoding="utf-8")
    base = ("simulate", *ASKED, *LAYOUT, "--gpus", "64", "--json", "-")
    plain, dealt = (json.loads(moecast(*base, *more).out) for more in ((), ("--host-map", str(file))))
    assert dealt["step_s"]["value"] > plain["step_s"]["value"]
    assert plain["host_map"] is None and dealt["host_map"]["source"] == str(file)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--rank-order", "tp-dp"), ["name tp, cp, ep, dp and pp once each"]),
        (("--rank-order", "pp-tp-cp-ep-dp"), ["rule megatron-rank-order"]),
        (("--rank-order", "tp-cp-ep-pp-dp", "--ep", "8"), ["rule rank-order-pipelines"]),
        (("--host-map", "none.csv"), ["none.csv: cannot be read"]),
        (("--nodes", "none.csv", "--tp", "x"), ["none.csv: cannot be read", "--tp 'x'"]),
        (("--host-map", "none.csv", "--nodes", "NODES", "--rank-order", "x"), ["give one of them", "once each"]),
        (("--nodes", "NODES", "--gpus", "128"), ["lists 8 nodes, 16 are needed"]),
    ],
)
def test_bad_input_is_told(more: tuple[str, ...], parts: list[str], nodes: str) -> None:
    typed = [nodes if word == "NODES" else word for word in more]
    size = () if "--nodes" in more else ("--gpus", "64")
    done = moecast("simulate", *ASKED, *LAYOUT, *size, *typed)
    assert done.code == 2
    assert all(part in done.err for part in parts), done.err
