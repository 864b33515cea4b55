"""Which device each rank runs on: a permutation, read from a CSV file or made from a list of nodes.

Without a map rank r runs on device r, node by node.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError

MAX_FILE_BYTES = 2**26
HEADERS = ("rank,device", "node,ranks")
_SHOWN = 5  # numbers listed in one message
_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class HostMap:
    """devices[r] is the device of rank r; devices are numbered node by node, each is used once.

    Numbers may leave gaps: places of a scattered allocation that other jobs hold (`hwprofiles.nodes`). source: the
    file the map came from. nodes: names in order of rank, where they are known.
    """

    devices: tuple[int, ...]
    source: str = field(default="", compare=False)
    nodes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def _digest(self) -> int:
        return hash(self.devices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the devices in order of rank: the same map has the same digest wherever it came from."""
        return hashlib.sha256(",".join(map(str, self.devices)).encode()).hexdigest()

    def runs(self) -> tuple[tuple[int, int], ...]:
        """The devices in short: (first, how many) of each run of consecutive devices."""
        out: list[tuple[int, int]] = []
        for device in self.devices:
            if out and device == out[-1][0] + out[-1][1]:
                out[-1] = (out[-1][0], out[-1][1] + 1)
            else:
                out.append((device, 1))
        return tuple(out)

    def __hash__(self) -> int:  # answers are remembered by map, and there are thousands of ranks to hash
        return self._digest


def host_map(devices: Iterable[int]) -> HostMap:
    """A map from the device of each rank, in order of rank. UserError unless it is a permutation."""
    made = HostMap(devices=tuple(devices))
    if problems := _problems(made.devices, "device"):
        raise UserError(problems, where="host map")
    return made


def map_from_nodes(nodes: Sequence[Sequence[int]]) -> HostMap:
    """A map from the ranks that each node runs, in order of node and device. Equal lengths, each rank once."""
    problems = _problems([rank for ranks in nodes for rank in ranks], "rank")
    if len({len(ranks) for ranks in nodes}) > 1:
        sizes = ", ".join(f"node {i}: {len(ranks)}" for i, ranks in enumerate(nodes[:_SHOWN]))
        problems.append(f"nodes run different numbers of ranks ({sizes}, ...): list as many for each as it has devices")
    if problems:
        raise UserError(problems, where="host map")
    order = [rank for ranks in nodes for rank in ranks]
    device_of = dict(zip(order, range(len(order)), strict=True))
    return HostMap(devices=tuple(device_of[rank] for rank in range(len(order))))


def read_host_map(file: str, *, num_devices: int, devices_per_node: int) -> HostMap:
    """A map from a CSV file with the header `rank,device` (one rank a line) or `node,ranks` (ranks split by spaces).

    Raises UserError that lists every problem: a file that cannot be read, a number that is none, a rank or device
    twice, missing or out of range, and a size other than the cluster's.
    """
    try:
        reader = csv.reader(io.StringIO(read_bounded(file, MAX_FILE_BYTES).decode("utf-8"), newline=""))
        lines = [(reader.line_num, [c.strip() for c in row]) for row in reader if any(c.strip() for c in row)]
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=file) from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError("is not a CSV file in UTF-8", where=file) from None
    header = ",".join(lines[0][1]) if lines else ""
    if header not in HEADERS:
        raise UserError(f"starts with {header!r}; the header must be {' or '.join(map(repr, HEADERS))}", where=file)
    rows = sorted(_rows(lines[1:], file, wide=header == HEADERS[1]))
    keys, problems = [key for key, _ in rows], []
    wide = header == HEADERS[1]
    problems += _problems(keys, "node" if wide else "rank", num_devices // devices_per_node if wide else num_devices)
    uneven = [str(key) for key, values in rows if len(values) != (devices_per_node if wide else 1)]
    if uneven:
        want = f"{devices_per_node} ranks" if wide else "one device"
        problems.append(f"{'node' if wide else 'rank'} {_listed(uneven)}: list {want} on the line")
    flat = [value for _, values in rows for value in values]
    problems += _problems(flat, "rank" if wide else "device", num_devices)
    if problems:
        raise UserError(problems, where=file)
    devices = map_from_nodes([values for _, values in rows]).devices if wide else tuple(flat)
    return HostMap(devices=devices, source=file)


def _rows(lines: Sequence[tuple[int, Sequence[str]]], file: str, *, wide: bool) -> list[tuple[int, tuple[int, ...]]]:
    """(key, numbers) of each line; UserError lists the lines that hold anything else."""
    want = "the number of a node (0, 1, ... in order of the devices) and its ranks" if wide else "a rank and its device"
    rows, problems, named = [], [], 0
    for number, cells in lines:
        words = [word for cell in cells for word in cell.split()]
        whole = all(word.isdecimal() and word.isascii() and len(word) <= _DIGITS for word in words)
        if len(cells) != 2 or len(cells[0].split()) != 1 or not whole:
            problems.append(f"line {number} reads {','.join(cells)!r}: give {want}, whole numbers from 0")
            named += bool(cells[0]) and not cells[0][0].isdecimal() and cells[0][0] != "-"
        else:
            rows.append((int(words[0]), tuple(int(word) for word in words[1:])))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more lines like these"] if len(problems) > _SHOWN else []
        if wide and named:
            more.append("nodes go by number here; a list of node names belongs in --nodes (node,<level>...)")
        raise UserError([*problems[:_SHOWN], *more], where=file)
    return rows


def _problems(numbers: Sequence[int], what: str, expected: int | None = None) -> list[str]:
    """Why `numbers` are not 0 to n - 1, each once, in any order."""
    count = len(numbers) if expected is None else expected
    seen = Counter(numbers)
    found = []
    for trouble, which in (
        ("twice", sorted(n for n, times in seen.items() if times > 1)),
        (f"out of range 0 to {count - 1}", sorted(n for n in seen if not 0 <= n < count)),
        ("missing", [n for n in range(count) if n not in seen]),
    ):
        if which:
            found.append(f"{what} {_listed(which)}: {trouble}; list 0 to {count - 1} once each")
    return found


def _listed(which: Sequence[object]) -> str:
    """The first few, and how many are left."""
    more = f" and {len(which) - _SHOWN} more" if len(which) > _SHOWN else ""
    return ", ".join(map(str, which[:_SHOWN])) + more
