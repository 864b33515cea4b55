"""Pipeline schedules in the planner: proposed where asked for and where the target runs them, exported by name."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwprofiles.errors import UserError
from planner.export import export_plan
from planner.neighbours import moved
from planner.rules import TARGETS, apply, check, context, rules_of
from planner.rules.torchtitan import SCHEDULES as TORCHTITAN_SCHEDULES
from planner.space import DEFAULT_SCHEDULES, clean_fixed, space
from sim.build.order import DUAL, SPLIT_SCHEDULES, V_SHAPED
from sim.build.schedule import SCHEDULES
from sim.plan import Plan
from tests.planner.handed import handover
from tests.planner.toy import make_cluster, make_model, make_software, make_workload
from tests.planner_cli.running import moecast

RUN_BY = {
    "layout": set(SCHEDULES),
    "megatron-lm": {"1f1b", "interleaved"},
    "megatron-bridge": {"1f1b", "interleaved"},
    "torchtitan": {"1f1b", "interleaved", "gpipe", "zb-v", "dualpipe-v"},
    "deepspeed": {"1f1b"},
    "accelerate": {"1f1b", "gpipe"},  # without a pipeline there is nothing to order
    "sglang": {"1f1b"},
}
WORLD = (make_model(), make_cluster(), make_workload())


def rows_of(fixed: dict[str, Any] | None, target: str = "layout") -> dict[str, list[Plan]]:
    """Legal plans by schedule."""
    trainer = make_software()
    ctx, rules = context(WORLD[0], WORLD[1], trainer, WORLD[2]), rules_of(target)
    out: dict[str, list[Plan]] = {}
    for block in space(*WORLD, fixed, trainer):
        good = np.flatnonzero(apply(block, ctx, rules)[0])
        out.setdefault(block.schedule, []).extend(block.plan(int(row)) for row in good)
    return {name: plans for name, plans in out.items() if plans}


def test_nothing_is_proposed_that_was_not_asked_for() -> None:
    assert set(rows_of(None)) == set(DEFAULT_SCHEDULES)
    asked = rows_of({"schedule": DEFAULT_SCHEDULES})
    assert asked == rows_of(None)


def test_every_schedule_that_is_asked_for_has_legal_layouts() -> None:
    found = rows_of({"schedule": SCHEDULES})
    assert set(found) == set(SCHEDULES)
    for name, plans in found.items():
        assert len(plans) == len(set(plans))
        for plan in plans:
            m = plan.num_micro_batches(WORLD[2].global_batch_seqs)
            assert name not in SPLIT_SCHEDULES or plan.pp > 1
            assert (plan.vpp == 2) if name in V_SHAPED else (plan.vpp > 1) == (name == "interleaved")
            assert name not in DUAL or m >= 2 * plan.pp
            assert name != "dualpipe" or (plan.pp % 2 == 0 and m % 2 == 0)
    # one schedule alone gives the rows it gives among all
    for name in ("zb-v", "dualpipe"):
        assert rows_of({"schedule": name})[name] == found[name]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_target_gets_only_what_it_runs(target: str) -> None:
    found = rows_of({"schedule": SCHEDULES, "zero_stage": 3 if target in ("torchtitan", "accelerate") else 1}, target)
    assert set(found) <= RUN_BY[target]
    if target not in ("accelerate", "deepspeed", "sglang"):  # the toy is none of their models
        assert set(found) == RUN_BY[target]


@pytest.mark.parametrize("name", SPLIT_SCHEDULES)
def test_rules_of_the_interleaved_schedule_are_not_held_against_others(name: str) -> None:
    """Groups of pp micro-batches are its own: a V of 4 stages takes 18 of them (as far as its trainers take it)."""
    world = (make_model(), make_cluster(), make_software(), make_workload(global_batch_seqs=72))
    plan = Plan(pp=4, vpp=2 if name in V_SHAPED else 1, dp=4, ep=4, edp=1, schedule=name)
    assert plan.num_micro_batches(72) == 18
    said = {target: [v.rule for v in check(plan, *world, target=target)] for target in ("layout", "megatron-lm")}
    assert said == {"layout": [], "megatron-lm": ["megatron-schedule"]}
    interleaved = replace(plan, vpp=2, schedule="interleaved")
    assert "megatron-micro-batch-group" in [v.rule for v in check(interleaved, *world, target="megatron-lm")]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(pp=2, vpp=3, dp=8, ep=8, edp=1, schedule="zb-v"), "zb-v has 2 virtual stages"),
        (Plan(pp=4, vpp=2, dp=4, ep=4, edp=1, schedule="zb-h1"), "zb-h1 has no virtual stages"),
        (Plan(pp=4, dp=4, ep=4, edp=1, schedule="interleaved"), "interleaved has 2 virtual stages or more"),
    ],
)
def test_virtual_stages_are_refused_in_the_words_of_the_schedule(plan: Plan, says: str) -> None:
    found = check(plan, *WORLD[:2], make_software(), WORLD[2], target="layout")
    assert [v.rule for v in found] == ["vpp-needs-pp"] and says in str(found[0])


def test_schedules_given_wrongly() -> None:
    assert clean_fixed({"schedule": "zb-h1"})["schedule"] == ("zb-h1",)
    with pytest.raises(UserError, match="schedule is empty"):
        clean_fixed({"schedule": ()})


def test_neighbours_keep_a_schedule_that_says_how_many_chunks_there_are() -> None:
    plan = Plan(pp=4, vpp=2, dp=4, ep=4, edp=1, schedule="zb-v")
    assert moved(plan, "vpp", 4, 16).schedule == "zb-v"
    assert moved(plan, "pp", 1, 16).schedule == "1f1b"
    assert moved(replace(plan, vpp=1, schedule="1f1b"), "vpp", 2, 16).schedule == "interleaved"


@pytest.mark.parametrize("schedule", sorted(TORCHTITAN_SCHEDULES))
def test_torchtitan_is_told_the_class(schedule: str) -> None:
    vpp = 2 if schedule in (*V_SHAPED, "interleaved") else 1
    plan = Plan(tp=2, pp=2, vpp=vpp, dp=8, ep=8, edp=2, zero_stage=3, schedule=schedule, account_ends=True)
    text = export_plan(handover(plan, model="DeepSeek-V3"), "torchtitan").files["overrides.sh"]
    assert f"pipeline_parallel_schedule={TORCHTITAN_SCHEDULES[schedule]}" in text.replace(" ", "=").replace("'", "")


@pytest.mark.parametrize("schedule", SPLIT_SCHEDULES)
def test_megatron_refuses_them_by_rule_name(schedule: str) -> None:
    plan = Plan(tp=2, pp=4, vpp=2 if schedule in V_SHAPED else 1, dp=4, ep=8, edp=1, schedule=schedule)
    for target in ("megatron-lm", "megatron-bridge"):
        with pytest.raises(UserError, match="rule megatron-schedule"):
            export_plan(handover(plan), target)


STEP = ("--model", "Qwen3-30B-A3B", "--cluster", "dgx-h100", "--gpus", "32", "--global-batch", "128", "--ep", "8",
        "--pp", "4", "--target", "layout")  # fmt: skip


def simulated(*more: str) -> dict[str, Any]:
    done = moecast("simulate", *STEP, *more, "--json", "-")
    assert done.code == 0, done.err
    data: dict[str, Any] = json.loads(done.out)
    return data


def test_simulate_runs_every_schedule_and_says_the_same_twice(tmp_path: Path) -> None:
    steps = {name: simulated("--schedule", name) for name in SPLIT_SCHEDULES}
    assert steps["zb-v"]["plan"]["vpp"] == 2  # said by the schedule
    plain = simulated()
    assert steps["zb-h1"]["step_s"]["value"] < plain["step_s"]["value"]
    for name, made in steps.items():
        assert made["plan"]["schedule"] == name and made["bound_s"] <= made["step_s"]["value"]
    assert simulated("--schedule", "dualpipe") == steps["dualpipe"]
    traces = [tmp_path / "one.json", tmp_path / "two.json.gz"]
    for trace in traces:
        simulated("--schedule", "zb-v", "--trace", str(trace))
    events = json.loads(traces[0].read_text(encoding="utf-8"))["traceEvents"]
    assert json.loads(gzip.decompress(traces[1].read_bytes()))["traceEvents"] == events
    ops = {event["args"]["op"][0] for event in events if event.get("ph") == "X" and "micro_batch" in event["args"]}
    assert {"F", "B", "W"} <= ops  # input and weight gradients stand apart
    kinds = {event["args"]["class"] for event in events if event.get("ph") == "X" and "class" in event["args"]}
    assert any("wgrad" in kind or "weight" in kind for kind in kinds)


def test_one_step_has_one_schedule_and_a_search_has_several() -> None:
    done = moecast("simulate", *STEP, "--schedule", "zb-h1,dualpipe")
    assert done.code == 2 and "one schedule" in done.err
    done = moecast("plan", *STEP, "--schedule", "1f1b,zb-h1", "--micro-batch", "1", "--recompute", "none", "--tp", "1",
                   "--json", "-")  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["plans"][0]["plan"]["schedule"] == "zb-h1"
    assert " zb-h1 " in json.loads(done.out)["plans"][0]["label"]
    asked = ("--micro-batch", "1", "--recompute", "none", "--tp", "1")
    assert "schedule" not in moecast("plan", *STEP, *asked).out.split("Ruled out")[0]
    shown = moecast("plan", *STEP, *asked, "--schedule", "1f1b,zb-h1").out.split("Ruled out")[0]
    assert "schedule" in shown and "zb-h1" in shown


def test_groups_of_micro_batches() -> None:
    base = ("--vpp", "3", "--micro-batch", "1")
    plain, wide = simulated(*base), simulated(*base, "--micro-batch-group", "8")
    assert plain["plan"]["micro_batch_group"] == 0 and wide["plan"]["micro_batch_group"] == 8
    assert simulated(*base, "--micro-batch-group", "4")["step_s"] == plain["step_s"]  # pp, the default
    held = [made["memory"][3]["activations"] for made in (plain, wide)]
    # the last stage: 1 + (v - 1) x group chunks
    assert held[1] / held[0] == pytest.approx((1 + 2 * 8) / (1 + 2 * 4), rel=0.02)
    assert wide["bound_s"] <= wide["step_s"]["value"]
    done = moecast("simulate", *STEP, *base, "--micro-batch-group", "3")
    assert done.code == 2 and "micro-batch-group" in done.err
    plan = Plan(tp=2, pp=4, vpp=3, dp=4, ep=8, edp=1, schedule="interleaved", micro_batch_group=8)
    text = export_plan(handover(plan), "megatron-lm").files
    assert any("--microbatch-group-size-per-virtual-pipeline-stage" in body for body in text.values())
    with pytest.raises(UserError, match="torchtitan-micro-batch-group"):
        export_plan(handover(replace(plan, zero_stage=3), model="DeepSeek-V3"), "torchtitan")


def test_stages_can_be_said_on_the_command_line() -> None:
    even = simulated()
    assert even["stages"] == [12, 12, 12, 12]
    uneven = simulated("--stages", "11,13*2,11")
    assert uneven["stages"] == [11, 13, 13, 11] == simulated("--stages", "Et*11|t*13|t*13|t*11L")["stages"]
    assert uneven["step_s"]["value"] != even["step_s"]["value"]
    v = simulated("--schedule", "zb-v", "--stages", "5,6*6,7")
    assert v["stages"] == [5, 6, 6, 6, 6, 6, 6, 7]
    for text, words in (("11,13", "stage sizes"), ("3,x", "pipeline layout"), ("3,*4", "no count")):
        done = moecast("simulate", *STEP, "--stages", text)
        assert done.code == 2 and words in done.err, text
