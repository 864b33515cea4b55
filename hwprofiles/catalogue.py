"""Devices, clusters and trainer software by name or by file: what the rest of the project asks.

Names are those of the shipped TOML files and their aliases, in any case; a path to a TOML file
with the same keys works wherever a name does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwprofiles import software_profiles
from hwprofiles.errors import UserError
from hwprofiles.folders import located
from hwprofiles.reader import build, looks_like_path, positive, read_toml, shipped, unknown_name
from hwprofiles.specs import ClusterSpec, DeviceSpec, NodeParts, SoftwareProfile
from hwprofiles.topology import fabric_problems

KINDS = ("devices", "clusters", "software")
DTYPES = ("bf16", "fp16", "fp8", "fp8_block", "mxfp8", "nvfp4", "tf32", "fp32")
_FREE = (
    "latency_s", "launch_s", "usd_per_s", "power_w", "nics", "pcie_switches", "sockets", "node_mtbf_s",
    "restart_s", "slow_share", "write_bytes_per_s", "read_bytes_per_s", "host_mem_bytes_per_s",
)  # fmt: skip
_CHECKED_BELOW = ("bytes_per_s", "devices", "rails", "oversubscription")  # by `topology.fabric_problems`


def names(kind: str) -> tuple[str, ...]:
    """Canonical names of the shipped `kind` (devices, clusters or software), sorted."""
    if kind not in KINDS:
        raise unknown_name("kind of profile", kind, KINDS)
    if kind == "devices":
        return tuple(sorted(spec.name for spec in _devices()))
    return tuple(shipped(kind))


def device(name_or_path: str) -> DeviceSpec:
    """A device by name, alias (any case) or TOML file. Raises UserError."""
    if not isinstance(name_or_path, str):
        raise unknown_name("device", name_or_path, names("devices"))
    if looks_like_path(name_or_path):
        path = Path(name_or_path)
        return _read_device(read_toml(path, name_or_path), name_or_path, folder=path.parent)
    found = _device_index().get(name_or_path.strip().lower())
    if found is None:
        raise unknown_name("device", name_or_path, names("devices"))
    return found


def cluster(name_or_path: str, *, gpus: int | None = None) -> ClusterSpec:
    """A cluster by preset name or alias, by device (its usual cluster) or by TOML file.

    gpus: devices wanted; a whole number of nodes, or fewer than one node (a partial node, which
    is then the whole cluster). Without it the file's own size stands. Raises UserError.
    """
    if not isinstance(name_or_path, str):
        raise unknown_name("cluster", name_or_path, names("clusters"))
    if looks_like_path(name_or_path):
        data = read_toml(Path(name_or_path), name_or_path)
        made = _read_cluster(data, name_or_path, folder=Path(name_or_path).parent)
    else:
        made = _preset(name_or_path)
    return made if gpus is None else sized(made, gpus)


def device_of(cluster: ClusterSpec) -> DeviceSpec:
    """The device of a cluster: its own where it brings one, else the catalogue's. Raises UserError."""
    own = cluster.device_spec
    return own if own is not None and own.name == cluster.device else device(cluster.device)


def software(
    name_or_path: str,
    *,
    device: str | None = None,
    model: str | None = None,
    arch: str | None = None,
    precision: str | None = None,
) -> SoftwareProfile:
    """A trainer release by name or TOML file, as it behaves for this device, model and precision.

    A release sets some switches by device, model, arch ("moe" or "dense") or precision; what is not
    given matches only the settings that do not depend on it. Raises UserError.
    """
    known = _device_index()
    canonical = known[device.lower()].name if device is not None and device.lower() in known else device
    return software_profiles.load(name_or_path, device=canonical, model=model, arch=arch, precision=precision)


def default_software(device_name: str) -> str:
    """Name of the profile used for a device when none is given: the newest release measured on it.

    A device the catalogue does not have (a cluster file may bring its own) takes the profile of any device.
    """
    known = _device_index().get(device_name.strip().lower())
    return software_profiles.default_for(known.name if known is not None else device_name)


def device_from(data: Mapping[str, Any], where: str) -> DeviceSpec:
    """The device of a parsed TOML file, checked. Raises UserError."""
    return _read_device(data, where)


def cluster_from(data: Mapping[str, Any], where: str) -> ClusterSpec:
    """The cluster of a parsed TOML file, checked. Raises UserError."""
    return _read_cluster(data, where)


def _read_device(data: Mapping[str, Any], where: str, *, folder: Path | None = None) -> DeviceSpec:
    made = build(DeviceSpec, data, where=where)
    problems = [*positive(made, zero_ok=_FREE), *_tables_problems(made)]
    if not made.peak_flop_per_s:
        problems.append('peak_flop_per_s is empty: give at least bf16, e.g. bf16 = "989 TFLOP/s"')
    for dtype in made.peak_flop_per_s:
        if dtype not in DTYPES:
            problems.append(f"unknown key 'peak_flop_per_s.{dtype}'; known: {', '.join(DTYPES)}")
    if problems:
        raise UserError(problems, where=where)
    return located(made, folder, where)


def _tables_problems(made: DeviceSpec) -> list[str]:
    """Whether kernel tables are named; whether they exist is found when they are read."""
    if made.measured or made.scaled_from:
        return []
    return [
        "neither measured nor scaled_from is given: name the device whose kernels stand for this one, scaled by peaks "
        'and rates (scaled_from = "H100"), or taken as they are (measured = "h100")'
    ]


