"""Device, cluster and factors of a profile: what the rows say about rates and floors, and what had to be taken over.

A device that the catalogue knows (by its name and memory) keeps its datasheet figures; of another one the best that
was measured stands for the peak. Nothing here is fitted to whole steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from calibration.harness.rows import Row
from calibration.kernels import collectives, gemm
from calibration.profile_kernels import DENSE_DTYPES
from calibration.profile_rows import Measured
from hwprofiles import catalogue
from hwprofiles.collectives import collective_forms
from hwprofiles.errors import UserError
from hwprofiles.factors import Factors, factors
from hwprofiles.specs import ClusterSpec, DeviceSpec, LinkSpec, Source

TABLES = "./tables"  # of a profile, relative to its device.toml
SAME_MEMORY = 0.15  # two devices of one name are the same where their memory differs by less
ROOM = 1.1  # without a datasheet: how far above the best measured GEMM an endless one may be
KERNELS_PER_NODE = 2  # of the harness's autograd_node: a multiply forward, a multiply backward


@dataclass(frozen=True, kw_only=True)
class Described:
    """A device, its cluster of one node, its own factors, the catalogue's device it is (or None), and what to know."""

    device: DeviceSpec
    cluster: ClusterSpec
    factors: Mapping[str, Any]
    factors_source: Source
    known: DeviceSpec | None
    notes: Sequence[str]


def known_device(name: str, mem_bytes: float) -> DeviceSpec | None:
    """The device of the catalogue that a driver calls `name`, told from others of that name by its memory.

    The entry with most words of the name counts; one that is only scaled from another device has nothing of its own
    to add to measured rows, so that None is the answer.
    """
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    found = []
    for entry in map(catalogue.device, catalogue.names("devices")):
        apart = abs(entry.mem_bytes / mem_bytes - 1.0) if mem_bytes else 1.0
        own = set(entry.name.lower().split("-")[0].split())
        if own <= words and apart < SAME_MEMORY:
            found.append((-len(own), apart, entry.name, entry))
    best = min(found)[3] if found else None
    return best if best is not None and best.measured else None


def describe(measured: Measured, *, name: str | None, usd_per_s: float | None, points: pd.DataFrame) -> Described:
    """Device, cluster and factors from the rows; `points` are those of `collectives`. Raises UserError."""
    env, notes = measured.env, list[str]()
    mem_bytes = float(env["mem_bytes"])
    known = known_device(measured.device, mem_bytes)
    if mem_bytes <= 0.0:
        raise UserError(
            "environment.json says mem_bytes = 0: write the memory of the device there, in bytes", where="mem_bytes"
        )
    peak, mem_rate, copied = _peaks(measured, known), _copy_bytes_per_s(measured), None
    if known is not None:
        mem_rate, copied = known.mem_bytes_per_s, mem_rate
    assert mem_rate is not None  # an unknown device has memory rows
    floor_s = _floor_s(measured)
    device = DeviceSpec(
        name=name or measured.device,
        peak_flop_per_s=peak,
        mem_bytes=mem_bytes,
        mem_bytes_per_s=mem_rate,
        power_w=float(env.get("power_limit_w") or (known.power_w if known else 0.0)),
        usd_per_s=usd_per_s if usd_per_s is not None else (known.usd_per_s if known else 0.0),
        num_sms=int(env["multiprocessors"] or env.get("threads") or 1),
        launch_s=floor_s,
        measured=TABLES,
        source=_device_source(measured, known),
    )
    if usd_per_s is None and known is None:
        notes.append("no price: costs are 0 (give --price)")
    if measured.cuda and _seconds(measured, "launch", "graph_kernel") is None:
        notes.append("no kernel of a graph was measured: the floor is that of a queue, the host's time included")
    cluster, found = _cluster(measured, device, known, points)
    own, source, more = _factors(measured, device, cluster, known, floor_s, copied)
    return Described(
        device=device, cluster=cluster, factors=own, factors_source=source, known=known, notes=[*notes, *found, *more]
    )


def rate(row: Row) -> float:
    """Bytes per second of a row."""
    return float(row["bytes"]) / float(row["median_s"])


def _largest(rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: (float(row["bytes"]), row["sizes"]), default=None)


