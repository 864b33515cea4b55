"""Fused experts in the cost model: uneven rows, provenance of the gradients, dtypes without a kernel of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles import catalogue
from hwprofiles.catalogue import software
from hwprofiles.errors import UserError
from hwprofiles.forms.grouped import grouped_forms
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.families import load_model
from sim.ops import Op
from sim.plan import Plan
from sim.routing import Routing
from sim.workload import Workload

EVEN = Op(name="experts1", kind="grouped_gemm", fused=True, m=512.0, n=3072.0, k=2048.0, groups=16)


def cost_on(cluster: str) -> CostModel:
    return CostModel(catalogue.cluster(cluster), software("megatron-bridge-26.04"))


def grouped_ops(hot: float, **switches: object) -> list[Op]:
    model, plan = load_model("Qwen3-30B-A3B"), Plan(ep=8, dp=8)
    trainer = replace(software("megatron-bridge-26.04"), fused_experts=True, **switches)  # type: ignore[arg-type]
    ctx = Context(
        model=model, workload=Workload(seq_tokens=4096, global_batch_seqs=64), plan=plan, software=trainer,
        routing=Routing(max_over_mean=hot),
    )  # fmt: skip
    return [op for op in layer_ops(ctx, model.layers[0]) if op.kind == "grouped_gemm"]


def test_time_is_the_forms_over_the_sustained_clock() -> None:
    cost = cost_on("dgx-h100")
    form = grouped_forms("h100")["bf16"]
    expected = float(form.product_s(16 * 512, 16, 3072, 2048)) / cost.compute.clock
    assert float(cost.device_s(EVEN)) == pytest.approx(expected)
    # the weight gradient sums over the rows: they are its k
    wgrad = replace(EVEN, pass_="wgrad", m=3072.0, n=2048.0, k=512.0)
    expected = float(form.wgrad_s(16 * 512, 16, 3072, 2048)) / cost.compute.clock
    assert float(cost.device_s(wgrad)) == pytest.approx(expected)


def test_a_fuller_expert_costs_more_with_the_same_rows() -> None:
    cost = cost_on("dgx-h100")
    times = [float(cost.device_s(replace(EVEN, m_max=peak * 512.0))) for peak in (1.0, 2.0, 4.0)]
    assert times == sorted(set(times)) and times[0] == pytest.approx(float(cost.device_s(EVEN)))


def test_hot_ranks_hold_a_fuller_expert_and_fixed_buffers_do_not() -> None:
    assert all(op.m_max is None for op in grouped_ops(1.0))
    for op in grouped_ops(1.5):
        rows = op.k if op.pass_ == "wgrad" else op.m
        assert float(op.m_max) == pytest.approx(1.5 * float(rows))
    assert all(op.m_max is None for op in grouped_ops(1.5, capacity_factor=1.0))


def test_every_result_says_whether_the_backward_pass_is_measured() -> None:
    cost = cost_on("dgx-h100")
    for pass_ in ("forward", "backward", "wgrad"):
        cost.device_s(replace(EVEN, pass_=pass_))
    notes = [note for note in cost.provenance() if note.startswith("grouped GEMM")]
    assert {note for note in notes if "gradient" in note} == {
        "grouped GEMM bf16, input gradient: assumed",
        "grouped GEMM bf16, weight gradient: assumed",
    }
    assert "grouped GEMM bf16: interpolated" in notes


def test_dtypes_without_a_kernel() -> None:
    """MX scales are priced as block scales; a dtype without a kernel is an error that says what there is."""
    cost = cost_on("dgx-b200")
    mx, block = (float(cost.device_s(replace(EVEN, dtype=dtype))) for dtype in ("mxfp8", "fp8_block"))
    assert mx == block
    with pytest.raises(UserError, match="bf16"):
        cost_on("dgx-a100-80g").device_s(replace(EVEN, dtype="fp8"))
