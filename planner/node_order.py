"""Orders of the nodes of a scattered allocation that may keep groups inside their blocks; the cost model decides.

Consecutive ranks form the groups that talk most, so nodes of one block (leaf, pod) stand together. What is left is the
order of the blocks, and where the odd nodes go that fill no group of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hwprofiles.hostmap import HostMap
from hwprofiles.nodes import NodeList, map_of

Order = tuple[int, ...]
Blocks = list[list[int]]
Pick = Callable[[Blocks, int], list[int]]


def node_orders(nodes: NodeList, needed: int) -> tuple[Order, ...]:
    """Orders worth pricing, each of `needed` nodes (positions in the list), the list's own first; no order twice.

    The others: blocks by falling size; blocks such that the nodes before a block come to a multiple of the largest
    power of two (so that groups of 2, 4, 8 ... nodes start with it); and the blocks of the innermost level cut
    into powers of two, largest first, which leaves the fewest groups of any power of two across blocks. Which ranks
    send to the next pipeline stage across blocks, and with how many others, also depends on the order; it is priced,
    but no order is made for it.
    """
    every = list(range(len(nodes.names)))
    found = [every, _laid(nodes, every, 0, 0, _largest), _laid(nodes, every, 0, 0, _aligned), _cut(nodes, every)]
    return tuple(dict.fromkeys(tuple(order[:needed]) for order in found))


def host_maps(nodes: NodeList, needed: int, devices_per_node: int) -> tuple[HostMap, ...]:
    """The host maps of `node_orders`."""
    return tuple(map_of(nodes, order, devices_per_node) for order in node_orders(nodes, needed))


def _split(nodes: NodeList, some: Sequence[int], depth: int) -> Blocks:
    """Nodes by their block of one level, in order of appearance."""
    blocks: dict[str, list[int]] = {}
    for i in some:
        blocks.setdefault(nodes.blocks[i][depth], []).append(i)
    return list(blocks.values())


def _laid(nodes: NodeList, some: list[int], depth: int, before: int, pick: Pick) -> list[int]:
    """Nodes with each block together, blocks as `pick` chooses them; `before` nodes stand ahead of them."""
    if depth == len(nodes.blocks[0]):
        return some
    out: list[int] = []
    left = _split(nodes, some, depth)
    while left:
        block = pick(left, before + len(out))
        left.remove(block)
        out += _laid(nodes, block, depth + 1, before + len(out), pick)
    return out


def _largest(blocks: Blocks, before: int) -> list[int]:
    return max(blocks, key=len)


def _aligned(blocks: Blocks, before: int) -> list[int]:
    def key(block: list[int]) -> tuple[int, int]:
        end = before + len(block)
        return end & -end, len(block)

    return max(blocks, key=key)


def _cut(nodes: NodeList, every: list[int]) -> list[int]:
    """Pieces of powers of two of the innermost blocks, largest first, within each block of the level around them."""
    depth = len(nodes.blocks[0])
    groups = [every]
    for level in range(depth - 1):
        groups = [block for group in groups for block in sorted(_split(nodes, group, level), key=len, reverse=True)]
    out = []
    for group in groups:
        pieces = []
        for block in sorted(_split(nodes, group, depth - 1), key=len, reverse=True) if depth else [group]:
            start = 0
            for bit in range(len(block).bit_length() - 1, -1, -1):
                if len(block) >> bit & 1:
                    pieces.append(block[start : start + (1 << bit)])
                    start += 1 << bit
        out += [i for piece in sorted(pieces, key=len, reverse=True) for i in piece]
    return out