def _seconds(measured: Measured, family: str, op: str, dtype: str | None = None) -> float | None:
    times = [float(row["median_s"]) for row in measured.of(family, op) if dtype in (None, row["dtype"])]
    return times[-1] if times else None


def _peaks(measured: Measured, known: DeviceSpec | None) -> dict[str, float]:
    """Per dtype with a GEMM table: the datasheet's peak, else the best rate that was measured, any pass."""
    points = gemm.points_of_rows(measured.of("gemm"))
    dtypes = points.dtype.replace(dict(DENSE_DTYPES))
    best = (2.0 * points.m * points.n * points.k / points.time_s).groupby(dtypes).max().to_dict()
    for row in measured.of("sustained", "gemm_burst"):
        if row["dtype"] in best:
            best[row["dtype"]] = max(best[row["dtype"]], float(row["flop"]) / float(row["median_s"]))
    there = {str(dtype): float(value) for dtype, value in best.items() if dtype in catalogue.DTYPES}
    return {dtype: known.peak_flop_per_s.get(dtype, value) if known else value for dtype, value in there.items()}


def _copy_bytes_per_s(measured: Measured) -> float | None:
    """Read and written bytes per second of the largest copy in the device's memory, at its best."""
    # a copy small enough for a cache says nothing of the memory
    largest = _largest(measured.of("sustained", "copy_burst") or measured.of("memory", "copy"))
    return rate(largest) if largest else None


def _floor_s(measured: Measured) -> float:
    """The shortest kernel: inside a graph where there are graphs, else one of a queue."""
    for op in ("graph_kernel", "kernel_back_to_back"):
        seconds = _seconds(measured, "launch", op)
        if seconds is not None:
            return seconds
    raise UserError("no launch floor was measured: run `moecast calibrate measure --family launch`", where="launch")


def _device_source(measured: Measured, known: DeviceSpec | None) -> Source:
    if known is None:
        note = "peak_flop_per_s: the best measured GEMM; mem_bytes_per_s: the largest measured copy, read and written."
        return measured.source("measured", "Rates and floors", note)
    note = f"Peaks, memory rate and price of the catalogue's {known.name}; launch_s and mem_bytes measured. "
    return Source(
        kind="datasheet",
        title=known.source.title,
        where=known.source.where,
        date=known.source.date,
        licence=known.source.licence,
        note=note + measured.source("measured", "").note,
    )


def _cluster(
    measured: Measured, device: DeviceSpec, known: DeviceSpec | None, points: pd.DataFrame
) -> tuple[ClusterSpec, list[str]]:
    usual = catalogue.cluster(known.name) if known else None
    notes = []
    # what the cost model takes of a link for send and receive; a device without forms of its own has the reference's
    efficiency = collective_forms().domain("").p2p
    inside, across = (
        points[(points.op == collectives.P2P) & (points.nodes == 1 if one else points.nodes > 1)]
        for one in (True, False)
    )
    nowhere = LinkSpec(name="", bytes_per_s=device.mem_bytes_per_s, latency_s=device.launch_s)
    links: dict[str, LinkSpec] = {}
    for name, part in (("scale_up", inside), ("scale_out", across)):
        taken = getattr(usual, name) if usual else links.get("scale_up", nowhere)
        if len(part):
            sizes, times = (part.sort_values("bytes")[key].to_numpy(dtype=float) for key in ("bytes", "time_s"))
            found = float(sizes[-1] / times[-1] / efficiency)
            links[name] = LinkSpec(name=name, bytes_per_s=found, latency_s=float(times[0]))
        else:
            links[name] = LinkSpec(name=name, bytes_per_s=taken.bytes_per_s, latency_s=taken.latency_s)
            notes.append(f"{name} was not measured: assumed, {f'as of {usual.name}' if usual else 'never used alone'}")
    host, host_notes = _host_link(measured, device, usual)
    ranks = int(points[points.nodes == 1].ranks.max()) if (points.nodes == 1).any() else 1
    host_bytes = float(measured.env.get("host_mem_bytes") or (usual.host_mem_bytes if usual else device.mem_bytes))
    note = "; ".join([*notes, *host_notes])
    cluster = ClusterSpec(
        name=f"{ranks} x {device.name}",
        device="device.toml",
        num_nodes=1,
        devices_per_node=ranks,
        domain_devices=ranks,
        scale_up=links["scale_up"],
        scale_out=links["scale_out"],
        host_mem_bytes=host_bytes,
        host_link=host,
        source=measured.source("assumed" if len(inside) == 0 else "measured", "Links of one node", note),
    )
    return cluster, [*notes, *host_notes]


