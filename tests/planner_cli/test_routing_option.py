"""`--routing` on simulate and plan: what it prints, what the JSON holds, how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from planner.question.asked import Asked
from sim.routing.spec import CONSECUTIVE
from tests.planner_cli.running import LAYOUT, SMALL, moecast


def simulated(path: Path, *more: str) -> dict[str, Any]:
    done = moecast("simulate", *SMALL, *LAYOUT, "--micro-batch", "2", *more, "--json", str(path))
    assert done.code == 0, done.err
    record: dict[str, Any] = json.loads(path.read_text())
    return record | {"text": done.out}


def test_simulate_shows_the_cost_of_imbalance(tmp_path: Path) -> None:
    even = simulated(tmp_path / "even.json")
    hot = simulated(tmp_path / "hot.json", "--routing", "lognormal:0.5")
    assert even["imbalance"] is None and "Uneven experts" not in even["text"]
    found = hot["imbalance"]
    assert found["balanced_step_s"] == pytest.approx(even["step_s"]["value"])
    assert found["cost_share"] == pytest.approx(hot["step_s"]["value"] / even["step_s"]["value"] - 1)
    assert found["cost_share"] > 0.01 and len(found["rank_load"][0]) == 8 and len(found["traffic_bytes"]) == 8
    assert f"{found['cost_share']:.1%}" in hot["text"] and "Load per GPU" in hot["text"]


def test_reports_show_uneven_experts_and_links(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    found = simulated(tmp_path / "hot.json", "--routing", "lognormal:0.5", "--report", str(page))
    text = page.read_text(encoding="utf-8")
    for name in ("imbalance", "rank-load", "traffic", "link-use"):
        assert f'id="figure-{name}"' in text
    cost = 100 * found["imbalance"]["cost_share"]
    assert f"<span>cost of imbalance</span><b>{cost:+.1f} %</b>" in text
    assert "chance of out-of-memory" in text and "chance of out of memory" in found["text"]
    simulated(tmp_path / "even.json", "--report", str(page))
    text = page.read_text(encoding="utf-8")
    assert 'id="figure-link-use"' in text and "<h2>Uneven experts</h2>" not in text


def test_plan_takes_routing_into_the_search_and_its_file(tmp_path: Path) -> None:
    files = []
    for name, text in (("even", "balanced"), ("hot", "zipf:0.8")):
        path = tmp_path / f"{name}.json"
        done = moecast("plan", *SMALL, "--recompute", "moe_act,layernorm", "--routing", text, "--json", str(path))
        assert done.code == 0, done.err
        files.append(json.loads(path.read_text()))
    even, hot = files
    assert hot["search"]["certificate"] == "exact"
    assert hot["plans"][0]["step_s"]["value"] > even["plans"][0]["step_s"]["value"]
    assert hot["plans"][0]["imbalance"]["cost_share"] > 0 and hot["plans"][1]["imbalance"] is None
    assert even["inputs"]["digest"] != hot["inputs"]["digest"]
    assert hot["inputs"]["options"]["routing"] == "zipf:0.8"


def test_bad_routing_is_reported_with_the_other_mistakes() -> None:
    done = moecast("simulate", *SMALL, "--tp", "x", "--routing", "popular:3,pad=a")
    assert done.code == 2
    assert "--tp" in done.err and "--routing" in done.err and "popular" in done.err and "pad" in done.err


def test_a_broken_file_names_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("layer,expert,count\n0,0,-4\n0,999,1\n")
    done = moecast("simulate", *SMALL, "--routing", str(path))
    assert done.code == 2 and "row 2" in done.err and "negative" in done.err


def test_help_names_every_law() -> None:
    words = next(o.text for o in get_type_hints(Asked, include_extras=True)["routing"].__metadata__)
    assert all(law in words for law in ("balanced", CONSECUTIVE, "uniform", "zipf", "lognormal", "dirichlet", "like:"))
