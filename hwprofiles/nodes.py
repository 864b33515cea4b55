"""The nodes of an allocation and the blocks of the fabric they sit in, as a scheduler or an inventory lists them.

A batch system seldom gives whole leaves: five nodes here, three there. `read_nodes` takes such a list; `map_of` turns
an order of its nodes into a host map, whose device numbers keep the blocks apart.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from hwprofiles.hostmap import MAX_FILE_BYTES, HostMap
from hwprofiles.specs import ClusterSpec

NODE, DOMAIN = "node", "domain"
_SHOWN = 5  # names listed in one message


@dataclass(frozen=True, kw_only=True)
class NodeList:
    """Nodes in the order of a file.

    names: of each node. blocks: the names of the blocks it sits in, outermost first. slots: its place on the cluster,
    counted in nodes; places of one block follow each other, so that slot x devices per node // devices of a level is
    the block. source: the file.
    """

    names: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    slots: tuple[int, ...]
    source: str


def level_nodes(cluster: ClusterSpec) -> dict[str, int]:
    """Levels that a node list names, outermost first, and the nodes that one block of each holds.

    The fabric levels; below them "domain" where a scale-up domain spans several nodes.
    """
    per_node = cluster.devices_per_node
    inner = {DOMAIN: cluster.domain_devices // per_node} if cluster.domain_devices > per_node else {}
    levels = inner | {level.name: level.devices // per_node for level in cluster.fabric}
    return dict(reversed(levels.items()))


def read_nodes(file: str, cluster: ClusterSpec, *, needed: int = 1) -> NodeList:
    """The nodes of a CSV file with the header `node,<level>...`: a node a line, the name of its block in each level.

    A block is known by its name and the blocks around it. Raises UserError that lists every problem: a file that cannot
    be read, columns that are missing or unknown, cells that are empty, a node twice, fewer than `needed` nodes, more
    nodes in a block than it holds, nodes in blocks that nothing joins.
    """
    levels = level_nodes(cluster)
    lines = _lines(file)
    header = lines[0][1] if lines else []
    columns = (NODE, *levels)
    problems = _header_problems(header, columns)
    sound = not problems
    cells = [row for _, row in lines[1:] if len(row) == len(header) and all(row)]
    for number, row in lines[1:]:
        if len(row) != len(header) or not all(row):
            problems.append(f"line {number} reads {','.join(row)!r}: give {', '.join(header)}, none of them empty")
    if NODE in header:
        problems += _node_problems([row[header.index(NODE)] for row in cells], needed, cluster.devices_per_node)
    rows = []
    if sound:  # blocks can be told
        rows = [(row[header.index(NODE)], tuple(row[header.index(name)] for name in levels)) for row in cells]
        problems += _block_problems(rows, cluster, levels)
    if problems:
        raise UserError(problems, where=file)
    names = [name for name, _ in rows]
    return NodeList(names=tuple(names), blocks=tuple(path for _, path in rows), slots=_slots(rows, levels), source=file)


def map_of(nodes: NodeList, order: Sequence[int], devices_per_node: int) -> HostMap:
    """The host map of nodes in an order (positions in the list): ranks fill node after node."""
    devices = [nodes.slots[i] * devices_per_node + d for i in order for d in range(devices_per_node)]
    return HostMap(devices=tuple(devices), source=nodes.source, nodes=tuple(nodes.names[i] for i in order))


def _lines(file: str) -> list[tuple[int, list[str]]]:
    try:
        reader = csv.reader(io.StringIO(read_bounded(file, MAX_FILE_BYTES).decode("utf-8-sig"), newline=""))
        return [(reader.line_num, [c.strip() for c in row]) for row in reader if any(c.strip() for c in row)]
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=file) from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError("is not a CSV file in UTF-8", where=file) from None


def _header_problems(header: Sequence[str], columns: Sequence[str]) -> list[str]:
    want = ",".join(columns)
    if not header:
        return [f"is empty; the header must be {want!r}"]
    problems = [f"column {name!r} is missing; the header must be {want!r}" for name in columns if name not in header]
    for name in dict.fromkeys(header):
        if name not in columns:
            near = get_close_matches(name, columns, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            problems.append(f"column {name[:40]!r} is no level of the cluster; {hint}the header must be {want!r}")
        elif header.count(name) > 1:
            problems.append(f"column {name!r} stands there twice; the header must be {want!r}")
    return problems


def _node_problems(names: Sequence[str], needed: int, per_node: int) -> list[str]:
    """Nodes that stand there twice, and too few of them."""
    times, problems = Counter(names), []
    twice = sorted(name for name, count in times.items() if count > 1)
    if twice:
        problems.append(f"node {_listed(twice)} stands there twice; list each node once")
    if len(times) < needed:
        problems.append(
            f"lists {len(times)} nodes, {needed} are needed; list more nodes"
            + (f" or lower --gpus to {len(times) * per_node}" if times else ", one a line under the header")
        )
    return problems


def _block_problems(
    rows: Sequence[tuple[str, tuple[str, ...]]], cluster: ClusterSpec, levels: dict[str, int]
) -> list[str]:
    """Blocks that hold more than they can, and blocks that no link joins."""
    problems = []
    joined = {level.name: level.bytes_per_s > 0 for level in cluster.fabric}
    outer_nodes = None
    for depth, (level, most) in enumerate(levels.items()):
        held: dict[tuple[str, ...], set[str]] = {}
        parts: dict[tuple[str, ...], set[str]] = {}
        for name, path in rows:
            held.setdefault(path[: depth + 1], set()).add(name)
            parts.setdefault(path[:depth], set()).add(path[depth])
        full = [path[-1] for path, inside in held.items() if len(inside) > most]
        if full:
            problems.append(
                f"{level} {_listed(full)} has more nodes than the {most} that one {level} of the cluster holds; "
                f"correct the column or the cluster's {level!r}"
            )
        crowded = [path[-1] for path, inside in parts.items() if path and len(inside) > (outer_nodes or 1) // most]
        if crowded:
            problems.append(f"{_listed(crowded)} has more blocks of {level} than the cluster gives it; correct one")
        if not joined.get(level, True) and len(held) > 1:
            problems.append(f"no link leaves a {level} (bytes_per_s = 0), and the nodes sit in {len(held)}; use one")
        outer_nodes = most
    return problems


def _slots(rows: Sequence[tuple[str, tuple[str, ...]]], levels: dict[str, int]) -> tuple[int, ...]:
    """Place of each node: blocks and the nodes in them are numbered as they appear."""
    seen: dict[tuple[str, ...], dict[str, int]] = {}
    slots = []
    for name, path in rows:
        slot = 0
        for depth, (part, size) in enumerate(zip((*path, name), (*levels.values(), 1), strict=True)):
            inside = seen.setdefault(path[:depth], {})
            slot += inside.setdefault(part, len(inside)) * size
        slots.append(slot)
    return tuple(slots)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:40] for name in names[:_SHOWN]) + more
