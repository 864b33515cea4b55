"""Fitted collective forms: scale-up links by measured device, networks by kind, from one file with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hwprofiles.forms.collectives import DomainForm, FabricForm
from hwprofiles.specs import Source

REFERENCE = "h100"  # whose scale-up links stand for a device without forms of its own
FABRIC = "infiniband"  # what the network of a cluster is taken to be


@dataclass(frozen=True, kw_only=True)
class CollectiveForms:
    """domains by measured device, fabrics by kind; nodes: fewest and most the fabric was measured on."""

    domains: Mapping[str, DomainForm]
    fabrics: Mapping[str, FabricForm]
    nodes: Mapping[str, tuple[int, int]]
    source: Source

    def domain(self, *devices: str) -> DomainForm:
        """Scale-up links of the first of these measured devices that has any; else those of `REFERENCE` (in shares of
        the line rate)."""
        return self.domains[next((device for device in devices if device in self.domains), REFERENCE)]


@cache
def collective_forms() -> CollectiveForms:
    """The shipped forms."""
    path = resources.files("hwprofiles") / "fitted" / "kernels" / "collectives.toml"
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    nodes = {name: tuple(entry.pop("nodes")) for name, entry in data["fabric"].items()}
    return CollectiveForms(
        domains={name: DomainForm(**entry) for name, entry in data["domain"].items()},
        fabrics={name: FabricForm(**entry) for name, entry in data["fabric"].items()},
        nodes=nodes,
        source=Source(**data["source"]),
    )
