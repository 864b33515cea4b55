"""Optimizers by name and state dtype: bytes of state, seconds of the update, matrices, and the update on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from sim.build.matrices import layer_matrices, newton_schulz_flop
from sim.columns import columns_of
from sim.cost.state import LocalParams, host_state_bytes, state_bytes, widths
from sim.cost.update import host_bytes_per_s, host_link_bytes_per_s
from sim.families import load_model
from sim.model import layer_params
from sim.plan import Plan
from sim.report import HOST
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import Offload, Optimizer, Workload

SOFTWARE = catalogue.software("megatron-lm", device="H100", arch="moe")
PLAN = Plan(dp=16, ep=8, edp=2)


def scenario(plan: Plan = PLAN, model: str = "Qwen3-30B-A3B", **asked: Any) -> Scenario:
    work = Workload(seq_tokens=4096, global_batch_seqs=4 * plan.dp, **asked)
    return Scenario(
        model=load_model(model), cluster=catalogue.cluster("dgx-h100", gpus=plan.num_devices), software=SOFTWARE,
        plan=plan, workload=work,
    )  # fmt: skip


def optimizer_s(s: Scenario) -> float:
    return simulate(s, trace=False).breakdown["optimizer"]


@pytest.mark.parametrize(
    ("settings", "per_param"),
    [
        ({}, 12.0), ({"exp_avg": "bf16", "exp_avg_sq": "bf16"}, 8.0), ({"exp_avg": "fp8", "exp_avg_sq": "fp8"}, 6.0),
        ({"main_params": "fp16", "exp_avg": "fp16", "exp_avg_sq": "fp16"}, 6.0),
        ({"exp_avg": "int8", "exp_avg_sq": "int8"}, 4.0 + 2.0 * (1.0 + 4.0 / 256.0)), ({"name": "sgd"}, 8.0),
        # gradients are summed in fp32 here: a 16-bit gradient of the update is a copy
        ({"main_grads": "bf16"}, 14.0),
    ],
)  # fmt: skip
def test_state_bytes_are_the_sum_of_the_dtypes(settings: dict[str, Any], per_param: float) -> None:
    ctx = scenario(optimizer=Optimizer(**settings)).context()
    dense, routed = state_bytes(ctx, LocalParams(dense=1000.0, routed=10.0))
    assert (dense, routed) == (pytest.approx(1000.0 * per_param), pytest.approx(10.0 * per_param))


def test_precision_aware_profile_is_the_stated_16_bit_moments() -> None:
    plain = scenario()
    aware = replace(plain, software=replace(SOFTWARE, precision_aware_optimizer=True))
    stated = scenario(optimizer=Optimizer(exp_avg="bf16", exp_avg_sq="bf16"))
    memory = [simulate(s, trace=False).memory[0]["optimizer"] for s in (aware, stated, plain)]
    assert memory[0] == memory[1] == pytest.approx(memory[2] * 8.0 / 12.0)


def test_bytes_moved_are_those_of_the_fitted_constant() -> None:
    s = scenario()
    assert widths(s.context()).moved == Simulation(s).cost.factors.optimizer_bytes_per_param
    stated = scenario(optimizer=Optimizer(exp_avg="fp32"))
    assert optimizer_s(stated) == pytest.approx(optimizer_s(s))


def test_narrower_states_are_smaller_and_faster() -> None:
    seconds = [
        optimizer_s(scenario(optimizer=Optimizer(exp_avg=d, exp_avg_sq=d)))  # type: ignore[arg-type]
        for d in ("fp32", "bf16", "fp8")
    ]
    assert seconds == sorted(seconds, reverse=True) and len(set(seconds)) == 3


# ---------------------------------------------------------------- muon


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "DeepSeek-V3", "Llama3-8B", "GPT-OSS-20B"])
def test_matrices_are_all_weights_but_norms_and_biases(name: str) -> None:
    model = load_model(name)
    ctx = scenario(Plan()).context()
    for layer in {layer: None for layer in model.layers}:
        p = layer_params(layer, model.hidden_dim)
        own = layer_matrices(replace(ctx, model=model), layer)
        dense = float(sum(np.sum(m.held) for m in own if not m.routed))
        routed = float(sum(np.sum(m.held) for m in own if m.routed))
        assert 0.999 * (p.total - p.routed) < dense <= p.total - p.routed
        assert 0.99 * p.routed <= routed <= p.routed


def test_shards_join_to_the_whole_matrix() -> None:
    one, four = (scenario(Plan(tp=t, dp=16 // t, ep=8, edp=2)).context() for t in (1, 4))
    layer = one.model.layers[0]
    for whole, shard in zip(layer_matrices(one, layer), layer_matrices(four, layer), strict=True):
        if whole.rows != shard.rows or whole.columns != shard.columns:
            assert tuple(map(float, shard.whole)) == (float(whole.rows), float(whole.columns))


def test_muon_keeps_a_momentum_and_adam_for_the_rest() -> None:
    memory = {n: simulate(scenario(optimizer=Optimizer(name=n)), trace=False).memory[0] for n in ("adam", "muon")}  # type: ignore[arg-type]
    s = scenario(optimizer=Optimizer(name="muon"))
    run = Simulation(s)
    params = run.step.params_of(run.contents[0][0])
    saved = 4.0 * (float(params.more[0]) / 16 + float(params.more[1]) / 2)
    assert memory["adam"]["optimizer"] - memory["muon"]["optimizer"] == pytest.approx(saved)
    assert 0.5 < saved / (memory["adam"]["optimizer"] / 3.0) < 1.0


def test_newton_schulz_time_grows_with_steps_and_shares_out_over_ranks() -> None:
    def orthogonal_s(steps: int, plan: Plan = PLAN) -> float:
        run = Simulation(scenario(plan, "Llama3-8B", optimizer=Optimizer(name="muon", ns_steps=steps)))
        params = run.step.params_of(run.contents[0][0])
        return float(run.step.update.orthogonal_s(params))

    wide = Plan(dp=16, edp=16)
    assert newton_schulz_flop(4096, 1024, 5) == 5 * (4 * 1024**2 * 4096 + 2 * 1024**3)
    assert orthogonal_s(5, wide) < orthogonal_s(10, wide) < 2.0 * orthogonal_s(5, wide)
    # 32 layers of 7 matrices over 16 ranks: shares; ZeRO 0 repeats all of them on every rank
    repeated = orthogonal_s(5, replace(wide, zero_stage=0))
    assert repeated == pytest.approx(16 * orthogonal_s(5, wide))


def test_one_matrix_is_never_split() -> None:
    """More ranks than matrices do not help beyond the largest matrix."""
    s = scenario(Plan(dp=512, edp=512), "Llama3-8B", optimizer=Optimizer(name="muon"))
    run = Simulation(s)
    params = run.step.params_of(run.contents[0][0])
    largest = max(float(run.step.update.matrix_s(m)) for m in layer_matrices(s.context(), s.model.layers[0]))
    assert float(run.step.update.orthogonal_s(params)) == pytest.approx(largest)


def test_muon_sums_gradients_whole() -> None:
    """Whole matrices need the whole gradient: an all-reduce moves about twice what a reduce-scatter does."""
    adam, muon = (Simulation(scenario(optimizer=Optimizer(name=n))) for n in ("adam", "muon"))  # type: ignore[arg-type]
    first, second = (
        float(run.step.data_parallel(run.step.params_of(run.contents[0][0]))[0].alone_s) for run in (adam, muon)
    )
    assert 1.5 < second / first < 2.5


def test_what_muon_cannot_do_is_refused_all_at_once() -> None:
    bad = scenario(replace(PLAN, zero_stage=3), optimizer=Optimizer(name="muon"), offload=Offload(optimizer=1.0))
    with pytest.raises(UserError) as caught:
        simulate(bad)
    assert "ZeRO 3" in str(caught.value) and "host" in str(caught.value)


# ---------------------------------------------------------------- on the host


def test_the_state_moves_and_none_is_lost() -> None:
    whole = simulate(scenario(), trace=False).memory[0]["optimizer"]
    for share in (0.25, 0.5, 1.0):
        report = simulate(scenario(offload=Offload(optimizer=share)), trace=False)
        assert report.memory[0].get("optimizer", 0.0) == pytest.approx((1.0 - share) * whole)
        # beside the state (12 bytes) the host keeps gradients to read it with (4); eight devices to a node
        assert report.host_mem_bytes == pytest.approx(8 * share * whole * 16 / 12)


def test_update_on_the_host_takes_its_links_and_its_memory() -> None:
    s = scenario(offload=Offload(optimizer=1.0))
    run = Simulation(s)
    params = run.step.params_of(run.contents[0][0])
    count = float(params.dense) / 16 + float(params.routed) / 2
    down, up = 4.0 * count / host_link_bytes_per_s(run.cost), 2.0 * count / host_link_bytes_per_s(run.cost)
    host = 30.0 * count / host_bytes_per_s(run.cost)
    assert optimizer_s(s) == pytest.approx(down + host + up, rel=1e-4)
    overlapped = optimizer_s(scenario(offload=Offload(optimizer=1.0, overlap=True)))
    assert overlapped == pytest.approx(max(down, host, up), rel=1e-4)


def test_a_faster_host_is_never_slower() -> None:
    s = scenario(offload=Offload(optimizer=0.5))
    seconds = []
    for factor in (0.5, 1.0, 2.0):
        c = s.cluster
        link = replace(c.host_link, bytes_per_s=c.host_link.bytes_per_s * factor)
        seconds.append(optimizer_s(replace(s, cluster=replace(c, host_link=link))))
    assert seconds == sorted(seconds, reverse=True)


def test_a_node_without_the_memory_is_out_of_it() -> None:
    s = scenario(offload=Offload(optimizer=1.0))
    short = simulate(replace(s, cluster=replace(s.cluster, host_mem_bytes=1e9)), trace=False).out_of_memory
    assert short is not None and short.tag == HOST and short.need_bytes > short.have_bytes == 1e9


def test_a_cluster_that_states_no_host_rate_is_told_so() -> None:
    s = scenario(offload=Offload(optimizer=1.0))
    with pytest.raises(UserError, match="host_mem_bytes_per_s"):
        simulate(replace(s, cluster=replace(s.cluster, host_mem_bytes_per_s=0.0)))


def test_profile_switch_is_the_whole_optimizer() -> None:
    switched = replace(scenario(), software=replace(SOFTWARE, optimizer_offload=True))
    ctx = switched.context()
    params = LocalParams(dense=1600.0, routed=20.0)
    asked = scenario(offload=Offload(optimizer=1.0)).context()
    assert host_state_bytes(ctx, params) == host_state_bytes(asked, params) == 16.0 * (100.0 + 10.0)
    assert host_state_bytes(scenario().context(), params) == 0.0


@pytest.mark.parametrize(
    "asked",
    [
        {"optimizer": Optimizer(name="muon")}, {"optimizer": Optimizer(name="muon", tp_mode="duplicated")},
        {"optimizer": Optimizer(name="sgd", exp_avg="bf16")}, {"offload": Offload(optimizer=0.5, overlap=True)},
    ],
)  # fmt: skip
def test_screening_sees_the_same_memory_and_a_true_bound(asked: dict[str, Any]) -> None:
    for plan in (PLAN, Plan(tp=2, pp=2, dp=4, ep=4, edp=2), Plan(pp=4, dp=4, ep=4)):
        s = scenario(plan, **asked)
        report = simulate(s, trace=False)
        seen = screen(s.model, s.cluster, s.software, s.workload, columns_of([plan])[0])
        assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes)
        assert 0.9 * report.step_s.value < seen.bound_s[0] <= report.step_s.value * (1 + 1e-9)


def test_without_master_weights_only_moments_are_kept() -> None:
    """torch.optim.Adam over 16-bit parameters: 4 bytes of state where Megatron-LM keeps 12."""
    params = LocalParams(dense=3.0, routed=5.0)
    kept = {}
    for name, switches in (("fp32", {}), ("own", {"master_weights": False, "precision_aware_optimizer": True})):
        s = scenario()
        kept[name] = state_bytes(replace(s, software=replace(s.software, **switches)).context(), params)
    assert kept["fp32"] == (36.0, 60.0) and kept["own"] == (12.0, 20.0)
    stated = scenario(optimizer=Optimizer(main_params="fp16"))
    stated = replace(stated, software=replace(stated.software, master_weights=False))
    assert widths(stated.context()).master == 2.0
