"""Gains and wishes: the plan of a file simulated again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hwprofiles import catalogue
from hwprofiles.catalogue import device_of
from hwprofiles.errors import UserError
from planner.elastic import Change, rate_gains, rates_of, size_gains, step_with
from planner.explain import explain
from planner.planfile import plan_from, plan_json
from planner.reask import Asked, asked_again, with_device
from planner.search import find_plans
from planner.wish import least_factor, read_wish, wish
from sim.families import load_model
from sim.run import simulate
from sim.workload import Workload

FIXED = {"tp": 1, "micro_batch_seqs": 1}


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    result = find_plans(
        load_model("Qwen3-30B-A3B"), catalogue.cluster("dgx-h100", gpus=32), catalogue.software(
            "megatron-bridge-26.06", device="H100", model="Qwen3-30B-A3B", arch="moe", precision="bf16"),
        Workload(seq_tokens=4096, global_batch_seqs=64), fixed=FIXED, top=2,
    )  # fmt: skip
    out: dict[str, Any] = json.loads(json.dumps(plan_json(result)))
    return out


@pytest.fixture(scope="module")
def asked(data: dict[str, Any]) -> Asked:
    return asked_again(data)


def step_of(data: dict[str, Any]) -> float:
    return float(data["plans"][0]["step_s"]["value"])


def test_the_question_is_read_again_as_it_was(data: dict[str, Any], asked: Asked) -> None:
    assert asked.stale == ""
    assert step_with(asked, None, 1.0) == step_of(data)
    assert asked.search().plans[0].report.plan == asked.plan
    assert asked_again(data, routing="zipf:1.0").stale


def test_waterfall_ends_at_the_step_itself(data: dict[str, Any]) -> None:
    found = explain(data)
    assert found.waterfall[-1].until_s == found.step_s
    assert sum(bar.seconds for bar in found.waterfall) == pytest.approx(found.step_s, rel=1e-9)


def test_no_rate_hurts_and_unused_links_give_nothing(data: dict[str, Any], asked: Asked) -> None:
    gains = {gain.what: gain for gain in rate_gains(asked, step_of(data))}
    assert set(gains) == set(rates_of(asked.cluster))
    for gain in gains.values():
        assert gain.gain is not None and gain.gain >= -1e-9, gain
        assert gain.elasticity is not None and -1.0 - 1e-9 <= gain.elasticity <= 1e-9, gain
    assert gains["FLOP/s"].gain and gains["FLOP/s"].gain > 0.01
    assert gains["host link bandwidth"].gain == 0.0


def test_everything_twice_as_fast_is_at_most_twice_as_fast(asked: Asked) -> None:
    base = step_with(asked, None, 1.0)
    for what, change in rates_of(asked.cluster).items():
        assert base / 2 <= step_with(asked, change, 2.0) * (1 + 1e-9), what


def test_more_memory_is_never_worse(data: dict[str, Any], asked: Asked) -> None:
    memory, node = size_gains(asked, step_of(data))
    assert memory.gain is not None and memory.gain >= -1e-12
    assert node.factor == 5 / 4 and (node.gain is not None or node.note)


def test_wish_of_the_plan_itself_is_granted(data: dict[str, Any], asked: Asked) -> None:
    found = wish(asked, {"pp": asked.plan.pp, "ep": asked.plan.ep}, step_of(data))
    assert found.verdict == "is the plan" and found.step_s == step_of(data)


def test_slower_wish_names_the_factors_that_would_do(data: dict[str, Any], asked: Asked) -> None:
    found = wish(asked, {"ep": 32}, step_of(data))
    assert found.verdict == "slower" and found.step_s is not None and found.step_s > found.best_s
    assert {need.what for need in found.needs} == set(rates_of(asked.cluster))
    assert found.plan is not None
    wished, changes = plan_from(found.plan), rates_of(asked.cluster)
    for need in found.needs:
        assert need.factor is None or need.factor > 1.0
        change = changes[need.what]

        def behind(by: float, change: Change = change) -> float:
            return step_with(asked, change, by, wished) - step_with(asked, change, by)

        if need.factor is None:
            assert behind(16.0) > 0.0, need
        else:
            assert behind(need.factor) <= 0.0 < behind(need.factor / 1.02), need


def test_a_wish_against_what_was_asked_for_may_be_faster(asked: Asked) -> None:
    best = asked.search(fixed={"micro_batch_seqs": 2}).plans[0].report.step_s.value
    found = wish(asked, {"micro_batch_seqs": 2}, step_with(asked, None, 1.0))
    assert found.verdict == "faster" and found.step_s == pytest.approx(best) and best < found.best_s
    assert "asked for with micro_batch_seqs 1" in found.needs[0].text


def test_wish_that_breaks_a_rule_or_memory_says_which(data: dict[str, Any], asked: Asked) -> None:
    rule = wish(asked, {"pp": 5}, step_of(data))
    assert rule.verdict == "breaks rules" and any(need.what == "world-product" for need in rule.needs)
    memory = wish(asked, {"pp": 1, "ep": 1, "recompute": ()}, step_of(data))
    assert memory.verdict == "out of memory"
    factor = memory.needs[0].factor
    assert factor is not None and factor > 1.0 and memory.plan is not None
    # what is said holds: so much memory, and the plan named fits
    more = with_device(asked.cluster, mem_bytes=device_of(asked.cluster).mem_bytes * factor * (1.0 + 1e-9))
    lean = replace(asked.scenario(plan_from(memory.plan)), cluster=more)
    assert simulate(lean, trace=False).fits


def test_wishes_are_read_or_refused() -> None:
    assert read_wish("tp=1, pp=8,micro_batch=2,recompute=layernorm+moe_act") == {
        "tp": 1, "pp": 8, "micro_batch_seqs": 2, "recompute": ("moe_act", "layernorm"),
    }  # fmt: skip
    assert read_wish("recompute=none") == {"recompute": ()}
    with pytest.raises(UserError) as caught:
        read_wish("tp,px=3,pp=x,recompute=all")
    assert len(caught.value.problems) == 4


def test_least_factor_is_found_to_a_per_cent() -> None:
    assert least_factor(lambda by: by >= 2.0) == pytest.approx(2.0, rel=0.01)
    assert least_factor(lambda by: False) is None
