"""Mixers without softmax, sparse and chunked attention, latent and zero experts: closed forms and conservation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster, software
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.families import load_model
from sim.imbalance import with_imbalance
from sim.model import (
    MIXERS,
    AttentionSpec,
    LayerSpec,
    MixerSpec,
    ModelSpec,
    MoESpec,
    active_params,
    attention_pairs,
    core_pairs,
    layer_flop_per_token,
    layer_params,
    mixer_flop_per_token,
    mixer_params,
    mtp_block,
    total_params,
    train_flop_per_token,
)
from sim.ops import Op
from sim.plan import Plan
from sim.routing import parse_routing, resolve
from sim.run import Simulation
from sim.scenario import Scenario
from sim.workload import Workload

SEQ = 4096
HYBRIDS = (
    "Qwen3-Next-80B-A3B", "Granite-4.0-H-Tiny", "Jamba-v0.1", "MiniMax-Text-01", "Kimi-Linear-48B-A3B", "LFM2-8B-A1B",
    "Nemotron-3-Super", "Llama4-Scout", "LongCat-Flash", "Arctic-480B", "Gemma2-9B", "Pythia-12B",
)  # fmt: skip


def context(model: ModelSpec, plan: Plan, seq: int = SEQ) -> Context:
    work = Workload(seq_tokens=seq, global_batch_seqs=64)
    profile = replace(software("megatron-bridge-26.04"), capacity_factor=None)
    return Context(model=model, workload=work, plan=plan, software=profile)


def flop(ops: tuple[Op, ...], *passes: str) -> float:
    return float(sum(float(op.flop) for op in ops if op.pass_ in passes))


def kinds(model: ModelSpec) -> tuple[LayerSpec, ...]:
    return model.layer_kinds()[0]


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize("degrees", [{"tp": 1}, {"tp": 2}, {"cp": 2}])
def test_forward_flop_is_the_models(name: str, degrees: dict[str, int]) -> None:
    """Summed over the ranks that share a layer; what every rank of a tensor-parallel group repeats is not divided."""
    model = load_model(name)
    tp, cp = degrees.get("tp", 1), degrees.get("cp", 1)
    ctx = context(model, Plan(dp=4, edp=4 * tp * cp, **degrees))
    for layer in kinds(model):
        ops = layer_ops(ctx, layer)
        want = layer_flop_per_token(layer, model.hidden_dim, SEQ) * SEQ
        shared_keys = layer.mixer is not None and layer.mixer.key_heads < tp  # their scores run on every rank
        mamba1 = layer.mixer is not None and layer.mixer.kind == "mamba1"
        if not (tp > 1 and (shared_keys or mamba1)):
            assert flop(ops, "forward") * tp * cp == pytest.approx(want, rel=1e-9)
        assert flop(ops, "backward", "wgrad") * tp * cp == pytest.approx(2 * want, rel=0.25)


def test_parameters_of_published_mixers() -> None:
    """Weights of one mixer, added up by hand from its matrices."""
    qwen = next(x.mixer for x in load_model("Qwen3-Next-80B-A3B").layers if x.mixer)
    p = mixer_params(qwen, 2048)
    projections = 2048 * (2 * 16 * 128 + 2 * 32 * 128) + 2048 * 2 * 32 + 32 * 128 * 2048
    assert p.split + p.whole == projections + 4 * (2 * 16 * 128 + 32 * 128) + 2 * 32 + 128
    nano = next(x.mixer for x in load_model("Nemotron-3-Nano").layers if x.mixer)
    p = mixer_params(nano, 2688)
    inner, keys = 64 * 64, 8 * 128
    assert p.split + p.whole == 2688 * (2 * inner + 2 * keys + 64) + inner * 2688 + 5 * (inner + 2 * keys) + 192 + inner


def spec(kind: str, **changes: int) -> MixerSpec:
    sizes = {"heads": 8, "head_dim": 64, "key_heads": 8, "key_dim": 32, "conv_kernel": 4, "chunk": 64, "rank": 16}
    return MixerSpec(kind=kind, **(sizes | changes))  # type: ignore[arg-type]


def test_a_chunk_of_the_scan_counted_product_by_product() -> None:
    """SSD of one chunk: scores, values, state made, state read; the delta rule has four more products."""
    c, n, p, h = 64, 32, 64, 8
    m = spec("lightning", conv_kernel=0)
    projections = 2 * 512 * (m.in_dim + m.inner_dim)
    per_chunk = h * (2 * c * c * n + 2 * c * c * p + 2 * c * n * p + 2 * c * n * p)
    assert mixer_flop_per_token(m, 512) * c == pytest.approx(projections * c + per_chunk)
    m = spec("gated_delta", conv_kernel=0)
    projections = 2 * 512 * (m.in_dim + m.inner_dim)
    more = h * (2 * c * c * n + 2 * c * c * n + 2 * c * c * p + 2 * c * n * p)
    assert mixer_flop_per_token(m, 512) * c == pytest.approx(projections * c + per_chunk + more)


@pytest.mark.parametrize("kind", MIXERS)
def test_a_mixer_costs_the_same_per_token_at_any_length(kind: str) -> None:
    layer = LayerSpec(mixer=spec(kind), ffn_dim=1024)
    assert layer_flop_per_token(layer, 512, 1 << 20) == layer_flop_per_token(layer, 512, 1024)
    full = LayerSpec(attention=AttentionSpec(heads=8, kv_heads=8, head_dim=64, v_head_dim=64), ffn_dim=1024)
    assert layer_flop_per_token(full, 512, 1 << 20) > 10 * layer_flop_per_token(layer, 512, 1 << 20)


@settings(max_examples=60, deadline=None)
@given(seq=st.integers(1, 400), chunk=st.integers(1, 400))
def test_chunked_pairs_are_the_mean_over_queries(seq: int, chunk: int) -> None:
    att = AttentionSpec(heads=1, kv_heads=1, head_dim=1, v_head_dim=1, chunk=chunk)
    exact = sum(i % chunk + 1 for i in range(seq)) / seq
    assert core_pairs(att, seq) == pytest.approx(exact, abs=0.51)  # the diagonal's half, as in s/2


def test_sparse_attention_sees_its_keys_and_pays_for_choosing_them() -> None:
    model = load_model("DeepSeek-V3.2")
    dense, att = load_model("DeepSeek-V3").layers[-1], model.layers[-1].attention
    assert core_pairs(att, 65536) == attention_pairs(65536, 2048)
    long = [layer_flop_per_token(x, 7168, 131072) for x in (model.layers[-1], dense)]
    short = [layer_flop_per_token(x, 7168, 2048) for x in (model.layers[-1], dense)]
    assert long[0] < long[1] / 2 and short[0] > short[1]
    chosen = 2 * (1536 * 64 * 128 + 7168 * (128 + 64)) + 2 * 2048 / 2 * 64 * 128
    assert short[0] - short[1] == pytest.approx(chosen)


@pytest.mark.parametrize("kind", MIXERS)
def test_a_mixer_saves_per_token_and_divides_by_tp(kind: str) -> None:
    base = load_model("Llama3-8B")
    layer = LayerSpec(mixer=spec(kind), ffn_dim=1024)
    model = replace(base, hidden_dim=512, layers=(layer, layer))

    def saved(plan: Plan, seq: int) -> float:
        return float(sum(np.asarray(op.saved_bytes) for op in layer_ops(context(model, plan, seq), layer)))

    one, two = saved(Plan(dp=4, edp=4), 4096), saved(Plan(dp=4, edp=8, tp=2), 4096)
    assert saved(Plan(dp=4, edp=4), 8192) == pytest.approx(2 * one, rel=1e-6)
    assert saved(Plan(dp=4, edp=8, cp=2), 4096) == pytest.approx(one / 2, rel=1e-6)
    assert two < 0.75 * one


def test_context_parallel_mixers_swap_tokens_for_heads_twice() -> None:
    model = load_model("Nemotron-3-Nano")
    layer = next(x for x in model.layers if x.mixer)
    swaps = [op for op in layer_ops(context(model, Plan(dp=2, edp=8, cp=4)), layer) if op.collective == "all_to_all"]
    assert len(swaps) == 4 and {op.axis for op in swaps} == {"cp"}
    forward = [op for op in swaps if op.pass_ == "forward"]
    assert layer.mixer is not None
    assert float(forward[0].bytes) == SEQ / 4 * layer.mixer.conv_dim * 2
    assert float(forward[1].bytes) == SEQ / 4 * layer.mixer.inner_dim * 2


def test_latent_experts_exchange_narrow_rows() -> None:
    model = load_model("Nemotron-3-Super")
    layer = next(x for x in model.layers if x.moe)
    assert layer.moe is not None and layer.moe.latent_dim == 1024
    wide = replace(layer, moe=replace(layer.moe, latent_dim=0))
    ctx = context(model, Plan(dp=8, ep=8, edp=1))

    def sent(x: LayerSpec) -> float:
        return float(sum(np.asarray(op.bytes) for op in layer_ops(ctx, x) if op.axis == "ep"))

    assert sent(wide) == pytest.approx(4 * sent(layer))
    ours, theirs = (layer_params(x, 4096) for x in (layer, wide))
    assert theirs.routed == 4 * ours.routed and ours.replicated - theirs.replicated == 2 * 4096 * 1024


def test_latent_rows_are_cast_at_their_own_width() -> None:
    """An 8-bit dispatch casts what it sends: rows of the latent width."""
    layer = next(x for x in load_model("Nemotron-3-Super").layers if x.moe)
    assert layer.moe is not None
    wide = replace(layer, moe=replace(layer.moe, latent_dim=0))
    ctx = context(load_model("Nemotron-3-Super"), Plan(dp=8, ep=8, edp=1))
    ctx = replace(ctx, software=replace(ctx.software, dispatcher="deepep", fp8_dispatch=True))
    casts = [
        sum(float(np.asarray(op.bytes)) for op in layer_ops(ctx, x) if op.name == "dispatch.quantise")
        for x in (layer, wide)
    ]
    assert casts[1] == pytest.approx(4 * casts[0]) and casts[0] > 0.0


@pytest.mark.parametrize("name", ["Nemotron-3-Super", "LongCat-Flash"])
def test_traffic_between_ranks_counts_the_rows_that_travel(name: str) -> None:
    """Of the latent width, and without those for experts that do nothing."""
    model = load_model(name)
    moe = next(x.moe for x in model.layers if x.moe is not None)
    scenario = Scenario(
        model=model, cluster=cluster("dgx-h100", gpus=8), software=software("megatron-lm", device="H100", arch="moe"),
        workload=Workload(seq_tokens=SEQ, global_batch_seqs=16), plan=Plan(dp=8, ep=8, edp=1),
        routing=resolve(parse_routing("zipf:0.5"), model),
    )  # fmt: skip
    found = with_imbalance(Simulation(scenario).report(trace=False), scenario).imbalance
    assert found is not None
    sent = SEQ * moe.rows_per_token * moe.row_dim(model.hidden_dim) * 2
    np.testing.assert_allclose(np.asarray(found.traffic_bytes).sum(axis=1), sent)


def test_zero_experts_take_rows_and_hold_nothing() -> None:
    """512 of 768 choices compute: 8 of 12 in the mean, the paper's figure."""
    model = load_model("LongCat-Flash")
    moe = next(x.moe for x in model.layers if x.moe)
    assert moe.rows_per_token == 8.0
    layer = next(x for x in model.layers if x.moe)
    plain = replace(layer, moe=replace(moe, zero_experts=0, top_k=8))
    same = layer_params(layer, 6144).total - layer_params(plain, 6144).total
    assert same == 256 * (6144 + 1)  # rows of the router and their biases
    ctx = context(model, Plan(dp=8, ep=8, edp=1))
    bytes_ = [
        sum(float(np.asarray(op.bytes)) for op in layer_ops(ctx, x) if op.name in ("dispatch", "combine"))
        for x in (layer, plain)
    ]
    assert bytes_[0] == pytest.approx(bytes_[1])


