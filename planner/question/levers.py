"""The options that say how a step is trained: optimizer, offload, adapters, packed documents, batch ramp-up."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import UserError
from planner.question.asked import Asked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sim.workload import Lengths, Lora, Offload, Optimizer, RampUp


def read_levers(asked: Asked, seq_tokens: int) -> dict[str, Any]:
    """Fields of the workload that the options name. Raises UserError with all problems."""
    from planner.question.read import Problems

    problems = Problems()
    read: dict[str, tuple[str | None, Callable[[str], Any]]] = {
        "optimizer": (asked.optimizer, read_optimizer),
        "offload": (asked.offload, read_offload),
        "lora": (asked.lora, read_lora),
        "lengths": (asked.lengths, lambda text: _lengths(text, seq_tokens)),
        "ramp_up": (asked.rampup_batch_size, lambda text: read_ramp(text, asked.train_samples)),
    }
    out = {}
    for name, (text, reader) in read.items():
        if text is not None:
            value = problems.attempt(partial(reader, text))
            if value is not None:
                out[name] = value
    if asked.train_samples is not None and asked.rampup_batch_size is None:
        problems.found.append("--train-samples is of a batch ramp-up; add --rampup-batch-size or leave it out")
    problems.stop()
    return out


def read_optimizer(text: str) -> Optimizer:
    """`adam`, `sgd` or `muon`, with settings such as `adam:exp_avg=bf16,exp_avg_sq=fp8`."""
    from sim.workload import STATE_BYTES, Optimizer

    name, _, rest = text.strip().partition(":")
    choices: Mapping[str, tuple[str, ...]] = {
        "main_params": ("fp32", "fp16"), "main_grads": ("fp32", "bf16"), "exp_avg": tuple(STATE_BYTES),
        "exp_avg_sq": tuple(STATE_BYTES), "tp_mode": ("blockwise", "duplicated"), "ns_steps": (),
    }  # fmt: skip
    problems: list[str] = []
    if name not in ("adam", "sgd", "muon"):
        problems.append(f"{name[:40]!r} is not an optimizer; use one of: adam, sgd, muon")
    values: dict[str, Any] = {}
    for key, value in _settings(rest, tuple(choices), "--optimizer").items():
        if key == "ns_steps":
            values[key] = _whole(value, "ns_steps", problems)
        elif value not in choices[key]:
            problems.append(f"{key}={value[:40]}: use one of {', '.join(choices[key])}")
        else:
            values[key] = value
        if key in ("tp_mode", "ns_steps") and name != "muon":
            problems.append(f"{key} is a setting of muon; leave it out")
        if key == "exp_avg_sq" and name == "sgd":
            problems.append("sgd has a momentum (exp_avg) and no exp_avg_sq; leave it out")
    if problems:
        raise UserError(problems, where="--optimizer")
    return Optimizer(name=name, **values)  # type: ignore[arg-type]


def read_offload(text: str) -> Offload:
    """`optimizer=0.5,overlap`, `layers=4` or `modules=core_attn+moe_act`, joined by commas."""
    from sim.workload import OFFLOAD_MODULES, Offload

    problems: list[str] = []
    found = _settings(text, ("optimizer", "overlap", "layers", "modules"), "--offload", bare=("optimizer", "overlap"))
    values: dict[str, Any] = {}
    if "optimizer" in found:
        try:
            values["optimizer"] = float(found["optimizer"] or 1.0)
        except ValueError:
            values["optimizer"] = -1.0
        if not 0.0 < values["optimizer"] <= 1.0:
            problems.append(f"optimizer={found['optimizer'][:40]}: give a share above 0 and at most 1")
    if "overlap" in found:
        values["overlap"] = True
        if "optimizer" not in found:
            problems.append("overlap is of the optimizer's copies; add optimizer=1 or leave it out")
        if found["overlap"]:
            problems.append("overlap takes no value")
    if "layers" in found:
        values["layers"] = _whole(found["layers"], "layers", problems)
    if "modules" in found:
        modules = [m for m in found["modules"].split("+") if m]
        strange = [m for m in modules if m not in OFFLOAD_MODULES]
        if strange or not modules:
            problems.append(f"modules={found['modules'][:60]}: use any of {', '.join(OFFLOAD_MODULES)}, joined by +")
        values["modules"] = tuple(m for m in OFFLOAD_MODULES if m in modules)
    if "layers" in found and "modules" in found:
        problems.append("layers and modules are two ways to offload activations; give one of them")
    if problems:
        raise UserError(problems, where="--offload")
    return Offload(**values)


def read_lora(text: str) -> Lora:
    """A rank such as `16`, or a rank and the targets: `16:linear_qkv+linear_proj`."""
    from sim.workload import LORA_DEFAULT, LORA_TARGETS, Lora

    problems: list[str] = []
    number, _, rest = text.strip().partition(":")
    rank = _whole(number, "rank", problems)
    targets = [t for t in rest.split("+") if t] if rest else list(LORA_DEFAULT)
    strange = [t for t in targets if t not in LORA_TARGETS]
    if strange:
        problems.append(f"targets {'+'.join(strange)[:60]}: use any of {', '.join(LORA_TARGETS)}, joined by +")
    if {"experts", "experts_shared"} <= set(targets):
        problems.append("experts and experts_shared are two kinds of adapters; give one of them")
    if problems:
        raise UserError(problems, where="--lora")
    return Lora(rank=rank, targets=tuple(t for t in LORA_TARGETS if t in targets))


def read_ramp(text: str, train_samples: str | None) -> RampUp:
    """START:INCREMENT:SAMPLES, sequences as of Megatron-LM's --rampup-batch-size."""
    from sim.workload import RampUp

    problems: list[str] = []
    parts = text.strip().split(":")
    if len(parts) != 3:
        raise UserError(
            f"{text[:40]!r} is not START:INCREMENT:SAMPLES; give three numbers of sequences such as 32:32:100000",
            where="--rampup-batch-size",
        )
    names = ("start", "increment", "samples")
    start, increment, samples = (_whole(part, name, problems) for part, name in zip(parts, names, strict=True))
    total = 0 if train_samples is None else _whole(train_samples, "--train-samples", problems)
    if problems:
        raise UserError(problems, where="--rampup-batch-size")
    return RampUp(start=start, increment=increment, samples=samples, train_samples=total)


def _lengths(text: str, seq_tokens: int) -> Lengths:
    from sim.lengths import read_lengths

    return read_lengths(text, seq_tokens)


def _settings(text: str, known: tuple[str, ...], where: str, bare: tuple[str, ...] = ()) -> dict[str, str]:
    """key=value pairs joined by commas; `bare` keys may stand alone."""
    out: dict[str, str] = {}
    problems = []
    for part in (p.strip() for p in text.split(",")):
        if not part:
            continue
        key, sign, value = part.partition("=")
        if key not in known:
            problems.append(f"unknown setting {key[:40]!r}; known: {', '.join(known)}")
        elif key in out:
            problems.append(f"{key} is given twice")
        elif not sign and key not in bare:
            problems.append(f"{key} has no value; write {key}=VALUE")
        else:
            out[key] = value
    if problems:
        raise UserError(problems, where=where)
    return out


def _whole(text: str, name: str, problems: list[str]) -> int:
    """A whole number of at least 1; 0 and a problem otherwise."""
    clean = text.strip().replace("_", "")
    if clean.isascii() and clean.isdigit() and int(clean[:12]) >= 1 and len(clean) <= 12:
        return int(clean)
    problems.append(f"{name} {text[:40]!r} is not a whole number of at least 1")
    return 0
