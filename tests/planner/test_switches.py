"""Switches of the trainer on plans: what is told is what a run gives, by the rules, and as releases have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.catalogue import software
from hwprofiles.errors import UserError
from planner.export.handover import handover_from
from planner.judge import judge
from planner.planfile import load_plan
from planner.rules import TARGETS
from planner.rules.flags import SWITCHES, core_of, switches_of
from planner.switches import Tried, known, legal, try_switches, turned_on
from sim.plan import Plan
from sim.run import simulate
from sim.scenario import Scenario
from tests.planner.handed import handover
from tests.planner_cli.running import SMALL, moecast

BASE = software("megatron-lm", device="H100", model="Qwen3-30B-A3B", arch="moe")
FLAT, CHUNKED = Plan(dp=32, ep=8, edp=4), Plan(pp=2, vpp=2, dp=16, ep=8, edp=2, schedule="interleaved")
STAGED = Plan(pp=2, dp=16, ep=8, edp=2)
PINNED = ("--tp", "1", "--pp", "2", "--vpp", "2", "--ep", "8", "--recompute", "moe_act,layernorm", "--top", "1")


def asked(plan: Plan, **switches: Any) -> tuple[Scenario, float]:
    given = handover(plan, software=replace(BASE, **switches))
    scenario = Scenario(
        model=given.model, cluster=given.cluster, software=given.software, workload=given.workload, plan=plan
    )  # fmt: skip
    return scenario, simulate(scenario, trace=False).step_s.value


def test_what_is_told_is_what_a_run_gives() -> None:
    first, base_s = asked(FLAT, dp_overlap_grad=False, permute_fusion=False)
    found = try_switches([(first, base_s)], "megatron-lm")
    names = [trial.switches for trial in found.singles]
    assert ("permute_fusion",) in names and found.best is not None
    steps = [trial.step_s for trial in found.singles]
    assert steps == sorted(steps) and found.best.step_s <= steps[0] < base_s
    for trial in (*found.singles, found.best):
        other = replace(first, software=turned_on(first.software, trial.switches))
        assert simulate(other, trace=False).step_s.value == pytest.approx(trial.step_s)
        assert legal(other, "megatron-lm") and trial.gain == pytest.approx(1 - trial.step_s / base_s)
    again = try_switches([(first, base_s)], "megatron-lm", scale=2.0)
    assert [t.step_s for t in again.singles] == pytest.approx([2 * s for s in steps])
    assert [t.gain for t in again.singles] == pytest.approx([t.gain for t in found.singles])


def test_a_switch_that_the_rules_refuse_on_the_first_plan_is_tried_on_the_next() -> None:
    (staged, staged_s), (chunked, chunked_s) = asked(STAGED), asked(CHUNKED)
    alone = try_switches([(staged, staged_s)], "megatron-lm")
    assert not [t for t in alone.singles if "a2a_overlap" in t.switches]  # it needs virtual stages
    both = try_switches([(staged, min(staged_s, chunked_s)), (chunked, chunked_s)], "megatron-lm")
    assert both.best is not None and both.best.rank == 2 and "a2a_overlap" in both.best.switches
    assert both.tried > alone.tried and both.plans == 2


def test_a_switch_of_no_use_to_the_first_plan_is_tried_on_the_next() -> None:
    (slow, _), (fast, fast_s) = asked(replace(CHUNKED, tp=2, dp=8)), asked(CHUNKED)
    assert legal(replace(slow, software=turned_on(slow.software, ["a2a_overlap"])), "megatron-lm")
    assert try_switches([(slow, fast_s)], "megatron-lm").best is None  # none saves as much as tp 2 costs
    both = try_switches([(slow, fast_s), (fast, fast_s)], "megatron-lm")
    assert both.best is not None and (both.best.rank, both.best.switches) == (2, ("a2a_overlap",))


def test_nothing_is_left_to_try_where_all_is_on() -> None:
    plan, step_s = asked(FLAT, **{s.name: True for s in SWITCHES["megatron-lm"]})
    found = try_switches([(plan, step_s)], "megatron-lm", applied=["a2a_overlap"])
    assert (found.tried, found.best) == (0, None)
    assert found.certificate == "layouts searched with a2a_overlap on; no switch of the target is left to try"
    assert "none helps" in Tried(tried=3, plans=1, singles=(), best=None).certificate
    short = Tried(tried=3, plans=1, singles=(), best=None, searched=("fused_loss",)).certificate
    assert short.endswith("none was found faster (not searched to the end)")


def test_releases_have_what_they_had() -> None:
    def names(release: str) -> set[str]:
        profile = software(release, device="A100" if "20" in release else "H100")
        off: dict[str, Any] = {s.name: False for s in SWITCHES["megatron-lm"]}
        return {s.name for s in switches_of("megatron-lm", replace(profile, **off))}

    assert names("megatron-lm") == {s.name for s in SWITCHES["megatron-lm"]}
    assert names("megatron-core-0.9") == names("megatron-lm") - {"a2a_overlap", "permute_fusion"}
    assert names("megatron-core-0.7") == names("megatron-core-0.9") - {"shared_expert_overlap"}
    assert names("megatron-lm-2021") == {"fused_loss", "tp_overlap", "sequence_parallel"}
    assert core_of(software("megatron-bridge-26.02", device="H100")) is None


def test_every_switch_is_of_a_known_target_and_a_field_of_the_profile() -> None:
    for target, switches in SWITCHES.items():
        assert target in TARGETS and all(isinstance(getattr(BASE, s.name), bool) for s in switches)
        assert len({s.said for s in switches}) == len(switches)
    assert known(["a2a_overlap"], "megatron-lm") and not known(["launch_s"], "megatron-lm")
    assert not known(["a2a_overlap"], "torchtitan")


def test_judge_finds_the_same_on_the_same_plan() -> None:
    first, step_s = asked(replace(FLAT, recompute=("moe_act", "layernorm")))
    told = {t.said[0]: t.step_s for t in try_switches([(first, step_s)], "megatron-lm").singles}
    found = {c.change: c.step_s for c in judge(first).changes if c.change.startswith("add --")}
    assert found == told and told


def test_applied_switches_are_in_the_plan_its_export_and_its_explanation(tmp_path: Path) -> None:
    plan, applied = tmp_path / "try.json", tmp_path / "apply.json"
    base = ("plan", *SMALL, *PINNED, "--software", "megatron-lm")
    done = moecast(*base, "--out", str(plan))
    assert done.code == 0 and "Switches of the trainer" in done.out, done.err
    told = load_plan(plan)
    assert told["switches"]["applied"] == [] and "switches" not in told["inputs"]["options"]
    done = moecast(*base, "--switches", "apply", "--out", str(applied))
    assert done.code == 0, done.err
    data = load_plan(applied)
    on = data["inputs"]["options"]["switches"]
    assert on and data["switches"]["applied"] == on and data["switches"]["best"] is None
    assert set(told["switches"]["best"]["switches"]) <= set(on)
    assert data["plans"][0]["step_s"]["value"] <= told["switches"]["best"]["step_s"] * (1 + 1e-9)
    given, stale = handover_from(data)
    assert not stale and all(getattr(given.software, name) for name in on)
    done = moecast("export", str(applied), "--to", "megatron-lm", "--out", str(tmp_path / "run"))
    assert done.code == 0 and "warning" not in done.err
    flags = (tmp_path / "run" / "megatron_args.sh").read_text()
    words = {s.name: s.said.removeprefix("add ") for s in SWITCHES["megatron-lm"]}
    assert all(words[name] in flags for name in on)
    done = moecast("explain", str(applied), "--json", "-")
    assert done.code == 0 and "not what the plan was made of" not in done.err + done.out
    data["inputs"]["options"]["switches"] = ["launch_s"]
    applied.write_text(json.dumps(data))
    with pytest.raises(UserError, match="unknown switches"):
        handover_from(load_plan(applied))


def test_each_switch_searched_is_a_certificate_over_layouts_and_switches(tmp_path: Path) -> None:
    base = ("plan", *SMALL, "--tp", "1", "--ep", "8", "--pp", "2", "--recompute", "moe_act,layernorm", "--top", "1")
    files = {mode: tmp_path / f"{mode}.json" for mode in ("apply", "search")}
    for mode, path in files.items():
        done = moecast(*base, "--software", "megatron-lm", "--switches", mode, "--out", str(path))
        assert done.code == 0, done.err
    apply, search = (load_plan(path) for path in files.values())
    assert search["plans"][0]["step_s"]["value"] <= apply["plans"][0]["step_s"]["value"]
    assert (
        "layouts and switches" in search["switches"]["certificate"] and "(proven)" in search["switches"]["certificate"]
    )
    assert set(search["switches"]["searched"]).isdisjoint(search["switches"]["applied"])
    done = moecast(*base, "--switches", "search", "--objective", "cost")
    assert done.code == 2 and "use --switches apply" in done.err


def test_off_tries_nothing_and_other_words_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = moecast("plan", *SMALL, *PINNED, "--switches", "off", "--out", str(out))
    assert done.code == 0 and load_plan(out)["switches"] is None and "Switches of" not in done.out
    done = moecast("plan", *SMALL, "--switches", "maybe")
    assert done.code == 2 and "--switches" in done.err