def _read_cluster(data: Mapping[str, Any], where: str, *, folder: Path | None = None) -> ClusterSpec:
    body = {key: value for key, value in data.items() if key != "preset"}
    inline = body.get("device_spec")
    if isinstance(inline, Mapping):
        body.setdefault("device", inline.get("name"))
        body["device_spec"] = inline = {"source": body.get("source"), **inline}
        if inline["source"] is None:
            del inline["source"]
    made = build(ClusterSpec, body, where=where)
    problems = positive(dataclasses.replace(made, fabric=()), zero_ok=_FREE)
    for i, level in enumerate(made.fabric):  # a level without uplinks may stand where nothing lies above it
        problems += positive(level, zero_ok=(*_FREE, *_CHECKED_BELOW), prefix=f"fabric.{i}.")
    if made.reliability.slow_factor < 1.0 or made.reliability.slow_share > 1.0:
        problems.append("reliability: slow_factor must be 1 or more, and slow_share at most 1")
    if made.device_spec is not None:
        problems += [f"device_spec: {problem}" for problem in _tables_problems(made.device_spec)]
        made = dataclasses.replace(made, device_spec=located(made.device_spec, folder, where))
    if made.device_spec is None:
        made, trouble = _resolved_device(made, folder)
        problems += trouble
    elif made.device_spec.name != made.device:
        problems.append(f"device = {made.device!r} but device_spec.name = {made.device_spec.name!r}: make them equal")
    if not problems and made.domain_devices % made.devices_per_node and made.devices_per_node % made.domain_devices:
        problems.append(
            f"domain_devices = {made.domain_devices} and devices_per_node = {made.devices_per_node}: "
            "one must be a multiple of the other"
        )
    if min(made.num_nodes, made.devices_per_node, made.domain_devices) > 0:
        problems += fabric_problems(made)
    if problems:
        raise UserError(problems, where=where)
    return made


def _resolved_device(made: ClusterSpec, folder: Path | None) -> tuple[ClusterSpec, list[str]]:
    """The cluster with the canonical device name; a device file is read relative to the cluster's."""
    try:
        if looks_like_path(made.device) and folder is not None:
            own = device(str(folder / made.device))
            return dataclasses.replace(made, device=own.name, device_spec=own), []
        return dataclasses.replace(made, device=device(made.device).name), []
    except UserError as error:
        return made, [f"device: {problem} (or describe it in a [device_spec] table)" for problem in error.problems]


def sized(made: ClusterSpec, gpus: int) -> ClusterSpec:
    """The cluster with another number of devices; see `cluster`. Raises UserError."""
    per_node = made.devices_per_node
    if isinstance(gpus, bool) or not isinstance(gpus, int):
        raise UserError(f"gpus = {gpus!r}: give a whole number of devices", where=made.name)
    if gpus < 1:
        raise UserError(f"gpus = {gpus}: give at least 1 device", where=made.name)
    if gpus < per_node:
        domain = min(made.domain_devices, gpus)
        # Host memory is the node's; a partial node is taken to own its share.
        share, rate = (x * gpus / per_node for x in (made.host_mem_bytes, made.host_mem_bytes_per_s))
        return dataclasses.replace(
            made, num_nodes=1, devices_per_node=gpus, domain_devices=domain, host_mem_bytes=share, fabric=(),
            host_mem_bytes_per_s=rate, node=NodeParts(),
        )  # fmt: skip
    if gpus % per_node:
        below = gpus // per_node * per_node
        raise UserError(
            f"gpus = {gpus} is not a whole number of nodes of {per_node}: "
            f"use {below} or {below + per_node}, or fewer than {per_node}",
            where=made.name,
        )
    grown = dataclasses.replace(made, num_nodes=gpus // per_node)
    if problems := fabric_problems(grown):
        raise UserError(problems, where=made.name)
    return grown


def _preset(name: str) -> ClusterSpec:
    wanted = name.strip().lower()
    index = _cluster_index()
    if wanted in index:
        return index[wanted]
    known = _device_index().get(wanted)
    if known is not None and f"usual:{known.name}" in index:
        return index[f"usual:{known.name}"]
    listed = (*names("clusters"), *names("devices"))
    raise unknown_name("cluster", name, listed)


@functools.cache
def _devices() -> tuple[DeviceSpec, ...]:
    files = [(f, f"devices/{f.name}") for f in shipped("devices").values()]
    return tuple(_read_device(read_toml(file, where), where) for file, where in files)


@functools.cache
def _device_index() -> dict[str, DeviceSpec]:
    return {key.lower(): spec for spec in _devices() for key in (spec.name, *spec.aliases)}


@functools.cache
def _cluster_index() -> dict[str, ClusterSpec]:
    index: dict[str, ClusterSpec] = {}
    for name, file in shipped("clusters").items():
        data = read_toml(file, f"clusters/{file.name}")
        made = _read_cluster(data, f"clusters/{file.name}")
        preset = data.get("preset", {})
        index |= {key.lower(): made for key in (name, *preset.get("aliases", ()))}
        index |= {f"usual:{key}": made for key in preset.get("usual_for", ())}
    return index
