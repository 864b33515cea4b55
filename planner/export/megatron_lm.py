"""Megatron-LM: an array of flags and a launch script that reads it."""

from __future__ import annotations

from planner.export.base import (
    SHELL_HEAD,
    SHELL_STRICT,
    Export,
    Handover,
    comment,
    export_of,
    heading,
    host_notes,
    refuse_broken,
    shell_array,
    torchrun,
)
from planner.export.megatron_model import model_missing, model_settings
from planner.export.megatron_settings import env_of, missing_of, settings_of
from planner.rules.megatron import VERSION

TARGET = "megatron-lm"
VERSIONS = (VERSION,)


def flags_of(asked: Handover) -> list[tuple[str, ...]]:
    """Every flag of the plan and of the model, as words."""
    said = [setting.words() for setting in (*model_settings(asked), *settings_of(asked))]
    return [words for words in said if words is not None]


def _missing(asked: Handover) -> list[str]:
    software = asked.software
    if software.fused_loss and not software.loss_fp32_logits:
        return ["the fused loss on 16-bit logits: this release refuses Transformer Engine's; the native one stands in"]
    return []


def _length(asked: Handover) -> str:
    """What the user still gives of the length of the training: nothing where the plan says it in samples."""
    ramp = asked.workload.ramp_up
    return "" if ramp is not None and ramp.train_samples else " --train-iters 50"


def export(asked: Handover, version: str) -> Export:
    """Flags (`megatron_args.sh`) and launch script (`launch.sh`). Raises UserError naming a broken rule."""
    refuse_broken(asked, TARGET)
    missing = tuple([*missing_of(asked), *_missing(asked), *model_missing(asked), *host_notes(asked)])
    head = comment(heading(asked, TARGET, version, missing))
    arguments = head + shell_array("MEGATRON_ARGS", flags_of(asked))
    launch = (
        SHELL_HEAD
        + head
        + comment(["", f"Usage: MEGATRON=/path/to/Megatron-LM ./launch.sh --mock-data{_length(asked)} ..."])
        + SHELL_STRICT
        + 'source "$HERE/megatron_args.sh"\n'
        + 'MEGATRON="${MEGATRON:?set MEGATRON to the checkout of Megatron-LM}"\n'
        + torchrun(asked, '"$MEGATRON/pretrain_gpt.py" "${MEGATRON_ARGS[@]}" "$@"', env_of(asked))
    )
    files = {
        "megatron_args.sh": arguments,
        "launch.sh": launch,
    }
    return export_of(asked, TARGET, version, files, missing)
