"""Megatron-Bridge's own override merge (unknown keys raise) and ConfigContainer checks on exported YAML.

The recipe is the plain GPT one, given the sizes of the plan's model. python check_bridge.py INDEX.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import stubs

stubs.install(
    "triton", "transformer_engine", "transformer_engine_torch", "nvidia_resiliency_ext", "mamba_ssm", "causal_conv1d",
    "wandb", "modelopt", "nemo_run", "peft", "qwen_vl_utils", "megatron.energon", "timm", "diffusers", "mistral_common",
    "flashinfer", "mlflow", "comet_ml", "open_clip", "fla", "flash_attn", "torchvision", "PIL",
)  # fmt: skip

from megatron.bridge.recipes.gpt.vanilla_gpt import vanilla_gpt_pretrain_config  # noqa: E402
from megatron.bridge.training.comm_overlap import CommOverlapConfig  # noqa: E402
from megatron.bridge.training.config import runtime_config_update  # noqa: E402
from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides  # noqa: E402
from megatron.core.parallel_state import RankGenerator  # noqa: E402


def check(row: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(WORLD_SIZE=str(row["world"]), RANK="0", LOCAL_RANK="0")
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    notes = (Path(row["folder"]) / "notes.txt").read_text()
    os.environ["NVTE_CPU_OFFLOAD_V1"] = str(int("NVTE_CPU_OFFLOAD_V1: set it to 1" in notes))
    config = vanilla_gpt_pretrain_config()
    for key, value in row["sizes"].items():
        setattr(config.model, key, value)
    if config.comm_overlap is None:  # the plain recipe has none, those of the models do
        config.comm_overlap = CommOverlapConfig(tp_comm_overlap=False)
    path = str(Path(row["folder"]) / "overrides.yaml")
    config = process_config_with_overrides(config, config_filepath=path)
    runtime_config_update(config)  # resolves the named precision, applies the overlaps and validates
    model = config.model
    if model.fine_grained_activation_offloading:  # refused under a Transformer Engine that has a version
        assert os.environ["NVTE_CPU_OFFLOAD_V1"] == "1", "NVTE_CPU_OFFLOAD_V1 is not asked for"
    dp = config.data_parallel_size
    etp, ep, pp = (
        model.expert_tensor_parallel_size,
        model.expert_model_parallel_size,
        model.pipeline_model_parallel_size,
    )
    edp = row["world"] // (etp * ep * pp)
    order = "tp-cp-ep-pp-dp" if config.dist.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp"
    RankGenerator(tp=etp, ep=ep, dp=edp, pp=pp, cp=1, order=order)
    return {
        "degrees": {
            "tp": model.tensor_model_parallel_size,
            "cp": model.context_parallel_size,
            "dp": dp,
            "pp": pp,
            "ep": ep,
            "etp": etp,
        },
        "micro_batches": config.train.global_batch_size // (config.train.micro_batch_size * dp),
    }


def main() -> None:
    for row in json.loads(Path(sys.argv[1]).read_text()):
        try:
            said = {"ok": True, **check(row)}
        except (Exception, SystemExit) as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        print("RESULT " + json.dumps({"folder": row["folder"], **said}), flush=True)


if __name__ == "__main__":
    main()
