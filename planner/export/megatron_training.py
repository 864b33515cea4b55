"""How a step is trained, in Megatron's own keys: optimizer, offload, adapters and batch ramp-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.export.base import Handover


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One decision. value True is a bare flag on the command line; False is only for YAML."""

    key: str
    value: Any
    section: str = "model"
    flag: str | None = None

    def words(self) -> tuple[str, ...] | None:
        """The words of the command line, or None where it has none."""
        name = "--" + (self.key.replace("_", "-") if self.flag is None else self.flag)
        if self.flag == "" or self.value is False:
            return None
        if self.value is True:
            return (name,)
        values = self.value if isinstance(self.value, list) else [self.value]
        return (name, *(str(value) for value in values))


def batch_settings(asked: Handover) -> list[Setting]:
    """The batch ramp-up, where there is one."""
    ramp = asked.workload.ramp_up
    if ramp is None:
        return []
    out = [Setting(key="rampup_batch_size", value=[ramp.start, ramp.increment, ramp.samples], section="train")]
    if ramp.train_samples:  # Megatron-Bridge has no ramp-up with a training counted in samples
        out.append(Setting(key="train_samples", value=ramp.train_samples, section=""))
    return out


def training_settings(asked: Handover) -> list[Setting]:
    """Optimizer with the dtypes of its state, what goes to the host, and adapters."""
    return [*_optimizer(asked), *_offload(asked), *_adapters(asked)]


def _optimizer(asked: Handover) -> list[Setting]:
    o, sharded = asked.workload.optimizer, asked.plan.zero_stage >= 1
    section = "optimizer"
    dtypes = {"main_params_dtype": o.main_params, "main_grads_dtype": o.main_grads, "exp_avg_dtype": o.exp_avg,
              "exp_avg_sq_dtype": o.exp_avg_sq}  # fmt: skip
    said = [Setting(key=key, value=value, section=section) for key, value in dtypes.items() if value]
    out: list[Setting] = []
    if o.name == "muon":
        out.append(Setting(key="optimizer", value="dist_muon" if sharded else "muon", section=section))
        out.append(Setting(key="muon_num_ns_steps", value=o.ns_steps, section=section))
        out.append(Setting(key="muon_tp_mode", value=o.tp_mode, section=section))
    elif o.name != "adam":
        out.append(Setting(key="optimizer", value=o.name, section=section))
    away = bool(asked.workload.offload.optimizer)
    if sharded and (asked.software.precision_aware_optimizer or said or away):
        out.append(Setting(key="use_precision_aware_optimizer", value=True, section=section))
    return out + said


def _offload(asked: Handover) -> list[Setting]:
    software, away = asked.software, asked.workload.offload
    out: list[Setting] = []
    if away.optimizer or software.optimizer_offload:
        share = 1.0 if software.optimizer_offload else away.optimizer
        out.append(Setting(key="optimizer_cpu_offload", value=True, section="optimizer"))
        out.append(Setting(key="optimizer_offload_fraction", value=share, section="optimizer"))
        if away.overlap:
            out.append(Setting(key="overlap_cpu_optimizer_d2h_h2d", value=True, section="optimizer"))
    layers = max(software.activation_offload_layers, away.layers)
    if layers:
        out.append(Setting(key="cpu_offloading", value=True, flag=""))
        out.append(Setting(key="cpu_offloading_num_layers", value=layers))
    if away.modules:
        out.append(Setting(key="fine_grained_activation_offloading", value=True))
        out.append(Setting(key="offload_modules", value=list(away.modules)))
    return out


def _adapters(asked: Handover) -> list[Setting]:
    """Megatron-Bridge's LoRA; routed experts are matched by the names of their products."""
    lora = asked.workload.lora
    if lora is None:
        return []
    targets = [name for name in lora.targets if not name.startswith("experts")]
    if len(targets) < len(lora.targets):
        targets += [name for name in ("linear_fc1", "linear_fc2") if name not in targets]
    return [
        Setting(key="dim", value=lora.rank, section="peft", flag=""),
        Setting(key="target_modules", value=targets, section="peft", flag=""),
    ]


def training_missing(asked: Handover) -> list[str]:
    """What of the training neither flags nor keys can say."""
    work, out = asked.workload, []
    if work.lengths is not None:
        out.append(f"packed documents ({work.lengths.source}): the data set packs them")
    if work.lora is not None:
        out.append("adapters: the recipe needs a LoRA() as its peft before the merge")
    return out + _offloaded_state(asked)


def _offloaded_state(asked: Handover) -> list[str]:
    """Dtypes that the optimizer on the host drops: Megatron's hybrid one is told none, and updates in fp32."""
    o = asked.workload.optimizer
    moment = "bf16" if asked.software.precision_aware_optimizer else "fp32"
    dtypes = {"master": o.main_params, "exp_avg": o.exp_avg or moment, "exp_avg_sq": o.exp_avg_sq or moment}
    narrow = [f"{name} in {dtype}" for name, dtype in dtypes.items() if dtype not in (None, "fp32")]
    if not narrow or not (asked.workload.offload.optimizer or asked.software.optimizer_offload):
        return []
    return [f"{', '.join(narrow)}: an optimizer on the host keeps its whole state in fp32; host and device hold more"]
