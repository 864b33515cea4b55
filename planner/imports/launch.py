"""A run as its user wrote it down: a script with Megatron-LM's flags, a Bridge YAML or a DeepSpeed JSON, told apart by
what is in it."""

from __future__ import annotations

from pathlib import Path

from hwprofiles.specs import SoftwareProfile
from planner.imports.bridge import read_overrides
from planner.imports.deepspeed import read_config
from planner.imports.megatron import Launch, read_launch, world_of
from planner.imports.shell_words import read_text
from sim.model import ModelSpec

YAML = (".yaml", ".yml")


def kind_of(path: str) -> str:
    """The target of a file: megatron-bridge (YAML), deepspeed (JSON), else megatron-lm."""
    suffix = Path(path).suffix.lower()
    if suffix in YAML:
        return "megatron-bridge"
    if suffix == ".json" or read_text(path).lstrip()[:1] == "{":
        return "deepspeed"
    return "megatron-lm"


def devices_of(path: str) -> int | None:
    """Devices a file names, or None: only launch scripts do."""
    return world_of(path) if kind_of(path) == "megatron-lm" else None


def read_any(
    path: str, model: ModelSpec, software: SoftwareProfile, world: int, seq_tokens: int | None = None
) -> Launch:  # fmt: skip
    """What the file asks of `model` on `world` devices.

    software: the profile whose switches it changes. seq_tokens: of a sequence, for a DeepSpeed JSON, which has none.
    Raises UserError with all problems of the file.
    """
    kind = kind_of(path)
    if kind == "megatron-bridge":
        return read_overrides(path, model, software, world)
    if kind == "deepspeed":
        return read_config(path, model, software, world, seq_tokens)
    return read_launch(path, model, software, world)
