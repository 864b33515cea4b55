"""Rules Megatron-LM adds (megatron-core 0.19.2), as far as they concern a layout.

Read in its argument validation, configuration classes and schedules. What the profile of the
software switches on (EP overlap, offload, ...) is taken as the user's intention.
"""

from __future__ import annotations

from functools import partial

from planner.rules.base import Context, Mask, Rule
from planner.rules.mixers import MIXER_GROUPS
from planner.rules.switches import (
    FP8_DISPATCH,
    HIERARCHICAL,
    LOW_LATENCY,
    POST_VALIDATION,
    TP_AWARE,
    TWO_BATCH,
    lack_rules,
)
from planner.rules.training import offloaded_layers
from sim.build.schedule import SCHEDULES
from sim.columns import Columns

VERSION = "0.19.2"
ARGUMENTS = "megatron-core 0.19.2 megatron/training/arguments.py"
CONFIG = "megatron-core 0.19.2 megatron/core/transformer/transformer_config.py"

# Rank orders it can be started with and the option that asks for each (megatron-core 0.19.2
# megatron/training/initialize.py and arguments.py).
RANK_ORDERS: dict[str, str] = {"tp-cp-ep-dp-pp": "", "tp-cp-ep-pp-dp": "--use-tp-pp-dp-mapping"}

_rule = partial(Rule, target="megatron-lm", version=VERSION)


def _rank_order(c: Columns, x: Context) -> bool:
    return x.ranks.order in RANK_ORDERS


def _schedule(c: Columns, x: Context) -> bool:
    return c.schedule in ("1f1b", "interleaved") or c.schedule not in SCHEDULES  # the latter: see schedule-known


def _even(c: Columns, x: Context) -> Mask | bool:
    if c.account_ends:
        return True  # first/last counts or a pipeline layout take any split
    out: Mask = x.layers % (c.pp * c.vpp) == 0
    return out


def _interleave_p2p(c: Columns, x: Context) -> Mask | bool:
    if c.schedule != "interleaved":
        return True
    least = 1 if x.software.p2p_overlap else 2
    out: Mask = (c.vpp == 1) | (c.pp > least)
    return out


def _group(c: Columns, x: Context) -> Mask | bool:
    if c.micro_batch_group or c.schedule != "interleaved":
        return True  # see micro-batch-group; other schedules have no groups
    out: Mask = (c.vpp == 1) | (x.micro_batches(c) % c.pp == 0)
    return out


def _kv(c: Columns, x: Context) -> Mask:
    out: Mask = c.tp >= 1
    for groups in x.kv_heads:
        out = out & ((groups % c.tp == 0) | (c.tp % groups == 0))
    return out


def _sp(c: Columns, x: Context) -> Mask:
    out: Mask = c.tp == 1 if x.moe and not x.software.sequence_parallel else c.tp >= 1
    return out


def _shared_recompute(c: Columns, x: Context) -> bool:
    return not ("shared_experts" in c.recompute and x.software.shared_expert_overlap)


def _layer_offload(c: Columns, x: Context) -> Mask | bool:
    count = offloaded_layers(x)
    if count == 0:
        return True
    if c.recompute or not 0 < count < x.layers:
        return False
    out: Mask = c.pp == 1
    return out


def _optimizer_offload(c: Columns, x: Context) -> bool:
    return x.software.precision_aware_optimizer or not x.software.optimizer_offload


def _overlap_on(x: Context) -> bool:
    return x.moe and x.software.a2a_overlap


def _overlap_ep(c: Columns, x: Context) -> Mask:
    out: Mask = c.ep > 1 if _overlap_on(x) else c.ep >= 1
    return out


def _overlap_vpp(c: Columns, x: Context) -> Mask:
    out: Mask = (c.pp == 1) | (c.vpp > 1) if _overlap_on(x) else c.pp >= 1
    return out


def _overlap_recompute(c: Columns, x: Context) -> bool:
    return not (_overlap_on(x) and {"full", "moe"} & set(c.recompute))


