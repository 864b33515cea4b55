"""The network above the nodes: Slurm's `topology.conf` and `topology.yaml`."""

from __future__ import annotations

import re

from planner.imports.facts import MAX_NODES, Facts, read_bounded, wrong
from planner.imports.trees import yaml_of

MAX_DEPTH = 32
_RANGE = re.compile(r"\[([0-9,\-]+)\]")


def hosts_of(text: str, path: str) -> list[str]:
    """Slurm's host list written out; at most MAX_NODES names.

    >>> hosts_of("n[01-03,7],login", "-")
    ['n01', 'n02', 'n03', 'n7', 'login']
    """
    out: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text.strip()):
        out += _written_out(part, path, MAX_NODES - len(out))
    return [name for name in out if name]


def _written_out(part: str, path: str, room: int) -> list[str]:
    found = _RANGE.search(part)
    if not found:
        return [part]
    tails = _written_out(part[found.end() :], path, room)
    out: list[str] = []
    for piece in found[1].split(","):
        first, _, last = piece.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or len(first) > 9 or len(last) > 9:
            raise wrong(path, f"host list {part[:40]!r} cannot be read")
        count = int(last or first) - int(first) + 1
        if count < 1 or len(out) + count * len(tails) > room:
            raise wrong(path, f"host list {part[:40]!r} is empty or has more than {MAX_NODES} nodes")
        numbers = (str(n).zfill(len(first)) for n in range(int(first), int(first) + count))
        out += [part[: found.start()] + number + tail for number in numbers for tail in tails]
    return out


def read_conf(path: str) -> Facts:
    """`topology.conf`: a switch a line, with its nodes or the switches below it."""
    nodes: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for line in read_bounded(path).replace("\\\n", " ").splitlines():
        said = {k.lower(): v for k, v in re.findall(r"(\w+)=(\S+)", line.partition("#")[0])}
        name = said.get("switchname") or said.get("blockname")
        if name is None:
            continue
        if name in nodes or name in below:
            raise wrong(path, f"switch {name[:40]!r} stands there twice")
        if "nodes" in said:
            nodes[name] = hosts_of(said["nodes"], path)
        elif "switches" in said:
            below[name] = hosts_of(said["switches"], path)
    return _tree(path, "Slurm topology.conf", nodes, below)


def read_yaml(path: str) -> Facts:
    """`topology.yaml`: the default topology of the list: a tree, blocks, or flat. Aliases are refused."""
    data = yaml_of(read_bounded(path), path)
    try:
        entries = data if isinstance(data, list) else [data]
        chosen = next((e for e in entries if e.get("cluster_default")), entries[0])
        if "block" in chosen:
            blocks = {str(b["block"]): hosts_of(str(b["nodes"]), path) for b in chosen["block"]["blocks"]}
            return _tree(path, "Slurm topology.yaml", blocks, {}, leaf="block")
        if "flat" in chosen and "tree" not in chosen:
            return Facts(source=path, kind="Slurm topology.yaml", notes=("a flat topology names no switch",))
        nodes, below = {}, {}
        for switch in chosen["tree"]["switches"]:
            name = str(switch["switch"])
            if "nodes" in switch:
                nodes[name] = hosts_of(str(switch["nodes"]), path)
            else:
                below[name] = hosts_of(str(switch["children"]), path)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise wrong(path, f"not a topology of Slurm: {type(error).__name__} {str(error)[:60]}") from None
    return _tree(path, "Slurm topology.yaml", nodes, below)


def _tree(path: str, kind: str, nodes: dict[str, list[str]], below: dict[str, list[str]], leaf: str = "leaf") -> Facts:
    """Levels of a tree of switches: the nodes under the largest switch of each height."""
    if not nodes:
        raise wrong(path, "no switch with nodes in it")
    missing = sorted({child for children in below.values() for child in children} - set(nodes) - set(below))
    if missing:
        raise wrong(path, f"switch {missing[0][:40]!r} is named but not described")
    under = {name: len(set(members)) for name, members in nodes.items()}
    height = dict.fromkeys(nodes, 0)
    todo = dict(below)
    for _ in range(MAX_DEPTH):
        ready = [name for name, children in todo.items() if all(child in height for child in children)]
        for name in ready:
            children = todo.pop(name)
            height[name] = 1 + max((height[c] for c in children), default=0)
            under[name] = sum(under[c] for c in children)
    if todo:
        raise wrong(path, "the switches form a ring, or more than 32 tiers")
    every = tuple(dict.fromkeys(host for members in nodes.values() for host in members))
    levels, notes = [], []
    for tier in range(max(height.values()) + 1):
        sizes = {under[name] for name, at in height.items() if at == tier}
        size = max(sizes)
        if len(sizes) > 1:
            notes.append(f"tier {tier} has groups of {min(sizes)} to {size} nodes; all are taken as {size}")
        if size < len(every):  # what joins everything is the network above the last level
            levels.append((leaf if tier == 0 else f"tier{tier}", size))
    return Facts(source=path, kind=kind, nodes=every, levels=tuple(levels), notes=tuple(notes))
