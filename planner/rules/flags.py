"""Flags and keys by which a user of a target turns a switch of the software profile on: what `judge` and `plan` try.

A switch stands here once for each target whose files have a word for it; the rules of the target say with which plans
it goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hwprofiles.specs import SoftwareProfile

CORE = "Megatron-LM CHANGELOG.md"
_CORE = re.compile(r"\bcore (\d+)\.(\d+)(?: (?:to|and) (\d+)\.(\d+))?")
_YEAR = re.compile(r"^(20\d\d)\b")
FIRST_CORE_YEAR = 2024  # profiles of the years before are of Megatron-LM without Megatron-Core's switches


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One switch. name: field of the profile; said: what to write; since: first release of Megatron-Core with it."""

    name: str
    said: str
    since: tuple[int, int] = (0, 0)


# Field -> first Megatron-Core that has it (its change log; the overlap of the all-to-all with another micro-batch came
# to the main branch after 0.13 and before 0.15).
_SINCE: Mapping[str, tuple[int, int]] = {
    "dp_overlap_grad": (0, 6), "dp_overlap_param": (0, 6), "shared_expert_overlap": (0, 9), "permute_fusion": (0, 11),
    "a2a_overlap": (0, 15),
}  # fmt: skip
_FLAGS: Mapping[str, Mapping[str, str]] = {
    "megatron-lm": {
        "dp_overlap_grad": "add --overlap-grad-reduce",
        "dp_overlap_param": "add --overlap-param-gather",
        "permute_fusion": "add --moe-permute-fusion",
        "fused_loss": "add --cross-entropy-loss-fusion",
        "tp_overlap": "add --tp-comm-overlap",
        "a2a_overlap": "add --overlap-moe-expert-parallel-comm",
        "shared_expert_overlap": "add --moe-shared-expert-overlap",
        "sequence_parallel": "add --sequence-parallel",
    },
    "megatron-bridge": {
        "dp_overlap_grad": "set ddp.overlap_grad_reduce: true",
        "dp_overlap_param": "set ddp.overlap_param_gather: true",
        "permute_fusion": "set model.moe_permute_fusion: true",
        "fused_loss": "set model.cross_entropy_loss_fusion: true",
        "tp_overlap": "set comm_overlap.tp_comm_overlap: true",
        "a2a_overlap": "set comm_overlap.overlap_moe_expert_parallel_comm: true",
        "shared_expert_overlap": "set model.moe_shared_expert_overlap: true",
        "sequence_parallel": "set model.sequence_parallel: true",
    },
    "deepspeed": {"dp_overlap_grad": "set zero_optimization.overlap_comm: true"},
}
SWITCHES: Mapping[str, tuple[Switch, ...]] = {
    target: tuple(Switch(name=name, said=said, since=_SINCE.get(name, (0, 0))) for name, said in flags.items())
    for target, flags in _FLAGS.items()
}


def core_of(software: SoftwareProfile) -> tuple[int, int] | None:
    """Newest release of Megatron-Core that a profile is of, None where it names none.

    >>> from hwprofiles.catalogue import software
    >>> core_of(software("megatron-lm", device="H100")), core_of(software("megatron-lm-2021", device="A100"))
    ((0, 15), (0, 0))
    """
    found = _CORE.search(software.version)
    if found:
        major, minor = (found[3], found[4]) if found[3] else (found[1], found[2])
        return int(major), int(minor)
    year = _YEAR.match(software.version)
    return (0, 0) if year and int(year[1]) < FIRST_CORE_YEAR else None


def switches_of(target: str, software: SoftwareProfile) -> tuple[Switch, ...]:
    """What the files of a target can turn on that the profile has off and its release, where known, supports."""
    release = core_of(software)
    return tuple(
        switch
        for switch in SWITCHES.get(target, ())
        if not getattr(software, switch.name) and (release is None or release >= switch.since)
    )
