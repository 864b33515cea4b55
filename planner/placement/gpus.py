"""GPUs that differ: slots, speed and memory of each, from a table; how many experts each holds.

`gpu,slots,speed,mem_bytes`, any of the last three. Memory is what a GPU has for the 16-bit weights of the routed
experts of all layers that are placed; it limits the slots.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from planner.placement.records import MOST_SHOWN, Floats
from sim.build.context import ACT_BYTES
from sim.model import ModelSpec, MoESpec

MAX_FILE_BYTES = 2**24
COLUMNS = ("slots", "speed", "mem_bytes")


@dataclass(frozen=True, kw_only=True)
class GpuTable:
    """slots, speed, mem_bytes of each GPU; empty where the table does not say."""

    slots: tuple[int, ...] = ()
    speed: tuple[float, ...] = ()
    mem_bytes: tuple[float, ...] = ()
    source: str = "GPUs"


def read_gpus(path: str | Path, gpus: int) -> GpuTable:
    """A table gpu,slots,speed,mem_bytes with a row for each of `gpus` GPUs. Raises UserError with every problem."""
    import pandas as pd

    where, wanted = str(path), "gpu and any of slots,speed,mem_bytes"
    try:
        table = pd.read_csv(io.BytesIO(read_bounded(path, MAX_FILE_BYTES)), encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"cannot be read as CSV ({error}); give columns {wanted}", where=where) from None
    given = [name for name in COLUMNS if name in table.columns]
    if "gpu" not in table.columns or not given:
        raise UserError(f"has columns {', '.join(map(str, table.columns))}; give {wanted}", where=where)
    numbers = {n: pd.to_numeric(table[n], errors="coerce").to_numpy(dtype=np.float64) for n in ("gpu", *given)}
    problems = []
    for name, values in numbers.items():
        good = np.isfinite(values) & ((values >= 0.0) if name == "gpu" else (values > 0.0))
        if name in ("gpu", "slots"):
            good &= values == np.floor(values)
        kind = {"gpu": f"one of 0 to {gpus - 1}", "slots": "a whole number >= 1"}.get(name, "a number > 0")
        if name == "gpu":
            good &= values < gpus
        problems += [
            f"row {i + 2}: {name} {str(table[name].iloc[i])[:30]!r}; give {kind}"
            for i in np.flatnonzero(~good).tolist()
        ]
    listed = numbers["gpu"]
    problems += [
        f"GPU {g} is listed {(listed == g).sum()} times; give one row for every GPU"
        for g in range(gpus)
        if (listed == g).sum() != 1
    ]
    if problems:
        more = [f"and {len(problems) - MOST_SHOWN} more problems"] if len(problems) > MOST_SHOWN else []
        raise UserError([*problems[:MOST_SHOWN], *more], where=where)
    order = np.argsort(listed)
    found = {name: values[order].tolist() for name, values in numbers.items()}
    return GpuTable(
        slots=tuple(int(s) for s in found.get("slots", ())), speed=tuple(found.get("speed", ())),
        mem_bytes=tuple(found.get("mem_bytes", ())), source=where,
    )  # fmt: skip


def moe_with(model: ModelSpec, num_experts: int) -> tuple[MoESpec, bool]:
    """(routed experts, gated) of the layer kind with so many experts. Raises UserError where there is none."""
    kinds = [(layer.moe, layer.gated) for layer in model.layers if layer.moe is not None]
    for moe, gated in kinds:
        if moe.num_experts == num_experts:
            return moe, gated
    have = ", ".join(str(n) for n in sorted({moe.num_experts for moe, _ in kinds})) or "no routed experts"
    raise UserError(
        f"the loads are of {num_experts} experts and {model.name} has {have}; give the loads of this model",
        where="--model",
    )


def expert_weight_bytes(model: ModelSpec, num_experts: int) -> float:
    """Bytes of the 16-bit weights of one expert: two matrices hidden x ffn, three where gated."""
    moe, gated = moe_with(model, num_experts)
    return float((3 if gated else 2) * model.hidden_dim * moe.ffn_dim * ACT_BYTES)


def slots_of(
    loads: Floats, gpus: int, *, asked: tuple[int, ...] = (), mem_bytes: tuple[float, ...] = (),
    expert_bytes: float | None = None, where: str = "GPUs",
) -> tuple[tuple[int, ...], tuple[str, ...]]:  # fmt: skip
    """(slots of each GPU, what memory took away) for loads [L, E].

    asked: of each GPU (empty: the fewest that hold the experts, as evenly as memory allows). mem_bytes: what each has
    for experts, which limits its slots through `expert_bytes` of each of the L layers.
    Raises UserError where memory does not hold the experts.
    """
    layers, experts = loads.shape
    room = np.full(gpus, experts, dtype=np.int64)
    if mem_bytes:
        if expert_bytes is None:
            raise UserError("mem_bytes limits slots by the bytes of an expert; give --model", where=where)
        room = np.minimum(room, np.floor(np.array(mem_bytes) / (expert_bytes * layers)).astype(np.int64))
    limits: tuple[str, ...] = ()
    if asked:
        slots = np.minimum(asked, room) if mem_bytes else np.array(asked, dtype=np.int64)
        short = np.flatnonzero(slots < np.array(asked)).tolist()
        if short:
            named = ", ".join(map(str, short[:MOST_SHOWN])) + (", ..." if len(short) > MOST_SHOWN else "")
            limits = (f"memory holds fewer experts than the slots asked for on GPU {named}",)
    else:
        slots = room
        for each in range(1, experts + 1):
            slots = np.minimum(each, room)
            if slots.sum() >= experts:
                break
    problems = [
        f"GPU {g}: {mem_bytes[g] / 2**30:.2f} GiB hold no expert of {layers} layers "
        f"({(expert_bytes or 0.0) * layers / 2**30:.2f} GiB); give more memory or fewer layers, or leave the GPU out"
        for g in np.flatnonzero(slots < 1).tolist()[:MOST_SHOWN]
    ]
    if mem_bytes and slots.sum() < experts:
        problems.append(
            f"{gpus} GPUs have memory for {int(slots.sum())} experts of a layer and there are {experts}; give more "
            "GPUs, slots or memory, or fewer layers"
        )
    if problems:
        raise UserError(problems, where=where)
    return tuple(int(s) for s in slots), limits