def _host_link(measured: Measured, device: DeviceSpec, usual: ClusterSpec | None) -> tuple[LinkSpec, list[str]]:
    """Host to device, pinned; on a CPU a copy within the host."""
    rows = [
        row
        for row in measured.of("copies", "copy_h2d" if measured.cuda else "copy_h2h")
        if json.loads(row["sizes"])["pinned"] is measured.cuda
    ]
    largest = _largest(rows)
    if largest is None:
        link = usual.host_link if usual else LinkSpec(name="host", bytes_per_s=device.mem_bytes_per_s, latency_s=0.0)
        return link, ["copies between host and device were not measured: assumed"]
    latency_s = min(float(row["median_s"]) for row in rows)
    return LinkSpec(name="host", bytes_per_s=rate(largest), latency_s=latency_s), []


def _base_factors(known: DeviceSpec | None) -> dict[str, Any]:
    """Factors of the catalogue's device, or of the one that says least about a device: where to start from."""
    base: Factors = factors(known.measured if known else catalogue.device(catalogue.names("devices")[0]).measured)
    return vars(base)


def _factors(
    measured: Measured, device: DeviceSpec, cluster: ClusterSpec, known: DeviceSpec | None, floor_s: float,
    copied: float | None,
) -> tuple[dict[str, Any], Source, list[str]]:  # fmt: skip
    """What differs from `hwprofiles/fitted/common.toml`."""
    notes = []
    own: dict[str, Any] = {"kernel_floor_s": floor_s, "host_launch_s": 0.0, "host_expert_s": 0.0}
    host_s = _seconds(measured, "launch", "host_launch") if measured.cuda else 0.0
    if host_s is None:
        raise UserError("no host launch was measured: run `moecast calibrate measure --family launch`", where="launch")
    # a trainer launches under autograd: `autograd_node` is one kernel forward and one backward, with their node
    node_s = _seconds(measured, "launch", "autograd_node") if measured.cuda else None
    own["host_launch_s"] = own["host_expert_s"] = max(host_s, (node_s or 0.0) / KERNELS_PER_NODE)
    burst_s, long_s = (_seconds(measured, "sustained", f"gemm_{kind}", "bf16") for kind in ("burst", "sustained"))
    if burst_s is not None and long_s is not None:
        own["clock"], source = (
            min(1.0, burst_s / long_s),
            measured.source("measured", "Launch, copies, sustained clock"),
        )
    else:
        # only a device of the catalogue may lack it
        assert known is not None
        own["clock"] = factors(known.measured).clock
        source = measured.source("assumed", f"Sustained clock of the shipped {known.measured}; launch and copies")
        notes.append(f"sustained was not measured: clock assumed, as of {known.measured}")
    # the clock was measured at the power limit this device has: nothing to scale
    own |= {"reference_power_w": max(device.power_w, 1.0), "clock_power_exponent": 0.0}
    for kernel, name in (("gemm", "together_compute"), ("copy", "together_memory")):
        alone_s, all_s = (_seconds(measured, "neighbours", f"{kernel}_{how}") for how in ("alone", "together"))
        if alone_s is not None and all_s is not None:
            own[name] = max(1.0, all_s / alone_s)
    copies = measured.of("sustained", "copy_sustained")
    achieved = rate(copies[-1]) if copies else copied
    own["mem_efficiency"] = (
        min(1.0, achieved / device.mem_bytes_per_s) if achieved else _base_factors(known)["mem_efficiency"]
    )
    own["scale_up_reference_bytes_per_s"] = cluster.scale_up.bytes_per_s
    own["reference_latency_s"] = cluster.scale_out.latency_s
    # measured with the attention kernels of this device, whatever their generation
    own["attention_fa2_rate"] = _base_factors(known)["attention_fa2_rate"] if known else 1.0
    if not measured.cuda:
        # no context, no caching allocator (live tensors are counted), no multiprocessor that communication takes
        own |= {"context_bytes": 0.0, "fragmentation": 0.0}
        own["overlap_sms"] = dict.fromkeys(_base_factors(known)["overlap_sms"], 0)
    return own, source, notes
