"""Model FLOP of a training step: what MFU counts, under packed documents and frozen weights too."""

from __future__ import annotations

from sim.build.context import Context
from sim.build.layer import trained_layer_params
from sim.lengths import mean_pairs
from sim.model import ModelSpec, core_pairs, mixer_core_flop_per_token, train_flop_per_token
from sim.plan import Plan
from sim.scenario import Scenario


def step_flop_per_token(scenario: Scenario) -> float:
    """FLOP per trained token: 3 x forward of layers and head.

    Packed: attention inside documents alone. Adapters: frozen products have no weight gradient (2 x), attention stays
    at 3 x, 6 per adapter parameter that a token uses.
    """
    model, work = scenario.model, scenario.workload
    full = train_flop_per_token(model, work.seq_tokens, with_mtp=work.with_mtp)
    core = _core_flop(scenario, model)
    if work.lengths is not None:
        full += 3.0 * (core - _core_flop(scenario, model, packed=False))
    if work.lora is None:
        return full
    return full - (full / 3.0 - core) + 6.0 * _adapter_params(scenario)


def _core_flop(scenario: Scenario, model: ModelSpec, *, packed: bool = True) -> float:
    """Forward FLOP of the cores of attention and mixers per token, that of prediction blocks as the last layer's."""
    work = scenario.workload
    total = []
    for layer in model.layers:
        att = layer.attention
        pairs = mean_pairs(work, att) if packed else core_pairs(att, work.seq_tokens)
        mixing = mixer_core_flop_per_token(layer.mixer) if layer.mixer is not None else 0.0
        total.append(2.0 * pairs * att.heads * (att.head_dim + att.v_head_dim) + mixing)
    return sum(total) + (model.mtp_layers * total[-1] if work.with_mtp else 0.0)


def _adapter_params(scenario: Scenario) -> float:
    """Adapter parameters that one token uses, on one rank that holds all."""
    ctx = Context(model=scenario.model, workload=scenario.workload, plan=Plan(), software=scenario.software)
    kinds, index = scenario.model.layer_kinds()
    used = []
    for layer in kinds:
        dense, routed = (float(x) for x in trained_layer_params(ctx, layer))
        shared = "experts_shared" in (scenario.workload.lora.targets if scenario.workload.lora else ())
        experts = 1.0 if layer.moe is None or shared else layer.moe.num_experts
        used.append(dense + routed * (layer.moe.top_k if layer.moe else 0) / experts)
    return sum(used[i] for i in index)
