"""A placement of experts as what others read: SGLang's map, TensorRT-LLM's assignments, a permutation for checkpoints.

Trainers have no option for placement: expert-parallel rank r owns experts r*E/ep to (r+1)*E/ep. Renumbering the experts
of a checkpoint (router rows, biases and weights together) puts the right ones there and leaves the function unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np

from hwprofiles.errors import UserError
from planner.export.base import SHELL_HEAD, Export, comment, plain_text, shell_array, yaml_text
from planner.placement.records import Ints, Placement
from sim.model import ModelSpec, MoESpec

SGLANG, TENSORRT, PERMUTATION = "sglang", "tensorrt-llm", "permutation"
SCRIPT = "apply_permutation.py"
MAP_KEY = "physical_to_logical_map"


@dataclass(frozen=True, kw_only=True)
class PlacedModel:
    """A placement and the model it is for. layers: number of each row of the placement, among all layers from 0."""

    model: ModelSpec
    placement: Placement
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        found = self._problems()
        if found:
            raise UserError(found, where=f"placement for {plain_text(self.model.name)}")

    def _problems(self) -> list[str]:
        problems = []
        for row, layer in enumerate(self.layers):
            spec = self.model.layers[layer].moe if 0 <= layer < len(self.model.layers) else None
            if spec is None:
                have = ", ".join(map(str, self.moe_layers[:4]))
                problems.append(
                    f"layer {layer} has no experts in the model (those with experts begin {have}); number the layers "
                    "of the loads among all layers of the model, from 0 [rule expert-map-layers]"
                )
                continue
            if int(self.placement.experts[row].min()) < 0:
                problems.append(
                    f"layer {layer} fills different numbers of slots on the GPUs, and every format here has as many on "
                    "each; place with --slots-per-gpu N [rule expert-map-slots]"
                )
                continue
            missing = spec.num_experts - len(set(self.placement.experts[row].ravel().tolist()))
            if missing or int(self.placement.experts[row].max()) >= spec.num_experts:
                problems.append(
                    f"layer {layer} does not place the {spec.num_experts} experts of the model each at least once; "
                    "place the loads of this model [rule expert-map-complete]"
                )
        return problems

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with experts."""
        return tuple(i for i, layer in enumerate(self.model.layers) if layer.moe is not None)

    @property
    def gpus(self) -> int:
        """G."""
        return int(self.placement.experts.shape[1])

    @property
    def slots(self) -> int:
        """Slots of a layer, G x S."""
        return self.gpus * int(self.placement.experts.shape[2])

    @property
    def moe(self) -> MoESpec:
        """The experts of the first placed layer."""
        spec = self.model.layers[self.layers[0]].moe
        assert spec is not None
        return spec

    def rows(self) -> dict[int, list[int]]:
        """Expert of each slot, per layer; slots of a GPU lie together, GPUs in order."""
        flat = self.placement.experts.reshape(len(self.layers), -1).tolist()
        return dict(zip(self.layers, flat, strict=True))

    def uneven(self) -> list[str]:
        """What a map of slots cannot say of the shares of replicas."""
        even = Placement.even(self.placement.experts, self.moe.num_experts)
        if np.allclose(even.share, self.placement.share):
            return []
        return ["uneven shares of the replicas of an expert: the target deals tokens evenly or by its own rule"]

    def unplaced(self) -> list[str]:
        """What happens to layers with experts that the placement leaves out."""
        left = [layer for layer in self.moe_layers if layer not in self.layers]
        shown = ", ".join(map(str, left[:6])) + (", ..." if len(left) > 6 else "")
        return [f"layers {shown}: not in the placement, experts in order of their number"] if left else []


def _lines(table: list[list[int]]) -> str:
    """Rows of whole numbers as JSON, one a line."""
    return ",\n".join(str(row) for row in table)


def _heading(asked: PlacedModel, target: str, missing: list[str]) -> list[str]:
    extra = asked.slots - asked.moe.num_experts
    return [
        f"{plain_text(asked.model.name)}: {asked.moe.num_experts} experts and {extra} replicas on {asked.gpus} GPUs, "
        f"{len(asked.layers)} layers",
        f"for {target}; made by moecast export",
        *(f"not expressed: {line}" for line in missing),
    ]


