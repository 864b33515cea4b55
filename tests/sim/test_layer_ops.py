"""The ops of a layer against closed forms: FLOP, bytes and rows, and the facts other tools get wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.specs import SoftwareProfile
from sim.build.context import WITHIN, Context
from sim.build.layer import end_ops, layer_ops, local_layer_params
from sim.build.moe import received_rows
from sim.columns import columns_of
from sim.families import load_model
from sim.model import ModelSpec, layer_flop_per_token
from sim.ops import Op
from sim.plan import Plan
from sim.routing import Routing
from sim.workload import Workload

SEQ = 4096


def software(**changes: object) -> SoftwareProfile:
    return replace(catalogue.software("megatron-bridge-26.04"), capacity_factor=None, **changes)  # type: ignore[arg-type]


def context(
    model: ModelSpec, plan: Plan, *, routing: Routing | None = None, precision: str = "bf16", **switches: object
) -> Context:
    work = Workload(seq_tokens=SEQ, global_batch_seqs=256, precision=precision)  # type: ignore[arg-type]
    return Context(model=model, workload=work, plan=plan, software=software(**switches), routing=routing or Routing())


def named(ops: tuple[Op, ...], name: str) -> Op:
    return next(op for op in ops if op.name == name)


def flop(ops: tuple[Op, ...], *passes: str) -> float:
    return float(sum(float(op.flop) for op in ops if op.pass_ in passes))


MODELS = ("Qwen3-235B-A22B", "DeepSeek-V3", "Mixtral-8x7B", "Llama3-70B", "GPT3-175B", "GPT-OSS-120B")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("degrees", [{"tp": 1}, {"tp": 4}, {"tp": 2, "cp": 2}])
def test_forward_flop_is_the_models(name: str, degrees: dict[str, int]) -> None:
    """Summed over the ranks that share a layer, forward FLOP equals the model's count, backward twice it."""
    model = load_model(name)
    tp, cp = degrees.get("tp", 1), degrees.get("cp", 1)
    plan = Plan(dp=8, **degrees, ep=8 if model.is_moe else 1, edp=max(1, 8 * tp * cp // 8))
    ctx = context(model, plan)
    for layer in model.layers[:1] + model.layers[-1:]:
        ops = layer_ops(ctx, layer)
        want = layer_flop_per_token(layer, model.hidden_dim, SEQ) * SEQ
        got = flop(ops, "forward") * tp * cp
        # key/value heads do not replicate here (tp <= kv heads), so the shares add up exactly
        assert got == pytest.approx(want, rel=1e-9)
        assert flop(ops, "backward", "wgrad") * tp * cp == pytest.approx(2 * want, rel=0.2)


def test_expert_parallelism_does_not_divide_dispatched_rows() -> None:
    """Routed rows per rank = top-k x seq x batch / (TP x CP) at every EP degree; ETP multiplies them."""
    model = load_model("Qwen3-235B-A22B")
    layer = model.layers[0]
    assert layer.moe is not None
    for tp, cp, ep, etp, mbs in [(1, 1, 8, 1, 1), (2, 1, 32, 1, 2), (2, 2, 64, 2, 1), (4, 1, 16, 4, 1)]:
        ctx = context(model, Plan(tp=tp, cp=cp, ep=ep, etp=etp, dp=64, edp=1, micro_batch_seqs=mbs))
        rows = layer.moe.top_k * SEQ * mbs / (tp * cp)
        assert float(received_rows(ctx, layer.moe)) == rows
        ops = layer_ops(ctx, layer)
        first = named(ops, "experts1")
        assert float(first.m) * float(first.groups) == pytest.approx(rows * etp)
        assert float(first.n) == 2 * layer.moe.ffn_dim / etp
        assert float(named(ops, "dispatch").bytes) == rows * model.hidden_dim * 2


def test_hottest_rank_sets_rows_time_and_bytes() -> None:
    model = load_model("Qwen3-30B-A3B")
    layer = model.layers[0]
    plan = Plan(ep=8, dp=8)
    even, hot = (context(model, plan, routing=Routing(max_over_mean=x)) for x in (1.0, 1.7))
    a, b = layer_ops(even, layer), layer_ops(hot, layer)
    assert float(named(b, "experts1").m) == pytest.approx(1.7 * float(named(a, "experts1").m))
    saved = [sum(float(np.asarray(op.saved_bytes)) for op in ops) for ops in (a, b)]
    assert saved[1] > saved[0]


def test_columns_and_numbers_agree() -> None:
    """One description: a block of plans gives row by row what each plan gives alone."""
    model = load_model("DeepSeek-V3")
    plans = [
        Plan(tp=tp, ep=ep, dp=256 // tp, edp=256 // ep, micro_batch_seqs=mbs, recompute=("mla_up_proj",))
        for tp in (1, 2, 8) for ep in (8, 64) for mbs in (1, 2)
    ]  # fmt: skip
    block = columns_of(plans)[0]
    wide = context(model, plans[0])
    wide = replace(wide, plan=block)
    for layer in (model.layers[0], model.layers[-1]):
        table = layer_ops(wide, layer)
        for i, plan in enumerate(plans):
            alone = layer_ops(replace(wide, plan=plan), layer)
            assert [op.name for op in alone] == [op.name for op in table]
            for one, many in zip(alone, table, strict=True):
                for field in ("m", "n", "k", "flop", "bytes", "saved_bytes", "groups", "kernels"):
                    column = np.broadcast_to(np.asarray(getattr(many, field), float), (len(plans),))
                    number = float(np.asarray(getattr(one, field)))
                    assert number == pytest.approx(float(column[i]), rel=1e-12), (one.name, field)


RECOMPUTED = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "moe", "shared_experts", "full")


@pytest.mark.parametrize("module", RECOMPUTED)
def test_recompute_trades_bytes_for_work(module: str) -> None:
    """Recomputing keeps no more activations and repeats exactly the module's forward FLOP."""
    model = load_model("DeepSeek-V3")
    layer = model.layers[-1]
    base = layer_ops(context(model, Plan(ep=64, dp=64)), layer)
    again = layer_ops(context(model, Plan(ep=64, dp=64, recompute=(module,))), layer)
    saved = [sum(float(np.asarray(op.saved_bytes)) for op in ops) for ops in (base, again)]
    assert saved[1] <= saved[0]
    repeated = flop(again, "recompute")
    if module == "full":
        assert repeated == pytest.approx(flop(base, "forward"))
        assert saved[1] == SEQ * model.hidden_dim * 2
    else:
        parts = {"moe", *WITHIN} if module == "moe" else {module}  # Megatron checkpoints the MoE layer from its input
        mine = [op for op in base if op.module in parts and op.pass_ == "forward"]
        assert repeated == pytest.approx(flop(tuple(mine), "forward"))


@pytest.mark.parametrize(("modules", "inputs"), [(("moe",), 1), (("moe", "layernorm"), 0), (("moe", "moe_act"), 1)])
def test_recompute_of_the_moe_layer_keeps_its_input_alone(modules: tuple[str, ...], inputs: int) -> None:
    """Beside attention's tensors: the residual and, unless the norm runs again, the normed input; nothing of experts
    or shared experts."""
    model = load_model("DeepSeek-V3")
    ops = layer_ops(context(model, Plan(ep=64, dp=64, recompute=modules)), model.layers[-1])
    mine = ops[[op.name for op in ops].index("moe_norm.residual") :]
    kept = sum(float(np.asarray(op.saved_bytes)) for op in mine if not op.scope.startswith("attn"))
    assert kept == (1 + inputs) * SEQ * model.hidden_dim * 2


@settings(max_examples=60, deadline=None)
@given(tp=st.sampled_from([1, 2, 4]), ep=st.sampled_from([1, 4, 16, 64]), mbs=st.integers(1, 4))
def test_dispatch_and_combine_carry_the_same_bytes(tp: int, ep: int, mbs: int) -> None:
    """Conservation: what is dispatched comes back, in both passes."""
    model = load_model("Qwen3-235B-A22B")
    plan = Plan(tp=tp, ep=ep, dp=64, edp=64 * tp // ep, micro_batch_seqs=mbs)
    ops = layer_ops(context(model, plan), model.layers[0])
    sizes = {op.name: float(op.bytes) for op in ops if op.axis == "ep"}
    assert set(sizes) == {"dispatch", "dispatch.bwd", "combine", "combine.bwd"}
    assert len(set(sizes.values())) == 1


def test_local_parameters_add_up() -> None:
    """Dense parameters over tp plus experts over ep x etp give the whole layer back."""
    from sim.model import layer_params

    model = load_model("Qwen3-235B-A22B")
    layer = model.layers[0]
    p = layer_params(layer, model.hidden_dim)
    dense, routed = local_layer_params(context(model, Plan(tp=4, ep=16, etp=2, dp=64)), layer)
    assert dense == pytest.approx((p.attention + p.dense + p.shared) / 4 + p.replicated)
    assert routed * 32 == pytest.approx(p.routed)


def test_head_flop_and_loss() -> None:
    model = load_model("Qwen3-235B-A22B")
    ops = end_ops(context(model, Plan(tp=4)), "head")
    head = named(ops, "head")
    assert float(head.flop) * 4 == 2 * SEQ * model.hidden_dim * model.vocab_size


def test_fused_experts_launch_less_and_move_less() -> None:
    model = load_model("Qwen3-235B-A22B")
    plan = Plan(ep=8, dp=8)
    both = [context(model, plan, precision="mxfp8", fused_experts=fused) for fused in (False, True)]
    loops = [layer_ops(ctx, model.layers[0]) for ctx in both]
    experts = [sum(float(op.experts) for op in ops) for ops in loops]
    moved = [sum(float(op.bytes) for op in ops if op.kind == "memory") for ops in loops]
    assert experts[0] > 16 * 6 and experts[1] == 0
    assert moved[1] < moved[0]


@pytest.mark.parametrize("cp", [1, 2, 8])
def test_ring_steps_are_merged(cp: int) -> None:
    """All steps but the first are added to a running result: three passes over the output, and over q, k, v."""
    model = load_model("Llama3-70B")
    att = model.layers[0].attention
    ops = layer_ops(context(model, Plan(cp=cp, dp=8)), model.layers[0])
    wide = 2.0 * 3 * (cp - 1) * SEQ / cp
    assert float(named(ops, "cp_merge").bytes) == wide * att.heads * att.v_head_dim
    assert float(named(ops, "cp_merge.bwd").bytes) == wide * (att.heads + 2 * att.kv_heads) * att.head_dim
