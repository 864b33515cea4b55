"""What a target runs where the question leaves it open: the release that stands for it, and its ZeRO stage.

The usual release of a device is one of Megatron's, with dispatchers and a sharding that other trainers do not have: all
its plans would be refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.question.asked import Asked


@dataclass(frozen=True, kw_only=True)
class Usual:
    """software: the profile that stands for a trainer; of_it: whether it was measured on that trainer; zero_stage: of
    its data parallelism, None where that of the search holds."""

    software: str
    of_it: bool
    zero_stage: int | None


USUAL: dict[str, Usual] = {
    "torchtitan": Usual(software="torchtitan-2024-12-compile", of_it=True, zero_stage=3),
    "deepspeed": Usual(software="megatron-lm", of_it=False, zero_stage=None),
    "accelerate": Usual(software="megatron-lm", of_it=False, zero_stage=3),
}


def completed(asked: Asked) -> tuple[Asked, tuple[str, ...]]:
    """The question with what its target runs filled in, and a note for each thing that was."""
    usual = USUAL.get(asked.target)
    if usual is None:
        return asked, ()
    said = []
    if asked.software is None:
        known = "" if usual.of_it else f", as no release of {asked.target} is in the catalogue"
        said.append(f"release {usual.software} stands for {asked.target}{known}; --software names another")
        asked = replace(asked, software=usual.software)
    if asked.zero is None and usual.zero_stage is not None:
        said.append(f"ZeRO {usual.zero_stage}, as {asked.target} runs it; --zero asks for another stage")
        asked = replace(asked, zero=str(usual.zero_stage))
    return asked, tuple(said)
