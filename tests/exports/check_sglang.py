"""SGLang's own command line, its resolution pipeline and its loader of maps on exported maps.

The loader runs as on a rank, but on the CPU; of the model's class it asks three sizes, which are given here.

python check_sglang.py INDEX.json: one JSON line per map.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import stubs

warnings.simplefilter("ignore")
# What serves, draws or decodes; nothing that parses or checks arguments.
stubs.install(
    "orjson", "pybase64", "triton", "starlette", "zmq", "IPython", "torchvision", "sgl_kernel", "compressed_tensors",
    "flashinfer", "torchao", "xgrammar", "outlines", "decord", "soundfile", "librosa", "gguf", "llguidance", "uvloop",
    "fastapi", "uvicorn", "openai", "setproctitle", "pynvml", "cuda", "partial_json_parser", "openai_harmony", "timm",
    "blobfile", "tiktoken", "anthropic", "interegular", "scipy.signal", "av", "torch_memory_saver", "hf_transfer",
    "modelscope", "prometheus_client", "mistral_common", "deep_gemm", "deep_ep", "tvm_ffi", "quack", "smg_grpc_proto",
    "apache_tvm_ffi", "sentencepiece",
)  # fmt: skip

import torch  # noqa: E402

torch.cuda.is_available = lambda: True
torch.cuda.mem_get_info = lambda *a: (79 << 30, 80 << 30)
torch.cuda.get_device_name = lambda *a: "NVIDIA H100 80GB HBM3"

from sglang.srt import runtime_context  # noqa: E402
from sglang.srt.arg_groups.overrides import resolved_view  # noqa: E402
from sglang.srt.eplb.expert_location import (  # noqa: E402
    ModelConfigForExpertLocation,
    compute_initial_expert_location_metadata,
)
from sglang.srt.server_args import ServerArgs  # noqa: E402

READ = '. "$1/sglang_args.sh"; printf "%s\\0" "${SGLANG_ARGS[@]}"'


def check(row: dict[str, Any]) -> dict[str, Any]:
    folder = Path(row["folder"])
    words = subprocess.run(
        ["bash", "-c", READ, "-", str(folder)], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]  # fmt: skip
    (folder / "config.json").write_text(json.dumps(row["config"]))
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    args = ServerArgs.from_cli_args(parser.parse_args(["--model-path", str(folder), *words]))
    args.resolve_once()
    seen = resolved_view(args)
    load(args, row)
    return {"degrees": {"tp": seen.tp_size, "ep": seen.ep_size}}


def load(args: Any, row: dict[str, Any]) -> None:
    """Raise ValueError where the loader gives a rank other experts than the placement, in any layer."""
    config, ep = row["config"], resolved_view(args).ep_size
    sizes = ModelConfigForExpertLocation(
        num_layers=config["num_hidden_layers"], num_logical_experts=config["num_experts"]
    )
    ModelConfigForExpertLocation.from_model_config = staticmethod(lambda _: sizes)
    runtime_context.publish(args, role="scheduler").override("check", device="cpu")
    for rank in {0, ep - 1}:
        made = compute_initial_expert_location_metadata(None, moe_ep_rank=rank)
        each = made.num_local_physical_experts
        if (made.num_layers, made.ep_size, made.num_logical_experts) != (sizes.num_layers, ep, config["num_experts"]):
            raise ValueError(f"{made.num_layers} layers of {made.num_logical_experts} experts on {made.ep_size} ranks")
        if int(made.logical_to_all_physical_map_num_valid.min()) < 1:
            raise ValueError("an expert without a slot")
        for layer, want in row["placement"].items():
            slots = made.physical_to_logical_map[int(layer)].reshape(ep, each).tolist()
            if slots != want:
                raise ValueError(f"layer {layer}: ranks hold {slots}, not {want}"[:300])


def main() -> None:
    for row in json.loads(Path(sys.argv[1]).read_text()):
        try:
            said = {"ok": True, **check(row)}
        except (Exception, SystemExit) as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        print("RESULT " + json.dumps({"folder": row["folder"], **said}), flush=True)


if __name__ == "__main__":
    main()
