"""A whole run: its parts, its price, and what nobody stated."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from hwprofiles import catalogue
from hwprofiles.specs import Reliability, StorageSpec
from planner.training import (
    STATE_BYTES,
    Terms,
    assumed,
    conditions_of,
    power_share,
    training_json,
    training_of,
    with_price,
)
from sim.families import load_model
from sim.model import total_params
from sim.plan import Plan
from sim.report import Estimate, Report
from sim.workload import Workload
from tests.planner.toy import toy_report

MODEL = load_model("Mixtral-8x7B")
CLUSTER = catalogue.cluster("dgx-h100", gpus=64)
WORKLOAD = Workload(seq_tokens=4096, global_batch_seqs=256)
STATED: dict[str, Any] = {"node_mtbf_s": 1e6, "restart_s": 100.0, "storage_bytes_per_s": 1e10}


def report(step_s: float = 2.0, **more: Any) -> Report:
    step = Estimate(value=step_s, low=step_s * 0.9, high=step_s * 1.2)
    return replace(toy_report(Plan(), step_s=step_s), step_s=step, devices=64, **more)


def run(**terms: Any) -> Any:
    return training_of(report(), Terms(tokens=1e12, **STATED | terms), MODEL, CLUSTER, WORKLOAD)


def test_parts_sum_and_steps_cover_the_tokens() -> None:
    found = run(slow_share=0.001, slow_factor=1.5)
    assert sum(found.parts.values()) == pytest.approx(found.time_s.value)
    assert found.steps == math.ceil(1e12 / (4096 * 256)) and found.tokens >= 1e12
    assert found.parts["work"] == found.steps * 2.0
    assert found.parts["slow nodes"] == pytest.approx(found.parts["work"] * (1 - 0.999**8) * 0.5)
    assert found.goodput == pytest.approx(found.parts["work"] / found.time_s.value)
    assert found.assumed == ()


def test_checkpoint_is_state_over_storage() -> None:
    found = run()
    assert found.checkpoint_bytes == STATE_BYTES * total_params(MODEL)
    assert found.checkpoint_s == found.checkpoint_bytes / 1e10
    assert found.mtbf_s == 1e6 / 8
    assert run(checkpoint_s=5.0, interval_s=600.0).checkpoint_s == 5.0
    assert run(checkpoint_s=5.0, interval_s=600.0).interval_s == 600.0


def test_without_failures_a_run_is_its_steps() -> None:
    found = run(node_mtbf_s=math.inf)
    whole = report().step_s.scaled(found.steps)
    assert (found.time_s.value, found.time_s.low, found.time_s.high) == pytest.approx(
        (whole.value, whole.low, whole.high)
    )
    device = catalogue.device_of(CLUSTER)
    assert found.usd.value == pytest.approx(found.time_s.value * 64 * device.usd_per_s)
    assert found.energy_j.value == pytest.approx(found.time_s.value * 64 * device.power_w * power_share(report()))


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        ({"node_mtbf_s": 1e5}, "node_mtbf_s"), ({"restart_s": 1000.0}, "restart_s"),
        ({"storage_bytes_per_s": 1e9}, "storage"), ({"slow_share": 0.01, "slow_factor": 1.2}, "slow"),
    ],
)  # fmt: skip
def test_worse_conditions_take_longer(worse: dict[str, Any], name: str) -> None:
    assert run(**worse).time_s.value > run().time_s.value, name


def test_failures_widen_the_interval() -> None:
    calm, rough = run(node_mtbf_s=1e9), run(node_mtbf_s=2e4)
    assert rough.time_s.high / rough.time_s.value > calm.time_s.high / calm.time_s.value
    assert calm.time_s.low / calm.time_s.value == pytest.approx(0.9, abs=1e-3)


def test_cluster_states_before_assumptions_and_options_before_both() -> None:
    said = replace(
        CLUSTER, reliability=Reliability(node_mtbf_s=5e6, restart_s=60.0), storage=StorageSpec(write_bytes_per_s=2e10)
    )
    bare = conditions_of(Terms(tokens=1.0), MODEL, CLUSTER, WORKLOAD)
    assert set(bare.assumed) == {"node_mtbf_s", "restart_s", "storage"}
    assert bare.mtbf_s == assumed()["node_mtbf_s"] / 8
    stated = conditions_of(Terms(tokens=1.0, restart_s=30.0), MODEL, said, WORKLOAD)
    assert stated.mtbf_s == 5e6 / 8
    assert stated.assumed == ("storage",)  # the rate of reading
    assert stated.checkpoint_s == bare.checkpoint_bytes / 2e10


def test_price_and_json() -> None:
    dear = with_price(CLUSTER, 1.0)
    found = training_of(report(), Terms(tokens=1e12, **STATED), MODEL, dear, WORKLOAD)
    assert found.usd.value == pytest.approx(found.time_s.value * 64)
    hopeless = training_of(report(), Terms(tokens=1e12, **STATED | {"node_mtbf_s": 10.0}), MODEL, CLUSTER, WORKLOAD)
    assert training_json(hopeless)["time_s"]["value"] is None


def test_power_lies_between_idle_and_full() -> None:
    busy = report(breakdown={"gemm": 1.0})
    idle = report(breakdown={"bubble": 1.0})
    talks = report(breakdown={"ep": 1.0})
    assert power_share(busy) == 1.0
    assert power_share(idle) == assumed()["idle_power_share"] < power_share(talks) < 1.0