def sglang(asked: PlacedModel) -> Export:
    """`expert_location.json` and flags: a row for every layer of the model, dense ones in order of number.

    Slot s lies on rank s // (slots / ep), so every GPU's experts stand together.
    """
    missing = asked.uneven() + asked.unplaced()
    rows, experts = asked.rows(), asked.moe.num_experts
    plain = [slot % experts for slot in range(asked.slots)]
    table = [rows.get(layer, plain) for layer in range(len(asked.model.layers))]
    flags: list[tuple[str, ...]] = [("--tp-size", str(asked.gpus)), ("--ep-size", str(asked.gpus))]
    if asked.slots > experts:
        flags.append(("--ep-num-redundant-experts", str(asked.slots - experts)))
    head = _heading(asked, "sglang 0.5.23", missing)
    usage = 'Usage: . ./sglang_args.sh; python -m sglang.launch_server --model-path MODEL "${SGLANG_ARGS[@]}"'
    text = SHELL_HEAD + comment([*head, "", usage])
    text += 'HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\n' + shell_array("SGLANG_ARGS", flags)
    text += 'SGLANG_ARGS+=(--init-expert-location "$HERE/expert_location.json")\n'
    files = {
        "expert_location.json": f'{{"{MAP_KEY}": [\n{_lines(table)}\n]}}\n', "sglang_args.sh": text,
        "notes.txt": comment(head, prefix=""),
    }  # fmt: skip
    degrees = {"tp": asked.gpus, "ep": asked.gpus}
    return Export(target=SGLANG, version="0.5.23", files=files, missing=tuple(missing), degrees=degrees)


def tensorrt(asked: PlacedModel) -> Export:
    """The load balancer's YAML (`moe_load_balancer.yaml`) and the options that name it; layers with experts only."""
    missing = asked.uneven() + asked.unplaced()
    if asked.model.mtp_layers:
        missing.append("layers of multi-token prediction: not in the placement, and a layer without is refused there")
    rows, experts = asked.rows(), asked.moe.num_experts
    plain = [slot % experts for slot in range(asked.slots)]
    table = {str(layer): rows.get(layer, plain) for layer in asked.moe_layers}
    head = comment(_heading(asked, "tensorrt-llm 1.2.1 (format read, not run)", missing))
    balancer = f"num_slots: {asked.slots}\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n"
    balancer += "".join(f"  {layer}: {row}\n" for layer, row in table.items())
    options = {
        "tensor_parallel_size": asked.gpus, "moe_expert_parallel_size": asked.gpus, "enable_attention_dp": True,
        "moe_config": {"load_balancer": "moe_load_balancer.yaml"},
    }  # fmt: skip
    files = {
        "moe_load_balancer.yaml": head + balancer,
        "extra_options.yaml": head + "# moe_config.load_balancer: write the path of the file beside this one\n"
        + yaml_text(options),
        "notes.txt": comment(_heading(asked, "tensorrt-llm 1.2.1", missing), prefix=""),
    }  # fmt: skip
    degrees = {"tp": asked.gpus, "ep": asked.gpus}
    return Export(target=TENSORRT, version="1.2.1", files=files, missing=tuple(missing), degrees=degrees)


def permutation(asked: PlacedModel) -> Export:
    """`permutation.json` (per layer, the old number of the expert that gets each new number) and the script for it."""
    experts, rows = asked.moe.num_experts, asked.rows()
    problems = []
    if asked.slots != experts:
        problems.append(
            f"{asked.slots} slots for {experts} experts: a trainer holds every expert once; place without replicas "
            "(--slots-per-gpu left out, GPUs that divide the experts) [rule permutation-no-replicas]"
        )
    for layer, row in rows.items():
        spec = asked.model.layers[layer].moe
        groups = spec.num_groups if spec is not None else 1
        if not problems and groups > 1 and not keeps_groups(np.array(row), groups):
            problems.append(
                f"layer {layer}: routing is limited to groups of {experts // groups} neighbouring experts, which this "
                f"placement mixes; place with --num-groups {groups} on {groups} nodes [rule permutation-groups]"
            )
    if problems:
        raise UserError(problems, where="--to permutation")
    missing = asked.unplaced()
    head = _heading(asked, "checkpoints of any trainer with contiguous experts", missing)
    head += [
        f"expert-parallel size {asked.gpus}: rank g of an expert-parallel group is GPU g of the placement",
        f"apply: python {SCRIPT} IN_DIR OUT_DIR permutation.json; it needs numpy",
    ]
    head_of = f'"format": 1, "num_experts": {experts}, "ep": {asked.gpus}, "layers"'
    layers = ",\n".join(f'"{layer}": {row}' for layer, row in rows.items())
    files = {
        "permutation.json": f"{{{head_of}: {{\n{layers}\n}}}}\n",
        SCRIPT: resources.files("planner.export").joinpath(SCRIPT).read_text(encoding="utf-8"),
        "notes.txt": comment(head, prefix=""),
    }
    return Export(target=PERMUTATION, version="1", files=files, missing=tuple(missing), degrees={"ep": asked.gpus})


def keeps_groups(order: Ints, groups: int) -> bool:
    """Whether each block of len(order) / groups new numbers holds exactly one old block.

    >>> keeps_groups(np.array([3, 2, 0, 1]), 2), keeps_groups(np.array([0, 2, 1, 3]), 2)
    (True, False)
    """
    size = len(order) // groups
    blocks = (order // size).reshape(groups, size)
    return bool(np.all(blocks == blocks[:, :1]))


MAPS: Mapping[str, Callable[[PlacedModel], Export]] = {
    SGLANG: sglang, TENSORRT: tensorrt, PERMUTATION: permutation,
}  # fmt: skip