def test_a_residual_ffn_stands_beside_the_experts() -> None:
    layer = load_model("Arctic-480B").layers[0]
    assert layer.moe is not None
    alone = replace(layer, moe=replace(layer.moe, residual_ffn_dim=0))
    assert layer_params(layer, 7168).total - layer_params(alone, 7168).total == 3 * 7168**2 + 7168
    assert active_params(load_model("Arctic-480B")) > 17e9


def test_prediction_blocks_of_hybrids_hold_attention_and_experts() -> None:
    model = load_model("Nemotron-3-Super")
    block = mtp_block(model)
    assert [x.attention.kind for x in block] == ["gqa", "none"] and block[1].moe is not None
    assert mtp_block(load_model("DeepSeek-V3")) == load_model("DeepSeek-V3").layers[-1:]
    assert train_flop_per_token(model, SEQ, with_mtp=True) > train_flop_per_token(model, SEQ)


def test_halves_that_are_not_there_cost_nothing() -> None:
    model = load_model("Nemotron-3-Nano")
    ctx = context(model, Plan(dp=8, edp=8))
    for layer in kinds(model):
        names = {op.name.split(".")[0] for op in layer_ops(ctx, layer)}
        assert ("attn_norm" in names) == layer.mixes
        assert ("moe_norm" in names) == (layer.moe is not None)
        assert "fc1" not in names


