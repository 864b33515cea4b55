"""How a launch script trains: optimizer and its dtypes, what goes to the host, batch ramp-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.workload import OFFLOAD_MODULES, STATE_BYTES, Offload, Optimizer, RampUp

Given = Mapping[str, list[str]]
_OPTIMIZERS = {"adam": "adam", "sgd": "sgd", "muon": "muon", "dist_muon": "muon"}
_DTYPES = {
    "main-params-dtype": ("main_params", ("fp32", "fp16")), "main-grads-dtype": ("main_grads", ("fp32", "bf16")),
    "exp-avg-dtype": ("exp_avg", tuple(STATE_BYTES)), "exp-avg-sq-dtype": ("exp_avg_sq", tuple(STATE_BYTES)),
}  # fmt: skip


def training_fields(given: Given, problems: list[str]) -> dict[str, Any]:
    """Fields of the workload that the flags decide; what cannot be read goes to `problems`."""
    out: dict[str, Any] = {"optimizer": _optimizer(given, problems), "offload": _offload(given, problems)}
    ramp = given.get("rampup-batch-size")
    if ramp is not None:
        numbers = [int(x) for x in ramp if x.isdecimal() and 0 < int(x[:12]) < 10**12]
        if len(ramp) != 3 or len(numbers) != 3:
            problems.append("--rampup-batch-size takes start, increment and sequences; write three whole numbers")
        else:
            total = given.get("train-samples", ["0"])[:1]
            samples = int(total[0]) if total and total[0].isdecimal() else 0
            out["ramp_up"] = RampUp(start=numbers[0], increment=numbers[1], samples=numbers[2], train_samples=samples)
    return out


def _first(given: Given, name: str, default: str) -> str:
    values = given.get(name)
    return values[0] if values else default


def _optimizer(given: Given, problems: list[str]) -> Optimizer:
    said = _first(given, "optimizer", "adam")
    if said not in _OPTIMIZERS:
        problems.append(f"--optimizer {said[:40]!r} is not modelled; use one of {', '.join(_OPTIMIZERS)}")
    values: dict[str, Any] = {"name": _OPTIMIZERS.get(said, "adam")}
    if any(flag in given for flag in _DTYPES):  # those that are not there are fp32
        for flag, (field, known) in _DTYPES.items():
            dtype = _first(given, flag, "fp32")
            if dtype not in known:
                problems.append(f"--{flag} {dtype[:40]!r}: use one of {', '.join(known)}")
            else:
                values[field] = dtype
    if values["name"] == "muon":
        steps, mode = _first(given, "muon-num-ns-steps", "5"), _first(given, "muon-tp-mode", "blockwise")
        if not steps.isdecimal() or not 1 <= int(steps[:4]) <= 1000:
            problems.append(f"--muon-num-ns-steps {steps[:40]!r} is not a whole number of at least 1")
        elif mode not in ("blockwise", "duplicated"):
            problems.append(f"--muon-tp-mode {mode[:40]!r} is not modelled; use blockwise or duplicated")
        else:
            values |= {"ns_steps": int(steps), "tp_mode": mode}
    return Optimizer(**values)


def _offload(given: Given, problems: list[str]) -> Offload:
    values: dict[str, Any] = {}
    if "optimizer-cpu-offload" in given:
        text = _first(given, "optimizer-offload-fraction", "1.0")
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not 0.0 <= share <= 1.0:
            problems.append(f"--optimizer-offload-fraction {text[:40]!r} is not a share from 0 to 1")
        else:
            values |= {"optimizer": share, "overlap": share > 0.0 and "overlap-cpu-optimizer-d2h-h2d" in given}
    if "fine-grained-activation-offloading" in given:
        named = given.get("offload-modules", [])
        strange = [name for name in named if name not in OFFLOAD_MODULES]
        if strange:
            problems.append(f"--offload-modules {' '.join(strange)[:80]}: use any of {', '.join(OFFLOAD_MODULES)}")
        values["modules"] = tuple(name for name in OFFLOAD_MODULES if name in named)
    return Offload(**values)
