"""Compressed attention, hyper-connections and hash routing (DeepSeek-V4): closed forms and conservation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles.catalogue import cluster, software
from hwprofiles.errors import UserError
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.build.matrices import layer_matrices
from sim.build.streams import stream_passes
from sim.cost.model import CostModel
from sim.cost.step import StepCost
from sim.families import load_model
from sim.families.toml_model import read_toml_model
from sim.model import (
    LayerSpec,
    ModelSpec,
    attention_pairs,
    core_pairs,
    layer_flop_per_token,
    layer_params,
    total_params,
)
from sim.ops import Op
from sim.plan import Plan
from sim.routing import parse_routing, resolve
from sim.routing.layers import own_loads
from sim.run import Simulation
from sim.scenario import Scenario
from sim.workload import Workload

SEQ = 4096
FLASH = load_model("DeepSeek-V4-Flash")
WINDOW, SPARSE, HEAVY = (FLASH.layers[i] for i in (0, 4, 3))
KINDS = {"window": WINDOW, "sparse": SPARSE, "heavy": HEAVY}
ONE = Plan(dp=8, ep=8, edp=1)


def context(plan: Plan = ONE, *, seq: int = SEQ, model: ModelSpec = FLASH) -> Context:
    profile = replace(software("megatron-bridge-26.04"), capacity_factor=None)
    return Context(model=model, plan=plan, software=profile, workload=Workload(seq_tokens=seq, global_batch_seqs=64))


def ops_of(layer: LayerSpec, plan: Plan = ONE, *, seq: int = SEQ) -> dict[str, Op]:
    return {op.name: op for op in layer_ops(context(plan, seq=seq), layer)}


def total(ops: dict[str, Op], field: str, *passes: str) -> float:
    return sum(float(np.asarray(getattr(op, field))) for op in ops.values() if op.pass_ in passes)


def test_layers_are_those_of_the_release() -> None:
    assert [x.attention.compress_rate for x in FLASH.layers] == [0, 0, *[4, 128] * 20, 4]
    assert [bool(x.attention.index_topk) for x in FLASH.layers] == [
        x.attention.compress_rate == 4 for x in FLASH.layers
    ]
    assert [x.moe is not None and x.moe.hash_routed for x in FLASH.layers] == [True] * 3 + [False] * 40
    assert {x.streams for x in FLASH.layers} == {4} and FLASH.streams == 4
    pro = load_model("DeepSeek-V4-Pro")
    assert [x.attention.compress_rate for x in pro.layers] == [128, 128, *[4, 128] * 29, 4]


def test_parameters_of_the_attention_by_hand() -> None:
    """Flash: D 4096, 64 heads of 512, rank 1024, 8 groups of 1024 columns."""
    bare = replace(WINDOW, moe=None, streams=1, ffn_dim=0)
    p = layer_params(bare, 4096)
    assert p.attention == 1024 * 64 * 512 + 8 * 4096 * 1024 + 8192 * 4096 + 64
    assert p.replicated == 4096 * 1024 + 1024 + 4096 * 512 + 512 + 4096  # the norm in front
    heavy = layer_params(replace(bare, attention=HEAVY.attention), 4096)
    assert heavy.replicated - p.replicated == 2 * 4096 * 512 + 128 * 512 + 512
    sparse = layer_params(replace(bare, attention=SPARSE.attention), 4096)
    entries = 2 * 4096 * 1024 + 4 * 1024 + 512
    indexer = 2 * 4096 * 256 + 4 * 256 + 128 + 1024 * 64 * 128 + 4096 * 64
    assert sparse.replicated - p.replicated == entries + indexer
    assert heavy.attention == sparse.attention == p.attention


def test_parameters_of_hyper_connections_by_hand() -> None:
    plain = replace(FLASH, layers=tuple(replace(x, streams=1) for x in FLASH.layers))
    half = 24 * 4 * 4096 + 24 + 3
    collapse = 4 * 4 * 4096 + 4 + 1
    assert total_params(FLASH) - total_params(plain) == 43 * 2 * half + collapse


@pytest.mark.parametrize(("rate", "topk"), [(4, 512), (4, 64), (128, 0)])
@pytest.mark.parametrize("seq", [1024, 8192])
def test_pairs_are_the_mean_over_queries(rate: int, topk: int, seq: int) -> None:
    """The window, and the whole entries behind the query or the indexer's choice of them."""
    att = replace(HEAVY.attention, compress_rate=rate, index_topk=topk)
    seen = [min(i, 128) + min(i // rate, topk or seq) for i in range(1, seq + 1)]
    assert core_pairs(att, seq) == pytest.approx(sum(seen) / seq, abs=1.1)  # halves of the diagonal and of an entry
    assert core_pairs(WINDOW.attention, seq) == attention_pairs(seq, 128)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [ONE, Plan(tp=4, dp=2, ep=8, edp=1)], ids=["tp1", "tp4"])
def test_flop_of_the_ops_are_those_of_the_layer(kind: str, plan: Plan) -> None:
    """Forward, the work that tensor parallelism divides and that it does not, over all of its ranks."""
    layer = KINDS[kind]
    ops = ops_of(layer, plan)
    made = plan.tp * total(ops, "flop", "forward")
    repeated = ("index_q", "index_scores")  # on the tokens of all, by every rank of the group
    made -= (plan.tp - 1) * sum(float(np.asarray(ops[x].flop)) for x in repeated if x in ops)
    assert made == pytest.approx(SEQ * layer_flop_per_token(layer, 4096, SEQ), rel=1e-9)
    assert total(ops, "flop", "backward", "wgrad") > 1.9 * total(ops, "flop", "forward")


def test_long_sequences_cost_entries_not_keys() -> None:
    """At 64 K tokens a sparse layer's core sees 640 keys and its indexer a quarter of the square; DeepSeek-V3's all."""
    ops = ops_of(SPARSE, seq=65536)
    tokens, heads = 65536, 64
    pairs = attention_pairs(65536, 128) + attention_pairs(65536 / 4, 512)
    assert float(ops["core_attn"].flop) == pytest.approx(2.0 * tokens * pairs * heads * 1024)
    assert ops["core_attn"].window == 128 + 512
    assert float(ops["index_scores"].flop) == pytest.approx(2.0 * tokens * 65536 / 4 / 2 * 64 * 128)
    assert ops_of(HEAVY, seq=65536)["core_attn"].window == 128 + 512  # 65536 / 128 entries
    assert ops_of(WINDOW)["core_attn"].window == 128


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_are_kept_once(kind: str) -> None:
    att = KINDS[kind].attention
    entries = SEQ / att.compress_rate if att.compress_rate else 0.0
    kept = 2 * SEQ * 64 * 512 * 2 + (SEQ + entries) * 512 * 2 + SEQ * 64 * 4
    assert float(np.asarray(ops_of(KINDS[kind])["core_io"].saved_bytes)) == kept


def test_context_parallelism_gathers_entries_not_keys() -> None:
    sizes = {
        name: float(np.asarray(ops_of(layer, Plan(cp=4, dp=2, ep=8, edp=1))["cp_entries"].bytes))
        for name, layer in KINDS.items()
    }
    near = 4 * 128 * 512 * 2
    assert sizes["window"] == near
    assert sizes["heavy"] == near + SEQ / 128 * 512 * 2
    assert sizes["sparse"] == near + SEQ / 4 * (512 + 128) * 2


def test_the_output_projection_goes_by_groups() -> None:
    ops, halved = ops_of(WINDOW), ops_of(WINDOW, Plan(tp=2, dp=4, ep=8, edp=1))
    assert (ops["out_group"].m, ops["out_group"].n, ops["out_group"].k) == (SEQ * 8, 1024, 4096)
    assert halved["out_group"].m == SEQ * 4 and halved["attn_out"].k == 4 * 1024
    # each group's weight has a gradient of its own, together as many as the second product's (8 x 4096 = 4096 x 8)
    assert float(ops["out_group.wgrad"].bytes) == float(ops["attn_out.wgrad"].bytes) > 0.0
    assert float(halved["out_group.wgrad"].bytes) == float(ops["out_group.wgrad"].bytes) / 2


def test_matrices_add_up_to_the_weights() -> None:
    """Of attention and hyper-connections: all but norms, sinks and biases."""
    for layer in KINDS.values():
        bare = replace(layer, moe=None, ffn_dim=0)
        held = sum(float(np.asarray(x.held)) for x in layer_matrices(context(), bare) if np.all(np.asarray(x.rows) > 0))
        assert held == pytest.approx(layer_params(bare, 4096).total, rel=2e-3)
        assert held < layer_params(bare, 4096).total


def test_streams_move_and_keep_what_their_number_says() -> None:
    tensor = SEQ * 4096 * 2
    plain, wide = ops_of(replace(SPARSE, streams=1)), ops_of(SPARSE)
    assert stream_passes(4) == (18, 31)
    for half in ("attn_norm", "moe_norm"):
        assert f"{half}.residual" not in wide and f"{half}.streams" not in plain
        assert float(wide[f"{half}.streams"].bytes) == 18 * tensor
        assert float(wide[f"{half}.streams.bwd"].bytes) == 31 * tensor
    more = total(wide, "saved_bytes", "forward") - total(plain, "saved_bytes", "forward")
    assert more == pytest.approx(2 * 5 * tensor)  # four streams and the half's result


def test_full_recompute_keeps_the_streams_alone() -> None:
    kept = total(ops_of(SPARSE, replace(ONE, recompute=("full",))), "saved_bytes", "forward")
    assert kept == 4 * SEQ * 4096 * 2


def test_stages_send_every_stream() -> None:
    machines = cluster("dgx-h100", gpus=16)
    plan = Plan(pp=2, dp=8, ep=8, edp=1)
    narrow = replace(FLASH, layers=tuple(replace(x, streams=1) for x in FLASH.layers))
    sent = []
    for model in (FLASH, narrow):
        ctx = context(plan, model=model)
        step = StepCost(CostModel(machines, ctx.software), ctx)
        sent.append(float(np.max(step.p2p(1).network_s[0])))
    assert sent[0] == pytest.approx(4 * sent[1])


def test_a_table_takes_the_place_of_the_choice() -> None:
    chosen = ops_of(SPARSE)
    looked_up = ops_of(FLASH.layers[2])
    assert float(looked_up["router_topk"].bytes) == float(chosen["router_topk"].bytes) / 3
    assert float(looked_up["router"].flop) == float(chosen["router"].flop)
    assert layer_params(SPARSE, 4096).total - layer_params(FLASH.layers[2], 4096).total == 256  # no correction bias


def test_a_run_says_what_it_rests_on() -> None:
    scenario = Scenario(
        model=FLASH, cluster=cluster("dgx-h100", gpus=128), software=software("megatron-bridge-26.04"),
        workload=Workload(seq_tokens=SEQ, global_batch_seqs=256, with_mtp=True),
        plan=Plan(pp=4, ep=32, dp=32, account_ends=True),
    )  # fmt: skip
    report = Simulation(scenario).report()
    for words in ("hyper-connections", "compressor of attention", "indexer of sparse attention"):
        assert any(words in note and "assumed" in note for note in report.provenance)
    assert report.bound_s <= report.step_s.value


def test_layers_routed_by_a_table_share_the_popularity_of_the_model() -> None:
    """A law or a table of all layers is one popularity, in which every layer has a row of its own."""
    routing = resolve(parse_routing("lognormal:0.6"), FLASH, seed=0)
    assert len(routing.loads) == 1 and routing.loads[0].num_layers == 43
    assert own_loads(FLASH, routing) == {layer: layer for layer in range(43)}
    chosen = [replace(x, moe=replace(x.moe, expert_choice=True)) for x in FLASH.layers if x.moe is not None]
    assert own_loads(replace(FLASH, layers=tuple(chosen)), routing) == {}


BASE = {
    "name": "mine", "hidden_dim": 64, "vocab_size": 100, "attention": {"heads": 2, "kv_heads": 2, "head_dim": 32},
    "moe": {"num_experts": 4, "top_k": 1, "ffn_dim": 8, "router_bias": True, "hash_routed": True},
    "source": {"kind": "user", "title": "t", "where": "w", "date": "2026-01-01"},
}  # fmt: skip


def test_runs_of_runs_and_what_they_state_otherwise() -> None:
    runs = [{"repeat": 1}, {"repeat": 3, "layers": [{"window": 16}, {"repeat": 2, "hash_routed": False}]}]
    layers = read_toml_model(BASE | {"layers": runs}, "model.toml").layers
    assert [x.attention.window for x in layers] == [None, *[16, None, None] * 3]
    assert [x.moe is not None and x.moe.hash_routed for x in layers] == [True, *[True, False, False] * 3]
    assert all(x.moe is not None and x.moe.router_bias for x in layers)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([{"repeat": 2, "layers": [{"windw": 16}]}], "[[layers]] 1: [[layers]] 1: unknown key 'windw'"),
        ([{"layers": [{}], "window": 16}], "[[layers]] 1: unknown key 'window'"),
        ([{"layers": [{"layers": [{}]}]}], "[[layers]] 1: unknown key 'layers'"),
        ([{"layers": [{"repeat": 9000}], "repeat": 9000}], "more than 10000 layers"),
        ([{"compress_rate": 4}], 'need kind "shared_kv"'),
    ],
)
def test_runs_of_runs_that_are_refused(runs: list[object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_toml_model(BASE | {"layers": runs}, "model.toml")
    assert words in str(caught.value)
