"""Descriptions of machines together, as the text of a cluster TOML; what no file says is marked assumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec
from planner.imports.facts import Facts, read_bounded, wrong
from planner.imports.node_files import parse_xml, read_lstopo, read_nccl, read_smi
from planner.imports.slurm_files import read_conf, read_yaml

MAX_FILES = 16
# Compute capability times ten and the device of the catalogue that it most often is.
BY_COMPUTE = {70: "V100", 80: "A100", 89: "L40S", 90: "H100", 100: "B200", 103: "B300"}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The TOML text and what was assumed in it, key by key."""

    text: str
    assumed: tuple[str, ...]
    notes: tuple[str, ...]


def read_description(path: str) -> Facts:
    """Facts of one file, whose kind is told by what stands in it. Raises UserError."""
    text = read_bounded(path)
    head = text.lstrip("\ufeff \t\r\n")
    if head.startswith("<"):
        root = parse_xml(path)
        if root.tag == "system":
            return read_nccl(path, root)
        if root.tag == "topology":
            return read_lstopo(path, root)
        raise wrong(path, f"XML of {str(root.tag)[:40]!r}; give an NCCL or an lstopo topology")
    if "SwitchName=" in text or "BlockName=" in text:
        return read_conf(path)
    if "GPU0" in text:
        return read_smi(path)
    if path.endswith((".yaml", ".yml")) or "topology:" in text:
        return read_yaml(path)
    raise wrong(
        path,
        "not known; give `nvidia-smi topo -m`, NCCL or lstopo XML, or Slurm's topology.conf or topology.yaml",
    )


class _Toml:
    """Lines of the file; remembers what was assumed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.assumed: list[str] = []
        self.table = ""

    def section(self, name: str, text: str) -> None:
        self.table = name
        self.lines += ["", text]

    def put(self, key: str, value: Any, why: str, known: bool = True) -> None:
        said = "".join(c if c.isprintable() else "?" for c in why)
        if not known:
            self.assumed.append(f"{self.table}.{key}" if self.table else key)
            said = f"assumed: {said}"
        self.lines.append(f"{key} = {json.dumps(value)} # {said}")


def import_cluster(paths: Sequence[str], *, name: str = "imported", device: str | None = None) -> Imported:
    """One cluster of all files. device: of the catalogue, where no file names it. Raises UserError."""
    if not 1 <= len(paths) <= MAX_FILES:
        raise UserError(f"{len(paths)} files; give 1 to {MAX_FILES}", where="import cluster")
    facts: list[Facts] = []
    problems: list[str] = []
    for path in paths:
        try:
            facts.append(read_description(path))
        except UserError as error:
            problems += [f"{error.where}: {p}" if error.where else p for p in error.problems]
    if problems:
        raise UserError(problems, where="import cluster")
    base, named = _base(facts, device)
    return _written(facts, base, named, name)


def _first(facts: Sequence[Facts], key: str) -> tuple[Any, str]:
    """The value that files agree on, and where it stands; None where none has it. UserError where they differ."""
    said = [(getattr(f, key), f.source) for f in facts if getattr(f, key) not in (None, ())]
    values = {value for value, _ in said}
    if len(values) > 1:
        listed = "; ".join(f"{value} in {source}" for value, source in said)
        raise UserError(f"files differ in {key}: {listed}; give files of one cluster", where="import cluster")
    return said[0] if said else (None, "")


def _base(facts: Sequence[Facts], device: str | None) -> tuple[ClusterSpec, str]:
    """The preset that stands in for what is not said, and how its device was found."""
    if device is not None:
        return catalogue.cluster(device), "given"
    seen, source = _first(facts, "device_name")
    if seen is not None:
        return catalogue.cluster(seen), source
    compute, source = _first(facts, "compute")
    if compute in BY_COMPUTE:
        return catalogue.cluster(BY_COMPUTE[compute]), ""
    raise UserError("no file names the accelerator; give it with --device, such as --device H100", where="--device")


def _written(facts: Sequence[Facts], base: ClusterSpec, named: str, name: str) -> Imported:
    out = _Toml()
    preset = f"preset {base.name}"
    nodes, nodes_at = _first(facts, "nodes")
    levels, levels_at = _first(facts, "levels")
    devices, devices_at = _first(facts, "devices")
    domain, domain_at = _first(facts, "domain")
    speed, speed_at = _first(facts, "nic_bits_per_s")
    nics, _ = _first(facts, "nics")
    per_node = devices or base.devices_per_node
    out.put("name", "".join(c if c.isprintable() else "?" for c in name), "given")
    guess = "from the compute capability; H200 or H800 look the same as H100"
    out.put("device", base.device, named or guess, known=bool(named))
    out.put("num_nodes", len(nodes) if nodes else base.num_nodes, nodes_at or preset, known=bool(nodes))
    out.put("devices_per_node", per_node, devices_at or preset, known=devices is not None)
    several = base.domain_devices > base.devices_per_node
    size = base.domain_devices if several else domain or min(per_node, base.domain_devices)
    why = domain_at if domain and not several else f"{preset} (a domain of several nodes)" if several else preset
    out.put("domain_devices", size, why, known=domain is not None and not several)
    out.put("host_mem_bytes", base.host_mem_bytes, preset, known=False)
    ports = speed / 8.0 if speed else None
    share = (nics / per_node) if ports and nics and nics < per_node else 1.0
    for table, link in (("scale_up", base.scale_up), ("scale_out", base.scale_out), ("host_link", base.host_link)):
        out.section(table, f"[{table}] # one direction, per device")
        out.put("name", link.name, "fixed")
        rate = ports * share if table == "scale_out" and ports else link.bytes_per_s
        known = table == "scale_out" and ports is not None
        out.put("bytes_per_s", rate, f"{speed_at}, {nics} ports a node" if known else preset, known=known)
        out.put("latency_s", link.latency_s, preset, known=False)
        if table == "scale_out":
            out.put("shared_by", "device" if known else link.shared_by, speed_at or preset, known=known)
    parts = {key: _first(facts, key) for key in ("nics", "pcie_switches", "sockets")}
    if any(value for value, _ in parts.values()):
        out.section("node", "[node]")
        for key, (value, at) in parts.items():
            if value:
                out.put(key, value, at)
    rate = ports * share if ports else base.scale_out.bytes_per_s
    for level, count in levels or ():
        out.section(f"fabric {level}", "[[fabric]]")
        out.put("name", level, levels_at)
        out.put("devices", count * per_node, f"{levels_at}: {count} nodes")
        out.put("bytes_per_s", rate, "as fast as the ports below", known=False)
        out.put("latency_s", base.fabric[0].latency_s if base.fabric else 0.0, "of the preset, or none", known=False)
        out.put("oversubscription", 1.0, "non-blocking", known=False)
    notes = tuple(note for f in facts for note in f.notes)
    out.section("source", "[source]")
    kinds = ", ".join(dict.fromkeys(f.kind for f in facts))
    said = f"assumed: {', '.join(out.assumed)}" + (f". {'; '.join(notes)}" if notes else "")
    for key, value in (
        ("kind", "user"),
        ("title", f"Read from {kinds}"),
        ("where", ", ".join(f.source for f in facts)),
        ("date", "not stated"),
        ("licence", "not stated"),
        ("note", said),
    ):
        out.lines.append(f"{key} = {json.dumps(value)}")
    return Imported(text="\n".join(out.lines) + "\n", assumed=tuple(out.assumed), notes=notes)
