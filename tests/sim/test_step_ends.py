"""Gradients and parameters in buckets, checks of gradients, and what plain torch adds to context parallelism."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from sim.build.attention import RING_BACKWARD_BYTES, RING_ENDS_BYTES, RING_FORWARD_BYTES
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.columns import columns_of
from sim.cost.ends import LAUNCHES_PER_CHECK, buckets, check_s, data_parallel, stage_tensors
from sim.cost.footprint import LocalParams
from sim.cost.model import CostModel
from sim.cost.timing import part_time
from sim.families import load_model
from sim.ops import Op
from sim.plan import Plan
from sim.run import Simulation
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import Workload

MILLION = 1e6


@cache
def cost(gpus: int, **switches: Any) -> CostModel:
    profile = replace(catalogue.software("megatron-bridge-26.04"), **switches)
    return CostModel(catalogue.cluster("dgx-h100", gpus=gpus), profile)


def context(plan: Plan, model: str = "Llama3-8B", **switches: Any) -> Context:
    profile = replace(catalogue.software("megatron-bridge-26.04"), **switches)
    work = Workload(seq_tokens=8192, global_batch_seqs=plan.dp, precision="bf16")
    return Context(model=load_model(model), workload=work, plan=plan, software=profile)


def op(ctx: Context, name: str) -> Op:
    return next(op for op in layer_ops(ctx, ctx.model.layers[0]) if op.name == name)


@pytest.mark.parametrize(
    ("dp", "vpp", "count", "want"),
    [
        (8, 1, 400 * MILLION, 10),  # 40 million each
        (448, 1, 4_480 * MILLION, 10),  # a million a rank
        (8, 4, 400 * MILLION, 3 + 3),  # the first virtual stage in three of 40 million at most, the others whole
        (8, 1, 0.0, 1),
    ],
)
def test_megatrons_rule(dp: int, vpp: int, count: float, want: int) -> None:
    assert buckets(context(Plan(dp=dp, vpp=vpp, pp=1)), count, 1e9) == want


def test_a_bucket_holds_whole_tensors_and_without_overlap_there_is_one() -> None:
    plan = Plan(dp=8)
    assert buckets(context(plan, bucket_params=1), 1e9, 57.0) == 57
    assert buckets(context(plan, dp_overlap_grad=False, bucket_params=1), 1e9, 57.0) == 1
    assert buckets(context(plan, buckets="layer"), 1e9, 1e9) == 32 + 2


@given(st.integers(1, 10**9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_smaller_buckets_wait_longer_for_the_same_bytes(size: int, thousands: int) -> None:
    """Bytes of links do not depend on the cut; waiting grows with the number of collectives."""
    params = LocalParams(dense=np.array(thousands * 1e9), routed=np.zeros(()))
    plan = Plan(dp=64)
    whole, cut = (data_parallel(cost(64), context(plan, bucket_params=each), params) for each in (10**12, size))
    for one, many in zip(whole, cut, strict=True):
        assert float(many.out_s) == pytest.approx(float(one.out_s))
        assert float(many.up_s) == pytest.approx(float(one.up_s))
        assert float(many.latency_s) >= float(one.latency_s) * (1 - 1e-9)


def test_a_check_costs_launches_per_bucket_and_a_pass_over_the_gradients() -> None:
    params = LocalParams(dense=np.array(8e9), routed=np.zeros(()))
    plan = Plan(dp=8)
    assert float(check_s(cost(8), context(plan), params)) == 0.0
    machine = cost(8)
    ctx = context(plan, grad_check=True, bucket_params=1, grad_dtype="bf16")
    tensors, _ = stage_tensors(ctx)
    assert tensors == 32 * 7 + 2
    want = tensors * LAUNCHES_PER_CHECK * machine.launch_s
    want += float(machine.compute.memory_s(16e9, 1))
    assert float(check_s(machine, ctx, params)) == pytest.approx(want)


@pytest.mark.parametrize("plan", [Plan(dp=16), Plan(dp=4, pp=2, vpp=2, tp=2), Plan(dp=8, pp=2)])
def test_the_bound_holds_with_small_buckets_and_checks(plan: Plan) -> None:
    machine = cost(16, bucket_params=1, grad_check=True, tp_overlap=False)
    model = load_model("Llama3-8B")
    work = Workload(seq_tokens=8192, global_batch_seqs=32, precision="bf16")
    schedule = "interleaved" if plan.vpp > 1 else "1f1b"
    plan = replace(plan, schedule=schedule, edp=16 // plan.pp)
    got = screen(model, machine.cluster, machine.software, work, columns_of([plan])[0], cost=machine)
    made = Scenario(model=model, cluster=machine.cluster, software=machine.software, workload=work, plan=plan)
    step_s = Simulation(made, cost=machine).report().step_s.value
    assert 0.8 * step_s < got.bound_s[0] <= step_s * (1 + 1e-9)


def test_torchs_ring_merges_in_fp32() -> None:
    plan = Plan(dp=2, cp=4)
    plain = context(plan, context_ring="torch", repeated_kv=True)
    elements = 8192 / 4 * 4096
    forward, backward = op(plain, "cp_merge"), op(plain, "cp_merge.bwd")
    assert float(forward.bytes) == pytest.approx((3 * RING_FORWARD_BYTES + RING_ENDS_BYTES[0]) * elements)
    assert float(backward.bytes) == pytest.approx((4 * RING_BACKWARD_BYTES + RING_ENDS_BYTES[1]) * elements)
    fused = context(plan)
    # four query heads share a key head, and gradients of 32 bits come on top of what is sent forward
    assert float(op(plain, "cp_ring").bytes) == pytest.approx(4.0 * float(op(fused, "cp_ring").bytes))
    assert float(op(plain, "cp_ring.bwd").bytes) == pytest.approx(3.0 * float(op(plain, "cp_ring").bytes))


def test_torchs_attention_is_the_same_without_groups_and_without_a_ring() -> None:
    plan = Plan(dp=8)
    assert float(op(context(plan, context_ring="torch"), "cp_merge").bytes) == 0.0
    assert float(op(context(plan, context_ring="torch"), "cp_merge.bwd").bytes) == 0.0
    assert float(op(context(plan, "GPT3-175B", repeated_kv=True), "repeat_kv").bytes) == 0.0
    # keys and values of 8 heads are read and those of 32 written
    assert float(op(context(plan, repeated_kv=True), "repeat_kv").bytes) == 2.0 * 8192 * (8 + 32) * 2 * 128


def test_a_complex_rotary_moves_twenty_bytes_an_element() -> None:
    plan = Plan(dp=8)
    for kind in ("fused", "compiled"):
        moved = op(context(plan, elementwise=kind, complex_rotary=True), "rotary")
        assert float(moved.bytes) == 20.0 * 8192 * 40 * 128
        assert moved.kernels == 3


def test_tensor_parallel_overlap_ends_at_the_scale_up_domain() -> None:
    """Shared buffers hide all but one piece inside a domain and nothing across domains, plan by plan of a column."""
    plans = [Plan(tp=tp, dp=32 // tp) for tp in (4, 8, 16)]
    left = {}
    for on in (True, False):
        ctx = replace(context(plans[0], tp_overlap=on), plan=columns_of(plans)[0])
        part = part_time(cost(32, tp_overlap=on), ctx, layer_ops(ctx, ctx.model.layers[0]))
        left[on] = np.asarray(part.left["forward", "tp", "tp"])
    assert left[True] / left[False] == pytest.approx([1 / 4, 1 / 8, 1.0])
