"""Rules Megatron-Bridge 0.6.2 adds to Megatron-LM's, on whose core it runs."""

from __future__ import annotations

from functools import partial

from planner.rules.base import Context, Rule
from planner.rules.megatron import RANK_ORDERS as MEGATRON_ORDERS
from sim.columns import Columns

VERSION = "0.6.2"
CONFIG = "megatron-bridge 0.6.2 megatron/bridge/training/config.py"

# The same two orders; the second is `dist.use_tp_pp_dp_mapping` of its configuration.
RANK_ORDERS: dict[str, str] = dict(
    zip(MEGATRON_ORDERS, ("", "dist.use_tp_pp_dp_mapping: true"), strict=True)
)  # fmt: skip

_rule = partial(Rule, target="megatron-bridge", version=VERSION)


def _fsdp_order(c: Columns, x: Context) -> bool:
    return c.zero_stage < 2 or not MEGATRON_ORDERS.get(x.ranks.order)


BRIDGE_RULES: tuple[Rule, ...] = (
    _rule(
        id="bridge-fsdp-rank-order",
        text="sharded gradients or parameters (ZeRO 2, 3) keep the default rank order",
        where="--zero, --rank-order",
        remedy="use tp-cp-ep-dp-pp, or ZeRO 1 (the distributed optimizer)",
        source=CONFIG,
        ok=_fsdp_order,
        say=lambda p, x: f"ZeRO {p.zero_stage} with rank order {x.ranks.order}",
    ),
)
