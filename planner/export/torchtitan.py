"""torchtitan: a module with a configuration function on top of a recipe, and the overrides of its command line."""

from __future__ import annotations

import re

from hwprofiles.errors import UserError
from planner.export.base import (
    SHELL_HEAD,
    SHELL_STRICT,
    Export,
    Handover,
    comment,
    export_of,
    heading,
    host_notes,
    plain_text,
    refuse_broken,
    shards_of,
    shell_array,
    torchrun,
    training_notes,
)
from planner.rules.torchtitan import SCHEDULES, VERSION

TARGET = "torchtitan"
VERSIONS = (VERSION,)
MODULE = "moecast_torchtitan"
# Catalogue name -> (module, configuration function) of the recipe that builds the same model.
RECIPES: dict[str, tuple[str, str]] = {
    "DeepSeek-V3": ("deepseek_v3", "deepseek_v3_671b"),
    "Qwen3-30B-A3B": ("qwen3", "qwen3_30b_a3b"),
    "GPT-OSS-20B": ("gpt_oss", "gpt_oss_20b"),
    "GPT-OSS-120B": ("gpt_oss", "gpt_oss_120b"),
    "Moonlight-16B-A3B": ("kimi_k2_7", "moonlight_16b_a3b"),
    "Llama3-8B": ("llama3", "llama3_8b"),
    "Llama3.1-8B": ("llama3", "llama3_8b"),
    "Llama3-70B": ("llama3", "llama3_70b"),
    "Llama3.1-405B": ("llama3", "llama3_405b"),
}
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")


def recipe_of(asked: Handover) -> tuple[str, str]:
    """Module and function of the recipe. Raises UserError where none is known or the name given is none."""
    if asked.base is None:
        if asked.model.name not in RECIPES:
            raise UserError(
                f"torchtitan 0.3.0 has no recipe of {plain_text(asked.model.name)}; name one with --base "
                "MODULE:FUNCTION, such as --base qwen3:qwen3_30b_a3b [rule torchtitan-recipe: torchtitan 0.3.0 "
                "torchtitan/config/manager.py]",
                where=TARGET,
            )
        module, function = RECIPES[asked.model.name]
        return f"torchtitan.models.{module}.config_registry", function
    module, _, function = asked.base.partition(":")
    if not _PATH.match(module) or not function.isidentifier():
        raise UserError(f"{plain_text(asked.base)!r} is not MODULE:FUNCTION of Python names", where="--base")
    path = module if "." in module else f"torchtitan.models.{module}.config_registry"
    return path, function


def parts_of(asked: Handover) -> list[list[str]] | None:
    """Module names per virtual stage in model order, or None where there is no pipeline."""
    if asked.plan.pp == 1:
        return None
    parts, start = [], 0
    for count in asked.stages:
        parts.append([f"layers.{i}" for i in range(start, start + count)])
        start += count
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "lm_head"]
    return parts


def overrides_of(asked: Handover) -> list[tuple[str, ...]]:
    """The command line after module and configuration."""
    p, work = asked.plan, asked.workload
    replicate, shard = shards_of(asked)
    local = p.micro_batch_seqs * (asked.num_micro_batches if p.pp > 1 else 1)
    pairs: list[tuple[str, object]] = [
        ("parallelism.data_parallel_replicate_degree", replicate),
        ("parallelism.data_parallel_shard_degree", shard),
        ("parallelism.fsdp_reshard_after_forward", "never" if p.zero_stage == 2 else "always"),
        ("parallelism.tensor_parallel_degree", p.tp),
        ("parallelism.context_parallel_degree", p.cp),
        ("parallelism.pipeline_parallel_degree", p.pp),
        ("parallelism.expert_parallel_degree", p.ep),
        ("training.local_batch_size", local),
        ("training.global_batch_size", work.global_batch_seqs),
        ("training.seq_len", work.seq_tokens),
    ]
    if p.pp > 1:
        pairs.append(("parallelism.pipeline_parallel_schedule", SCHEDULES[p.schedule]))
        pairs.append(("parallelism.pipeline_parallel_microbatch_size", p.micro_batch_seqs))
    flags: list[tuple[str, ...]] = [(f"--{key}", str(value)) for key, value in pairs]
    on = asked.software.sequence_parallel
    flags.append(("--parallelism." + ("enable_sequence_parallel" if on else "no-enable_sequence_parallel"),))
    # Graphs of the whole step: not with a pipeline or a dispatch that waits for the host, and on by default.
    if asked.software.cuda_graph != ("full_iteration",) or p.pp > 1 or p.ep > 1:
        flags.append(("--training.disable_cuda_graphs",))
    if asked.software.optimizer_offload or work.offload.optimizer:
        flags.append(("--training.enable_cpu_offload",))
    return flags


def module_text(asked: Handover, head: str) -> str:
    """The Python module: a function that takes the recipe's configuration and sets what the command line cannot."""
    path, function = recipe_of(asked)
    full = asked.plan.recompute == ("full",)
    lines = [
        '"""Configuration of one plan for torchtitan."""',
        "",
        head.rstrip("\n"),
        "",
        f"from {path} import {function} as recipe",
    ]
    if full:
        lines.append("from torchtitan.distributed.activation_checkpoint import FullAC")
    lines += [
        "",
        "",
        "def plan():",
        '    """The recipe with recompute and stages of the plan."""',
        "    config = recipe()",
    ]
    lines.append(f"    config.activation_checkpoint = {'FullAC.Config()' if full else 'None'}")
    parts = parts_of(asked)
    if parts is not None:
        lines.append("    config.parallelism.module_fqns_per_model_part = [")
        lines += [f"        {part!r}," for part in parts]
        lines.append("    ]")
    lines.append("    return config")
    return "\n".join(lines) + "\n"


def _missing(asked: Handover) -> list[str]:
    out = ["model, tokenizer, data and optimizer: the recipe's"]
    if asked.workload.precision != "bf16":
        out.append(f"precision {asked.workload.precision}: a converter in the recipe's model configuration")
    if asked.model.is_moe and asked.software.dispatcher != "alltoall":
        out.append(f"dispatcher {asked.software.dispatcher}: the recipe's model configuration chooses it")
    if asked.software.grad_dtype != "fp32":
        out.append("gradients reduced in 16 bits: it reduces in fp32")
    if asked.model.mtp_layers and asked.workload.with_mtp:
        out.append("multi-token prediction: the recipe's model configuration chooses it")
    return out + training_notes(asked) + host_notes(asked)


def export(asked: Handover, version: str) -> Export:
    """`moecast_torchtitan.py`, `overrides.sh` and `launch.sh`. Raises UserError naming a broken rule."""
    refuse_broken(asked, TARGET)
    missing = tuple(_missing(asked))
    head = comment(heading(asked, TARGET, version, missing))
    flags = [("--module", MODULE), ("--config", "plan"), *overrides_of(asked)]
    launch = (
        SHELL_HEAD
        + head
        + SHELL_STRICT
        + 'source "$HERE/overrides.sh"\nexport PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"\n'
        + torchrun(asked, '-m torchtitan.train "${TORCHTITAN_ARGS[@]}" "$@"')
    )
    files = {
        f"{MODULE}.py": module_text(asked, head),
        "overrides.sh": head + shell_array("TORCHTITAN_ARGS", flags),
        "launch.sh": launch,
    }
    return export_of(asked, TARGET, version, files, missing)
