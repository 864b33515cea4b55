"""torchtitan's own command-line parser, ParallelDims and device mesh on a fake world, on exported module and overrides.

python check_torchtitan.py INDEX.json
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import stubs

stubs.install("triton", "wandb")

import torch.distributed as dist  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torchtitan.config.manager import ConfigManager  # noqa: E402
from torchtitan.distributed.parallel_dims import ParallelDims  # noqa: E402

READ = 'source "$1/overrides.sh"; printf "%s\\0" "${TORCHTITAN_ARGS[@]}"'


def check(folder: str, world: int) -> dict[str, Any]:
    done = subprocess.run(["bash", "-c", READ, "-", folder], capture_output=True, text=True, check=True)
    sys.modules.pop("moecast_torchtitan", None)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        config = ConfigManager().parse_args(done.stdout.split("\0")[:-1])
    finally:
        sys.path.remove(folder)
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    dims = ParallelDims.from_config(config.parallelism, world)
    dims.build_mesh()
    dp = dims.dp_replicate * dims.dp_shard
    parts = config.parallelism.module_fqns_per_model_part
    return {
        "degrees": {
            "tp": dims.tp,
            "cp": dims.cp,
            "dp": dp,
            "pp": dims.pp,
            "vpp": len(parts) // dims.pp if parts else 1,
            "ep": dims.ep,
        },
        "micro_batches": config.training.global_batch_size // (config.training.local_batch_size * dp)
        if dims.pp == 1
        else config.training.local_batch_size // config.parallelism.pipeline_parallel_microbatch_size,
        "layers": sum(name.startswith("layers.") for part in parts for name in part) if parts else None,
    }


def main() -> None:
    for row in json.loads(Path(sys.argv[1]).read_text()):
        try:
            said = {"ok": True, **check(row["folder"], row["world"])}
        except (Exception, SystemExit) as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        print("RESULT " + json.dumps({"folder": row["folder"], **said}), flush=True)


if __name__ == "__main__":
    main()
