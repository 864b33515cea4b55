"""Megatron-LM's own parser, checks, configuration class, micro-batch calculator and rank groups on exported flags.

python check_megatron.py INDEX.json: one JSON line per plan.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import stubs

stubs.install("triton", "transformer_engine", "transformer_engine_torch")

from megatron.core.num_microbatches_calculator import ConstantNumMicroBatchesCalculator  # noqa: E402
from megatron.core.parallel_state import RankGenerator  # noqa: E402
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table  # noqa: E402
from megatron.training.arguments import (  # noqa: E402
    core_transformer_config_from_args,
    parse_args,
    validate_args,
)

READ = 'source "$1/megatron_args.sh"; printf "%s\\0" "${MEGATRON_ARGS[@]}"'
NAMES = ("CUDA_DEVICE_MAX_CONNECTIONS", "NVTE_CPU_OFFLOAD_V1")
ENVIRONMENT = 'source <(grep -E "^(export|unset) " "$1/launch.sh"); printf "%s\\0" ' + " ".join(
    f'"${{{name}-}}"' for name in NAMES
)
USAGE = 'sed -n "s/^# Usage: .*launch.sh //p" "$1/launch.sh"'  # what the script asks its user to add
REST = ["--tokenizer-type", "NullTokenizer", "--lr", "1e-4"]


def shell(script: str, folder: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in NAMES}
    return subprocess.run(
        ["bash", "-c", script, "-", folder], capture_output=True, text=True, check=True, env=clean
    ).stdout


def groups(args: Any) -> dict[str, list[list[int]]]:
    order = "tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp"
    tp, cp, pp = args.tensor_model_parallel_size, args.context_parallel_size, args.pipeline_model_parallel_size
    ep, etp = args.expert_model_parallel_size, args.expert_tensor_parallel_size
    edp = args.world_size // (etp * ep * pp)
    dense = RankGenerator(tp=tp, ep=1, dp=args.data_parallel_size, pp=pp, cp=cp, order=order)
    expert = RankGenerator(tp=etp, ep=ep, dp=edp, pp=pp, cp=1, order=order)
    named = {name: dense.get_ranks(name) for name in ("tp", "cp", "dp", "pp")}
    return named | {"etp": expert.get_ranks("tp"), "ep": expert.get_ranks("ep"), "edp": expert.get_ranks("dp")}


class Stage:
    """What the schedule asks of a pipeline's communicator: sizes only."""

    def __init__(self, rank: int, pp: int, vpp: int) -> None:
        self.size, self.rank, self.virtual_pipeline_model_parallel_size = (lambda: pp), (lambda: rank), vpp
        self.pp_group = self


def chunks(config: Any, micro_batches: int) -> dict[str, list[int]]:
    """Chunk of every forward in order, and forwards before the first backward on every stage."""
    pp, vpp = config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size
    if not vpp or config.overlap_moe_expert_parallel_comm:  # that one runs one forward more before
        return {}
    group = config.microbatch_group_size_per_vp_stage
    table = get_schedule_table(micro_batches, vpp, group)
    ahead = [
        get_pp_rank_microbatches(micro_batches, vpp, group, p2p_communicator=Stage(rank, pp, vpp)) for rank in range(pp)
    ]
    return {"order": [chunk for _, chunk in table], "warmup": [one[2] for one in ahead]}


def check(folder: str, world: int) -> dict[str, Any]:
    words = shell(READ, folder).split("\0")[:-1]
    usage = [word for word in shell(USAGE, folder).split() if word != "..."]
    wanted = zip(NAMES, shell(ENVIRONMENT, folder).split("\0"), strict=False)
    os.environ.update(WORLD_SIZE=str(world), RANK="0", LOCAL_RANK="0")
    for name, value in wanted:
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    sys.argv = ["pretrain_gpt.py", *words, *usage, *REST]
    with contextlib.redirect_stdout(io.StringIO()):
        args = parse_args()
        validate_args(args)
        if args.fine_grained_activation_offloading:  # asserted under a Transformer Engine that has a version
            assert os.environ.get("NVTE_CPU_OFFLOAD_V1") == "1", "NVTE_CPU_OFFLOAD_V1 is not set"
        config = core_transformer_config_from_args(args)
    calculator = ConstantNumMicroBatchesCalculator(
        args.global_batch_size, args.micro_batch_size, args.data_parallel_size, False, 0
    )
    return {
        "degrees": {
            "tp": config.tensor_model_parallel_size,
            "cp": config.context_parallel_size,
            "dp": args.data_parallel_size,
            "pp": config.pipeline_model_parallel_size,
            "vpp": config.virtual_pipeline_model_parallel_size or 1,
            "ep": config.expert_model_parallel_size,
            "etp": config.expert_tensor_parallel_size,
        },
        "micro_batches": calculator.num_micro_batches,
        "layers": config.num_layers,
        "chunks": chunks(config, calculator.num_micro_batches),
        "groups": groups(args),
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
