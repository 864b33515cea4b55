"""Collectives over ranks: all-reduce, all-gather, reduce-scatter, all-to-all even and uneven, send/recv.

`bytes` is the full buffer, as nccl-tests counts it: the reduced buffer, the gathered one, the one that is
scattered, what a rank sends in an all-to-all (its own part included), one message. `bytes_max` is the
largest buffer of any rank, sent or received; `bytes_off_max` the most that any rank exchanges with others, in
one direction. Uneven: every rank sends shares in proportion to 1/(destination + 1), so rank 0
receives most. float32 where numbers are added (gradients), else bf16. Seconds are those of one call among
many in a row, of the slowest rank; send_recv goes there and back and counts half of that. On a CPU every call
stands behind a product of WORK_SIZE, whose time is taken off: the cores that compute also move the bytes, so calls in a
row, with nothing to compute, would be too good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibration.harness.group import Group, all_to_all, distributed
from calibration.harness.points import ELEMENT_BYTES, Bench, Point, Prepared, Skip, Suite, torch_dtype, torch_module

FAMILY = "collectives"
KIB = 1 << 10
WORK_SIZE = 640  # rows and columns of the product between collectives: some milliseconds of one core
# Largest buffer by suite: CPU, then GPU.
LARGEST = {"tiny": (1 << 23, 1 << 23), "quick": (1 << 25, 1 << 29), "full": (1 << 27, 1 << 29)}
OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "all_to_all_uneven", "send_recv")
Build = Callable[[Bench, Group, int, str], tuple[Callable[[], Any], Callable[[], bool]]]


def points(suite: Suite, device: str, ranks: int) -> list[Point]:
    """Each op over a ladder of sizes; small and large ends first, so that a short run spans both."""
    largest = LARGEST[suite][device != "cpu"]
    step = 2048 if suite == "tiny" else (4 if suite == "quick" else 2)
    sizes = [4 * KIB]
    while sizes[-1] * step <= largest:
        sizes.append(sizes[-1] * step)
    if sizes[-1] < largest:
        sizes.append(largest)
    return [_point(op, dtype, size, ranks) for size in sizes for op, dtype in _kinds(suite)]


def _kinds(suite: Suite) -> list[tuple[str, str]]:
    kinds = [(op, "fp32" if op in ("all_reduce", "reduce_scatter") else "bf16") for op in OPS]
    return kinds + ([("all_reduce", "bf16"), ("reduce_scatter", "bf16")] if suite == "full" else [])


def shares(rows: int, ranks: int, *, uneven: bool) -> list[int]:
    """Rows for each destination: equal, or in proportion to 1/(destination + 1); the first takes the rest.

    >>> shares(12, 2, uneven=True), shares(12, 2, uneven=False)
    ([8, 4], [6, 6])
    """
    weights = [1 / (rank + 1) if uneven else 1.0 for rank in range(ranks)]
    out = [int(rows * weight / sum(weights)) for weight in weights]
    out[0] += rows - sum(out)
    return out


def _point(op: str, dtype: str, size: int, ranks: int) -> Point:
    element = ELEMENT_BYTES[dtype]
    count = size // element // ranks * ranks  # a buffer that the ranks can divide
    size = count * element
    largest, off = size, size * (ranks - 1) // ranks
    if op == "all_reduce":
        off = 2 * off  # a reduce-scatter and an all-gather
    elif op == "send_recv":
        off = size
    elif op == "all_to_all_uneven":
        most = shares(count, ranks, uneven=True)
        largest = ranks * most[0] * element
        off = max((ranks - 1) * most[0], count - most[-1]) * element
    return Point(
        family=FAMILY,
        op=op.removesuffix("_uneven"),
        dtype=dtype,
        pass_="forward",
        sizes={
            "ranks": ranks,
            "bytes": size,
            "bytes_max": largest,
            "bytes_off_max": off,
            "spread": "uneven" if op.endswith("_uneven") else "even",
        },
        bytes=float(off),
        prepare=lambda bench: _prepare(bench, op, dtype, count),
    )


def _prepare(bench: Bench, op: str, dtype: str, count: int) -> Prepared:
    group = bench.group
    if group is None:
        raise Skip("a group of one rank has nobody to talk to")
    build = {"all_reduce": _all_reduce, "all_gather": _all_gather, "reduce_scatter": _reduce_scatter}
    if op == "send_recv":
        run, right = _send_recv(bench, group, count, dtype)
    elif op in build:
        run, right = build[op](bench, group, count, dtype)
    else:
        run, right = _all_to_all(bench, group, count, dtype, uneven=op.endswith("_uneven"))

    def check() -> float:
        run()
        return 0.0 if right() else 1.0

    seen = {"backend": group.backend, "nodes": group.nodes}
    trips = 2 if op == "send_recv" else 1
    work = None if bench.cuda else _work(bench)
    return Prepared(measure=lambda timer: timer.stream(run, trips=trips, work=work), check=check, observed=lambda: seen)


def _work(bench: Bench) -> Callable[[], object]:
    torch = torch_module()
    a, b = bench.randn(WORK_SIZE, WORK_SIZE), bench.randn(WORK_SIZE, WORK_SIZE, seed=1)
    return lambda: torch.mm(a, b)


def _buffer(bench: Bench, count: int, dtype: str, value: float) -> Any:
    return torch_module().full((count,), value, device=bench.device, dtype=torch_dtype(dtype))


def _all_reduce(bench: Bench, group: Group, count: int, dtype: str) -> tuple[Callable[[], Any], Callable[[], bool]]:
    # Zeros stay what they are however often they are added, so the sum is checked on a buffer of its own.
    buffer, first = _buffer(bench, count, dtype, 0.0), _buffer(bench, min(count, 4096), dtype, group.rank + 1.0)

    def right() -> bool:
        distributed().all_reduce(first)
        return bool((first == group.ranks * (group.ranks + 1) / 2).all())

    return lambda: distributed().all_reduce(buffer), right


def _all_gather(bench: Bench, group: Group, count: int, dtype: str) -> tuple[Callable[[], Any], Callable[[], bool]]:
    part = count // group.ranks
    mine, whole = _buffer(bench, part, dtype, group.rank + 1.0), _buffer(bench, count, dtype, 0.0)
    gather = _named("all_gather_single", "all_gather_into_tensor")
    return lambda: gather(whole, mine), lambda: all(
        bool((whole[r * part : (r + 1) * part] == r + 1).all()) for r in range(group.ranks)
    )


def _reduce_scatter(bench: Bench, group: Group, count: int, dtype: str) -> tuple[Callable[[], Any], Callable[[], bool]]:
    part = count // group.ranks
    whole, mine = _buffer(bench, count, dtype, group.rank + 1.0), _buffer(bench, part, dtype, 0.0)
    scatter = _named("reduce_scatter_single", "reduce_scatter_tensor")
    total = group.ranks * (group.ranks + 1) / 2
    return lambda: scatter(mine, whole), lambda: bool((mine == total).all())


def _all_to_all(
    bench: Bench, group: Group, count: int, dtype: str, *, uneven: bool
) -> tuple[Callable[[], Any], Callable[[], bool]]:
    send = shares(count, group.ranks, uneven=uneven)
    got = [send[group.rank]] * group.ranks
    mine, whole = _buffer(bench, count, dtype, group.rank + 1.0), _buffer(bench, sum(got), dtype, 0.0)

    def right() -> bool:
        return all(bool((part == r + 1).all()) for r, part in enumerate(whole.split(got)))

    if uneven:
        return lambda: all_to_all(whole, mine, got, send), right
    return lambda: all_to_all(whole, mine), right


def _send_recv(bench: Bench, group: Group, count: int, dtype: str) -> tuple[Callable[[], Any], Callable[[], bool]]:
    """There and back between rank 0 and the last rank (the farthest one of a job over nodes); the others wait."""
    dist, last = distributed(), group.ranks - 1
    buffer = _buffer(bench, count, dtype, 1.0 if group.rank == 0 else 0.0)

    def run() -> None:
        if group.rank == 0:
            dist.send(buffer, last)
            dist.recv(buffer, last)
        elif group.rank == last:
            dist.recv(buffer, 0)
            dist.send(buffer, 0)

    return run, lambda: group.rank not in (0, last) or bool((buffer == 1.0).all())


def _named(*names: str) -> Callable[..., Any]:
    """The first of these functions that torch.distributed has (it renamed some). Raises Skip without any."""
    dist = distributed()
    for name in names:
        if hasattr(dist, name):
            return getattr(dist, name)  # type: ignore[no-any-return]
    raise Skip(f"this torch has no {names[-1]}")
