"""Models without a vocabulary: patches in, a linear layer out, no causal mask, layers modulated by a condition."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwprofiles.catalogue import cluster, software
from hwprofiles.errors import UserError
from sim.build.context import Context
from sim.build.layer import end_ops, layer_ops
from sim.cost.footprint import end_params, head_working_bytes
from sim.cost.model import CostModel
from sim.families import load_model
from sim.families.toml_model import read_toml_model
from sim.model import (
    LayerSpec,
    ModelSpec,
    active_params,
    core_pairs,
    embedding_params,
    layer_flop_per_token,
    layer_params,
    total_params,
    train_flop_per_token,
)
from sim.ops import Op
from sim.plan import Plan
from sim.routing import parse_routing, resolve
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Workload

EXAMPLES = Path(__file__).parents[2] / "examples"
VISION, DIFFUSION = (load_model(str(EXAMPLES / f"model-{name}.toml")) for name in ("vision", "diffusion"))
ONE = Plan(dp=8, ep=8, edp=1)


def context(model: ModelSpec, plan: Plan = ONE) -> Context:
    assert model.image is not None
    profile = replace(software("megatron-bridge-26.04"), capacity_factor=None)
    work = Workload(seq_tokens=model.image.tokens, global_batch_seqs=64)
    return Context(model=model, plan=plan, software=profile, workload=work)


def flop(ops: tuple[Op, ...]) -> float:
    return float(sum(float(np.asarray(op.flop)) for op in ops if op.pass_ == "forward"))


def edited(name: str, **changes: Any) -> ModelSpec:
    """The example with keys changed, None = left out; nested keys as table__key."""
    data: dict[str, Any] = tomllib.loads((EXAMPLES / f"model-{name}.toml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        *tables, last = key.split("__")
        table = data
        for step in tables:
            table = table.setdefault(step, {})
        if value is None:
            table.pop(last)
        else:
            table[last] = value
    return read_toml_model(data, "model.toml")


@pytest.mark.parametrize(
    ("model", "total", "active"),
    [(VISION, 7.2e9, None), (DIFFUSION, 16.5e9, 3.1e9)],
    ids=["V-MoE-H/14", "DiT-MoE-G/2-16E2A"],
)
def test_parameters_meet_the_published_counts(model: ModelSpec, total: float, active: float | None) -> None:
    """arXiv 2106.05974 (7.2B) and 2407.11633 (16.5B, 3.1B activated; to the two digits it states)."""
    assert total_params(model) == pytest.approx(total, rel=0.006)
    if active is not None:
        assert active_params(model) == pytest.approx(active, rel=0.05)


def test_the_smaller_diffusion_models_of_the_paper_come_out_too() -> None:
    """XL/2-8E2A: 28 layers of 1152, 8 experts; published as 4.1B with 1.5B activated."""
    changes = {
        "hidden_dim": 1152, "attention__head_dim": 72, "moe__num_experts": 8, "moe__ffn_dim": 4608,
        "moe__shared_ffn_dim": 2304, "layers": [{"repeat": 28}],
    }  # fmt: skip
    model = edited("diffusion", **changes)
    assert 4.1e9 < total_params(model) < 4.2e9
    assert active_params(model) == pytest.approx(1.5e9, rel=0.01)


def test_sequences_follow_from_the_image() -> None:
    assert VISION.image is not None and DIFFUSION.image is not None
    assert VISION.image.tokens == 16 * 16 + 1 and DIFFUSION.image.tokens == 32 * 32
    assert VISION.vocab_size == DIFFUSION.vocab_size == 0


def test_parameters_of_the_ends_by_hand() -> None:
    vision = (14 * 14 * 3 + 1 + 1 + 257) * 1280 + 1281 * 18291 + 2 * 1280
    assert embedding_params(VISION) == vision
    d = 1408
    diffusion = (2 * 2 * 4 + 1) * d + (256 + 1) * d + (d + 1) * d + 1001 * d + (d + 1) * 2 * d + (d + 1) * 32
    assert embedding_params(DIFFUSION) == diffusion


@pytest.mark.parametrize("model", [VISION, DIFFUSION], ids=["vision", "diffusion"])
@pytest.mark.parametrize("tp", [1, 2])
def test_ends_of_a_rank_are_whole(model: ModelSpec, tp: int) -> None:
    ctx = context(model, Plan(tp=tp, dp=8 // tp, ep=8, edp=1))
    ends = end_params(ctx, embedding=True, head=True)
    # the bias of the last norm is not counted on ranks, for any model
    assert float(ends.dense) == pytest.approx(embedding_params(model), rel=1e-4)


def test_modulation_takes_the_place_of_the_norms_weights() -> None:
    layer = DIFFUSION.layers[0]
    plain = replace(layer, modulation=0)
    made = layer_params(layer, 1408).total - layer_params(plain, 1408).total
    assert made == 6 * 1408 * 1409 - 2 * 1408


def test_without_a_mask_a_query_sees_all() -> None:
    att = VISION.layers[0].attention
    assert core_pairs(att, 257) == 257 == 2 * core_pairs(replace(att, causal=True), 257)
    assert core_pairs(replace(att, window=64), 257) == 64
    assert core_pairs(replace(att, chunk=100), 257) == 100


def test_the_core_costs_twice_that_of_a_causal_one() -> None:
    ctx = context(DIFFUSION)
    layer = DIFFUSION.layers[0]
    masked = replace(layer, attention=replace(layer.attention, causal=True))
    full, half = (next(op for op in layer_ops(ctx, x) if op.name == "core_attn") for x in (layer, masked))
    assert full.flop == 2 * half.flop and full.seq == half.seq and full.saved_bytes == half.saved_bytes
    cost = CostModel(cluster("dgx-h100", gpus=8), ctx.software)
    floor = cost.factors.kernel_floor_s
    times = [float(np.asarray(cost.compute.seconds(op))) - floor for op in (full, half)]
    assert times[0] == pytest.approx(2 * times[1])


@pytest.mark.parametrize("model", [VISION, DIFFUSION], ids=["vision", "diffusion"])
def test_flop_of_the_ops_are_those_of_the_model(model: ModelSpec) -> None:
    """Forward, both ends included, but for the condition's own embedding (a row a sequence)."""
    assert model.image is not None
    ctx, tokens = context(model), model.image.tokens
    layers = sum(flop(layer_ops(ctx, x)) for x in model.layers)
    assert layers == pytest.approx(
        tokens * sum(layer_flop_per_token(x, model.hidden_dim, tokens) for x in model.layers)
    )
    conditioned = 0.0
    if model.condition is not None:
        conditioned = 2.0 * model.hidden_dim * (model.condition.frequencies + model.hidden_dim)
    ends = flop(end_ops(ctx, "embedding")) + flop(end_ops(ctx, "head")) - conditioned
    assert 3.0 * (layers + ends) == pytest.approx(tokens * train_flop_per_token(model, tokens))


