"""Rules DeepSpeed 0.19.8 adds to the layout's own: AutoTP, AutoEP and ZeRO as its configuration checks them."""

from __future__ import annotations

from functools import partial

from planner.rules.base import Context, Mask, Rule
from planner.rules.fixed import ONE_ORDER, no_etp_rule, rank_order_rule
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
    whole_blocks_rule,
)
from sim.columns import Columns

VERSION = "0.19.8"
FOLDING = "deepspeed 0.19.8 deepspeed/module_inject/auto_ep_folding.py"
AUTO_EP = "deepspeed 0.19.8 deepspeed/module_inject/auto_ep_config.py"
PIPE = "deepspeed 0.19.8 deepspeed/runtime/pipe/engine.py"
CONFIG = "deepspeed 0.19.8 deepspeed/runtime/config.py"

# Its grid is pipe, data, model from the outermost in.
RANK_ORDERS = ONE_ORDER
# A model's family and the AutoEP preset that finds its experts; DeepSeek has one per generation (see `preset_of`).
PRESETS: dict[str, str] = {"mixtral": "mixtral", "qwen3_moe": "qwen3_moe", "deepseek": "deepseek_v3"}
# A profile's dispatcher and `expert_parallel.comm_backend`.
BACKENDS: dict[str, str] = {"alltoall": "comm", "deepep": "deepep"}

_rule = partial(Rule, target="deepspeed", version=VERSION)


def preset_of(x: Context) -> str | None:
    """AutoEP's preset for the model; None where it has none."""
    preset = PRESETS.get(x.model.family)
    if preset == "deepseek_v3" and "v2" in x.model.name.lower():
        return "deepseek_v2"
    return preset


def _cp(c: Columns, x: Context) -> Mask:
    out: Mask = c.cp == 1
    return out


def _schedule(c: Columns, x: Context) -> Mask:
    out: Mask = (c.vpp == 1) & (c.schedule == "1f1b")
    return out


def _preset(c: Columns, x: Context) -> Mask:
    out: Mask = (c.ep == 1) | (preset_of(x) is not None)
    return out


def _folded_pipeline(c: Columns, x: Context) -> Mask:
    out: Mask = (c.ep == 1) | (c.tp == 1) | (c.pp == 1)
    return out


def _folded_offload(c: Columns, x: Context) -> Mask:
    out: Mask = (c.ep == 1) | (c.tp == 1) | (not x.software.optimizer_offload and not x.workload.offload.optimizer)
    return out


def _zero_pipeline(c: Columns, x: Context) -> Mask:
    out: Mask = (c.pp == 1) | (c.zero_stage < 2)
    return out


def _shard(c: Columns, x: Context) -> bool:
    return c.fsdp_shard == 0


def _precision(c: Columns, x: Context) -> bool:
    return x.workload.precision in ("bf16", "fp16")


DEEPSPEED_RULES: tuple[Rule, ...] = (
    rank_order_rule(
        "deepspeed", text="the grid is fixed: model parallelism innermost, then data, the pipeline outermost",
        of="grid", target="deepspeed", version=VERSION, source=FOLDING,
    ),
    _rule(
        id="deepspeed-cp",
        text="there is no context parallelism (Ulysses splits heads, not the sequence of attention)",
        where="--cp",
        remedy="set cp 1",
        source=CONFIG,
        ok=_cp,
        say=lambda p, x: f"cp {p.cp} has no counterpart",
    ),
    no_etp_rule(
        "deepspeed", text="AutoEP takes expert_tensor_parallel_size 1 only", why="is reserved there",
        target="deepspeed", version=VERSION, source=FOLDING,
    ),
    _rule(
        id="deepspeed-schedule",
        text="pipelines run plain 1F1B without virtual stages",
        where="--vpp, --schedule",
        remedy="set vpp 1 and schedule 1f1b",
        source=PIPE,
        ok=_schedule,
        say=lambda p, x: f"schedule {p.schedule} with vpp {p.vpp} has no counterpart",
    ),
    _rule(
        id="deepspeed-autoep-preset",
        text="AutoEP knows the model: mixtral, qwen3_moe, qwen3_5_moe, deepseek_v2, deepseek_v3 or minimax_m3",
        where="--ep, --model",
        remedy="set ep 1, or use a model of one of these families",
        source=AUTO_EP,
        ok=_preset,
        say=lambda p, x: f"ep {p.ep} for {x.model.name} (family {x.model.family}), which has no preset",
    ),
    _rule(
        id="deepspeed-autoep-autotp-pipeline",
        text="AutoEP together with AutoTP runs without a pipeline",
        where="--ep, --tp, --pp",
        remedy="set one of pp, tp or ep to 1",
        source=FOLDING,
        ok=_folded_pipeline,
        say=lambda p, x: f"ep {p.ep} and tp {p.tp} with pp {p.pp}",
    ),
    _rule(
        id="deepspeed-autoep-autotp-offload",
        text="AutoEP together with AutoTP keeps the optimizer on the device",
        where="--ep, --tp, software optimizer_offload",
        remedy="set tp or ep to 1, or use a profile without optimizer_offload",
        source=FOLDING,
        ok=_folded_offload,
        say=lambda p, x: f"ep {p.ep} and tp {p.tp} with optimizer_offload",
    ),
    _rule(
        id="deepspeed-zero-pipeline",
        text="ZeRO 2 and 3 run without a pipeline",
        where="--zero, --pp",
        remedy="use pp 1 or ZeRO 1",
        source=PIPE,
        ok=_zero_pipeline,
        say=lambda p, x: f"ZeRO {p.zero_stage} with pp {p.pp}",
    ),
    _rule(
        id="deepspeed-shard",
        text="shards span the whole data-parallel group (a secondary shard group keeps a copy, it replaces nothing)",
        where="fsdp_shard",
        remedy="set fsdp_shard 0",
        source="deepspeed 0.19.8 deepspeed/runtime/zero/config.py",
        ok=_shard,
        say=lambda p, x: f"shard group {p.fsdp_shard} has no counterpart",
    ),
    _rule(
        id="deepspeed-precision",
        text="its JSON asks for bf16 or fp16 only",
        where="--precision",
        remedy="use precision bf16 or fp16",
        source=CONFIG,
        ok=_precision,
        say=lambda p, x: f"precision {x.workload.precision} has no key",
    ),
    whole_blocks_rule("deepspeed", target="deepspeed", version=VERSION, source=CONFIG),
    dispatcher_rule("deepspeed", BACKENDS, target="deepspeed", version=VERSION, source=AUTO_EP),
    *lack_rules(
        "deepspeed", TWO_BATCH, HIERARCHICAL, TP_AWARE, FP8_DISPATCH, LOW_LATENCY, A2A_OVERLAP, SHARED_OVERLAP,
        LAYER_OFFLOAD, CAPACITY, POST_VALIDATION, target="deepspeed", version=VERSION, source=AUTO_EP,
    ),
)  # fmt: skip
