"""What is measured: a `Point` names one kernel at one size; `prepare` builds it on the device.

Sizes follow `sim.ops`: gemm C[m,n] = A[m,k] B[k,n]; grouped gemm adds `groups` and rows per group;
the backward passes of a layer keep the m, n, k of its forward.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from calibration.harness.group import Group
from calibration.harness.timing import Timer, Timing

if TYPE_CHECKING:  # environment reads this file's torch_module
    from calibration.harness.environment import Monitor

Suite = Literal["tiny", "quick", "full"]
Size = int | float | str | bool
SUITES: tuple[Suite, ...] = ("tiny", "quick", "full")
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp8": 1, "fp8_row": 1, "fp32": 4}
# Largest relative error (Frobenius norm, against float32) a right kernel shows, by operand type:
# a few units of the last place; a wrong layout or scale is off by order one.
TOLERANCE = {"int64": 0.0, "bf16": 0.02, "fp16": 0.01, "fp8": 0.05, "fp8_row": 0.05, "fp32": 1e-3}


class Skip(Exception):
    """A point that this device, driver or torch cannot run; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a point runs: device string, timer, seed of its random data, the ranks it belongs to.

    memo keeps checks already made, timings those of a step's parts, which are taken all at once.
    """

    device: str
    timer: Timer
    seed: int
    group: Group | None = None
    monitor: Monitor | None = None
    memo: dict[Hashable, float] = field(default_factory=dict)
    timings: dict[Hashable, Timing] = field(default_factory=dict)

    def once(self, key: Hashable, check: Callable[[], float]) -> float:
        """The result of a check on small data, made once for all points that would repeat it."""
        if key not in self.memo:
            self.memo[key] = check()
        return self.memo[key]

    @property
    def cuda(self) -> bool:
        """True on a CUDA (or ROCm) device."""
        return self.device.startswith("cuda")

    def generator(self, seed: int = 0) -> Any:
        """A random generator on the device; no global random state is touched."""
        return torch_module().Generator(device=self.device).manual_seed(self.seed + seed)

    def randn(self, *shape: int, dtype: str = "bf16", scale: float = 1.0, seed: int = 0) -> Any:
        """Normal random data, the same for the same seed: zeros draw less power and hide errors."""
        torch = torch_module()
        drawn = torch_dtype("bf16" if is_fp8(dtype) else dtype)
        out = torch.randn(*shape, generator=self.generator(seed), device=self.device, dtype=drawn)
        out.mul_(scale)
        return out.to(torch_dtype(dtype)) if is_fp8(dtype) else out


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A point ready to run: `run` is timed, or `measure` times itself; `check` gives a relative error.

    hide_launch: queue work behind a spinning kernel, so that gaps between launches do not count
    (False for what a host-bound step really takes). peak: what runs once more for its peak memory;
    observed: what else was seen, for the column of that name, asked after timing.
    """

    run: Callable[[], object] | None = None
    measure: Callable[[Timer], Timing] | None = None
    check: Callable[[], float] | None = None
    hide_launch: bool = True
    peak: Callable[[], object] | None = None
    observed: Callable[[], Mapping[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row to be measured. flop and bytes are what the op must do, not what a kernel does.

    follows: timed together with the point before it, so that it costs nothing once that one is measured.
    """

    family: str
    op: str
    pass_: str
    prepare: Callable[[Bench], Prepared]
    dtype: str = "bf16"
    sizes: Mapping[str, Size] = field(default_factory=dict)
    flop: float = 0.0
    bytes: float = 0.0
    follows: bool = False

    @property
    def label(self) -> str:
        """Short text for a progress line."""
        return f"{self.op} {self.dtype} {self.pass_} " + " ".join(f"{k}={v}" for k, v in self.sizes.items())


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """Dimensions of one model of shapes.toml. head_dim is the query/key width per head; MLA where kv_lora_rank > 0."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    v_head_dim: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_rope_dim: int = 0
    ffn: int = 0
    experts: int = 0
    top_k: int = 0
    moe_ffn: int = 0

    @property
    def dv(self) -> int:
        """Value width per head."""
        return self.v_head_dim or self.head_dim


def shapes() -> dict[str, Any]:
    """shapes.toml: the dimensions that are measured."""
    text = resources.files("calibration.harness").joinpath("shapes.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def models(device: str = "cuda") -> tuple[ModelDims, ...]:
    """Models whose layers are measured on a device, most wanted first; a CPU has small ones of its own."""
    table = shapes()
    return tuple(ModelDims(**entry) for entry in (table["model"] if device != "cpu" else table["cpu"]["model"]))


def torch_module() -> Any:
    """The torch package, imported late. Raises ModuleNotFoundError where it is not installed."""
    return importlib.import_module("torch")


def torch_dtype(name: str) -> Any:
    """torch dtype of a short name. Raises Skip where this torch does not have it."""
    torch = torch_module()
    attribute = {
        "bf16": "bfloat16",
        "fp16": "float16",
        "fp32": "float32",
        "fp8": "float8_e4m3fn",
        "fp8_row": "float8_e4m3fn",
    }[name]
    if not hasattr(torch, attribute):
        raise Skip(f"this torch has no {attribute}")
    return getattr(torch, attribute)


def is_fp8(dtype: str) -> bool:
    """True for the 8-bit types, whose kernels take scales."""
    return dtype.startswith("fp8")


def relative_error(out: Any, reference: Any) -> float:
    """Frobenius norm of the difference over that of the reference; not-a-number counts as infinite."""
    reference = reference.float()
    scale = float(reference.norm())
    error = float((out.float() - reference).norm()) / (scale or 1.0)
    return error if error == error else float("inf")


def worst_error(pairs: list[tuple[Any, Any]]) -> float:
    """Largest relative error of (output, reference) pairs."""
    return max(relative_error(out, reference) for out, reference in pairs)
