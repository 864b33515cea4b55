"""Exact sizes of a checkpoint from its safetensors headers or index, beside those the model's description gives.

Only headers are read, never weights. An index alone has names and a total; the shards have every shape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from planner.export.apply_permutation import INDEX, MAX_HEADER, SINGLE, STACKED, Refused, read_header
from planner.imports.pickles import refuse_pickle
from sim.model import ModelSpec, embedding_params, layer_params

MAX_SHARDS = 10_000
PARTS = ("embedding and head", "routed experts", "rest of the layers", "multi-token prediction")
# Factors of quantised weights, which are no parameters; four-bit values, two to a byte.
_SCALES = re.compile(r"(_scale_inv|_scale|_scales|\.scales|\.qzeros|\.g_idx|_zero_point|\.weight_shape)$")
_HALVES = re.compile(r"(_blocks|_packed)$")
_LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")
_REMEDY = "convert it to safetensors where it was made: save_pretrained(DIR, safe_serialization=True)"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """params[part] of the checkpoint (of an index alone: none) and model_params[part] of the description.

    bytes: of all tensors. dtypes: parameters per stored type. notes: what differs and why it may.
    """

    source: str
    tensors: int
    bytes: int
    params: Mapping[str, int]
    model_params: Mapping[str, int]
    dtypes: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Parameters of the checkpoint without multi-token prediction, as model cards count; 0 where not known."""
        return sum(n for part, n in self.params.items() if part != PARTS[3])

    @property
    def model_total(self) -> int:
        """The same of the description."""
        return sum(n for part, n in self.model_params.items() if part != PARTS[3])

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self) | {
            "total": self.total, "model_total": self.model_total, "notes": list(self.notes),
            "params": dict(self.params), "model_params": dict(self.model_params), "dtypes": dict(self.dtypes),
        }  # fmt: skip


def read_weights(path: str, model: ModelSpec) -> Weights:
    """Sizes of a folder of shards, a single file, or an index whose shards are elsewhere.

    Raises UserError for pickles, damaged headers, shards an index names that are no plain file names, or an index and
    shards that disagree.
    """
    place = Path(path)
    index = place / INDEX if place.is_dir() else place if place.name.endswith(".index.json") else None
    names = _index(index) if index is not None and index.is_file() else None
    shards = sorted(place.glob("*.safetensors")) if place.is_dir() else [] if index is not None else [place]
    if index is not None and names is not None and not shards:
        shards = [index.parent / shard for shard in sorted(set(names[0].values()))]
        if not all(shard.is_file() for shard in shards):
            return _from_index(path, names, model)
    if not shards or len(shards) > MAX_SHARDS:
        raise UserError(f"{len(shards)} .safetensors files; give a checkpoint's folder, file or index", where=path)
    tensors: dict[str, tuple[str, list[int], int]] = {}
    for shard in shards:
        for name, tensor in _header(shard).items():
            if name in tensors:
                raise UserError(f"tensor {name[:80]} stands in two files; keep one checkpoint in a folder", where=path)
            tensors[name] = tensor
    if names is not None and set(names[0]) != set(tensors):
        odd = sorted(set(names[0]) ^ set(tensors))
        raise UserError(f"index and shards differ in {len(odd)} tensors, such as {odd[0][:80]}; complete the folder",
                        where=path)  # fmt: skip
    return _sum(path, tensors, model)


