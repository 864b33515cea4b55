"""What descriptions of machines say of a cluster: facts with the file they stand in; nothing is guessed here."""

from __future__ import annotations

from dataclasses import dataclass, field

from hwprofiles.errors import UserError
from planner.imports.shell_words import read_text

MAX_FILE_BYTES = 16 * 2**20
MAX_NODES = 200_000
MAX_GPUS = 1024


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one file says; None or empty where it says nothing.

    devices: accelerators of a node. domain: accelerators that reach each other over scale-up links inside the node.
    nics, sockets, pcie_switches: parts of a node. nic_bits_per_s: of one port. compute: compute capability times ten.
    nodes: names of the nodes. levels: (name, nodes of one group), innermost first. notes: what to know.
    """

    source: str
    kind: str
    devices: int | None = None
    domain: int | None = None
    nics: int | None = None
    sockets: int | None = None
    pcie_switches: int | None = None
    nic_bits_per_s: float | None = None
    compute: int | None = None
    device_name: str | None = None
    nodes: tuple[str, ...] = ()
    levels: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = field(default=())


def components(links: list[list[bool]]) -> list[int]:
    """Sizes of the connected components of a symmetric matrix.

    >>> components([[True, True, False], [True, True, False], [False, False, True]])
    [2, 1]
    """
    left, sizes = set(range(len(links))), []
    while left:
        todo, seen = [min(left)], set()
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo += [other for other, joined in enumerate(links[at]) if joined and other not in seen]
        left -= seen
        sizes.append(len(seen))
    return sizes


def read_bounded(path: str) -> str:
    """Text of a description; UserError where it is missing, larger than MAX_FILE_BYTES or no text."""
    return read_text(path, MAX_FILE_BYTES)


def wrong(path: str, what: str) -> UserError:
    """A UserError of a file."""
    return UserError(what, where=path)
