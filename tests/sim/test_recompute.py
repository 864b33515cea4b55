"""What runs again in the backward pass: by operator, stopping early; and the gradients of biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.families import load_model
from sim.model import ModelSpec
from sim.ops import Op
from sim.plan import Plan
from sim.workload import Workload

SEQ = 4096


def ops_of(model: ModelSpec, recompute: tuple[str, ...], *, precision: Any = "bf16", **switches: Any) -> tuple[Op, ...]:
    base = catalogue.software("torchtitan-2024-12-compile")
    ctx = Context(
        model=model, workload=Workload(seq_tokens=SEQ, global_batch_seqs=8, precision=precision),
        plan=Plan(dp=8, recompute=recompute), software=replace(base, **switches),
    )  # fmt: skip
    return layer_ops(ctx, model.layers[0])


def flop(ops: tuple[Op, ...], pass_: str, kind: str = "gemm") -> float:
    return float(sum(float(op.flop) for op in ops if op.pass_ == pass_ and op.kind == kind))


def held(ops: tuple[Op, ...]) -> float:
    return float(sum(float(np.asarray(op.transient_bytes)) for op in ops))


@pytest.mark.parametrize("name", ["Llama3-8B", "GPT3-175B"])
def test_a_checkpoint_that_stops_early_leaves_out_the_last_product(name: str) -> None:
    model = load_model(name)
    whole = ops_of(model, ("full",), recompute_stops_early=False)
    early = ops_of(model, ("full",), recompute_stops_early=True)
    last = next(op for op in whole if op.name == "fc2")
    assert flop(whole, "recompute") == pytest.approx(flop(whole, "forward"))
    assert flop(early, "recompute") == pytest.approx(flop(whole, "recompute") - last.flop)
    assert flop(early, "forward") == flop(whole, "forward")
    assert held(early) == pytest.approx(held(whole))


@pytest.mark.parametrize(("dispatcher", "left_out"), [("deepep", {"combine.again"}), ("alltoall", set())])
def test_a_checkpoint_that_stops_early_leaves_out_a_kernel_that_keeps_nothing(
    dispatcher: str, left_out: set[str]
) -> None:
    """A plain all-to-all is followed by the weighted sum of the rows, whose order is kept."""
    model = load_model("Qwen3-30B-A3B")
    whole, early = (
        {op.name for op in ops_of(model, ("full",), recompute_stops_early=stops, dispatcher=dispatcher)
         if op.pass_ == "recompute" and (op.kind == "collective" or op.kernels)}
        for stops in (False, True)
    )  # fmt: skip
    assert whole - early == {name for name in left_out | {"combine.tp.again"} if name in whole and left_out}


def test_modules_are_recomputed_alike_whether_or_not_a_checkpoint_stops_early() -> None:
    model = load_model("Llama3-8B")
    one, other = (ops_of(model, ("mlp",), recompute_stops_early=early) for early in (False, True))
    assert one == other


def test_by_operator_every_second_product_runs_again() -> None:
    """Llama3-8B in order: q, k, v, output, gate, up, down; k, output and up are second, fourth and sixth."""
    model = load_model("Llama3-8B")
    ops = ops_of(model, ("operators",))
    att, d, f = model.layers[0].attention, model.hidden_dim, model.layers[0].ffn_dim
    again = 2.0 * SEQ * (att.kv_heads * att.head_dim * d + att.heads * att.head_dim * d + d * f)
    assert flop(ops, "recompute") == pytest.approx(again)
    assert flop(ops, "recompute", "attention") == 0.0
    elementwise = [op for op in ops if op.kind == "memory" and op.kernels and op.pass_ == "forward"]
    repeated = {op.name for op in ops if op.pass_ == "recompute" and op.kind == "memory"}
    assert {f"{op.name}.again" for op in elementwise} <= repeated


def test_by_operator_keeps_less_than_nothing_recomputed_and_more_than_all() -> None:
    model = load_model("Llama3-8B")
    none, some, full = (
        sum(float(np.asarray(op.saved_bytes)) for op in ops_of(model, how)) for how in ((), ("operators",), ("full",))
    )
    assert full < some < none


def test_bias_gradients_read_every_output_gradient_once() -> None:
    model = load_model("GPT3-175B")
    d = model.hidden_dim
    sums = [op for op in ops_of(model, (), fused_bias_grad=False) if op.name.endswith("bias_grad")]
    assert sum(float(op.bytes) for op in sums) == 2.0 * SEQ * (3 * d + d + 4 * d + d)
    assert {op.pass_ for op in sums} == {"backward"}
    assert not [op for op in ops_of(model, ()) if op.name.endswith("bias_grad")]
    assert not [op for op in ops_of(load_model("Llama3-8B"), (), fused_bias_grad=False) if "bias_grad" in op.name]


def core(head_dim: int, pass_: Any) -> Op:
    flop = 2.0 * SEQ * SEQ * 16 * head_dim * (2.5 if pass_ == "backward" else 1.0)
    sizes = {"seq": SEQ, "batch": 1, "heads": 16, "kv_heads": 16, "dqk": head_dim, "dv": head_dim}
    return Op(name="core", kind="attention", pass_=pass_, flop=flop, kernels=0, **sizes)


def seconds(device: str, kernel: Any, head_dim: int, pass_: str) -> float:
    profile = replace(catalogue.software("torchtitan-2024-12-compile"), attention_kernel=kernel)
    cost = CostModel(catalogue.cluster(device, gpus=8), profile)
    clock = 1.0 if kernel == "triton" else cost.compute.clock
    return float(cost.device_s(core(head_dim, pass_))) * clock


@pytest.mark.parametrize("device", ["A100", "H100"])
def test_attention_kernels_by_pass(device: str) -> None:
    """At head dimension 128 the passes differ by the kernel's ratio; Triton's by the stated factors from FA2's."""
    cost = CostModel(catalogue.cluster(device, gpus=8), catalogue.software("torchtitan-2024-12-compile"))
    ratio, _ = cost.compute.tables.attention_backward_ratio(SEQ, False, fa2=True)
    forward, backward = (seconds(device, "fa2", 128, way) for way in ("forward", "backward"))
    assert backward == pytest.approx(ratio * forward)
    slower = cost.factors.attention_triton
    assert seconds(device, "triton", 128, "forward") == pytest.approx(slower["forward"] * forward)
    assert seconds(device, "triton", 128, "backward") == pytest.approx(slower["backward"] * backward)


def test_exponentials_of_a_short_head_cost_the_same_in_both_passes() -> None:
    """time = products x (kernel and pass) + exponentials: three measurements give one and the same exponentials."""
    cost = CostModel(catalogue.cluster("A100", gpus=8), catalogue.software("torchtitan-2024-12-compile"))
    ratio, _ = cost.compute.tables.attention_backward_ratio(SEQ, False, fa2=True)
    forward, backward = (seconds("A100", "fa2", 64, way) for way in ("forward", "backward"))
    products = (backward - forward) / (ratio - 1.0)
    exponentials = forward - products
    assert exponentials > 0.0
    triton = seconds("A100", "triton", 64, "forward")
    assert triton == pytest.approx(cost.factors.attention_triton["forward"] * products + exponentials)
