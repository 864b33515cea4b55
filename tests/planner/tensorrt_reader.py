"""A strict reader of TensorRT-LLM's load-balancer files, restated: the package itself needs a GPU driver to install.

What it checks is what these say (github.com/NVIDIA/TensorRT-LLM, main branch of 2026 at commit
0004396720054fd8e205cbf616f21f0b57c6b412; the same fields and checks stand in 1.0.0rc4):

- `tensorrt_llm/llmapi/llm_args.py`: `MoeLoadBalancerConfig` takes `num_slots`, `initial_global_assignments` (numbers of
  layers to lists of numbers) and `layer_updates_per_iter`, and no other key; `num_slots` divides by the
  expert-parallel size; a layer that is asked for and missing is an error; a list has `num_slots` entries.
  `MoeConfig.load_balancer` may be the path of a YAML file, which must exist.
- `tensorrt_llm/_torch/modules/fused_moe/` (the layers): as many slots as experts at least, every expert in a list, no
  other number; rank r holds `num_slots / ep` slots from r * num_slots / ep on.
- `tensorrt_llm/mapping.py`: moe_tp x moe_ep x moe_cluster is tp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sim.model import ModelSpec

BALANCER = {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
MOE = {"backend", "max_num_tokens", "load_balancer", "disable_finalize_fusion", "use_low_precision_moe_combine"}


class Refused(ValueError):
    """What the package would not take."""


def _need(good: bool, said: str) -> None:
    if not good:
        raise Refused(said)


def _whole(value: Any, name: str) -> int:
    _need(type(value) is int, f"{name} is {value!r}, no integer")
    return int(value)


def slots_of(folder: Path, model: ModelSpec) -> dict[int, list[list[int]]]:
    """Experts on every rank of each MoE layer of `model`, by the files of an export. Raises Refused."""
    options = yaml.safe_load((folder / "extra_options.yaml").read_text())
    tp, ep = _whole(options["tensor_parallel_size"], "tp"), _whole(options["moe_expert_parallel_size"], "ep")
    _need(ep == tp, f"moe_tp 1 x moe_ep {ep} is not tp {tp}")  # moe_tp follows: no expert is cut here
    _need(set(options["moe_config"]) <= MOE, "moe_config: extra keys are forbidden")
    path = folder / options["moe_config"]["load_balancer"]
    _need(path.is_file(), f"{path.name} not found")
    tree = yaml.safe_load(path.read_text())
    _need(set(tree) <= BALANCER, "MoeLoadBalancerConfig: extra keys are forbidden")
    slots = _whole(tree.get("num_slots"), "num_slots")
    _whole(tree.get("layer_updates_per_iter", 0), "layer_updates_per_iter")
    _need(slots % ep == 0, f"num_slots {slots} is not divisible by ep_size {ep}")
    table = {_whole(k, "layer"): [_whole(x, "slot") for x in row] for k, row in tree[
        "initial_global_assignments"].items()}  # fmt: skip
    out = {}
    for layer, spec in enumerate(model.layers):
        if spec.moe is None:
            continue
        _need(layer in table, f"layer_idx {layer} not found")
        row = table[layer]
        _need(len(row) == slots, f"{len(row)} entries of layer {layer} does not match num_slots {slots}")
        _need(slots >= spec.moe.num_experts, f"{slots} slots for {spec.moe.num_experts} experts")
        _need(set(row) == set(range(spec.moe.num_experts)), f"layer {layer} does not hold every expert and no other")
        local = slots // ep
        out[layer] = [row[rank * local : (rank + 1) * local] for rank in range(ep)]
    return out