def _overlap_software(c: Columns, x: Context) -> bool:
    if not _overlap_on(x):
        return True
    mtp = x.model.mtp_layers if x.workload.with_mtp else 0
    shared = x.software.shared_expert_overlap and x.shared_width > 0
    return x.software.dispatcher != "allgather" and not shared and mtp <= 1


def _shared_dispatcher(c: Columns, x: Context) -> bool:
    overlap = x.software.shared_expert_overlap and x.shared_width > 0
    return not overlap or x.software.dispatcher != "allgather"


def _fp8_dispatcher(c: Columns, x: Context) -> bool:
    return not x.moe or x.workload.precision in ("bf16", "fp16") or x.software.dispatcher != "allgather"


def _bias_etp(c: Columns, x: Context) -> Mask:
    out: Mask = c.etp == 1 if x.expert_bias else c.etp >= 1
    return out


def _groups(c: Columns, x: Context) -> bool:
    moes = (layer.moe for layer in x.model.layers if layer.moe is not None)
    return all(moe.num_experts % moe.num_groups == 0 and moe.top_k_groups <= moe.num_groups for moe in moes)


def _fsdp_pp(c: Columns, x: Context) -> Mask:
    out: Mask = c.pp == 1 if c.zero_stage >= 2 else c.pp >= 1
    return out


def is_torch_fsdp2(x: Context) -> bool:
    """True when the profile runs torch's FSDP2 inside Megatron-LM (not Megatron-FSDP)."""
    return "fsdp2" in f"{x.software.name} {x.software.trainer}".lower()


def _fsdp2(c: Columns, x: Context) -> Mask | bool:
    if c.zero_stage != 3 or not is_torch_fsdp2(x):
        return True
    if x.model.tied_embeddings or x.workload.precision == "fp16":
        return False
    out: Mask = c.ep == 1
    return out


