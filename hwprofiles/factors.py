"""Calibrated factors: the few numbers a kernel table cannot give, each from a file with its source.

`hwprofiles/fitted/<folder>.toml` holds what was fitted per measured device, `fitted/common.toml`
what holds for all of them. Nothing here is per model, per trainer release or per run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from hwprofiles.errors import UserError
from hwprofiles.folders import FACTORS, fitted_file


@dataclass(frozen=True, kw_only=True)
class Factors:
    """clock: sustained over burst rate of compute-bound kernels (<= 1); clock_16bit: what matrix products of a run in
    16 bits sustain of that, where such runs hold a power limit that runs with quantisation between products do not.

    host_launch_s: launching thread's time per kernel, eager; host_expert_s: per launch inside the
    unfused loop over local experts; host_time: what both are multiplied with on the nodes usual for the device.
    mem_efficiency: achieved share of HBM peak of memory-bound kernels; exchange_share: share of the NIC rate that an
    expert exchange reaches inside a step;
    attention_fa2_rate: rate of FlashAttention 2 over the newest kernel where the device has a newer one;
    unaligned_gemm: time of a 16-bit product whose operand has rows that start at multiples of 4 bytes ("words") or of 2
    ("halves"), over that of one with rows at multiples of 16; traced_launch: time of a launch while a tracing profiler
    records it, over that without;
    attention_triton: time of the first FlashAttention's Triton kernel over FlashAttention 2, by pass;
    reference_power_w: power limit of the parts the clock was fitted on, clock_power_exponent: how the clock follows
    another limit; overlap_sms: SMs that a communication
    kernel takes from overlapped compute; overlap_exposed: share of an all-to-all beside compute of another micro-batch
    that stays exposed all the same; stragglers: how much longer the work of a step lasts per doubling of nodes, ranks
    waiting for the slowest at every collective. together_compute, together_memory: time of a product and of a
    memory-bound kernel while all ranks of a node compute, over the time alone (1 where devices share nothing).
    host_link_share: of the rate of the link to the host that pinned copies reach; host_update_share: of the host
    memory's rate that an optimizer running there moves its bytes at.
    clock_kind, clock_source: how the clock was obtained, and where.
    """

    clock: float
    host_launch_s: float
    host_expert_s: float
    mem_efficiency: float
    kernel_floor_s: float
    exchange_share: float
    reference_latency_s: float
    scale_up_reference_bytes_per_s: float
    attention_fa2_rate: float
    attention_triton: Mapping[str, float]
    unaligned_gemm: Mapping[str, float]
    traced_launch: float
    reference_power_w: float
    clock_power_exponent: float
    overlap_sms: Mapping[str, float]
    optimizer_bytes_per_param: float
    step_fixed_s: float
    fp8_attention_speedup: float
    overlap_exposed: float
    stragglers: float
    context_bytes: float
    fragmentation: float
    host_link_share: float
    host_update_share: float
    host_time: float = 1.0
    together_compute: float = 1.0
    together_memory: float = 1.0
    clock_16bit: float = 1.0
    clock_kind: str
    clock_source: str


def _read(path: Traversable, name: str) -> dict[str, object]:
    if not path.is_file():
        raise UserError(f"no fitted factors for measured device {name!r}: add {path}", where="factors")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"is not valid TOML: {error}", where=str(path)) from None
    if "source" not in data:
        raise UserError("no [source] table: every data file states where its figures come from", where=str(path))
    return data


@cache
def factors(folder: str) -> Factors:
    """Factors of one measured device, by name or by folder of a user's profile, merged over the common ones.

    Raises UserError when the file or its source is missing, or keys are wrong.
    """
    common = resources.files("hwprofiles") / "fitted" / "common.toml"
    own = fitted_file(folder, FACTORS)
    merged: dict[str, object] = {}
    for data in (_read(common, "common"), _read(own, folder)):
        merged |= data
    source = merged.pop("source")
    try:
        kind, title = source["kind"], source["title"]  # type: ignore[index]
        return Factors(clock_kind=kind, clock_source=title, **merged)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        problem = f"has wrong keys ({error}); write it anew with `moecast calibrate fit`"
        raise UserError(problem, where=str(own)) from None
