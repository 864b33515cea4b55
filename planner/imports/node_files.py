"""The inside of a node: `nvidia-smi topo -m` text, NCCL topology XML, lstopo XML.

XML is read by defusedxml: entities and external references are refused, and sizes are bounded before it starts.
"""

from __future__ import annotations

import re
from typing import Any

from planner.imports.facts import MAX_GPUS, Facts, components, read_bounded, wrong

NVIDIA = "0x10de"
_LINK = re.compile(r"^(X|NV\d+|PIX|PXB|PHB|NODE|SYS|N/A)$")
# Devices of the catalogue as PCI names write them, the longer of two names first.
_KNOWN = re.compile(
    r"\b(GB300|GB200|GH200|B300|B200|H200|H100 PCIe|H100 NVL|H100|H800|H20|A100|A800|L40S|L20|L4|V100)\b"
)

# A document type at an address or in a folder; lstopo's own names a plain file, which nobody reads.
_ELSEWHERE = re.compile(r"""<!DOCTYPE\s+[^>\[]*?["']([^"'>]*[/\\:][^"'>]*)["']""")


def parse_xml(path: str) -> Any:
    """Root element of an XML file. Raises UserError for entities, external references, other damage, or depth."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    text = read_bounded(path)
    if said := _ELSEWHERE.search(text):
        raise wrong(
            path, f"refused: its document type is another file, {said[1][:80]!r}; give the file as the tool wrote it"
        )
    try:
        return fromstring(text.encode())
    except DefusedXmlException as error:
        raise wrong(
            path, f"refused: it defines entities ({type(error).__name__}), which no topology file does"
        ) from None
    except (ParseError, RecursionError) as error:
        raise wrong(path, f"not XML: {str(error)[:80]}; give the file as the tool wrote it") from None


def read_smi(path: str) -> Facts:
    """`nvidia-smi topo -m`: a matrix of link kinds between GPUs and NICs, with NUMA affinity."""
    rows: dict[str, list[str]] = {}
    header: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", read_bounded(path)).splitlines():
        cells = line.split()
        if not header and cells and cells[0] == "GPU0" and not any(_LINK.match(c) for c in cells):
            header = [c for c in cells if re.match(r"^(GPU|NIC|mlx5_)\d+$", c)]
        elif header and cells and cells[0] in header:
            rows[cells[0]] = cells[1:]
    gpus = [name for name in header if name.startswith("GPU")]
    if not gpus or len(gpus) > MAX_GPUS or any(len(rows.get(name, ())) < len(header) for name in gpus):
        raise wrong(path, "no matrix of GPUs in it; give the output of `nvidia-smi topo -m` as it is")
    at = {name: header.index(name) for name in gpus}
    links = [[rows[a][at[b]] == "X" or rows[a][at[b]].startswith("NV") for b in gpus] for a in gpus]
    sizes = components(links)
    notes = []
    if len(set(sizes)) > 1:
        notes.append(f"NVLink joins groups of {', '.join(map(str, sizes))} GPUs; the smallest is taken")
    numa = {rows[name][len(header) + 1] for name in gpus if len(rows[name]) > len(header) + 1}
    numbers = {n for n in numa if n.isdecimal()}
    return Facts(
        source=path, kind="nvidia-smi topo -m", devices=len(gpus), domain=min(sizes), nics=len(header) - len(gpus),
        sockets=len(numbers) or None, notes=tuple(notes),
    )  # fmt: skip


def _number(element: Any, name: str) -> float | None:
    try:
        return float(element.get(name, ""))
    except ValueError:
        return None


def read_nccl(path: str, root: Any) -> Facts:
    """NCCL topology XML: processors, PCI switches, GPUs with NVLinks, network ports with their speed in Mb/s."""
    if root.get("version") not in (None, "1", "2"):
        raise wrong(path, f"topology version {root.get('version')[:20]!r}; NCCL reads 1")
    gpus = [e for e in root.iter("gpu")]
    nets = [e for e in root.iter("net")]
    if not gpus or len(gpus) > MAX_GPUS:
        raise wrong(path, "no GPU in it; give a file of NCCL_TOPO_DUMP_FILE")
    speeds = {s for s in (_number(e, "speed") for e in nets) if s}
    switches = sum(1 for e in root.iter("pci") if len(list(e.findall("pci"))) > 1)
    linked = sum(1 for e in gpus if e.find("nvlink") is not None)
    notes = [] if len(speeds) < 2 else [f"ports of {len(speeds)} speeds; the slowest is taken"]
    capability = {int(s) for s in (_number(e, "sm") for e in gpus) if s}
    return Facts(
        source=path, kind="NCCL topology", devices=len(gpus), domain=len(gpus) if linked == len(gpus) else None,
        nics=len(nets) or None, sockets=len({e.get("numaid") for e in root.iter("cpu")}) or None,
        pcie_switches=switches or None, nic_bits_per_s=min(speeds) * 1e6 if speeds else None,
        compute=min(capability) if capability else None, notes=tuple(notes),
    )  # fmt: skip


def read_lstopo(path: str, root: Any) -> Facts:
    """lstopo XML: packages, and PCI or OS devices that are GPUs and network ports."""
    objects = list(root.iter("object"))
    packages = sum(e.get("type") in ("Package", "Socket") for e in objects)
    text = [
        " ".join(str(i.get("value", "")) for i in e.findall("info")) + " " + str(e.get("name", "")) for e in objects
    ]
    gpus, ports, names = 0, 0, set()
    for element, said in zip(objects, text, strict=True):
        kind = str(element.get("pci_type", ""))
        if element.get("type") == "PCIDev" and kind.startswith("03") and "10de" in kind:
            gpus += 1
            names |= set(_KNOWN.findall(said))
        if element.get("type") == "OSDev" and str(element.get("osdev_type")) in ("3", "OpenFabrics"):
            ports += 1
    if not packages:
        raise wrong(path, "no processor package in it; give the output of `lstopo --of xml`")
    return Facts(
        source=path, kind="lstopo", devices=gpus or None, nics=ports or None, sockets=packages,
        device_name=names.pop() if len(names) == 1 else None,
    )  # fmt: skip
