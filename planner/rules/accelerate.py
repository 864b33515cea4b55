"""Rules of accelerate 1.15.0 (FSDP2) with the expert parallelism of transformers 5.23.0."""

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
    SHARED_OVERLAP,
    TP_AWARE,
    TWO_BATCH,
    dispatcher_rule,
    lack_rules,
    whole_blocks_rule,
)
from sim.columns import Columns

VERSION = "1.15.0"
PARALLELISM = "accelerate 1.15.0 accelerate/parallelism_config.py"
LAUNCH = "accelerate 1.15.0 accelerate/commands/launch.py"
DISTRIBUTED = "transformers 5.23.0 transformers/distributed/configuration_utils.py"

# Its mesh has the sizes dp_replicate, dp_shard, cp, sp, tp from the outermost in.
RANK_ORDERS = ONE_ORDER
# Without a token dispatch kernel of its own the library's all-to-all is what runs.
DISPATCHERS: dict[str, str] = {"alltoall": "all_to_all", "allgather": "all_reduce"}

_rule = partial(Rule, target="accelerate", version=VERSION)


def _pp(c: Columns, x: Context) -> Mask:
    out: Mask = c.pp == 1
    return out


def _replicated(c: Columns, x: Context) -> Mask:
    if c.zero_stage != 0:
        return c.tp >= 1
    out: Mask = (c.dp == 1) | ((c.tp == 1) & (c.cp == 1))
    return out


def _ep_tp(c: Columns, x: Context) -> Mask:
    out: Mask = (c.ep == 1) | (c.ep % c.tp == 0)
    return out


def _ep_shard(c: Columns, x: Context) -> Mask:
    out: Mask = (shard_ranks(c) * c.tp) % c.ep == 0
    return out


def _all_reduce(c: Columns, x: Context) -> Mask | bool:
    if x.software.dispatcher != "allgather":
        return True
    out: Mask = (c.ep == 1) | (c.ep == c.tp)
    return out


def _precision(c: Columns, x: Context) -> bool:
    return x.workload.precision in ("bf16", "fp16", "fp8")


ACCELERATE_RULES: tuple[Rule, ...] = (
    rank_order_rule(
        "accelerate", text="the device mesh is fixed: tp innermost, then cp and data parallelism", of="device mesh",
        target="accelerate", version=VERSION, source=PARALLELISM,
    ),
    _rule(
        id="accelerate-pp",
        text="there is no pipeline in training",
        where="--pp",
        remedy="set pp 1",
        source=PARALLELISM,
        ok=_pp,
        say=lambda p, x: f"pp {p.pp} has no counterpart",
    ),
    zero_rule("accelerate", fsdp="FSDP2", target="accelerate", version=VERSION, source=LAUNCH),
    _rule(
        id="accelerate-replicate",
        text="tp and cp need sharded data parallelism",
        where="--zero, --tp, --cp",
        remedy="use ZeRO 3 or 2, or set tp and cp to 1",
        source=PARALLELISM,
        ok=_replicated,
        say=lambda p, x: f"tp {p.tp} and cp {p.cp} with dp {p.dp} that is only replicated",
    ),
    shard_rule("accelerate", target="accelerate", version=VERSION, source=PARALLELISM),
    no_etp_rule("accelerate", target="accelerate", version=VERSION, source=DISTRIBUTED),
    _rule(
        id="transformers-ep-tp",
        text="ep is a multiple of tp",
        where="--ep, --tp",
        remedy="raise ep to a multiple of tp, or lower tp",
        source=DISTRIBUTED,
        ok=_ep_tp,
        say=lambda p, x: f"ep {p.ep} is not a multiple of tp {p.tp}",
    ),
    _rule(
        id="transformers-ep-fsdp",
        text="ep divides the FSDP group times tp",
        where="--ep, --tp, --zero, fsdp_shard",
        remedy="lower ep to a divisor of the FSDP group x tp",
        source=DISTRIBUTED,
        ok=_ep_shard,
        say=lambda p, x: f"ep {p.ep} with tp {p.tp}, dp {p.dp}, ZeRO {p.zero_stage} and shard group {p.fsdp_shard}",
    ),
    _rule(
        id="transformers-all-reduce",
        text="experts without a token dispatch (all-reduce) need ep equal to tp",
        where="--ep, --tp, software dispatcher",
        remedy="set ep equal to tp, or use dispatcher alltoall",
        source=DISTRIBUTED,
        ok=_all_reduce,
        say=lambda p, x: f"ep {p.ep} and tp {p.tp} with dispatcher {x.software.dispatcher}",
    ),
    _rule(
        id="accelerate-precision",
        text="mixed_precision is bf16, fp16 or fp8",
        where="--precision",
        remedy="use precision bf16, fp16 or fp8",
        source=LAUNCH,
        ok=_precision,
        say=lambda p, x: f"precision {x.workload.precision} has no key",
    ),
    whole_blocks_rule("accelerate", target="accelerate", version=VERSION, source=LAUNCH),
    dispatcher_rule("accelerate", DISPATCHERS, target="accelerate", version=VERSION, source=DISTRIBUTED),
    *lack_rules(
        "accelerate", TWO_BATCH, HIERARCHICAL, TP_AWARE, FP8_DISPATCH, LOW_LATENCY, A2A_OVERLAP, SHARED_OVERLAP,
        LAYER_OFFLOAD, CAPACITY, target="accelerate", version=VERSION, source=DISTRIBUTED,
    ),
)  # fmt: skip
