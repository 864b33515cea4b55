"""accelerate's own YAML loader, launch arguments and sizes, and transformers' DistributedConfig, on exports.

python check_accelerate.py INDEX.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.distributed import DistributedConfig


def check(folder: str, world: int) -> dict[str, Any]:
    words = ["--config_file", str(Path(folder) / "accelerate.yaml"), "train.py"]
    args = launch_command_parser().parse_args(words)
    args, _, _ = _validate_launch_command(args)
    env = prepare_multi_gpu_env(args)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PARALLELISM_CONFIG", "FSDP_"))}
    os.environ.clear()
    os.environ.update(clean)
    os.environ.update({k: v for k, v in env.items() if k.startswith(("PARALLELISM_CONFIG", "FSDP_", "ACCELERATE"))})
    sizes = ParallelismConfig()
    plugin = FullyShardedDataParallelPlugin()
    experts = {"ep_size": 1}
    path = Path(folder) / "distributed_config.json"
    if path.exists():
        made = DistributedConfig(**json.loads(path.read_text()))
        experts = {"ep_size": made.ep_size, "sizes": [made.tp_size, made.fsdp_size, made.dp_replicate_size]}
        if experts["sizes"] != [sizes.tp_size, sizes.dp_shard_size, sizes.dp_replicate_size]:
            raise ValueError(f"transformers reads {experts['sizes']}, accelerate {sizes!r}")
    if sizes.total_size != world or args.num_processes != world:
        raise ValueError(f"sizes make {sizes.total_size} ranks and {args.num_processes} processes, not {world}")
    return {
        "degrees": {
            "tp": sizes.tp_size,
            "cp": sizes.cp_size,
            "dp": sizes.dp_replicate_size * sizes.dp_shard_size,
            "pp": 1,
            "ep": experts["ep_size"],
        },
        "zero_stage": 3 if plugin.reshard_after_forward else 2,
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
