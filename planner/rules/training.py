"""Rules of how a step is trained: optimizer, offload, adapters, batch ramp-up. Of the layout, and what targets lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from planner.rules.base import Context, Mask, Rule
from sim.columns import Columns

LAYOUT_SOURCE = "layout"
_rule = partial(Rule, target="layout", version="0.19.2", source=LAYOUT_SOURCE)


def _muon(x: Context) -> bool:
    return x.workload.optimizer.name == "muon"


def offloaded_layers(x: Context) -> int:
    """Whole layers whose activations go to the host, by the profile or by the workload."""
    return max(x.software.activation_offload_layers, x.workload.offload.layers)


def _optimizer_away(x: Context) -> bool:
    return bool(x.workload.offload.optimizer) or x.software.optimizer_offload


def _ramp(c: Columns, x: Context) -> Mask | bool:
    ramp = x.workload.ramp_up
    if ramp is None:
        return True
    unit = c.micro_batch_seqs * c.dp
    out: Mask = (ramp.start % unit == 0) & (ramp.increment % unit == 0)
    return out & bool((x.workload.global_batch_seqs - ramp.start) % ramp.increment == 0)


TRAINING_RULES: tuple[Rule, ...] = (
    _rule(
        id="muon-whole-matrices",
        text="muon updates whole matrices: gradients and parameters stay whole",
        where="--optimizer, --zero",
        remedy="use ZeRO 0 or 1, or adam",
        ok=lambda c, x: not _muon(x) or c.zero_stage <= 1,
        say=lambda p, x: f"muon with ZeRO {p.zero_stage}",
    ),
    _rule(
        id="muon-on-device",
        text="muon runs on the device",
        where="--optimizer, --offload",
        remedy="leave the optimizer on the device, or use adam",
        ok=lambda c, x: not (_muon(x) and _optimizer_away(x)),
        say=lambda p, x: "muon with the optimizer on the host",
    ),
    _rule(
        id="muon-without-adapters",
        text="adapters are trained by adam or sgd",
        where="--optimizer, --lora",
        remedy="use adam for adapters, or train all weights",
        ok=lambda c, x: not (_muon(x) and x.workload.lora),
        say=lambda p, x: "muon with --lora",
    ),
    _rule(
        id="offload-one-form",
        text="activations go to the host by whole layers or by modules",
        where="--offload, software activation_offload_layers",
        remedy="give layers or modules",
        ok=lambda c, x: not (offloaded_layers(x) and x.workload.offload.modules),
        say=lambda p, x: f"{offloaded_layers(x)} layers and modules {', '.join(x.workload.offload.modules)}",
    ),
    _rule(
        id="ramp-over-dp",
        text="every batch of a ramp-up is a whole number of micro-batches on every data-parallel rank",
        where="--rampup-batch-size, --global-batch, --micro-batch",
        remedy="make start and increment multiples of micro-batch x dp that lead to the global batch",
        ok=_ramp,
        say=lambda p, x: (
            f"start {x.workload.ramp_up.start if x.workload.ramp_up else 0} and increment "
            f"{x.workload.ramp_up.increment if x.workload.ramp_up else 0} on micro-batch {p.micro_batch_seqs} x dp "
            f"{p.dp}"
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Lever:
    """Something of the workload that a target may lack. used: whether it is asked for."""

    name: str
    what: str
    where: str
    remedy: str
    used: Callable[[Context], bool]


LORA = Lever(
    name="lora", what="adapters", where="--lora", remedy="train all weights, or use --target megatron-bridge",
    used=lambda x: x.workload.lora is not None,
)  # fmt: skip
RAMP_UP = Lever(
    name="ramp-up", what="batch ramp-up", where="--rampup-batch-size", remedy="leave the ramp out, or use megatron-lm",
    used=lambda x: x.workload.ramp_up is not None,
)  # fmt: skip
MODULES = Lever(
    name="module-offload", what="offload of activations by modules", where="--offload modules",
    remedy="keep activations on the device, or use megatron-lm", used=lambda x: bool(x.workload.offload.modules),
)  # fmt: skip
LAYERS = Lever(
    name="layer-offload", what="offload of activations by layers", where="--offload layers",
    remedy="keep activations on the device, or use megatron-lm", used=lambda x: x.workload.offload.layers > 0,
)  # fmt: skip
SHARE = Lever(
    name="offload-share", what="offload of a part of the optimizer", where="--offload optimizer",
    remedy="offload all of it (optimizer=1) or nothing", used=lambda x: 0.0 < x.workload.offload.optimizer < 1.0,
)  # fmt: skip
INT8_STATE = Lever(
    name="int8-state", what="optimizer state in 8-bit integers", where="--optimizer",
    remedy="use fp8, fp16, bf16 or fp32",
    used=lambda x: "int8" in (x.workload.optimizer.exp_avg, x.workload.optimizer.exp_avg_sq),
)  # fmt: skip


def lever_rules(prefix: str, *levers: Lever, target: str, version: str, source: str) -> tuple[Rule, ...]:
    """A rule for each lever a target lacks, named `<prefix>-no-<lever>`."""
    return tuple(_lacking(prefix, lever, target, version, source) for lever in levers)


def _lacking(prefix: str, lever: Lever, target: str, version: str, source: str) -> Rule:
    return Rule(
        id=f"{prefix}-no-{lever.name}",
        target=target,
        text=f"{target} has no {lever.what}",
        where=lever.where,
        remedy=lever.remedy,
        source=source,
        version=version,
        ok=lambda c, x: not lever.used(x),
        say=lambda p, x: f"{lever.what} is asked for",
    )


def _state(c: Columns, x: Context) -> bool:
    o = x.workload.optimizer
    stated = any((o.main_params, o.main_grads, o.exp_avg, o.exp_avg_sq))
    return not stated or (o.name == "adam" and c.zero_stage >= 1)


def _modules(c: Columns, x: Context) -> bool:
    modules, graph = x.workload.offload.modules, x.software.cuda_graph
    if not modules:
        return True
    expert = {"expert_fc1", "moe_act"} & set(modules)
    attention = set(modules) - {"expert_fc1", "moe_act", "mlp_norm"}
    captured = "full_iteration" in graph or ("attn" in graph and attention)
    alone = "attn_proj" in modules and "core_attn" not in modules
    return not (alone or captured or (expert and {"moe", "full"} & set(c.recompute)))


def _offloaded_state(c: Columns, x: Context) -> bool:
    return not x.workload.offload.optimizer or c.zero_stage == 1


MEGATRON_TRAINING_RULES: tuple[Rule, ...] = (
    Rule(
        id="megatron-state-dtypes",
        target="megatron-lm",
        version="0.19.2",
        text="dtypes of the optimizer's state need adam and the distributed optimizer",
        where="--optimizer, --zero",
        remedy="use adam with ZeRO 1, or leave the dtypes out",
        source="megatron-core 0.19.2 megatron/training/arguments.py",
        ok=_state,
        say=lambda p, x: f"state dtypes for {x.workload.optimizer.name} with ZeRO {p.zero_stage}",
    ),
    Rule(
        id="megatron-offload-sharded",
        target="megatron-lm",
        version="0.19.2",
        text="an optimizer on the host is the distributed one",
        where="--offload optimizer, --zero",
        remedy="use ZeRO 1",
        source="megatron-core 0.19.2 megatron/training/arguments.py (rule 10)",
        ok=_offloaded_state,
        say=lambda p, x: f"the optimizer on the host with ZeRO {p.zero_stage}",
    ),
    Rule(
        id="megatron-module-offload",
        target="megatron-lm",
        version="0.19.2",
        text="offloaded modules are not recomputed with all of moe, not captured in a graph, and attn_proj comes with "
        "core_attn",
        where="--offload modules, --recompute, software cuda_graph",
        remedy="offload other modules, recompute less, or capture less",
        source="megatron-core 0.19.2 megatron/core/transformer/transformer_config.py (rule 10)",
        ok=_modules,
        say=lambda p, x: (
            f"modules {', '.join(x.workload.offload.modules)} with recompute {', '.join(p.recompute) or 'none'} and "
            f"graphs of {', '.join(x.software.cuda_graph) or 'nothing'}"
        ),
    ),
    *lever_rules(
        "megatron", INT8_STATE, target="megatron-lm", version="0.19.2",
        source="megatron-core 0.19.2 megatron/training/arguments.py",
    ),
)  # fmt: skip
# Of Megatron-LM's own scripts: Megatron-Bridge has adapters.
MEGATRON_LM_RULES = lever_rules(
    "megatron-lm", LORA, target="megatron-lm", version="0.19.2", source="megatron-core 0.19.2 pretrain_gpt.py"
)


def elsewhere(prefix: str, *, target: str, version: str, source: str) -> tuple[Rule, ...]:
    """What the trainers that are not Megatron's lack of it."""
    return lever_rules(
        prefix, LORA, RAMP_UP, MODULES, LAYERS, SHARE, target=target, version=version, source=source
    )  # fmt: skip
