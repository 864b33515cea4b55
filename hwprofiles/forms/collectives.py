"""Time of a collective from its sizes: hops, messages, bytes over achieved rates, and few fitted numbers.

A group of n ranks lies in d scale-up domains (NVLink) of i; S is the buffer of one rank as nccl-tests counts it.

    a hop, a message of c bytes     short + (long - short) c / (c + half)          low-latency to bulk protocol
    ring (all-gather, reduce-scatter)   hops: (n-1)/n of a lap, d over the network and n - d inside, c = S/n
                                    wire: S (n-1)/n on scale-up, the i-th part of it on each network port
    ring all-reduce                 twice that; tree: 2 (log2 d + i - 1) hops, 2 S on scale-up, 2 S/i on each port
    NVLS (the switch adds)          S (i+1)/i on scale-up; domains are joined by a tree
    hierarchical                    one ring inside the domains, one across: 2 short laps, the same bytes
    all-to-all, direct              a message to each of n - i far ranks; S (i-1)/n near, S (n-i)/n far
    all-to-all, hierarchical (2-D)  inside the domain first: S (i-1)/i near, then d - 1 messages of S/d; S (n-i)/n far

Out of place, a rank copies its own part S/n besides (`own`). Links work side by side: the slower counts. Over a network
waiting and wire overlap in part: (waiting^norm + wire^norm)^(1/norm); inside a domain they add up. Everything takes
numbers or numpy columns, and more bandwidth is never slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Algorithm = Literal["library", "ring", "tree", "nvls", "hierarchical"]
# `library`: what NCCL has, the fastest by size. An all-to-all is direct unless hierarchical.
ALGORITHMS = ("library", "ring", "tree", "nvls", "hierarchical")
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p", "ring")


def hop_s(short_s: Any, long_s: Any, half_bytes: Any, nbytes: Any) -> Any:
    """Seconds of one message besides its bytes: `short_s` when tiny, `long_s` when bulk, halfway at `half_bytes`."""
    return short_s + (long_s - short_s) * nbytes / (nbytes + half_bytes)


@dataclass(frozen=True, kw_only=True)
class DomainForm:
    """Scale-up links of one device. Shares are of the line rate (one direction, one device).

    start_s: of any call. short_s, long_s, half_bytes: of a ring or tree hop. ring, tree, nvls, exchange, p2p: shares
    by algorithm (nvls 0: the switch cannot add); own, exchange_own: of the copy of a rank's own part (over 1: memory
    is faster than the link). nvls_s, exchange_s: what such a call takes besides its bytes when they are many.
    """

    start_s: float
    short_s: float
    long_s: float
    half_bytes: float
    ring: float
    own: float
    tree: float
    nvls: float
    nvls_s: float
    exchange: float
    exchange_s: float
    exchange_own: float
    p2p: float

    def hop_s(self, nbytes: Any) -> Any:
        """Seconds of one hop inside the domain besides its bytes."""
        return hop_s(self.short_s, self.long_s, self.half_bytes, nbytes)


@dataclass(frozen=True, kw_only=True)
class FabricForm:
    """A kind of network. line: share of the port's rate that rings reach; tree, exchange, p2p: shares of that.

    short_s, long_s, half_bytes: of a ring or tree hop; message_*: of each message of an all-to-all. congestion: rate
    that an all-to-all loses per doubling of the domains beyond two. tree_slices: parts a tree cuts the buffer into.
    norm: how waiting and wire overlap (1 = not at all).
    """

    line: float
    short_s: float
    long_s: float
    half_bytes: float
    tree: float
    exchange: float
    p2p: float
    message_s: float
    message_long_s: float
    message_half_bytes: float
    congestion: float
    tree_slices: float
    norm: float

    def hop_s(self, nbytes: Any) -> Any:
        """Seconds of one hop over the network besides its bytes."""
        return hop_s(self.short_s, self.long_s, self.half_bytes, nbytes)

    def message_of_s(self, nbytes: Any) -> Any:
        """Seconds of one message of an all-to-all besides its bytes."""
        return hop_s(self.message_s, self.message_long_s, self.message_half_bytes, nbytes)


class Parts(NamedTuple):
    """Seconds of waiting (not shared with anything), then each link busy alone; the links run side by side."""

    latency_s: Any
    up_s: Any
    out_s: Any

    @property
    def alone_s(self) -> Any:
        """Duration with no other traffic."""
        return self.latency_s + np.maximum(self.up_s, self.out_s)


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where a group lies: `size` ranks, `intra` of them in each scale-up domain; line rates in bytes/s of one device.

    ring_wait_s, tree_wait_s, exchange_wait_s: waiting on links slower than those the form was fitted on, in all.
    """

    size: Any
    intra: Any
    up_bytes_per_s: Any
    out_bytes_per_s: Any
    ring_wait_s: Any = 0.0
    tree_wait_s: Any = 0.0
    exchange_wait_s: Any = 0.0

    @property
    def domains(self) -> Any:
        """Scale-up domains the group spans."""
        return np.ceil(np.asarray(self.size, float) / np.asarray(self.intra, float))


