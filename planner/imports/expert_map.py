"""SGLang's map of experts (`--init-expert-location`) as a placement of this program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.export.expert_map import MAP_KEY
from planner.imports.pickles import refuse_pickle
from planner.imports.shell_words import read_text
from planner.placement.placefile import FORMAT
from planner.placement.records import Placement
from sim.model import ModelSpec

MAX_MAP_BYTES = 256 * 2**20
MAX_SLOTS = 10**7
_REMEDY = (
    "in the environment that wrote it, save it as JSON: json.dump({'physical_to_logical_map': "
    "torch.load(FILE, weights_only=True)['physical_to_logical_map'].tolist()}, open('map.json', 'w'))"
)


def read_map(path: str, gpus: int, model: ModelSpec | None = None) -> tuple[Placement, tuple[int, ...]]:
    """(placement with even shares, layer numbers) of a map over `gpus` expert-parallel ranks.

    model: keeps the layers that have experts, and checks their number; without it all rows are kept.
    Raises UserError for a pickle, other JSON, or rows that are no map.
    """
    refuse_pickle(path, _REMEDY)
    try:
        data = json.loads(read_text(path, MAX_MAP_BYTES))
    except (ValueError, RecursionError):
        raise UserError(f"not JSON; give the file of --init-expert-location with {MAP_KEY}", where=path) from None
    if isinstance(data, dict) and "logical_count" in data:
        raise UserError("holds counts, not a map; read it with `moecast import routing`", where=path)
    rows = data.get(MAP_KEY) if isinstance(data, dict) else None
    table = _table(rows, path)
    slots = table.shape[1]
    if slots % gpus:
        raise UserError(f"{slots} slots do not divide over {gpus} GPUs; give the expert-parallel size", where="--gpus")
    numbers = tuple(range(len(table)))
    experts = int(table.max()) + 1
    if model is not None:
        numbers = tuple(i for i, layer in enumerate(model.layers) if layer.moe is not None)
        if len(table) != len(model.layers) or not numbers:
            raise UserError(f"{len(table)} layers where {model.name} has {len(model.layers)}; give its map", where=path)
        experts = max(layer.moe.num_experts for layer in model.layers if layer.moe is not None)
        table = table[list(numbers)]
    for number, row in zip(numbers, table, strict=True):
        left = sorted(set(range(experts)) - set(row.tolist()))
        if left or int(row.max()) >= experts:
            raise UserError(f"layer {number} does not hold experts 0 to {experts - 1} each at least once", where=path)
    return Placement.even(table.reshape(len(table), gpus, slots // gpus), experts), numbers


def _table(rows: Any, path: str) -> np.ndarray:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise UserError(f"no {MAP_KEY} with a row per layer in it", where=path)
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise UserError(f"rows of {min(widths)} and {max(widths)} slots; all layers have the same number", where=path)
    if len(rows) * widths.pop() > MAX_SLOTS:
        raise UserError(f"more than {MAX_SLOTS} slots; give a map of one model", where=path)
    if not all(type(slot) is int and 0 <= slot < MAX_SLOTS for row in rows for slot in row):
        raise UserError("slots hold something else than numbers of experts", where=path)
    return np.array(rows, dtype=np.int64)


def map_text(placement: Placement, layers: tuple[int, ...], source: str) -> str:
    """A placement file without a certificate: where experts are, in the form that `load_placement` reads."""
    gpus, slots = placement.experts.shape[1:]
    flat = placement.experts.reshape(len(layers), -1)
    rows = []
    for layer, hosts, row in zip(layers, placement.experts, flat, strict=True):
        counts = np.bincount(row)
        split = {str(e): [1.0 / int(n)] * int(n) for e, n in enumerate(counts.tolist()) if n > 1}
        rows.append({"layer": layer, "experts_on_gpu": hosts.tolist(), "split": split})
    sizes = {
        "gpus": gpus, "slots_per_gpu": slots, "num_experts": int(flat.max()) + 1, "source": Path(source).name,
    }  # fmt: skip
    return json.dumps({"format": FORMAT, "inputs": sizes, "layers": rows}, indent=1) + "\n"
