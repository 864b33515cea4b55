"""What is asked of the model: one training step of so many sequences of so many tokens, and how it is trained."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal

Precision = Literal["bf16", "fp16", "fp8", "fp8_block", "mxfp8", "nvfp4"]
StateDtype = Literal["fp32", "fp16", "bf16", "fp8", "int8"]
# Bytes an element; 8-bit integers with an fp32 scale per 256 elements (arXiv 2110.02861 in its later, smaller blocks).
STATE_BYTES: Mapping[str, float] = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0 + 4.0 / 256.0}
# Modules whose activations can go to the host one by one (Megatron-LM's --offload-modules).
OFFLOAD_MODULES = ("attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act")
# Megatron-Bridge's names; routed experts apart: a pair of factors for each, or one pair for all on a rank.
LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "experts", "experts_shared")
LORA_DEFAULT = LORA_TARGETS[:4]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The weight update and the dtypes of its state (names as Megatron-LM's precision-aware optimizer has them).

    main_params: the master weights; main_grads: the gradient as the update reads it; exp_avg: the first moment, or the
    momentum of sgd and muon; exp_avg_sq: the second moment of Adam. None: fp32, or what the software profile's
    precision-aware optimizer keeps. muon: matrices of the layers by momentum and `ns_steps` Newton-Schulz iterations,
    everything else (embeddings, head, norms, biases) by Adam. tp_mode: a tensor-parallel rank orthogonalises its own
    shard ("blockwise") or gathers the whole matrix first ("duplicated").
    """

    name: Literal["adam", "sgd", "muon"] = "adam"
    main_params: Literal["fp32", "fp16"] | None = None
    main_grads: Literal["fp32", "bf16"] | None = None
    exp_avg: StateDtype | None = None
    exp_avg_sq: StateDtype | None = None
    ns_steps: int = 5
    tp_mode: Literal["blockwise", "duplicated"] = "blockwise"

    @property
    def stated(self) -> bool:
        """Whether anything is said beyond "Adam as the software profile runs it"."""
        return self != Optimizer()


@dataclass(frozen=True, kw_only=True)
class Offload:
    """What rests in host memory, beyond what the software profile says itself.

    optimizer: share of the optimizer's state that lives, and is updated, on the host (0 to 1). overlap: gradients go
    down and weights come back while the host updates. layers: whole layers whose activations go to the host (of each
    virtual stage, the first ones); modules: modules of every layer whose activations do (`OFFLOAD_MODULES`).
    """

    optimizer: float = 0.0
    overlap: bool = False
    layers: int = 0
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters of `rank` on `targets`; all other weights are frozen (arXiv 2106.09685)."""

    rank: int
    targets: tuple[str, ...] = LORA_DEFAULT


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of the documents that are packed into a sequence of `seq_tokens` and do not see each other.

    tokens: each as likely as the other (a file, or a law cut into quantiles); none longer than the sequence. cut: how
    many were longer; lost_tokens: what they had beyond it.
    """

    tokens: tuple[float, ...]
    source: str
    cut: int = 0
    lost_tokens: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RampUp:
    """Batch ramp-up as Megatron-LM's --rampup-batch-size: from `start` by `increment` to the global batch over
    `samples` sequences. train_samples: sequences of the whole training (0: the ramp alone)."""

    start: int
    increment: int
    samples: int
    train_samples: int = 0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training step. `precision` is the dtype recipe of the large GEMMs.

    "fp16" moves and multiplies as "bf16" does (loss scaling costs nothing that counts) on devices that may have only
    the one; "fp8" is per-tensor scaling (delayed or current), "fp8_block" 128-blocks on Hopper,
    "mxfp8" 1x32 blocks and "nvfp4" on Blackwell; everything else runs in bf16.
    lora: train adapters instead of the weights. lengths: of packed documents; None: every sequence is one document.
    """

    kind: Literal["train"] = "train"
    seq_tokens: int
    global_batch_seqs: int
    precision: Precision = "bf16"
    optimizer: Optimizer = Optimizer()
    offload: Offload = Offload()
    lora: Lora | None = None
    lengths: Lengths | None = None
    ramp_up: RampUp | None = None
    with_mtp: bool = False


def workload_fields(workload: Workload) -> dict[str, Any]:
    """A workload as JSON; what was left at its default beyond the plain step is left out."""
    plain = ("kind", "seq_tokens", "global_batch_seqs", "precision", "with_mtp")
    out = {name: getattr(workload, name) for name in plain}
    for field in fields(workload):
        value = getattr(workload, field.name)
        if field.name == "optimizer" and not workload.optimizer.stated:
            out["optimizer"] = workload.optimizer.name
        elif field.name not in plain and value != field.default:
            out[field.name] = asdict(value)
    return out


def workload_from(data: Mapping[str, Any]) -> Workload:
    """The workload of `workload_fields`. Raises TypeError where a field is missing or unknown."""
    values = dict(data)
    if isinstance(values.get("optimizer"), str):
        values["optimizer"] = {"name": values["optimizer"]}
    hints = typing.get_type_hints(Workload)
    for name, value in values.items():
        record = _record(hints.get(name))
        if record is not None and isinstance(value, Mapping):
            values[name] = record(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
    return Workload(**values)


def _record(hint: Any) -> Any:
    """The dataclass behind a type hint, or None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((h for h in options if is_dataclass(h)), None)