def test_no_logits_and_no_table_of_a_vocabulary() -> None:
    """Neither in memory nor between ranks; a pooled head works on a row a sequence."""
    ctx = context(VISION, Plan(tp=2, dp=4, ep=8, edp=1))
    names = {op.name for op in (*end_ops(ctx, "embedding"), *end_ops(ctx, "head"))}
    assert not any(op.kind == "collective" for op in (*end_ops(ctx, "embedding"), *end_ops(ctx, "head")))
    assert "patches" in names and "patches.dgrad" not in names and "embedding" not in names
    head = next(op for op in end_ops(ctx, "head") if op.name == "head")
    assert (head.m, head.n, head.k) == (1, 18291, 1280)
    rows = 257 / 2
    assert float(np.asarray(head_working_bytes(ctx))) == 6 * 18291 + 2 * rows * 1280


def test_modulation_passes_over_the_rows() -> None:
    """Shift and scale behind each norm and a gate on each result: four passes a layer, and one at the end."""
    ops = {op.name: op for op in layer_ops(context(DIFFUSION), DIFFUSION.layers[0])}
    tensor = 1024 * 1408 * 2
    assert float(ops["modulate"].bytes) == 4 * 2 * tensor and float(ops["modulate.bwd"].bytes) == 4 * 3 * tensor
    assert (ops["modulation"].m, ops["modulation"].n) == (1, 6 * 1408)
    two = replace(DIFFUSION.layers[0], modulation=2)
    fewer = {op.name: op for op in layer_ops(context(DIFFUSION), two)}
    assert float(fewer["modulate"].bytes) == 2 * 2 * tensor
    last = {op.name: op for op in end_ops(context(DIFFUSION), "head")}
    assert float(last["modulate"].bytes) == 2 * tensor and last["head"].m == 1024