def test_both_halves_at_once_save_a_pass_over_the_stream() -> None:
    model = load_model("Pythia-12B")
    ctx = context(model, Plan(dp=8, edp=8))
    layer = model.layers[0]
    moved = [
        sum(float(np.asarray(op.bytes)) for op in layer_ops(ctx, x) if op.name.endswith(".residual"))
        for x in (layer, replace(layer, parallel=False))
    ]
    assert moved[0] == pytest.approx(moved[1] * 4 / 6)


@pytest.mark.parametrize(
    ("name", "words"),
    [("Qwen3-Next-80B-A3B", "core without softmax"), ("GLM-5", "indexer of sparse attention")],
)
def test_prices_without_a_table_say_so(name: str, words: str) -> None:
    plan = Plan(dp=8, pp=4, ep=8, edp=1)
    scenario = Scenario(
        model=load_model(name), cluster=cluster("dgx-h100", gpus=32), software=software("megatron-bridge-26.04"),
        workload=Workload(seq_tokens=SEQ, global_batch_seqs=64), plan=plan,
    )  # fmt: skip
    report = Simulation(scenario).report()
    assert any(words in note and "assumed" in note for note in report.provenance)


@pytest.mark.parametrize("moe", [MoESpec(num_experts=8, top_k=2, ffn_dim=64), None])
def test_total_is_the_sum_of_its_layers(moe: MoESpec | None) -> None:
    base = load_model("Llama3-8B")
    layers = tuple(LayerSpec(mixer=spec(kind), moe=moe, ffn_dim=0 if moe else 128) for kind in MIXERS)
    model = replace(base, hidden_dim=512, vocab_size=1000, layers=layers)
    per_layer = [layer_params(x, 512).total for x in layers]
    assert total_params(model) == sum(per_layer) + 2 * 1000 * 512 + 512
