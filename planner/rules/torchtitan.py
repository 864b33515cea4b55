"""Rules torchtitan 0.3.0 adds to the layout's own."""

from __future__ import annotations

from functools import partial

from planner.rules.base import Context, Mask, Rule
from planner.rules.fixed import ONE_ORDER, no_etp_rule, rank_order_rule, shard_ranks, shard_rule, zero_rule
from planner.rules.switches import (
    A2A_OVERLAP,
    CAPACITY,
    FP8_DISPATCH,
    HIERARCHICAL,
    LAYER_OFFLOAD,
    LOW_LATENCY,
    POST_VALIDATION,
    SHARED_OVERLAP,
    TP_AWARE,
    TWO_BATCH,
    dispatcher_rule,
    lack_rules,
)
from sim.columns import Columns

VERSION = "0.3.0"
DIMS = "torchtitan 0.3.0 torchtitan/distributed/parallel_dims.py"
PIPELINE = "torchtitan 0.3.0 torchtitan/distributed/pipeline_parallel.py"
DECODER = "torchtitan 0.3.0 torchtitan/models/common/decoder.py"

# Its device mesh is fixed: pp outermost, then data, context and tensor parallelism; ep splits the inner three.
RANK_ORDERS = ONE_ORDER

# A profile's dispatcher and the one its model configuration names.
DISPATCHERS: dict[str, str] = {"alltoall": "standard", "deepep": "deepep", "hybridep": "hybridep"}

# A plan's schedule and the class of torch.distributed.pipelining that runs it. (Its InterleavedZeroBubble takes two
# virtual stages or more and is neither zb-h1 nor interleaved.)
SCHEDULES: dict[str, str] = {
    "1f1b": "1F1B", "interleaved": "Interleaved1F1B", "gpipe": "GPipe", "zb-v": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}  # fmt: skip

_rule = partial(Rule, target="torchtitan", version=VERSION)


def _ep_mesh(c: Columns, x: Context) -> Mask:
    # Replicas stand outside the mesh that ep splits.
    out: Mask = (shard_ranks(c) * c.cp * c.tp) % c.ep == 0
    return out


def _kv(c: Columns, x: Context) -> Mask:
    out: Mask = c.tp >= 1
    for groups in x.kv_heads:
        out = out & (groups % c.tp == 0)
    return out


def _stage_count(c: Columns, x: Context) -> Mask:
    items = x.layers + (x.end_items if c.account_ends else 0)
    stages = c.pp * c.vpp
    per_stage = -(-items // stages)
    out: Mask = -(-items // per_stage) == stages
    return out


def _schedule(c: Columns, x: Context) -> bool:
    return c.schedule in SCHEDULES


def _group(c: Columns, x: Context) -> bool:
    return c.micro_batch_group == 0


def _tied(c: Columns, x: Context) -> Mask:
    out: Mask = c.pp == 1 if x.model.tied_embeddings else c.pp >= 1
    return out


def _recompute(c: Columns, x: Context) -> bool:
    return c.recompute in ((), ("full",), ("operators",))


def _precision(c: Columns, x: Context) -> bool:
    return x.workload.precision != "fp16"


TORCHTITAN_RULES: tuple[Rule, ...] = (
    rank_order_rule(
        "torchtitan", text="the device mesh is fixed: tp innermost, then cp and dp, pp outermost", of="device mesh",
        target="torchtitan", version=VERSION, source=DIMS,
    ),
    _rule(
        id="torchtitan-ep-mesh",
        text="ep divides dp_shard x cp x tp (replicas and the pipeline stand outside)",
        where="--ep, --tp, --cp, --pp, --zero",
        remedy="lower ep to a divisor of dp_shard x cp x tp, or shard more",
        source=DIMS,
        ok=_ep_mesh,
        say=lambda p, x: (
            f"ep {p.ep} does not divide the sharded ranks of dp {p.dp} x cp {p.cp} (ZeRO {p.zero_stage}, shard group "
            f"{p.fsdp_shard}) x tp {p.tp}"
        ),
    ),
    no_etp_rule("torchtitan", target="torchtitan", version=VERSION, source=DIMS),
    _rule(
        id="torchtitan-kv-heads",
        text="key/value heads divide over tp",
        where="--tp",
        remedy="choose tp among the divisors of the key/value heads",
        source=DECODER,
        ok=_kv,
        say=lambda p, x: f"{', '.join(map(str, x.kv_heads))} key/value heads do not divide over tp {p.tp}",
    ),
    _rule(
        id="torchtitan-stage-count",
        text="some whole number of layers per stage gives exactly pp x vpp stages",
        where="--pp, --vpp",
        remedy="choose pp x vpp so that layers fill the stages",
        source=PIPELINE,
        ok=_stage_count,
        say=lambda p, x: f"{x.layers} layers cannot fill {p.pp * p.vpp} stages",
    ),
    _rule(
        id="torchtitan-schedule",
        text=f"pipelines run one of {', '.join(SCHEDULES)}",
        where="--schedule",
        remedy=f"use one of {', '.join(SCHEDULES)}",
        source="torch.distributed.pipelining.schedules as " + PIPELINE + " asks for them",
        ok=_schedule,
        say=lambda p, x: f"schedule {p.schedule} is not offered",
    ),
    _rule(
        id="torchtitan-micro-batch-group",
        text="the size of groups of micro-batches cannot be chosen",
        where="--micro-batch-group",
        remedy="leave it out",
        source="torch.distributed.pipelining.schedules",
        ok=_group,
        say=lambda p, x: f"groups of {p.micro_batch_group} micro-batches have no counterpart",
    ),
    _rule(
        id="torchtitan-tied-embeddings",
        text="tied embeddings exclude a pipeline",
        where="--pp",
        remedy="set pp 1",
        source=PIPELINE,
        ok=_tied,
        say=lambda p, x: f"{x.model.name} ties its embeddings, and pp is {p.pp}",
    ),
    zero_rule("torchtitan", fsdp="FSDP", target="torchtitan", version=VERSION, source=DIMS),
    _rule(
        id="torchtitan-precision",
        text="parameters are in bf16 (8 bits by a converter), never in fp16",
        where="--precision",
        remedy="use precision bf16",
        source="torchtitan 0.3.0 torchtitan/config/configs.py",
        ok=_precision,
        say=lambda p, x: f"precision {x.workload.precision} has no key",
    ),
    _rule(
        id="torchtitan-recompute",
        text="recompute is none, full or operators (selective recompute there goes by operator, not by module)",
        where="--recompute",
        remedy="use recompute none, full or operators",
        source="torchtitan 0.3.0 activation checkpoint configuration",
        ok=_recompute,
        say=lambda p, x: f"recompute {', '.join(p.recompute)} has no counterpart",
    ),
    shard_rule("torchtitan", target="torchtitan", version=VERSION, source=DIMS),
    dispatcher_rule(
        "torchtitan", DISPATCHERS, target="torchtitan", version=VERSION, source="torchtitan 0.3.0 model configuration"
    ),
    *lack_rules(
        "torchtitan", TWO_BATCH, HIERARCHICAL, TP_AWARE, FP8_DISPATCH, LOW_LATENCY, A2A_OVERLAP, SHARED_OVERLAP,
        LAYER_OFFLOAD, CAPACITY, POST_VALIDATION, target="torchtitan", version=VERSION,
        source="torchtitan 0.3.0 model configuration",
    ),
)  # fmt: skip