def step(model: ModelSpec, law: str = "") -> float:
    assert model.image is not None
    scenario = Scenario(
        model=model, cluster=cluster("dgx-h100", gpus=8), plan=replace(ONE, micro_batch_seqs=8),
        software=replace(software("megatron-bridge-26.04"), capacity_factor=None),
        workload=Workload(seq_tokens=model.image.tokens, global_batch_seqs=64),
        routing=resolve(parse_routing(law or "balanced"), model, seed=0),
    )  # fmt: skip
    report = simulate(scenario, trace=False)
    assert report.bound_s <= report.step_s.value * (1 + 1e-9)
    return report.step_s.value


def test_experts_that_choose_are_equally_loaded() -> None:
    def choosing(layer: LayerSpec) -> LayerSpec:
        return layer if layer.moe is None else replace(layer, moe=replace(layer.moe, expert_choice=True))

    chosen = replace(DIFFUSION, layers=tuple(map(choosing, DIFFUSION.layers)))
    assert step(DIFFUSION, "zipf:1.0") > step(DIFFUSION)
    assert step(chosen, "zipf:1.0") == pytest.approx(step(chosen)) == pytest.approx(step(DIFFUSION))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("vision", {"vocab_size": 1000}, "vocab_size and [image] both say what the input is"),
        ("vision", {"head": None}, "missing key 'head'"),
        ("vision", {"head__kind": "vocabulary"}, "needs a vocabulary"),
        ("vision", {"image__patch": 15}, "size 224 is not a multiple of patch 15"),
        ("vision", {"image__depth": 3}, "unknown key 'depth'"),
        ("vision", {"mtp_layers": 1}, "mtp_layers predict tokens of a vocabulary"),
        ("vision", {"moe__hash_routed": True}, "hash_routed looks up tokens of a vocabulary"),
        ("vision", {"moe__hash_routed": True, "moe__expert_choice": True}, "keep one"),
        ("vision", {"attention__index_topk": 64}, "they need causal = true"),
        ("vision", {"attention__compress_rate": 4}, 'need kind "shared_kv"'),
        ("diffusion", {"condition__vectors": 4}, "vectors = 4 must lie between 2 and 3"),
        ("diffusion", {"residual_streams": 4, "parallel": True}, "one after the other"),
    ],
)
def test_contradictions_are_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        edited(name, **changes)
    assert words in str(caught.value)


def test_an_encoder_of_tokens_needs_no_head() -> None:
    """[head] alone, beside a vocabulary: one table, no head over it."""
    model = edited("vision", image=None, vocab_size=30_000, head={"kind": "none"}, max_positions=512)
    assert embedding_params(model) == (30_000 + 512) * 1280 + 2 * 1280
    assert train_flop_per_token(model, 512) == pytest.approx(
        3.0 * sum(layer_flop_per_token(x, 1280, 512) for x in model.layers)
    )
