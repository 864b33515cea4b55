"""Switches of a software profile that a target lacks: each is a rule of that target.

A switch changes what a step does, so that a plan priced with it on a target without it would promise a step nobody
can run. How kernels are written (fused, compiled, eager) is no switch in this sense: it changes the price alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.rules.base import Context, Rule
from sim.columns import Columns


@dataclass(frozen=True, kw_only=True)
class Lack:
    """A switch a target does not have. neutral: the value that asks for nothing; what: the feature in words."""

    switch: str
    neutral: Any
    what: str


POST_VALIDATION = Lack(
    switch="optimizer_post_validation", neutral=False, what="optimizer step that is checked after the next one began"
)
TWO_BATCH = Lack(switch="two_batch_overlap", neutral=False, what="overlap of two halves of a micro-batch")
HIERARCHICAL = Lack(switch="all_to_all", neutral="library", what="a hierarchical (2-D) all-to-all")
TP_AWARE = Lack(switch="tp_aware_dispatch", neutral=False, what="tensor-parallel-aware dispatch")
FP8_DISPATCH = Lack(switch="fp8_dispatch", neutral=False, what="dispatch of tokens in 8 bits")
LOW_LATENCY = Lack(switch="dispatch_kernel", neutral="normal", what="low-latency dispatch kernels in training")
A2A_OVERLAP = Lack(
    switch="a2a_overlap", neutral=False, what="overlap of the expert all-to-all with another micro-batch"
)
SHARED_OVERLAP = Lack(switch="shared_expert_overlap", neutral=False, what="overlap of shared experts with the dispatch")
LAYER_OFFLOAD = Lack(switch="activation_offload_layers", neutral=0, what="offload of whole layers' activations")
CAPACITY = Lack(switch="capacity_factor", neutral=None, what="a capacity per expert")


def lack_rule(prefix: str, lack: Lack, *, target: str, version: str, source: str) -> Rule:
    """The rule of one missing switch, named `<prefix>-no-<switch>`; it holds where the profile has no such switch."""

    def used(x: Context) -> Any:
        return getattr(x.software, lack.switch, lack.neutral)

    def ok(c: Columns, x: Context) -> bool:
        return bool(used(x) == lack.neutral)

    return Rule(
        id=f"{prefix}-no-{lack.switch.replace('_', '-')}",
        target=target,
        text=f"{target} has no {lack.what}",
        where=f"software {lack.switch}",
        remedy=f"use a profile with {lack.switch} {_toml(lack.neutral)}, or --target layout",
        source=source,
        version=version,
        ok=ok,
        say=lambda p, x: f"{x.software.name} sets {lack.switch} {_toml(used(x))}",
    )


def lack_rules(prefix: str, *lacks: Lack, target: str, version: str, source: str) -> tuple[Rule, ...]:
    """The rules of several missing switches."""
    return tuple(lack_rule(prefix, lack, target=target, version=version, source=source) for lack in lacks)


def dispatcher_rule(prefix: str, known: Mapping[str, str], *, target: str, version: str, source: str) -> Rule:
    """The rule of the dispatchers a target has: `known` maps a profile's dispatcher to the target's own word."""

    def ok(c: Columns, x: Context) -> bool:
        return not x.moe or x.software.dispatcher in known

    return Rule(
        id=f"{prefix}-dispatcher",
        target=target,
        text=f"the token dispatcher is one of {', '.join(known)}",
        where="software dispatcher",
        remedy=f"use a profile with one of {', '.join(known)}",
        source=source,
        version=version,
        ok=ok,
        say=lambda p, x: f"{x.software.name} dispatches with {x.software.dispatcher}",
    )


def whole_blocks_rule(prefix: str, *, target: str, version: str, source: str) -> Rule:
    """Activation checkpointing that goes by whole blocks or not at all."""
    return Rule(
        id=f"{prefix}-recompute",
        text="recompute is none or full (whole blocks)",
        where="--recompute",
        remedy="use recompute none or full",
        target=target,
        version=version,
        source=source,
        ok=lambda c, x: c.recompute in ((), ("full",)),
        say=lambda p, x: f"recompute {', '.join(p.recompute)} has no counterpart",
    )


def _toml(value: Any) -> str:
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
