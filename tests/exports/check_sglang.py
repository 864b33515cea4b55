"""SGLang's own command line and its resolution pipeline on the flags of exported maps, and the map against both.

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

from sglang.srt.arg_groups.overrides import resolved_view  # noqa: E402
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
    table = json.loads(Path(seen.init_expert_location).read_text())["physical_to_logical_map"]
    experts, redundant = row["config"]["num_experts"], seen.ep_num_redundant_experts
    if {len(line) for line in table} != {experts + redundant} or (experts + redundant) % seen.ep_size:
        raise ValueError(f"slots do not fit {experts} experts, {redundant} redundant, ep {seen.ep_size}")
    if len(table) != row["config"]["num_hidden_layers"]:
        raise ValueError(f"{len(table)} layers in the map")
    return {"degrees": {"tp": seen.tp_size, "ep": seen.ep_size}}


def main() -> None:
    for row in json.loads(Path(sys.argv[1]).read_text()):
        try:
            said = {"ok": True, **check(row)}
        except (Exception, SystemExit) as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        print("RESULT " + json.dumps({"folder": row["folder"], **said}), flush=True)


if __name__ == "__main__":
    main()
