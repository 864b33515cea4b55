"""A run as its user wrote it down: a script with Megatron-LM's flags, a Bridge YAML or a DeepSpeed JSON, told apart by
what is in it."""

from __future__ import annotations

from pathlib import Path

from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.imports.bridge import read_overrides
from planner.imports.deepspeed import read_config
from planner.imports.megatron import Launch, read_launch, world_of
from planner.imports.shell_words import directives_of, read_text
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


def slurm_notes(path: str, cluster: ClusterSpec) -> list[str]:
    """What the `#SBATCH` lines of a script leave open of where its nodes lie, which the prediction takes as whole."""
    each = cluster.domain_devices // cluster.devices_per_node
    asked = directives_of(read_text(path)) if kind_of(path) == "megatron-lm" else {}
    nodes = cluster.num_devices // cluster.devices_per_node
    if not asked or each <= 1 or nodes <= 1:
        return []
    whole = f"a scale-up domain of {each} nodes"
    text = (asked.get("segment") or [""])[0]
    if not text:
        return [f"no --segment: Slurm may take a part of {whole}; the prediction has whole ones"]
    if not text.isdecimal() or not 1 <= int(text[:9]) <= each:
        return [f"--segment={text[:20]} does not fit into {whole}: Slurm refuses it"]
    if nodes % int(text) and nodes > int(text):
        return [f"--segment={text} does not divide {nodes} nodes: Slurm refuses it"]
    if int(text) < min(each, nodes):
        return [f"--segment={text}: Slurm may take a part of {whole}; the prediction has whole ones"]
    return []


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
