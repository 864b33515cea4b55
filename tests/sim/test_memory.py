"""Memory on a rank: published activation figures, hand counts, and screening against the ledger of the event run."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.specs import SoftwareProfile, Source
from planner.search import _capacity_bytes
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.build.moe import received_rows
from sim.columns import columns_of
from sim.cost.footprint import head_working_bytes, layer_working_bytes, placeholder_bytes, static_bytes
from sim.cost.model import CostModel
from sim.cost.state import LocalParams
from sim.families import gpt_model, load_model
from sim.model import ModelSpec
from sim.plan import Plan
from sim.run import Simulation
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import Workload

SEQ = 2048
# Dimensions of arXiv 2205.05198, Table 3 (model: hidden, heads, layers).
GPT = {
    "megatron-22B": (6144, 64, 48), "gpt3-175B": (12288, 96, 96), "turing-530B": (20480, 128, 105),
    "megatron-1T": (25600, 160, 128),
}  # fmt: skip
# column: (sequence parallel, recompute)
MODES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "none": (False, ()), "seq": (True, ()), "sel": (False, ("core_attn",)), "seqsel": (True, ("core_attn",)),
    "full": (False, ("full",)),
}  # fmt: skip


def published() -> Iterator[dict[str, str]]:
    path = resources.files("calibration") / "published" / "calculon_megatron_a100_memory.csv"
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    yield from csv.DictReader(lines)


def first_stage(row: dict[str, str], mode: str) -> Simulation:
    hidden, heads, layers = GPT[row["model"]]
    parallel, recompute = MODES[mode]
    tp, pp, vpp = int(row["tp"]), int(row["pp"]), int(row["interleave"])
    model = gpt_model(
        name=row["model"], hidden_dim=hidden, heads=heads, num_layers=layers, vocab_size=51_200, max_positions=SEQ,
        source=Source(kind="published", title="arXiv 2205.05198", where="Table 3", date="2022-05"),
    )  # fmt: skip
    plan = Plan(
        tp=tp, pp=pp, vpp=vpp, edp=tp, micro_batch_seqs=int(row["microbatch"]), recompute=recompute, zero_stage=0,
        schedule="interleaved" if vpp > 1 else "1f1b",
    )  # fmt: skip
    profile = replace(catalogue.software("megatron-lm-seqpar-2022"), sequence_parallel=parallel)
    work = Workload(seq_tokens=SEQ, global_batch_seqs=plan.micro_batch_seqs * pp * 3)
    cluster = catalogue.cluster("A100", gpus=tp * pp)
    return Simulation(Scenario(model=model, cluster=cluster, software=profile, workload=work, plan=plan))


@pytest.mark.parametrize("row", list(published()), ids=lambda r: r["model"])
def test_activations_of_published_recompute_modes(row: dict[str, str]) -> None:
    gib = {mode: first_stage(row, mode).report(trace=False).memory[0]["activations"] / 2**30 for mode in MODES}
    assert gib["none"] == pytest.approx(float(row["act_gib_none"]), rel=0.01)
    assert gib["seqsel"] == pytest.approx(float(row["act_gib_seqsel"]), rel=0.01)
    for mode, value in gib.items():
        assert 100 * value / gib["none"] == pytest.approx(float(row[f"act_pct_{mode}"]), rel=0.05), mode


@pytest.mark.parametrize("row", list(published()), ids=lambda r: r["model"])
def test_model_state_of_published_runs(row: dict[str, str]) -> None:
    memory = first_stage(row, "full").report(trace=False).memory
    state = [sum(stage[k] for k in ("weights", "gradients", "optimizer")) for stage in memory]
    assert np.mean(state) / 2**30 == pytest.approx(float(row["params_and_optimizer_gib"]), rel=0.10)


# ---------------------------------------------------------------- hand counts

TE = catalogue.software("megatron-lm-te-2.11", device="B200", precision="bf16")


def context(model: str | ModelSpec, plan: Plan, *, seq: int = 4096, profile: SoftwareProfile = TE) -> Context:
    spec = load_model(model) if isinstance(model, str) else model
    return Context(model=spec, workload=Workload(seq_tokens=seq, global_batch_seqs=64), plan=plan, software=profile)


def saved_of(ctx: Context, index: int, prefix: str = "") -> float:
    ops = layer_ops(ctx, ctx.model.layers[index])
    return float(sum(np.asarray(op.saved_bytes) for op in ops if op.name.startswith(prefix)))


def test_dense_layer_keeps_what_each_module_of_transformer_engine_saves() -> None:
    # norm input and output twice, q k v, attention output, gate and up, product: 16-bit; one fp32 log-sum-exp per head
    t, d, f, kv, heads, tp = 4096, 8192, 28672, 1024, 64, 2
    want = 2 * t * (4 * d + d + 2 * kv + d + 3 * f) / tp + 4 * t * heads / tp
    assert saved_of(context("Llama3-70B", Plan(tp=tp, dp=4)), 0) == pytest.approx(want)


def test_context_parallel_divides_activations_but_for_the_rings_extra_tensor() -> None:
    one, four = context("Llama3-70B", Plan()), context("Llama3-70B", Plan(cp=4))
    extra = 2 * 1024 * 64 * 128
    assert saved_of(four, 0) == pytest.approx(saved_of(one, 0) / 4 + extra)


@given(
    st.sampled_from((1, 2, 4)), st.sampled_from((1, 2)), st.sampled_from((1, 2, 8, 16)), st.sampled_from((1, 2, 4)),
    st.integers(1, 3),
)  # fmt: skip
def test_ep_does_not_divide_the_tokens_a_rank_dispatches(tp: int, cp: int, ep: int, etp: int, batch: int) -> None:
    """Routed activation rows = top-k x seq x batch / (TP x CP), times ETP after the gather."""
    plan = Plan(tp=tp, cp=cp, ep=ep, etp=etp, micro_batch_seqs=batch)
    ctx = context("Qwen3-30B-A3B", plan)
    moe = ctx.model.layers[-1].moe
    assert moe is not None
    rows = moe.top_k * 4096 * batch / (tp * cp)
    assert float(received_rows(ctx, moe)) == pytest.approx(rows)
    want = 2 * rows * etp * (ctx.model.hidden_dim + 3 * moe.ffn_dim / etp)
    assert saved_of(ctx, -1, "experts") == pytest.approx(want)


def test_skewed_routing_sets_memory_of_the_hottest_rank() -> None:
    ctx = context("Qwen3-30B-A3B", Plan(ep=8), profile=replace(TE, capacity_factor=None))
    hot = replace(ctx, routing=replace(ctx.routing, max_over_mean=1.5))
    assert saved_of(hot, -1, "experts") == pytest.approx(1.5 * saved_of(ctx, -1, "experts"))


def test_gradient_placeholders_one_per_weight_shape() -> None:
    ctx = context("Llama3-70B", Plan(tp=2))
    d, f = 8192, 28672
    weights = d * (d + 2048) + d * d + 3 * d * f
    assert float(placeholder_bytes(ctx, ctx.model.layers)) == pytest.approx(2 * weights / 2)
    few, many = (context("Mixtral-8x7B", Plan(ep=ep)) for ep in (8, 1))
    assert placeholder_bytes(few, few.model.layers) == placeholder_bytes(many, many.model.layers)
    off = replace(TE, grad_placeholders=False)
    for absent in (replace(ctx, plan=Plan(tp=2, zero_stage=3)), replace(ctx, software=off)):
        assert placeholder_bytes(absent, ctx.model.layers) == 0


def test_head_peak_is_the_longer_of_loss_and_backward() -> None:
    tokens, vocab, d = 4096, 128_256, 8192
    in_place = context("Llama3-70B", Plan())
    backward = 2 * (tokens * vocab + tokens * d + vocab * d)
    assert float(head_working_bytes(in_place)) == pytest.approx(backward)
    long = context("Llama3-70B", Plan(), seq=65_536, profile=replace(TE, loss_fp32_logits=True))
    assert float(head_working_bytes(long)) == pytest.approx(6 * 65_536 * vocab)
    gathered = context("Llama3-70B", Plan(tp=8))
    assert float(head_working_bytes(gathered)) == pytest.approx(backward / 8 + 2 * tokens * d * (7 / 8 + 1 + 1 / 8))


def test_gpipe_keeps_the_logits_of_every_micro_batch() -> None:
    work, vocab = Workload(seq_tokens=4096, global_batch_seqs=8), 128_256
    cluster = catalogue.cluster("B200", gpus=2)
    saved = {}
    for schedule in ("1f1b", "gpipe"):
        scenario = Scenario(
            model=load_model("Llama3-8B"), cluster=cluster, software=TE, workload=work,
            plan=Plan(pp=2, schedule=schedule),
        )  # fmt: skip
        saved[schedule] = Simulation(scenario).profile().chunks[-1][0].saved_bytes
    assert saved["gpipe"] - saved["1f1b"] == pytest.approx(2 * 4096 * vocab)


def test_offloaded_layers_keep_nothing_but_the_one_in_transit() -> None:
    scenario = Scenario(
        model=load_model("Llama3-8B"), cluster=catalogue.cluster("B200", gpus=8), software=TE, plan=Plan(dp=8, edp=8),
        workload=Workload(seq_tokens=4096, global_batch_seqs=8),
    )  # fmt: skip
    layer = saved_of(scenario.context(), 0)
    here = Simulation(scenario).profile().chunks[0][0].saved_bytes
    for layers, gone in ((0, 0), (1, 0), (16, 15), (32, 31), (99, 31)):
        profile = replace(TE, activation_offload_layers=layers)
        got = Simulation(replace(scenario, software=profile)).profile().chunks[0][0].saved_bytes
        assert got == pytest.approx(here - gone * layer), layers


def test_optimizer_state_by_recipe() -> None:
    ctx = context("Llama3-8B", Plan(dp=8, edp=8))
    thousand = LocalParams(dense=1000.0, routed=0.0)

    def state(**switches: Any) -> float:
        return float(static_bytes(replace(ctx, software=replace(TE, **switches)), thousand)["optimizer"])

    assert state() == 1000 * 12 / 8
    assert state(precision_aware_optimizer=True) == 1000 * 8 / 8
    assert state(precision_aware_optimizer=True, optimizer_offload=True) == 0


def test_recompute_trades_kept_for_transient_bytes() -> None:
    plain, full = (context("Llama3-70B", Plan(recompute=r)) for r in ((), ("full",)))
    ops = layer_ops(full, full.model.layers[0])
    again = sum(float(np.asarray(op.transient_bytes)) for op in ops)
    assert saved_of(full, 0) == pytest.approx(2 * 4096 * 8192)
    assert again == pytest.approx(saved_of(plain, 0))
    layer = full.model.layers[0]
    assert float(layer_working_bytes(full, layer)) == float(layer_working_bytes(plain, layer))


# ---------------------------------------------------------------- screening and event run agree

PLANS = st.fixed_dictionaries(
    {
        "tp": st.sampled_from((1, 2, 4)), "cp": st.sampled_from((1, 2)), "pp": st.sampled_from((1, 2, 4)),
        "vpp": st.sampled_from((1, 2, 3)), "ep": st.sampled_from((1, 2, 4)), "mbs": st.sampled_from((1, 2)),
        "recompute": st.sampled_from(((), ("full",), ("moe_act", "layernorm"))), "zero": st.sampled_from((1, 2)),
        "gpipe": st.booleans(), "offload": st.sampled_from((0, 3)),
        "model": st.sampled_from(("DeepSeek-V2-Lite", "Mixtral-8x7B")),
    }
)  # fmt: skip


@given(PLANS)
def test_screening_peak_is_the_ledgers_peak(p: dict[str, object]) -> None:
    gpus = 32
    tp, cp, pp, ep = (int(str(p[k])) for k in ("tp", "cp", "pp", "ep"))
    vpp = int(str(p["vpp"])) if pp > 1 and not p["gpipe"] else 1
    plan = Plan(
        tp=tp, cp=cp, pp=pp, vpp=vpp, ep=ep, dp=gpus // (tp * cp * pp), edp=gpus // (ep * pp),
        micro_batch_seqs=int(str(p["mbs"])), recompute=p["recompute"], zero_stage=int(str(p["zero"])),  # type: ignore[arg-type]
        schedule="gpipe" if p["gpipe"] else "interleaved" if vpp > 1 else "1f1b",
    )  # fmt: skip
    profile = replace(TE, activation_offload_layers=int(str(p["offload"])))
    scenario = Scenario(
        model=load_model(str(p["model"])), cluster=catalogue.cluster("B200", gpus=gpus), software=profile, plan=plan,
        workload=Workload(seq_tokens=4096, global_batch_seqs=plan.dp * plan.micro_batch_seqs * 2 * pp),
    )  # fmt: skip
    report = Simulation(scenario).report(trace=False)
    seen = screen(scenario.model, scenario.cluster, profile, scenario.workload, columns_of([plan])[0])
    assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes, rel=1e-9)
    assert bool(seen.fits[0]) == report.fits


def test_one_formula_of_what_a_rank_may_allocate() -> None:
    cluster = catalogue.cluster("B200", gpus=8)
    profile = replace(TE, reserved_bytes=1e9)
    cost = CostModel(cluster, profile)
    f = cost.factors
    assert cost.usable_bytes * (1 + f.fragmentation) + f.context_bytes + 1e9 == pytest.approx(cost.device.mem_bytes)
    assert _capacity_bytes(cluster, profile) == cost.usable_bytes