def _header(shard: Path) -> dict[str, tuple[str, list[int], int]]:
    """Type, shape and bytes of every tensor of a file."""
    refuse_pickle(str(shard), _REMEDY)
    try:
        with shard.open("rb") as file:
            header, _ = read_header(file, shard.name)
        return {
            name: (str(t["dtype"]), [int(n) for n in t["shape"]], int(t["data_offsets"][1]) - int(t["data_offsets"][0]))
            for name, t in header.items()
            if name != "__metadata__"
        }
    except (Refused, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{str(error)[:120]}; give the file as it was published", where=str(shard)) from None


def _index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(file of each tensor, metadata) of an index."""
    try:
        if path.stat().st_size > MAX_HEADER:
            raise UserError("too large for an index", where=str(path))
        data = json.loads(read_bounded(path, MAX_HEADER))
        names = {str(name): str(file) for name, file in data["weight_map"].items()}
        meta = dict(data.get("metadata") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("not an index; give model.safetensors.index.json", where=str(path)) from None
    odd = [file for file in set(names.values()) if not re.fullmatch(r"[\w.\-]+\.safetensors", file)]
    if odd:
        raise UserError(f"names {odd[0][:60]!r}, which is no file name beside it; correct it", where=str(path))
    return names, meta


def _from_index(path: str, index: tuple[dict[str, str], dict[str, Any]], model: ModelSpec) -> Weights:
    names, meta = index
    size = meta.get("total_size")
    size = int(size) if isinstance(size, int | float) else 0
    want = _of_model(model)
    notes = [*_missing_layers(names, model), "the shards are not beside the index: no shapes, only the total"]
    if size:
        total = sum(n for part, n in want.items() if part != PARTS[3])
        notes.append(f"{size / total:.3f} bytes for each of the {total:,} parameters of {model.name}")
    return Weights(
        source=path, tensors=len(names), bytes=size, params={}, model_params=want, dtypes={}, notes=tuple(notes)
    )  # fmt: skip


def _of_model(model: ModelSpec) -> dict[str, int]:
    each = [layer_params(layer, model.hidden_dim) for layer in model.layers]
    routed = sum(layer.routed for layer in each)
    return {
        PARTS[0]: embedding_params(model),
        PARTS[1]: routed,
        PARTS[2]: sum(layer.total for layer in each) - routed,
    }


def _missing_layers(names: Iterable[str], model: ModelSpec) -> list[str]:
    seen = {int(found[1]) for found in map(_LAYER.search, names) if found}
    left = sorted(set(range(len(model.layers))) - seen)
    return [f"layers {', '.join(map(str, left[:6]))} of {model.name} have no tensor"] if left else []


def part_of(name: str, layers: int) -> str:
    """Which of PARTS a tensor belongs to.

    >>> part_of("model.layers.3.mlp.experts.7.up_proj.weight", 4), part_of("lm_head.weight", 4)
    ('routed experts', 'embedding and head')
    """
    found = _LAYER.search(name)
    if name.startswith("mtp.") or (found and int(found[1]) >= layers):
        return PARTS[3]
    if not found:
        return PARTS[0]
    return PARTS[1] if SINGLE.match(name) or STACKED.match(name) else PARTS[2]


def _sum(path: str, tensors: Mapping[str, tuple[str, list[int], int]], model: ModelSpec) -> Weights:
    params, dtypes, scales = dict.fromkeys(PARTS, 0), dict[str, int](), 0
    for name, (dtype, shape, _) in tensors.items():
        count = math.prod(shape)
        if _SCALES.search(name):
            scales += count
            continue
        if _HALVES.search(name) and dtype in ("U8", "I8"):
            count *= 2
        params[part_of(name, len(model.layers))] += count
        dtypes[dtype] = dtypes.get(dtype, 0) + count
    want = _of_model(model)
    notes = _missing_layers(tensors, model)
    for part, expected in want.items():
        if params[part] != expected:
            notes.append(f"{part}: {params[part]:,} in the checkpoint, {expected:,} of {model.name}, "
                         f"{params[part] - expected:+,}")  # fmt: skip
    if scales:
        notes.append(f"{scales:,} scales of quantised weights are not counted")
    if dtypes.get("I32"):
        notes.append("32-bit words that hold several weights are counted as one: give the checkpoint before packing")
    return Weights(
        source=path, tensors=len(tensors), bytes=sum(size for _, _, size in tensors.values()),
        params={part: n for part, n in params.items() if n or part != PARTS[3]}, model_params=want,
        dtypes=dict(sorted(dtypes.items())), notes=tuple(notes),
    )  # fmt: skip
