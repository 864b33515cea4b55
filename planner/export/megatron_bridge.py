"""Megatron-Bridge: a tree of overrides that is merged over a recipe of the model."""

from __future__ import annotations

from typing import Any

from planner.export.base import (
    Export,
    Handover,
    comment,
    export_of,
    heading,
    host_notes,
    plain_text,
    refuse_broken,
    yaml_text,
)
from planner.export.megatron_settings import env_of, missing_of, settings_of
from planner.rules.bridge import VERSION

TARGET = "megatron-bridge"
VERSIONS = (VERSION,)
# Sections whose switches are handed on even when off: a recipe may have them on.
_SECTIONS = (
    "model",
    "train",
    "dataset",
    "ddp",
    "optimizer",
    "comm_overlap",
    "dist",
    "checkpoint",
    "rerun_state_machine",
    "peft",
)


def tree_of(asked: Handover) -> dict[str, Any]:
    """The overrides as a tree; what only the command line of Megatron-LM knows is left out."""
    tree: dict[str, Any] = {name: {} for name in _SECTIONS}
    for setting in settings_of(asked):
        if setting.section == "mixed_precision":
            tree["mixed_precision"] = setting.value
        elif setting.section:
            tree[setting.section][setting.key] = setting.value
    zero = asked.plan.zero_stage
    tree["optimizer"]["use_distributed_optimizer"] = zero >= 1
    tree["model"].setdefault("virtual_pipeline_model_parallel_size", None)
    tree["model"].setdefault("pipeline_model_parallel_layout", None)
    tree["model"].setdefault("recompute_granularity", None)
    if asked.model.mtp_layers:  # a recipe trains the blocks of multi-token prediction unless it is told not to
        tree["model"]["mtp_num_layers"] = asked.model.mtp_layers if asked.workload.with_mtp else None
    return {name: value for name, value in tree.items() if value not in ({},)}


def export(asked: Handover, version: str) -> Export:
    """The file `overrides.yaml`. Raises UserError naming a broken rule."""
    refuse_broken(asked, TARGET)
    missing = [*missing_of(asked), *host_notes(asked), "the model, its tokenizer and data: the recipe has them"]
    ramp = asked.workload.ramp_up
    if ramp is not None and ramp.train_samples:
        missing.append(f"{ramp.train_samples} sequences in all: a ramp-up runs by iterations there; give train_iters")
    missing.append("comm_overlap: a recipe without one needs CommOverlapConfig() there before the merge")
    if asked.workload.precision not in ("bf16", "fp16"):
        gather = "in 8 bits" if asked.software.fp8_param_gather else "in 16 bits"
        missing.append(f"fp8_param_gather: the precision recipe decides it; the plan gathers parameters {gather}")
    missing += [f"{name}: set it to {value} in the environment" for name, value in env_of(asked).items() if value]
    missing += [f"{name}: leave it unset" for name, value in env_of(asked).items() if value is None]
    head = heading(asked, TARGET, version, missing)
    if asked.base:
        head.append(f"recipe: {plain_text(asked.base)}")
    files = {
        "overrides.yaml": comment(head) + yaml_text(tree_of(asked)),
    }
    return export_of(asked, TARGET, version, files, missing)
