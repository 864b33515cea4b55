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
from sim.cost.footprint import static_bytes
from sim.cost.state import LocalParams
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
        assert np.all(np.asarray(c.kernels) < a.kernels)
        if not a.name.startswith("experts"):  # a kernel for the maximum of each expert is counted with them already
            assert np.all(np.asarray(a.kernels) < b.kernels)


@pytest.mark.parametrize(
    ("model", "normed"), [("Qwen3-30B-A3B", {"qkv"}), ("Llama3-8B", {"qkv", "fc1"}), ("DeepSeek-V2-Lite", {"kv_up"})]
)
def test_norms_hand_on_the_maximum_and_nothing_else_does(model: str, normed: set[str]) -> None:
    ways = (casts(scenario(model=model, fp8_amax=way)) for way in ("producer", "norm", "pass"))
    for plain, some, own in zip(*ways, strict=True):
        as_plain = plain.name.removesuffix(".quantise") in normed | {"q_up"} and plain.pass_ != "backward"
        if plain.scope != "mlp" or model == "Llama3-8B":  # the first layer of DeepSeek-V2-Lite is dense
            assert some.bytes == (plain.bytes if as_plain else own.bytes), plain.name


def test_one_copy_where_products_take_either_layout() -> None:
    """A byte an element less is written, and half of the 8-bit weights are held."""
    two, one = (scenario(fp8_transpose=way, fp8_amax="producer", fp8_param_gather=True) for way in (True, False))
    for a, b in zip(casts(two), casts(one), strict=True):
        assert b.bytes / a.bytes == pytest.approx(3.0 / 4.0)
    held = [static_bytes(s.context(), LocalParams(dense=4.0, routed=6.0))["weights"] for s in (two, one)]
    assert held[1] == pytest.approx(held[0] / 2.0)
    blocks = (casts(scenario("fp8_block", fp8_transpose=way)) for way in (True, False))
    assert next(blocks) == next(blocks)


def test_rows_are_copied_to_a_multiple_unless_something_pads_them_already() -> None:
    def padded(precision: Precision = "fp8", **switches: Any) -> list[float]:
        s = scenario(precision, **switches)
        ops = layer_ops(s.context(), s.model.layers[0])
        return [float(op.bytes) for op in ops if op.name.startswith(("experts_pad", "experts_unpad"))]

    routed = 4096 * 8 * 2048
    assert padded(dispatcher="alltoall") == [4.0 * routed] * 4
    assert padded("bf16", dispatcher="alltoall") == []
    for switches in ({"dispatcher": "hybridep"}, {"capacity_factor": 1.0}, {"router_padding": True}):
        assert padded(**{"dispatcher": "alltoall", **switches}) == []


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
