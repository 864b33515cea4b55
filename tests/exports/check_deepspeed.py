"""DeepSpeed's own configuration class and AutoEP checks on exported JSON. python check_deepspeed.py INDEX.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
from deepspeed.module_inject.auto_ep_config import parse_autoep_config, validate_autoep_config
from deepspeed.runtime.config import DeepSpeedConfig


class Mesh:
    """What the configuration asks of a model-parallel unit: sizes only."""

    def __init__(self, tp: int, pp: int, dp: int) -> None:
        self.tp, self.pp, self.dp = tp, pp, dp

    def get_model_parallel_world_size(self) -> int:
        return self.tp

    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_slice_parallel_world_size = get_model_parallel_world_size

    def get_pipe_parallel_world_size(self) -> int:
        return self.pp

    get_pipeline_model_parallel_world_size = get_pipe_parallel_world_size

    def get_data_parallel_world_size(self) -> int:
        return self.dp


def check(folder: str, world: int, dp: int) -> dict[str, Any]:
    tree = json.loads((Path(folder) / "ds_config.json").read_text())
    stages = tree.get("pipeline", {}).get("stages", 1)
    tp = tree.get("tensor_parallel", {}).get("autotp_size", 1)
    dist.get_rank = lambda *a, **k: 0  # the launcher's part: a rank of a world of this size
    dist.get_world_size = lambda *a, **k: world
    config = DeepSpeedConfig(dict(tree), mpu=Mesh(tp, stages, world // (tp * stages)))
    experts = parse_autoep_config(tree.get("expert_parallel", {}))
    validate_autoep_config(
        experts, world_size=world, pp_size=stages, tp_size=tp, sp_size=1,
        zero_stage=config.zero_optimization_stage,
    ) if experts.enabled else None  # fmt: skip
    return {
        "degrees": {
            "tp": config.tensor_parallel_config.autotp_size or 1,
            "dp": config.train_batch_size
            // (config.train_micro_batch_size_per_gpu * config.gradient_accumulation_steps),
            "pp": config.pipeline["stages"] if config.pipeline["stages"] != "auto" else 1,
            "ep": experts.autoep_size,
            "etp": experts.expert_tensor_parallel_size,
        },
        "micro_batches": config.gradient_accumulation_steps,
        "zero_stage": config.zero_optimization_stage,
    }


def main() -> None:
    for row in json.loads(Path(sys.argv[1]).read_text()):
        try:
            said = {"ok": True, **check(row["folder"], row["world"], row["degrees"]["dp"])}
        except (Exception, SystemExit) as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        print("RESULT " + json.dumps({"folder": row["folder"], **said}), flush=True)


if __name__ == "__main__":
    main()
