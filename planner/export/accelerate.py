"""accelerate: the YAML of `accelerate launch` with FSDP2, and transformers' sizes where experts are parallel."""

from __future__ import annotations

from typing import Any

from planner.export.base import (
    MASTER_PORT,
    Export,
    Handover,
    comment,
    export_of,
    heading,
    host_notes,
    json_text,
    refuse_broken,
    shards_of,
    training_notes,
    yaml_text,
)
from planner.rules.accelerate import VERSION

TARGET = "accelerate"
VERSIONS = (VERSION,)


def config_of(asked: Handover) -> dict[str, Any]:
    """The YAML tree."""
    p = asked.plan
    replicate, shard = shards_of(asked)
    tree: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if p.zero_stage else "MULTI_GPU",
        "mixed_precision": asked.workload.precision,
        "num_machines": asked.nodes_used,
        "num_processes": p.num_devices,
        "machine_rank": 0,
        "main_process_ip": "localhost",
        "main_process_port": MASTER_PORT,
        "rdzv_backend": "static",
        "main_training_function": "main",
        "use_cpu": False,
        "debug": False,
    }
    if p.zero_stage == 0:
        return tree
    tree["fsdp_config"] = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": p.zero_stage == 3,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_offload_params": asked.software.optimizer_offload or bool(asked.workload.offload.optimizer),
        "fsdp_activation_checkpointing": p.recompute == ("full",),
    }
    tree["parallelism_config"] = {
        "parallelism_config_dp_replicate_size": replicate,
        "parallelism_config_dp_shard_size": shard,
        "parallelism_config_tp_size": p.tp,
        "parallelism_config_cp_size": p.cp,
    }
    return tree


def _missing(asked: Handover) -> list[str]:
    p = asked.plan
    out = [
        "machine_rank and main_process_ip: give them on each node's command line",
        f"micro-batch {p.micro_batch_seqs} and {asked.num_micro_batches} accumulation steps: arguments of the script's "
        "Trainer (per_device_train_batch_size, gradient_accumulation_steps)",
    ]
    if p.ep > 1:
        out.append(
            "expert parallelism: no key of accelerate; distributed_config.json has the sizes for transformers' "
            "from_pretrained(distributed_config=DistributedConfig(...))"
        )
    if not p.zero_stage and p.recompute:
        out.append("recompute without FSDP: the script calls gradient_checkpointing_enable()")
    return out + training_notes(asked) + host_notes(asked)


def export(asked: Handover, version: str) -> Export:
    """`accelerate.yaml`, and `distributed_config.json` with experts. Raises UserError naming a broken rule."""
    refuse_broken(asked, TARGET)
    missing = tuple(_missing(asked))
    files = {
        "accelerate.yaml": comment(heading(asked, TARGET, version, missing)) + yaml_text(config_of(asked)),
    }
    p = asked.plan
    if p.ep > 1:
        replicate, shard = shards_of(asked)
        sizes = {"tp_size": p.tp, "fsdp_size": shard, "dp_replicate_size": replicate, "ep_size": p.ep}
        files["distributed_config.json"] = json_text(sizes)
    return export_of(asked, TARGET, version, files, missing)
