"""Maps of experts for SGLang: drawn placements of catalogue models, and the check of what its parser echoes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np

from planner.export import write_export
from planner.export.expert_map import MAPS, PlacedModel
from planner.placement.records import Placement
from sim.families import load_model

MODELS = ("Mixtral-8x7B", "Qwen3-30B-A3B", "DeepSeek-V3", "DeepSeek-V2-Lite", "OLMoE-1B-7B", "Qwen3-235B-A22B")
GPUS = (2, 4, 8, 16, 32, 64)


def placed() -> list[PlacedModel]:
    """Placements without replicas and with one slot more on each GPU, wherever they divide."""
    rng = np.random.default_rng(5)
    out = []
    for name in MODELS:
        model = load_model(name)
        layers = tuple(i for i, layer in enumerate(model.layers) if layer.moe is not None)
        moe = model.layers[layers[0]].moe
        assert moe is not None
        for gpus in GPUS:
            for extra in (0, gpus):
                if moe.num_experts % gpus:
                    continue
                rows = [
                    np.concatenate([rng.permutation(moe.num_experts), rng.permutation(moe.num_experts)[:extra]])
                    for _ in layers
                ]
                hosts = np.stack(rows).reshape(len(layers), gpus, -1)
                placement = Placement.even(hosts, moe.num_experts)
                out.append(PlacedModel(model=model, placement=placement, layers=layers))
    return out


def config_of(asked: PlacedModel) -> dict[str, object]:
    """A config.json with the sizes that decide: its family matters to no flag of a map."""
    return {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "head_dim": 128,
        "num_hidden_layers": len(asked.model.layers), "num_attention_heads": 64, "num_key_value_heads": 64,
        "num_experts": asked.moe.num_experts, "num_experts_per_tok": 2, "moe_intermediate_size": 768,
        "intermediate_size": 6144, "vocab_size": 151936, "max_position_embeddings": 40960,
    }  # fmt: skip


def run_sglang(python: Path, folder: Path) -> int:
    """Number of maps whose flags SGLang refuses or resolves to other degrees, or which it loads into other slots.

    Controls (a misspelt flag, two experts exchanged) must be refused.
    """
    rows: list[dict[str, object]] = []
    for n, asked in enumerate(placed()):
        made = MAPS["sglang"](asked)
        write_export(made, folder / str(n))
        hosts = dict(zip(asked.layers, asked.placement.experts.tolist(), strict=True))
        rows.append(
            {
                "folder": str(folder / str(n)),
                "degrees": dict(made.degrees),
                "config": config_of(asked),
                "placement": hosts,
            }
        )
    control = folder / "control"
    write_export(made, control)
    flags = control / "sglang_args.sh"
    flags.write_text(flags.read_text().replace("--ep-num-redundant-experts", "--ep-num-redundant-expertz"))
    rows.append({**rows[-1], "folder": str(control)})
    wrong = folder / "wrong"  # two experts of the first layer of the placement change places
    write_export(made, wrong)
    table = json.loads((wrong / "expert_location.json").read_text())
    row = table["physical_to_logical_map"][asked.layers[0]]
    row[0], row[-1] = row[-1], row[0]
    (wrong / "expert_location.json").write_text(json.dumps(table))
    rows.append({**rows[-1], "folder": str(wrong)})
    (folder / "index.json").write_text(json.dumps(rows))
    here = Path(__file__).parent
    done = subprocess.run(
        [str(python), str(here / "check_sglang.py"), str(folder / "index.json")],
        capture_output=True, text=True, cwd=here, env={**os.environ, "PYTHONPATH": str(here)},
    )  # fmt: skip
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    said = {one["folder"]: one for one in (json.loads(x[7:]) for x in done.stdout.splitlines() if x[:7] == "RESULT ")}
    bad = 0
    for row in rows[:-2]:
        answer = said.get(str(row["folder"]), {"ok": False, "error": "no answer; see log.txt"})
        if not answer["ok"] or answer["degrees"] != row["degrees"]:
            bad += 1
            print(f"  {row['folder']}: {answer.get('error', answer.get('degrees'))}")
    if said.get(str(control), {"ok": True})["ok"]:
        bad += 1
        print("  the control, whose flag is misspelt, was accepted")
    if said.get(str(wrong), {"ok": True})["ok"]:
        bad += 1
        print("  the control, whose map has two experts exchanged, was accepted")
    maps = len(rows) - 2
    print(f"sglang: {maps - bad} of {maps} maps accepted, and loaded into the placement's slots", flush=True)
    return bad
