"""A placement as a file: JSON that is the same byte for byte for the same question and seed, `timing` apart."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from planner.placement.records import Homes, Placement, PlacementResult

FORMAT = 1
MAX_FILE_BYTES = 512 * 2**20
SHARE_DIGITS = 12
REMEDY = "give a file written by `moecast place --out`"


def placement_json(result: PlacementResult) -> dict[str, Any]:
    """The whole answer as JSON-ready values."""
    instance, certificate = result.instance, result.certificate
    layers = []
    for i, figure in enumerate(result.layers):
        hosts = result.placement.experts[i]
        layers.append(
            {
                "layer": figure.layer,
                "experts_on_gpu": [row[row >= 0].tolist() for row in hosts],
                "split": _split(hosts, result.placement.share[i]),
                "max_load": figure.max_load,
                "bound": figure.bound,
                "bound_kind": figure.bound_kind,
                "gap": figure.gap,
            }
        )
    sizes = {
        "gpus": instance.gpus, "gpus_per_node": instance.gpus_per_node, "slots_per_gpu": instance.slots_per_gpu,
        "slots": list(instance.slots) or None, "num_experts": instance.num_experts, "source": instance.source,
    }  # fmt: skip
    said = asdict(certificate) | {"gap": certificate.gap, "limits": list(certificate.limits)}
    if certificate.time is not None:
        said["time"]["gain"]["counts"] = certificate.time.gain.counts
    if certificate.held_out is not None:
        said["held_out"]["counts"] = certificate.held_out.counts
    return {
        "format": FORMAT,
        "inputs": sizes,
        "layers": layers,
        "certificate": said,
        **({} if result.homes is None else {"homes": _homes(result.homes)}),
        "stopped": result.stopped,
        "timing": dict(result.timing),
    }


def _homes(homes: Homes) -> dict[str, Any]:
    share = [[round(float(x), SHARE_DIGITS) for x in row] for row in homes.share]
    return {"share": share, "remote": homes.remote, "remote_spread": homes.remote_spread}


def _split(hosts: np.ndarray, share: np.ndarray) -> dict[str, list[float]]:
    """Shares of every expert with replicas, in order of the GPUs that hold it."""
    out: dict[str, list[float]] = {}
    flat, parts = hosts.ravel(), share.ravel()
    replicated = np.flatnonzero(np.bincount(flat[flat >= 0]) > 1)
    for expert in replicated.tolist():
        out[str(expert)] = [round(float(part), SHARE_DIGITS) for part in parts[flat == expert]]
    return out


def save_placement(result: PlacementResult, path: str | Path) -> None:
    """Write a placement file; a place that cannot be written is a UserError."""
    text = json.dumps(placement_json(result), indent=1, allow_nan=False) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write: {error.strerror}; give a file in a folder you may write", where=str(path)
        ) from None


def _even_rows(layers: Any) -> np.ndarray:
    """Experts [layer, GPU, slot] of lists; -1 in slots that a GPU lacks. Raises ValueError on anything else."""
    widest = max(len(row) for hosts in layers for row in hosts)
    out = np.full((len(layers), len(layers[0]), widest), -1, dtype=np.int64)
    for i, hosts in enumerate(layers):
        if len(hosts) != out.shape[1]:
            raise ValueError("not [layer, GPU, slot]")
        for g, row in enumerate(hosts):
            held = np.array(row)
            if held.ndim != 1 or not len(held) or held.dtype.kind != "i" or held.min() < 0:
                raise ValueError("not [layer, GPU, slot]")
            out[i, g, : len(held)] = held
    return out


def load_placement(path: str | Path) -> tuple[Placement, tuple[int, ...]]:
    """(placement, layer numbers) of a file that `moecast place --out` wrote, or of the first plan of one that `moecast
    plan --placement auto --out` wrote. Raises UserError on anything else."""
    return load_placed(path)[:2]


def load_placed(path: str | Path) -> tuple[Placement, tuple[int, ...], str | None]:
    """The same and the name of the model, which only plans tell."""
    where = str(path)
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"the file is too large for a placement; {REMEDY}", where=where)
        data = json.loads(read_bounded(path, MAX_FILE_BYTES))
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}; {REMEDY}", where=where) from None
    except (ValueError, RecursionError):
        raise UserError(f"not JSON text; {REMEDY}", where=where) from None
    if isinstance(data, dict) and "plans" in data:
        if "placement" not in data:
            remedy = "make it with `moecast plan --placement auto --out`"
            raise UserError(f"the plan holds no placement; {remedy}", where=where)
        return *placement_from(data["placement"], where), data["inputs"]["model"]
    return *placement_from(data, where), None


def placement_from(data: Any, where: str) -> tuple[Placement, tuple[int, ...]]:
    """The same of JSON values as `placement_json` makes them."""
    try:
        layers = data["layers"]
        experts = _even_rows([layer["experts_on_gpu"] for layer in layers])
        if int(experts.max()) >= experts[0].size:  # every expert fills a slot of every layer
            raise ValueError("not [layer, GPU, slot]")
        placement = Placement.even(experts, int(experts.max()) + 1)
        share = placement.share.copy()
        for i, layer in enumerate(layers):
            for expert, parts in layer["split"].items():
                share[i][experts[i] == int(expert)] = parts
        return Placement(experts=experts, share=share), tuple(int(layer["layer"]) for layer in layers)
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(f"not a placement; {REMEDY}", where=where) from None