def collective(
    kind: str, nbytes: Any, span: Span, domain: DomainForm, fabric: FabricForm, algorithm: Algorithm = "library"
) -> Parts:
    """Time of one collective.

    `p2p`: a message of S to one rank. `ring`: every rank passes parts of S to its neighbour n - 1 times, in step and
    each over its own port (ring attention), so that the slowest link counts in full.

    Raises ValueError for a kind or algorithm that does not exist.
    """
    if kind not in KINDS or algorithm not in ALGORITHMS:
        raise ValueError(f"{kind!r}, {algorithm!r}: give one of {', '.join(KINDS)} and of {', '.join(ALGORITHMS)}")
    size = np.asarray(nbytes, dtype=np.float64)
    if kind == "p2p":
        return _p2p(size, span, domain, fabric)
    if kind == "ring":
        return _passed_around(size, span, domain, fabric)
    if kind == "all_to_all":
        return _all_to_all(size, span, domain, fabric, hierarchical=algorithm == "hierarchical")
    twice = 2.0 if kind == "all_reduce" else 1.0
    if algorithm == "hierarchical":
        return _hierarchical(size, span, domain, fabric, twice)
    ring = _ring(size, span, domain, fabric, twice)
    if kind != "all_reduce" or algorithm == "ring":
        return ring
    tree, nvls = _tree(size, span, domain, fabric), _nvls(size, span, domain, fabric)
    if algorithm != "library":
        return tree if algorithm == "tree" else nvls
    # inside one domain the libraries' tree is never ahead of ring and NVLS at the sizes that matter
    found = _faster(ring, tree, span.domains > 1)
    return _faster(found, nvls, (np.asarray(span.intra) > 1) & (domain.nvls > 0))


def exchange(
    near_bytes: Any,
    far_bytes: Any,
    own_bytes: Any,
    span: Span,
    domain: DomainForm,
    fabric: FabricForm,
    *,
    messages: Any,
    message_bytes: Any,
) -> Parts:
    """An all-to-all by its loads: the most bytes any rank sends or receives inside (near) and across domains (far).

    messages, message_bytes: messages one rank posts to far ranks, and their size. Uneven loads come from `loads`.
    """
    far = np.where(span.domains > 1, 1.0, 0.0)
    rate = fabric.line * fabric.exchange * span.out_bytes_per_s
    slower = (1.0 - fabric.congestion) ** -np.log2(np.maximum(span.domains, 2.0) / 2.0)
    up = near_bytes / (domain.exchange * span.up_bytes_per_s) + own_bytes / (domain.exchange_own * span.up_bytes_per_s)
    out = far * far_bytes * slower / rate
    total = np.asarray(near_bytes + far_bytes + own_bytes)
    wait = hop_s(0.0, domain.exchange_s, domain.half_bytes, total)
    wait = wait + far * messages * fabric.message_of_s(message_bytes)
    # posting messages overlaps with the wire; a longer way there does not
    return _joined(domain.start_s + far * span.exchange_wait_s, wait, up, out, span, fabric)


