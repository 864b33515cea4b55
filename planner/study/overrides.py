"""`record.field = value` of a study case: a copy of a record with that field set, checked as a file would be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.reader import build
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.model import ModelSpec

Record = TypeVar("Record")
# Parts of every layer: `model.moe.top_k` sets it in all layers that have experts.
LAYER_PARTS = ("attention", "moe")


def of_record(case: Mapping[str, Any], record: str) -> dict[str, Any]:
    """The fields a case sets of one record: dotted path below the record -> value."""
    return {key.removeprefix(f"{record}."): value for key, value in case.items() if key.startswith(f"{record}.")}


def _nested(data: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set a dotted path in nested tables; a number picks a row of an array."""
    *above, last = path.split(".")
    spot: Any = data
    for name in above:
        if isinstance(spot, list | tuple) and name.isdecimal() and int(name) < len(spot):
            spot = spot[int(name)]
        elif isinstance(spot, dict) and isinstance(spot.get(name), dict | list | tuple):
            spot = spot[name]
        else:
            known = ", ".join(spot) if isinstance(spot, dict) else f"0 to {len(spot) - 1}"
            raise UserError(f"no part {name!r} in {path!r}; known: {known}", where=where)
    if not isinstance(spot, dict):
        raise UserError(f"{path!r} is no field", where=where)
    spot[last] = value


def _stated(data: Any) -> Any:
    """Without what is not set (None), as a file would leave it out."""
    if isinstance(data, dict):
        return {key: _stated(value) for key, value in data.items() if value is not None}
    return [_stated(value) for value in data] if isinstance(data, list) else data


def _edited(record: Any, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record as the tables of a file, with the changes made."""
    data: dict[str, Any] = _stated(json.loads(json.dumps(asdict(record))))
    for path, value in changes.items():
        _nested(data, path, value, where)
    return data


def with_software(software: SoftwareProfile, changes: Mapping[str, Any]) -> SoftwareProfile:
    """The profile with switches set; what is set is no longer unknown. Raises UserError."""
    if not changes:
        return software
    made = build(SoftwareProfile, _edited(software, changes, "software"), where="software")
    return replace(made, unknown=tuple(name for name in made.unknown if name not in changes))


def with_cluster(cluster: ClusterSpec, changes: Mapping[str, Any], device: Mapping[str, Any]) -> ClusterSpec:
    """The cluster with fields set (`scale_out.bytes_per_s`, `fabric.0.oversubscription`) and those of its device.

    Raises UserError.
    """
    sizes = {"num_nodes", "devices_per_node", "device", "device_spec"} & {path.split(".")[0] for path in changes}
    if sizes:
        raise UserError(f"set {', '.join(sorted(sizes))} by the options cluster and gpus, or by device.*",
                        where="cluster")  # fmt: skip
    made = catalogue.cluster_from(_edited(cluster, changes, "cluster"), "cluster") if changes else cluster
    if device:
        edited = _edited(catalogue.device_of(made), device, "device")
        made = replace(made, device_spec=catalogue.device_from(edited, "device"))
    return made


def with_model(model: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """The model with fields set: of itself, of every layer (`ffn_dim`), or of a part of every layer that has it
    (`moe.top_k`, `attention.heads`); `num_layers` repeats or cuts the layers from the end. Raises UserError."""
    made = model
    for path, value in changes.items():
        part, _, name = path.rpartition(".")
        if path == "num_layers":
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"num_layers = {value!r}: give a whole number of 1 or more", where="model")
            have = made.layers
            made = replace(made, layers=(*have, *(have[-1:] * max(0, value - len(have))))[:value])
        elif not part and path in _fields(made) and path != "layers":
            made = _one(made, path, value)
        elif not part and path in _fields(made.layers[0]) and path not in LAYER_PARTS:
            made = replace(made, layers=tuple(_one(layer, path, value) for layer in made.layers))
        elif part in LAYER_PARTS:
            if not any(getattr(layer, part) is not None for layer in made.layers):
                raise UserError(f"{model.name} has no {part} to set {name} of", where="model")
            made = replace(
                made,
                layers=tuple(
                    layer if getattr(layer, part) is None
                    else replace(layer, **{part: _one(getattr(layer, part), name, value)})
                    for layer in made.layers
                ),
            )  # fmt: skip
        else:
            known = [*_fields(made), "num_layers", *_fields(made.layers[0]), "attention.FIELD", "moe.FIELD"]
            raise UserError(f"no field {path!r}; known: {', '.join(dict.fromkeys(known))}", where="model")
    return made if made == model else replace(made, name=f"{model.name} {_said(changes)}")


def _said(changes: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{path} {value}" for path, value in changes.items()) + ")"


def _fields(record: Any) -> list[str]:
    return [item.name for item in dataclasses.fields(record)]


def _one(record: Record, name: str, value: Any) -> Record:
    """One field set; the type must be that of the value it replaces (a whole number may stand for a float)."""
    if name not in _fields(record):
        raise UserError(f"no field {name!r}; known: {', '.join(_fields(record))}", where="model")
    old = getattr(record, name)
    value = tuple(value) if isinstance(value, list) else value
    fitting = type(value) is type(old) or (isinstance(old, float) and type(value) is int)
    if old is not None and not fitting:
        raise UserError(f"{name} = {value!r}: give a {type(old).__name__} as {old!r}", where="model")
    made: Record = replace(record, **{name: value})  # type: ignore[type-var]
    return made