MEGATRON_RULES: tuple[Rule, ...] = (
    _rule(
        id="megatron-rank-order",
        text="ranks are ordered tp-cp-ep-dp-pp, or tp-cp-ep-pp-dp with --use-tp-pp-dp-mapping",
        where="--rank-order",
        remedy="use tp-cp-ep-dp-pp or tp-cp-ep-pp-dp",
        source="megatron-core 0.19.2 megatron/training/initialize.py",
        ok=_rank_order,
        say=lambda p, x: f"rank order {x.ranks.order} cannot be asked for",
    ),
    _rule(
        id="megatron-schedule",
        text="pipelines run 1F1B, plain or interleaved",
        where="--schedule",
        remedy="use schedule 1f1b or interleaved, or a target that runs others (--target torchtitan, or layout)",
        source="megatron-core 0.19.2 megatron/core/pipeline_parallel/schedules.py",
        ok=_schedule,
        say=lambda p, x: f"schedule {p.schedule} is not offered",
    ),
    _rule(
        id="megatron-even-stages",
        text="layers divide evenly over pp x vpp unless the ends are accounted for or laid out",
        where="--pp, --vpp",
        remedy="choose pp x vpp among the divisors of the layers, or set account_ends",
        source=ARGUMENTS + " (rule 4)",
        ok=_even,
        say=lambda p, x: f"{x.layers} layers do not divide over pp {p.pp} x vpp {p.vpp}",
    ),
    _rule(
        id="megatron-interleave-p2p",
        text="interleaving needs pp > 1 with overlapped point-to-point, pp > 2 without",
        where="--pp, --vpp, software p2p_overlap",
        remedy="raise pp, set vpp 1, or use a profile with p2p_overlap",
        source=ARGUMENTS + " (rule 5)",
        ok=_interleave_p2p,
        say=lambda p, x: f"vpp {p.vpp} on pp {p.pp} with p2p_overlap {str(x.software.p2p_overlap).lower()}",
    ),
    _rule(
        id="megatron-micro-batch-group",
        text="interleaved schedules run micro-batches in groups of pp unless a group size is given",
        where="--global-batch, --micro-batch, --pp, --vpp",
        remedy="make global batch / (micro-batch x dp) a multiple of pp, set vpp 1, or give --micro-batch-group",
        source="megatron-core 0.19.2 megatron/core/pipeline_parallel/schedules.py (rule 6)",
        ok=_group,
        say=lambda p, x: (
            f"{p.num_micro_batches(x.workload.global_batch_seqs)} micro-batches are not a multiple of pp {p.pp}"
        ),
    ),
    _rule(
        id="megatron-kv-groups",
        text="key/value groups divide over tp, or tp over the groups",
        where="--tp",
        remedy="choose tp that divides the groups or is a multiple of them",
        source=CONFIG + " (rule 7)",
        ok=_kv,
        say=lambda p, x: f"{', '.join(map(str, x.kv_heads))} key/value groups against tp {p.tp}",
    ),
    _rule(
        id="megatron-moe-sp",
        text="MoE training with tp > 1 needs sequence parallelism",
        where="--tp, software sequence_parallel",
        remedy="use tp 1 or a profile with sequence_parallel",
        source="megatron-core 0.19.2 megatron/core/transformer/moe/moe_layer.py (rule 8)",
        ok=_sp,
        say=lambda p, x: f"tp {p.tp} for an MoE model without sequence parallelism",
    ),
    _rule(
        id="megatron-shared-recompute",
        text="shared experts cannot be recomputed while they overlap the dispatch",
        where="--recompute, software shared_expert_overlap",
        remedy="drop shared_experts from recompute or switch shared_expert_overlap off",
        source=CONFIG + " (rule 9)",
        ok=_shared_recompute,
        say=lambda p, x: "recompute of shared_experts with shared_expert_overlap on",
    ),
    _rule(
        id="megatron-layer-offload",
        text="layer offload excludes pp > 1 and recompute, and takes fewer layers than there are",
        where="--pp, --recompute, software activation_offload_layers",
        remedy="use pp 1 without recompute, or offload no layers",
        source=CONFIG + " (rule 10)",
        ok=_layer_offload,
        say=lambda p, x: (
            f"{offloaded_layers(x)} of {x.layers} layers offloaded with pp {p.pp} "
            f"and recompute {', '.join(p.recompute) or 'none'}"
        ),
    ),
    _rule(
        id="megatron-optimizer-offload",
        text="optimizer offload needs the precision-aware optimizer",
        where="software optimizer_offload, precision_aware_optimizer",
        remedy="switch precision_aware_optimizer on or optimizer_offload off",
        source=ARGUMENTS + " (rule 10)",
        ok=_optimizer_offload,
        say=lambda p, x: "optimizer_offload without precision_aware_optimizer",
    ),
    _rule(
        id="megatron-overlap-ep",
        text="overlapping the expert all-to-all needs ep > 1",
        where="--ep, software a2a_overlap",
        remedy="use ep 2 or more, or a profile without a2a_overlap",
        source=CONFIG + " (rule 11)",
        ok=_overlap_ep,
        say=lambda p, x: f"a2a_overlap with ep {p.ep}",
    ),
    _rule(
        id="megatron-overlap-vpp",
        text="overlapping the expert all-to-all under a pipeline needs virtual stages",
        where="--vpp, --pp, software a2a_overlap",
        remedy="set vpp 2 or more, pp 1, or a profile without a2a_overlap",
        source=CONFIG + " (rule 11)",
        ok=_overlap_vpp,
        say=lambda p, x: f"a2a_overlap with pp {p.pp} and vpp {p.vpp}",
    ),
    _rule(
        id="megatron-overlap-recompute",
        text="overlapping the expert all-to-all excludes full recompute and recompute of moe",
        where="--recompute, software a2a_overlap",
        remedy="recompute other modules, or use a profile without a2a_overlap",
        source=CONFIG + " (rule 11)",
        ok=_overlap_recompute,
        say=lambda p, x: f"a2a_overlap with recompute {', '.join(p.recompute)}",
    ),
    _rule(
        id="megatron-overlap-software",
        text="overlapping the expert all-to-all excludes the allgather dispatcher, shared-expert overlap and MTP > 1",
        where="software a2a_overlap, dispatcher, shared_expert_overlap",
        remedy="use another dispatcher, switch one overlap off, or train at most one MTP layer",
        source=CONFIG + " (rule 11)",
        ok=_overlap_software,
        say=lambda p, x: (
            f"a2a_overlap with dispatcher {x.software.dispatcher}, shared_expert_overlap "
            f"{str(x.software.shared_expert_overlap).lower()} and {x.model.mtp_layers} MTP layers"
        ),
    ),
    _rule(
        id="megatron-shared-dispatcher",
        text="shared-expert overlap needs an alltoall or flex dispatcher",
        where="software shared_expert_overlap, dispatcher",
        remedy="use dispatcher alltoall, deepep or hybridep, or switch shared_expert_overlap off",
        source=CONFIG + " (rule 12)",
        ok=_shared_dispatcher,
        say=lambda p, x: "shared_expert_overlap with the allgather dispatcher",
    ),
    _rule(
        id="megatron-fp8-dispatcher",
        text="padding experts for low precision excludes the allgather dispatcher",
        where="--precision, software dispatcher",
        remedy="use precision bf16 or dispatcher alltoall, deepep or hybridep",
        source=CONFIG + " (rule 12)",
        ok=_fp8_dispatcher,
        say=lambda p, x: f"precision {x.workload.precision} with the allgather dispatcher",
    ),
    _rule(
        id="megatron-expert-bias",
        text="experts with biases need etp = 1",
        where="--etp",
        remedy="set etp 1",
        source=CONFIG + " (rule 12)",
        ok=_bias_etp,
        say=lambda p, x: f"experts of {x.model.name} have biases, and etp is {p.etp}",
    ),
    _rule(
        id="megatron-expert-groups",
        text="expert groups divide the experts, and no more groups are chosen than there are",
        where="model: num_groups, top_k_groups",
        remedy="correct the model file",
        source=CONFIG + " (rule 13)",
        ok=_groups,
        say=lambda p, x: f"group-limited routing of {x.model.name} does not divide its {x.experts} experts",
    ),
    _rule(
        id="megatron-fsdp-pp",
        text="sharded gradients or parameters (ZeRO 2, 3) run without a pipeline",
        where="--zero, --pp",
        remedy="use pp 1 or ZeRO 1 (the distributed optimizer)",
        source=ARGUMENTS + " (rule 14)",
        ok=_fsdp_pp,
        say=lambda p, x: f"ZeRO {p.zero_stage} with pp {p.pp}",
    ),
    _rule(
        id="megatron-fsdp2",
        text="torch FSDP2 needs ep = 1, untied embeddings and no fp16",
        where="--ep, --zero, --precision, software trainer",
        remedy="use ep 1, Megatron-FSDP, or the distributed optimizer",
        source=ARGUMENTS + " (rule 14)",
        ok=_fsdp2,
        say=lambda p, x: (
            f"FSDP2 with ep {p.ep}, tied embeddings {str(x.model.tied_embeddings).lower()}, precision "
            f"{x.workload.precision}"
        ),
    ),
    MIXER_GROUPS,
    *lack_rules(
        "megatron", TWO_BATCH, HIERARCHICAL, TP_AWARE, FP8_DISPATCH, LOW_LATENCY, target="megatron-lm",
        version=VERSION, source="megatron-core 0.19.2 megatron/core/transformer/moe/fused_a2a.py, token_dispatcher.py",
    ),
    *lack_rules("megatron", POST_VALIDATION, target="megatron-lm", version=VERSION, source=ARGUMENTS),
)  # fmt: skip
