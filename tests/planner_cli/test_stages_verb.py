"""`moecast stages`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.planner_cli.running import moecast

WHERE = ("--model", "mixtral-8x7b", "--cluster", "dgx-h100", "--gpus", "64", "--global-batch", "256")
LAYOUT = ("--tp", "2", "--pp", "4", "--ep", "4")


def test_stages_are_proved_and_simulated(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = moecast("stages", *WHERE, *LAYOUT, "--json", str(out))
    assert done.code == 0, done.err
    assert "optimal" in done.out and "even stages" in done.out and "chosen stages" in done.out
    data = json.loads(out.read_text())
    assert data["together"]["status"] == "optimal" and sum(data["together"]["choice"]["counts"]) == 32
    assert data["after"]["stages"] == data["together"]["choice"]["counts"]
    again = tmp_path / "again.json"
    moecast("stages", *WHERE, *LAYOUT, "--json", str(again))
    same = json.loads(again.read_text())
    for each in (data, same):
        each["together"].pop("timing"), each["apart"].pop("timing")
    assert data == same


def test_one_recompute_setting_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = moecast("stages", *WHERE, *LAYOUT, "--recompute", "full", "--json", str(out))
    assert done.code == 0, done.err
    data = json.loads(out.read_text())
    assert data["recompute_options"] == [["full"]] and data["after"]["recompute"] == ["full"]


def test_offload_of_each_stage_is_chosen_where_asked(tmp_path: Path) -> None:
    """Micro-batches of four sequences, nothing recomputed: more than a device holds."""
    out = tmp_path / "out.json"
    tight = ("--micro-batch", "4", "--recompute", "none", "--search", "offload")
    done = moecast("stages", *WHERE, "--tp", "1", "--pp", "4", "--ep", "4", *tight, "--json", str(out))
    assert done.code == 0, done.err
    assert "recompute; offload" in done.out and "Without offload no stages fit" in done.out
    assert "A setting per stage" in done.out
    data = json.loads(out.read_text())
    sent = data["together"]["choice"]["offload"]
    assert len(sent) == 4 and [sent[0]] * 4 == sent and data["after"]["offload"] == sent[0]
    assert {tuple(each["offload"]) for each in data["options"]} == {
        (), ("moe_act",), ("core_attn",), ("core_attn", "moe_act")
    }  # fmt: skip
    plain = tmp_path / "plain.json"
    assert moecast("stages", *WHERE, *LAYOUT, "--json", str(plain)).code == 0
    usual = json.loads(plain.read_text())
    assert "options" not in usual and "offload" not in usual["after"]
    assert "offload" not in usual["together"]["choice"]


def test_offload_that_gains_nothing_is_said() -> None:
    done = moecast("stages", *WHERE, *LAYOUT, "--search", "offload")
    assert done.code == 0 and "Offload gains nothing here" in done.out
    done = moecast("stages", *WHERE, *LAYOUT, "--search", "links,offload", "--offload", "modules=moe_act")
    assert done.code == 2 and "offload, recompute" in done.err and "fixed by --offload" in done.err


def test_what_is_not_for_stages_is_refused() -> None:
    done = moecast("stages", *WHERE, *LAYOUT, "--top", "3", "--out", "plan.json")
    assert done.code == 2 and "--top" in done.err and "--out" in done.err
    done = moecast("stages", *WHERE, "--tp", "2", "--ep", "8")
    assert done.code == 2 and "2 stages or more" in done.err


def test_plan_refines_its_stages(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    asked = ("plan", *WHERE, *LAYOUT, "--vpp", "1", "--micro-batch", "1", "--top", "2", "--stages", "ilp")
    done = moecast(*asked, "--json", str(out))
    assert done.code == 0, done.err
    assert "Stages by integer programme" in done.out and "Even stages" in done.out
    data = json.loads(out.read_text())
    assert data["stages"]["way"] == "ilp" and data["stages"]["rows"]
    assert data["plans"][0]["step_s"]["value"] <= data["stages"]["even_s"]
    assert data["search"]["bound_s"] == data["stages"]["bound_s"] <= data["plans"][0]["step_s"]["value"]
    wrong = moecast("plan", *WHERE, *LAYOUT, "--stages", "free")
    assert wrong.code == 2 and "uniform, auto, ilp" in wrong.err


def test_a_search_without_a_pipeline_says_so_in_words() -> None:
    done = moecast("plan", *WHERE, "--pp", "1", "--tp", "2", "--ep", "8", "--stages", "auto")
    assert done.code == 0, done.err
    assert "No stages were chosen" in done.out and "layers of each stage" not in done.out
