"""Adapters: what is trained, what a frozen weight still costs, and what need not be kept for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from sim.build.adapters import adapter_params
from sim.build.layer import layer_ops, local_layer_params
from sim.columns import columns_of
from sim.families import load_model
from sim.flop import step_flop_per_token
from sim.model import LayerSpec, train_flop_per_token
from sim.plan import Plan
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import LORA_TARGETS, Lora, Workload

SOFTWARE = catalogue.software("megatron-lm", device="H100")


def scenario(lora: Lora | None, plan: Plan | None = None, model: str = "Llama3-8B", **work: Any) -> Scenario:
    plan = plan or Plan(dp=8, edp=8)
    return Scenario(
        model=load_model(model), cluster=catalogue.cluster("dgx-h100", gpus=plan.num_devices), software=SOFTWARE,
        plan=plan, workload=Workload(seq_tokens=4096, global_batch_seqs=4 * plan.dp, lora=lora, **work),
    )  # fmt: skip


def trained(s: Scenario, layer: LayerSpec) -> tuple[float, float]:
    dense, routed = adapter_params(s.context(), layer_ops(s.context(), layer))
    return float(dense), float(routed)


def test_trained_parameters_are_rank_times_both_sides() -> None:
    """Llama 3 8B: 4096 wide, 32 heads and 8 key/value heads of 128, FFN 14336."""
    sides = {
        "linear_qkv": 4096 + (32 + 2 * 8) * 128, "linear_proj": 4096 + 4096, "linear_fc1": 4096 + 2 * 14336,
        "linear_fc2": 14336 + 4096,
    }  # fmt: skip
    for target, both in sides.items():
        s = scenario(Lora(rank=16, targets=(target,)))
        assert trained(s, s.model.layers[0]) == (16 * both, 0.0)
    s = scenario(Lora(rank=8))
    assert trained(s, s.model.layers[0]) == (8 * sum(sides.values()), 0.0)


def test_experts_have_a_pair_each_or_one_for_all_on_a_rank() -> None:
    """Qwen3 30B A3B: 128 experts, 2048 wide, 768 inside."""
    plan = Plan(dp=8, ep=4, edp=2)
    both = (2048 + 2 * 768) + (768 + 2048)
    each, shared = (scenario(Lora(rank=4, targets=(t,)), plan, "Qwen3-30B-A3B") for t in ("experts", "experts_shared"))
    assert trained(each, each.model.layers[0]) == (0.0, 4 * both * 128 / 4)
    assert trained(shared, shared.model.layers[0]) == (0.0, 4 * both)


def test_tensor_parallel_ranks_share_the_adapters() -> None:
    one, four = (scenario(Lora(rank=16), Plan(tp=t, dp=8 // t, edp=8)) for t in (1, 4))
    layer = one.model.layers[0]
    assert 4 * trained(four, layer)[0] == trained(one, layer)[0]


def test_weights_keep_no_gradient_and_no_state() -> None:
    s = scenario(Lora(rank=16))
    run = Simulation(s)
    params = run.step.params_of(run.contents[0][0])
    count = 32 * trained(s, s.model.layers[0])[0]
    full = float(Simulation(scenario(None)).step.params_of(run.contents[0][0]).dense)
    memory = simulate(s, trace=False).memory[0]
    assert float(params.dense) == pytest.approx(full + count)
    assert memory["gradients"] == pytest.approx(4 * count)
    assert memory["optimizer"] == pytest.approx(12 * count / 8)
    assert memory["weights"] == pytest.approx(2 * (full + count))
    grad, gather = (float(t.alone_s) for t in run.step.data_parallel(params))
    whole = [float(t.alone_s) for t in Simulation(scenario(None)).step.data_parallel(params)]
    assert grad < 0.2 * whole[0] and gather < 0.2 * whole[1]


@pytest.mark.parametrize("model", ["Llama3-8B", "Qwen3-30B-A3B", "DeepSeek-V2-Lite"])
def test_no_frozen_product_has_a_weight_gradient_and_each_keeps_its_input_gradient(model: str) -> None:
    full, s = scenario(None, model=model), scenario(Lora(rank=16, targets=("linear_proj",)), model=model)
    for layer in dict.fromkeys(s.model.layers):
        before, after = layer_ops(full.context(), layer), layer_ops(s.context(), layer)
        late = {op.name for op in after if op.pass_ == "wgrad" and op.kind != "memory"}
        assert late == {"attn_out.lora_a.wgrad", "attn_out.lora_b.wgrad"}
        back = [{op.name for op in ops if op.name.endswith(".dgrad")} for ops in (before, after)]
        assert back[0] <= back[1]


def test_an_adapter_of_no_width_would_cost_what_freezing_does() -> None:
    """FLOP are those of the frozen step plus 6 per adapter parameter and token."""
    flop = {
        rank: sum(float(np.asarray(op.flop)) for op in layer_ops(s.context(), s.model.layers[0]))
        for rank in (8, 16, 64)
        for s in [scenario(Lora(rank=rank))]
    }
    per_rank = (flop[16] - flop[8]) / 8
    assert flop[64] - flop[16] == pytest.approx(48 * per_rank)
    s = scenario(Lora(rank=1))
    assert per_rank == pytest.approx(6 * 4096 * trained(s, s.model.layers[0])[0])
    full = layer_ops(scenario(None).context(), s.model.layers[0])
    wgrad = sum(op.flop for op in full if op.pass_ == "wgrad")
    assert flop[8] - 8 * per_rank == pytest.approx(sum(op.flop for op in full) - wgrad)


def test_model_flop_counts_two_thirds_of_the_products() -> None:
    s = scenario(Lora(rank=1, targets=("linear_proj",)))
    full = train_flop_per_token(s.model, 4096)
    core = 2.0 * (4096 / 2) * 32 * 256 * 32
    assert step_flop_per_token(s) == pytest.approx(full * 2 / 3 + core + 6 * 32 * 8192)
    assert step_flop_per_token(scenario(None)) == full


@pytest.mark.parametrize("model", ["Llama3-8B", "Qwen3-30B-A3B"])
def test_faster_and_smaller_than_training_all_weights(model: str) -> None:
    plan = Plan(dp=8, ep=8) if model.startswith("Qwen") else Plan(dp=8, edp=8)
    full, lora = (simulate(scenario(x, plan, model), trace=False) for x in (None, Lora(rank=16)))
    assert lora.step_s.value < full.step_s.value
    assert lora.peak_mem_bytes < 0.6 * full.peak_mem_bytes
    assert lora.memory[0]["activations"] <= full.memory[0]["activations"]


def test_inputs_are_kept_in_16_bits_and_only_for_adapters() -> None:
    """fp8 keeps a byte an element for a weight's gradient; an adapter reads two, a frozen product none."""

    def kept(lora: Lora | None, name: str) -> float:
        ctx = scenario(lora, precision="fp8").context()
        ops = layer_ops(ctx, ctx.model.layers[0])
        return next(float(op.saved_bytes) for op in ops if op.name == name)

    only = Lora(rank=16, targets=("linear_fc2",))
    assert kept(only, "fc2") == 2 * kept(None, "fc2") == 2.0 * 4096 * 14336
    assert kept(only, "qkv") == kept(only, "fc1") == 0.0
    assert kept(only, "fc2.lora_b") == 2.0 * 4096 * 16


