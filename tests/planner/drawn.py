"""Plans drawn from all that Megatron-LM can express: layouts, switches of the trainer and options of the training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner.export import Handover
from planner.rules import RANK_ORDERS, check
from sim.mesh import RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from sim.workload import OFFLOAD_MODULES, STATE_BYTES, Offload, Optimizer, RampUp
from tests.planner.handed import handover

MODELS = ("Qwen3-30B-A3B", "Mixtral-8x7B", "DeepSeek-V3", "DeepSeek-V2-Lite", "Llama3-8B", "GPT-OSS-20B")
# Model -> modules of it that can be recomputed apart.
MODULES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")
GRAPHS: tuple[tuple[str, ...], ...] = (
    (), ("attn",), ("attn", "moe_router"), ("moe_router", "moe_preprocess"), ("attn", "mlp"), ("full_iteration",),
)  # fmt: skip
PRECISIONS = ("bf16", "fp16", "fp8", "fp8_block", "mxfp8", "nvfp4")
TRIES = 400


@cache
def profile(model: str) -> SoftwareProfile:
    """The plain profile whose switches are drawn."""
    return catalogue.software("megatron-lm", device="H100", model=model, arch="moe")


def drawn(seed: int) -> Handover:
    """A handover that keeps every rule of Megatron-LM, the same for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(TRIES):
        asked = _once(rng)
        if asked is None:
            continue
        parts = (asked.plan, asked.model, asked.cluster, asked.software, asked.workload)
        if not check(*parts, target="megatron-lm", ranks=asked.ranks):
            return asked
    raise AssertionError(f"no legal plan in {TRIES} draws of seed {seed}")


def _pick(rng: np.random.Generator, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _some(rng: np.random.Generator, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for value in values if rng.random() < 0.4)


def _once(rng: np.random.Generator) -> Handover | None:
    name = _pick(rng, *MODELS)
    plan = _plan(rng, len(profile_model(name).layers))
    software = _software(rng, name, plan)
    batch = plan.dp * plan.micro_batch_seqs * plan.pp * int(rng.integers(1, 4))
    fields: dict[str, Any] = {
        "seq_tokens": _pick(rng, 2048, 4096), "global_batch_seqs": batch, "precision": _pick(rng, *PRECISIONS),
        "with_mtp": profile_model(name).mtp_layers > 0 and rng.random() < 0.7, **_training(rng, plan, batch),
    }  # fmt: skip
    order = _pick(rng, *RANK_ORDERS["megatron-lm"])
    try:
        return handover(plan, model=name, software=software, ranks=RankMap(order=order), **fields)
    except UserError:  # devices that the cluster has not
        return None


@cache
def profile_model(name: str) -> ModelSpec:
    """A model of the catalogue."""
    from sim.families import load_model

    return load_model(name)


def _plan(rng: np.random.Generator, layers: int) -> Plan:
    tp, cp, pp = _pick(rng, 1, 1, 2, 4, 8), _pick(rng, 1, 1, 2, 4), _pick(rng, 1, 1, 2, 3, 4, 8)
    ep, etp = _pick(rng, 1, 2, 4, 8, 16), _pick(rng, 1, 1, tp)
    dp = _pick(rng, 1, 2, 4, 8, 3)
    if (tp * cp * dp) % (etp * ep):
        dp *= ep
    edp = max(1, tp * cp * dp // (etp * ep))
    vpp = _pick(rng, 1, 2, 3, 4) if pp > 1 else 1
    zero = _pick(rng, 1, 1, 1, 0, 2, 3)
    shard = _pick(rng, 0, 0, dp * cp // 2) if zero == 3 and dp * cp > 2 else 0
    stages, ends = None, False
    if pp > 1 and rng.random() < 0.6:
        stages, ends = (None, True) if rng.random() < 0.4 else (_stages(rng, layers, pp * vpp), False)
    return Plan(
        tp=tp, cp=cp, dp=dp, pp=pp, vpp=vpp, ep=ep, etp=etp, edp=edp, micro_batch_seqs=_pick(rng, 1, 2, 3),
        schedule="interleaved" if vpp > 1 else "1f1b", zero_stage=zero, fsdp_shard=shard, stages=stages,
        recompute=_pick(rng, (), (), ("full",), _some(rng, MODULES)),
        micro_batch_group=_pick(rng, 0, 0, pp + 1, 2 * pp) if vpp > 1 else 0, account_ends=ends,
    )  # fmt: skip


def _stages(rng: np.random.Generator, layers: int, slots: int) -> tuple[int, ...]:
    """Any split of the layers, empty stages included."""
    cuts = sorted(int(x) for x in rng.integers(0, layers + 1, size=slots - 1))
    return tuple(int(n) for n in np.diff([0, *cuts, layers]))


def _software(rng: np.random.Generator, name: str, plan: Plan) -> SoftwareProfile:
    def flip(chance: float = 0.5) -> bool:
        return bool(rng.random() < chance)

    return replace(
        profile(name),
        dispatcher=_pick(rng, "alltoall", "allgather", "deepep", "hybridep"), permute_fusion=flip(),
        router_padding=flip(0.2),
        a2a_overlap=flip(0.2), delay_wgrad=flip(), shared_expert_overlap=flip(0.3), tp_overlap=flip(),
        dp_overlap_grad=flip(), dp_overlap_param=flip(), grad_dtype=_pick(rng, "fp32", "bf16"),
        fp8_amax=_pick(rng, "producer", "history"), fp8_param_gather=flip(), flash_attention=flip(0.8),
        fused_loss=flip(), loss_fp32_logits=flip(0.8), p2p_overlap=flip(0.8), precision_aware_optimizer=flip(),
        cuda_graph=_pick(rng, *GRAPHS), capacity_factor=_pick(rng, None, None, 1.0, 1.25),
        activation_offload_layers=_pick(rng, 0, 0, 0, 4) if plan.pp == 1 else 0,
    )  # fmt: skip


def _training(rng: np.random.Generator, plan: Plan, batch: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    kind = _pick(rng, "plain", "plain", "dtypes", "muon", "sgd", "away", "modules", "ramp")
    if kind == "dtypes":
        out["optimizer"] = Optimizer(
            main_params=_pick(rng, "fp32", "fp16"), main_grads=_pick(rng, "fp32", "bf16"),
            exp_avg=_pick(rng, *STATE_BYTES), exp_avg_sq=_pick(rng, *STATE_BYTES),
        )  # fmt: skip
    elif kind == "muon":
        out["optimizer"] = Optimizer(
            name="muon", ns_steps=int(rng.integers(1, 9)), tp_mode=_pick(rng, "blockwise", "duplicated")
        )
    elif kind == "sgd":
        out["optimizer"] = Optimizer(name="sgd")
    elif kind == "away":
        out["offload"] = Offload(optimizer=_pick(rng, 0.25, 0.5, 1.0), overlap=bool(rng.random() < 0.5))
    elif kind == "modules":
        out["offload"] = Offload(modules=_some(rng, OFFLOAD_MODULES))
    elif kind == "ramp":
        unit = plan.micro_batch_seqs * plan.dp
        if batch > unit:
            samples = int(rng.integers(1, 10**6))
            out["ramp_up"] = RampUp(
                start=unit, increment=unit, samples=samples, train_samples=_pick(rng, 0, 10 * samples)
            )
    return out
