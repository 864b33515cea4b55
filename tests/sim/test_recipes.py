"""How per-tensor scaling finds its maximum, and graphs of whole MoE layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.export.megatron_lm import flags_of
from sim.build.context import QUANT_BYTES
from sim.build.layer import layer_ops
from sim.families import load_model
from sim.ops import Op
from sim.plan import Plan
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.workload import Precision, Workload
from tests.planner.handed import handover

BASE = catalogue.software("megatron-lm", device="H100", arch="moe")


def scenario(precision: Precision = "fp8", model: str = "Qwen3-30B-A3B", **switches: Any) -> Scenario:
    return Scenario(
        model=load_model(model), cluster=catalogue.cluster("dgx-h100", gpus=8), software=replace(BASE, **switches),
        plan=Plan(dp=8, ep=8), workload=Workload(seq_tokens=4096, global_batch_seqs=64, precision=precision),
    )  # fmt: skip


def casts(s: Scenario) -> list[Op]:
    return [op for op in layer_ops(s.context(), s.model.layers[0]) if op.name.endswith(".quantise")]


@pytest.mark.parametrize("model", ["Qwen3-30B-A3B", "Llama3-8B"])
def test_a_pass_for_the_maximum_reads_every_operand_once_more(model: str) -> None:
    plain, own, old = (casts(scenario(model=model, fp8_amax=way)) for way in ("producer", "pass", "history"))
    assert plain
    for a, b, c in zip(plain, own, old, strict=True):
        assert b.bytes / a.bytes == pytest.approx((QUANT_BYTES["fp8"] + 2.0) / QUANT_BYTES["fp8"])
        assert c.bytes == a.bytes
        assert np.all(np.asarray(c.kernels) < a.kernels) and np.all(np.asarray(a.kernels) < b.kernels)


def test_only_per_tensor_scaling_has_a_maximum_to_find() -> None:
    plain, own = (scenario("fp8_block", fp8_amax=way) for way in ("producer", "pass"))
    assert casts(plain) == casts(own)


def test_delayed_scaling_is_fastest_and_a_pass_slowest() -> None:
    steps = [simulate(scenario(fp8_amax=way), trace=False).step_s.value for way in ("history", "producer", "pass")]
    assert steps == sorted(steps) and steps[0] < steps[2]


def test_the_recipe_is_handed_on() -> None:
    delayed = handover(Plan(dp=8, ep=8), software=replace(BASE, fp8_amax="history"), precision="fp8")
    current = handover(Plan(dp=8, ep=8), software=BASE, precision="fp8")
    assert ("--fp8-recipe", "delayed") in flags_of(delayed)
    assert ("--fp8-recipe", "tensorwise") in flags_of(current)


# ---------------------------------------------------------------- graphs


def host_s(s: Scenario) -> float:
    run = Simulation(s)
    return float(sum(run.step.layer_parts[0].host.values()))


def test_a_graph_of_the_moe_layer_replays_all_of_it() -> None:
    static = {"host_sync": False, "capacity_factor": 1.0}
    router = ("moe_router", "moe_preprocess")
    none, some, moe, all_ = (
        host_s(scenario("bf16", cuda_graph=graph, **static))
        for graph in ((), router, ("moe",), ("attn", "moe"))
    )  # fmt: skip
    assert none > some > moe > all_ == 0.0


def test_a_graph_of_the_moe_layer_needs_counts_that_stay(tmp_path: Any) -> None:
    file = tmp_path / "own.toml"
    body = 'name = "own"\ntrainer = "t"\nversion = "1"\n{}\n[source]\nkind = "user"\ntitle = "t"\nwhere = "w"\n'
    body += 'date = "2026-01"\n'
    file.write_text(body.format('cuda_graph = ["moe"]\nhost_sync = true'))
    with pytest.raises(UserError, match="host_sync"):
        catalogue.software(str(file))
    file.write_text(body.format('cuda_graph = ["moe", "moe_router"]\nhost_sync = false'))
    with pytest.raises(UserError, match="leave them out"):
        catalogue.software(str(file))
    file.write_text(body.format('cuda_graph = ["attn", "moe"]\nhost_sync = false'))
    assert catalogue.software(str(file)).cuda_graph == ("attn", "moe")