def test_recompute_runs_the_adapters_again() -> None:
    s = scenario(Lora(rank=16), Plan(dp=8, edp=8, recompute=("full",)))
    names = [op.name for op in layer_ops(s.context(), s.model.layers[0])]
    assert "qkv.lora_a.again" in names and "fc2.lora_b.again" in names


def test_sharded_weights_are_all_gathered_but_only_adapters_summed() -> None:
    s = scenario(Lora(rank=16), Plan(dp=8, edp=8, zero_stage=3))
    layer = s.model.layers[0]
    ops = {op.name: op for op in layer_ops(s.context(), layer)}
    assert ops["fsdp_dense.gather"].bytes == pytest.approx(2 * float(local_layer_params(s.context(), layer)[0]))
    assert ops["fsdp_dense.reduce"].bytes == pytest.approx(4 * trained(s, layer)[0])


@pytest.mark.parametrize("targets", [LORA_TARGETS[:4], LORA_TARGETS[:5], ("linear_proj", "experts_shared")])
def test_screening_sees_the_same_memory_and_a_true_bound(targets: tuple[str, ...]) -> None:
    for plan in (Plan(tp=2, pp=2, dp=4, ep=4, edp=2), Plan(dp=16, ep=8, edp=2, zero_stage=3), Plan(pp=4, dp=4, ep=4)):
        s = scenario(Lora(rank=16, targets=targets), plan, "Qwen3-30B-A3B")
        report = simulate(s, trace=False)
        seen = screen(s.model, s.cluster, s.software, s.workload, columns_of([plan])[0])
        assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes)
        assert 0.85 * report.step_s.value < seen.bound_s[0] <= report.step_s.value * (1 + 1e-9)


def test_a_higher_rank_is_never_cheaper() -> None:
    seconds = [simulate(scenario(Lora(rank=r)), trace=False) for r in (8, 64, 256)]
    assert [x.step_s.value for x in seconds] == sorted(x.step_s.value for x in seconds)
    assert [x.peak_mem_bytes for x in seconds] == sorted(x.peak_mem_bytes for x in seconds)
    assert replace(seconds[0].plan) == seconds[2].plan
