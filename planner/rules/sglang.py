"""Rules SGLang 0.5.23 has for a layout: of one of its servers on the same ranks, tp_size being tp x cp x dp.

Its `--tp-size` is the world of one pipeline stage, `--attn-dp-size` and `--attn-cp-size` split it for attention, and
`--ep-size` x `--moe-dp-size` must fill it. What the rules of a training step say beside these does not matter to it.
"""

from __future__ import annotations

from functools import partial

from planner.rules.base import Context, Mask, Rule
from planner.rules.fixed import ONE_ORDER, rank_order_rule
from sim.columns import Columns

VERSION = "0.5.23"
PARALLEL = "sglang 0.5.23 sglang/srt/arg_groups/parallel_hook.py"
MOE = "sglang 0.5.23 sglang/srt/arg_groups/moe_hook.py"
ARGUMENTS = "sglang 0.5.23 sglang/srt/server_args.py"

RANK_ORDERS = ONE_ORDER

_rule = partial(Rule, target="sglang", version=VERSION)


def _schedule(c: Columns, x: Context) -> Mask:
    out: Mask = (c.vpp == 1) & (c.schedule == "1f1b")
    return out


def _ep_world(c: Columns, x: Context) -> Mask:
    out: Mask = (c.ep == 1) | (c.etp == 1)
    return out


def _deepep(c: Columns, x: Context) -> Mask | bool:
    if not x.moe or x.software.dispatcher != "deepep":
        return True
    out: Mask = c.ep == c.tp * c.cp * c.dp
    return out


def _nodes(c: Columns, x: Context) -> Mask:
    nodes_per_stage = (x.cluster.num_nodes // c.pp).clip(min=1)
    out: Mask = (c.tp * c.cp * c.dp) % nodes_per_stage == 0
    return out


SGLANG_RULES: tuple[Rule, ...] = (
    rank_order_rule(
        "sglang", text="ranks are ordered tp innermost and the pipeline outermost", of="groups", target="sglang",
        version=VERSION, source=PARALLEL,
    ),
    _rule(
        id="sglang-schedule",
        text="a server has no virtual stages",
        where="--vpp, --schedule",
        remedy="set vpp 1 and schedule 1f1b",
        source=PARALLEL,
        ok=_schedule,
        say=lambda p, x: f"schedule {p.schedule} with vpp {p.vpp} has no counterpart",
    ),
    _rule(
        id="sglang-ep-world",
        text="with expert parallelism ep x moe_dp fills the stage: no tensor parallelism inside an expert",
        where="--ep, --etp",
        remedy="set etp 1, or ep 1",
        source=PARALLEL,
        ok=_ep_world,
        say=lambda p, x: f"ep {p.ep} with etp {p.etp} leaves ep x moe_dp below the stage",
    ),
    _rule(
        id="sglang-deepep-ep",
        text="DeepEP sets ep to the world of a stage, whatever was asked for",
        where="--ep, software dispatcher",
        remedy="set ep to tp x cp x dp, or use another dispatcher",
        source=MOE,
        ok=_deepep,
        say=lambda p, x: f"ep {p.ep} would become tp {p.tp} x cp {p.cp} x dp {p.dp} with DeepEP",
    ),
    _rule(
        id="sglang-nodes",
        text="the world of a stage divides over its nodes",
        where="--gpus, --tp, --pp",
        remedy="choose tp x cp x dp as a multiple of the nodes of a stage",
        source=ARGUMENTS,
        ok=_nodes,
        say=lambda p, x: f"tp {p.tp} x cp {p.cp} x dp {p.dp} on {x.cluster.num_nodes} nodes with pp {p.pp}",
    ),
)  # fmt: skip