class Loads(NamedTuple):
    """Bytes of each rank in an uneven all-to-all: to and from its own scale-up domain, and others; its own part."""

    near_sent: Floats
    near_received: Floats
    far_sent: Floats
    far_received: Floats
    own: Floats

    @property
    def near(self) -> float:
        """The most that any rank sends or receives inside its domain."""
        return float(max(self.near_sent.max(), self.near_received.max()))

    @property
    def far(self) -> float:
        """The most that any rank sends or receives across domains."""
        return float(max(self.far_sent.max(), self.far_received.max()))


def loads(pair_bytes: Floats, intra: int) -> Loads:
    """Loads of a matrix of bytes (row: sender, column: receiver); ranks fill domains of `intra` in order.

    Raises ValueError where the matrix is not square, or bytes are negative.

    >>> loads(np.array([[1.0, 2.0], [0.0, 0.0]]), 1).far
    2.0
    """
    pairs = np.asarray(pair_bytes, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[0] != pairs.shape[1] or intra < 1 or not (pairs >= 0).all():
        raise ValueError(f"bytes by pair: square, none negative, not {pairs.shape}; intra = {intra}: 1 or more")
    place = np.arange(len(pairs)) // intra
    near = np.where(place[:, None] == place[None, :], pairs, 0.0)
    far = pairs - near
    own = np.diagonal(pairs).copy()
    return Loads(near.sum(1) - own, near.sum(0) - own, far.sum(1), far.sum(0), own)


def _joined(start_s: Any, wait: Any, up: Any, out: Any, span: Span, fabric: FabricForm) -> Parts:
    """Waiting and wire together; what exceeds the wire is latency."""
    wire = np.maximum(up, out)
    both = np.where(span.domains > 1, (wait**fabric.norm + wire**fabric.norm) ** (1.0 / fabric.norm), wait + wire)
    return Parts(start_s + both - wire, up, out)


def _lap(chunk: Any, span: Span, domain: DomainForm, fabric: FabricForm) -> Any:
    """Waiting of one pass around the flat ring."""
    size, domains = np.asarray(span.size, float), span.domains
    inside = (size - 1.0) * domain.hop_s(chunk)
    across = (size - 1.0) / size * (domains * fabric.hop_s(chunk) + (size - domains) * domain.hop_s(chunk))
    return np.where(domains > 1, across + span.ring_wait_s, inside)


def _ring_rates(span: Span, domain: DomainForm, fabric: FabricForm) -> tuple[Any, Any]:
    return domain.ring * span.up_bytes_per_s, fabric.line * span.out_bytes_per_s


def _ring(size: Any, span: Span, domain: DomainForm, fabric: FabricForm, twice: float) -> Parts:
    n, i = np.asarray(span.size, float), np.asarray(span.intra, float)
    up_rate, out_rate = _ring_rates(span, domain, fabric)
    wire = twice * size * (n - 1.0) / n
    up = np.where(i > 1, wire / up_rate, 0.0) + size / n / (domain.own * span.up_bytes_per_s)
    out = np.where(span.domains > 1, wire / i / out_rate, 0.0)
    return _joined(domain.start_s, twice * _lap(size / n, span, domain, fabric), up, out, span, fabric)


def _hierarchical(size: Any, span: Span, domain: DomainForm, fabric: FabricForm, twice: float) -> Parts:
    n, i = np.asarray(span.size, float), np.asarray(span.intra, float)
    up_rate, out_rate = _ring_rates(span, domain, fabric)
    up = twice * size * (i - 1.0) / i / up_rate + size / n / (domain.own * span.up_bytes_per_s)
    out = twice * size * (span.domains - 1.0) / n / out_rate
    across = np.where(span.domains > 1, (span.domains - 1.0) * fabric.hop_s(size / n) + span.ring_wait_s, 0.0)
    wait = twice * ((i - 1.0) * domain.hop_s(size / i) + across)
    return _joined(domain.start_s, wait, up, out, span, fabric)


def _tree(size: Any, span: Span, domain: DomainForm, fabric: FabricForm) -> Parts:
    """Double binary tree over the domains, a chain inside each; within one domain the tree is over its ranks."""
    n, i = np.asarray(span.size, float), np.asarray(span.intra, float)
    multi = span.domains > 1
    part = size / np.where(multi, fabric.tree_slices, n)
    levels = np.ceil(np.log2(np.maximum(np.where(multi, span.domains, n), 1.0)))
    across = 2.0 * (levels * fabric.hop_s(part) + (i - 1.0) * domain.hop_s(part)) + span.tree_wait_s
    # inside, each level is passed up and down by both trees
    wait = np.where(multi, across, 4.0 * levels * domain.hop_s(part))
    up = np.where(i > 1, 2.0 * size * (n - 1.0) / n / (domain.tree * span.up_bytes_per_s), 0.0)
    out = np.where(multi, 2.0 * size / i / (fabric.tree * fabric.line * span.out_bytes_per_s), 0.0)
    return _joined(domain.start_s, wait, up, out, span, fabric)


def _nvls(size: Any, span: Span, domain: DomainForm, fabric: FabricForm) -> Parts:
    """The switch adds inside each domain, a tree joins the domains (NVLSTree of NCCL)."""
    i = np.asarray(span.intra, float)
    across = 2.0 * np.ceil(np.log2(span.domains)) * fabric.hop_s(size / fabric.tree_slices) + span.tree_wait_s
    wait = hop_s(0.0, domain.nvls_s, domain.half_bytes, size) + np.where(span.domains > 1, across, 0.0)
    up = size * (i + 1.0) / i / (max(domain.nvls, 1e-12) * span.up_bytes_per_s)
    out = np.where(span.domains > 1, 2.0 * size / i / (fabric.tree * fabric.line * span.out_bytes_per_s), 0.0)
    return _joined(domain.start_s, wait, up, out, span, fabric)


def _all_to_all(size: Any, span: Span, domain: DomainForm, fabric: FabricForm, *, hierarchical: bool) -> Parts:
    n, i = np.asarray(span.size, float), np.asarray(span.intra, float)
    near = size * (i - 1.0) / (i if hierarchical else n)
    messages, each = (span.domains - 1.0, size / span.domains) if hierarchical else (n - i, size / n)
    far, own = size * (n - i) / n, size / n
    return exchange(near, far, own, span, domain, fabric, messages=messages, message_bytes=each)


def _p2p(size: Any, span: Span, domain: DomainForm, fabric: FabricForm) -> Parts:
    multi = span.domains > 1
    inside = hop_s(0.0, domain.exchange_s, domain.half_bytes, size)
    wait = domain.start_s + np.where(multi, fabric.hop_s(size) + span.exchange_wait_s, inside)
    up = np.where(multi, 0.0, size / (domain.p2p * span.up_bytes_per_s))
    out = np.where(multi, size / (fabric.p2p * fabric.line * span.out_bytes_per_s), 0.0)
    return Parts(wait, up, out)


def _passed_around(size: Any, span: Span, domain: DomainForm, fabric: FabricForm) -> Parts:
    n = np.asarray(span.size, float)
    multi = span.domains > 1
    step = np.where(multi, fabric.hop_s(size / n), domain.hop_s(size / n))
    wire = size * (n - 1.0) / n
    up = np.where(np.asarray(span.intra) > 1, wire / (domain.p2p * span.up_bytes_per_s), 0.0)
    out = np.where(multi, wire / (fabric.p2p * fabric.line * span.out_bytes_per_s), 0.0)
    wait = (n - 1.0) * step + np.where(multi, span.ring_wait_s, 0.0)
    return _joined(domain.start_s, wait, up, out, span, fabric)


def _faster(one: Parts, other: Parts, allowed: Any) -> Parts:
    """Element by element the faster of the two, `other` only where allowed."""
    chosen = np.asarray(allowed) & (other.alone_s < one.alone_s)
    return Parts(*(np.where(chosen, b, a) for a, b in zip(one, other, strict=True)))
