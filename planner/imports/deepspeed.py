"""DeepSpeed's JSON as a plan: ZeRO, AutoTP, AutoEP, the pipeline and batch sizes, with what its reader skips said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner.imports.megatron import MAX_DEGREE, Launch
from planner.imports.trees import read_tree, section
from planner.rules.deepspeed import BACKENDS
from sim.mesh import DEFAULT_MAP
from sim.model import ModelSpec
from sim.plan import Plan
from sim.workload import Workload

TARGET = "deepspeed"
# Sections of deepspeed 0.19.8 (runtime/config.py and the constants it reads) that a training script may set.
KNOWN = frozenset(
    {
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "bf16", "fp16", "amp",
        "bfloat16", "data_types", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
        "tensor_parallel", "expert_parallel", "pipeline", "activation_checkpointing", "sequence_parallel_size",
        "optimizer", "scheduler", "gradient_clipping", "prescale_gradients", "gradient_predivide_factor",
        "communication_data_type", "sparse_gradients", "steps_per_print", "wall_clock_breakdown", "dump_state",
        "memory_breakdown", "comms_logger", "flops_profiler", "tensorboard", "wandb", "csv_monitor", "comet", "aio",
        "checkpoint", "elasticity", "compile", "compression_training", "data_efficiency", "curriculum_learning",
        "progressive_layer_drop", "eigenvalue", "sparse_attention", "autotuning", "nebula", "hybrid_engine",
        "use_data_before_expert_parallelism", "disable_allgather", "graph_harvesting", "torch_autocast", "seed",
        "dataloader_drop_last", "timers", "gradient_accumulation_dtype", "use_node_local_storage",
    }
)  # fmt: skip


class _Reader:
    """Typed access, collecting problems."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree, self.problems = tree, list[str]()

    def part(self, name: str) -> dict[str, Any]:
        return section(self.tree, name, self.problems)

    def whole(self, part: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int | None:
        value = part.get(key)
        if value is None or value == "auto":
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_DEGREE:
            self.problems.append(f"{where}{key} {str(value)[:40]!r} is not a whole number; write the number itself")
            return default
        return value


def read_config(
    path: str, model: ModelSpec, software: SoftwareProfile, world: int, seq_tokens: int | None
) -> Launch:  # fmt: skip
    """The plan that a DeepSpeed JSON asks of `model` on `world` devices.

    seq_tokens: of a sequence, which is the training script's and not in the file. Raises UserError with all problems.
    """
    asked = _Reader(read_tree(path))
    if not set(asked.tree) & {"train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization"}:
        raise UserError("no section of DeepSpeed in it; give the JSON of --deepspeed_config", where=path)
    notes = _ignored(asked.tree)
    plan = _plan(asked, world, model, notes)
    batch = _batch(asked, plan)
    notes += _assumed(asked, plan, batch)
    if seq_tokens is None:
        asked.problems.append("the JSON has no sequence length; give --seq-len")
    if asked.problems:
        raise UserError(asked.problems, where=path)
    half = asked.part("fp16").get("enabled") not in (None, False, 0, "auto")
    work = Workload(seq_tokens=seq_tokens or 1, global_batch_seqs=batch, precision="fp16" if half else "bf16")
    return Launch(
        plan=plan, ranks=DEFAULT_MAP, workload=work, software=_software(asked, software, plan), notes=tuple(notes),
        target=TARGET,
    )  # fmt: skip


def _ignored(tree: Mapping[str, Any]) -> list[str]:
    out = []
    for name in sorted(set(tree) - KNOWN):
        near = get_close_matches(name, KNOWN, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        out.append(f"section {name[:60]!r} is not known to the reader, which skips it silently{hint}")
    return out


def _plan(asked: _Reader, world: int, model: ModelSpec, notes: list[str]) -> Plan:
    tensor, experts, pipe = asked.part("tensor_parallel"), asked.part("expert_parallel"), asked.part("pipeline")
    tp = asked.whole(tensor, "autotp_size", "tensor_parallel.", 1) or 1
    pp = asked.whole(pipe, "stages", "pipeline.", 1) or 1
    ep, etp = 1, 1
    if experts.get("enabled"):
        ep = asked.whole(experts, "autoep_size", "expert_parallel.", 1) or 1
        etp = asked.whole(experts, "expert_tensor_parallel_size", "expert_parallel.", 1) or 1
    elif model.is_moe:
        notes.append("no AutoEP in it: experts are taken as not parallel; MoE(ep_size=) in code is not seen")
    if asked.tree.get("sequence_parallel_size", 1) != 1:
        asked.problems.append("sequence_parallel_size (Ulysses) is not simulated; leave it out")
    if asked.tree.get("use_data_before_expert_parallelism"):
        asked.problems.append("use_data_before_expert_parallelism is not simulated; leave it out")
    for name, inner in (("autotp x stages", tp * pp), ("autoep x etp x stages", ep * etp * pp)):
        if world % inner:
            asked.problems.append(f"{name} = {inner} does not divide {world} devices; give --gpus, or change a degree")
    whole = asked.whole(pipe, "activation_checkpoint_interval", "pipeline.", 0) or 0
    full = whole > 0 or "activation_checkpointing" in asked.tree
    if pp > 1:
        notes.append("how layers are split over stages is the script's PipelineModule: taken as even")
    if "activation_checkpointing" in asked.tree and pp == 1:
        notes.append("activation_checkpointing says how, the script says what: taken as every block")
    zero = asked.whole(asked.part("zero_optimization"), "stage", "zero_optimization.", 0) or 0
    if zero > 3:
        asked.problems.append(f"zero_optimization.stage {zero}; use 0 to 3")
    micro = asked.whole(asked.tree, "train_micro_batch_size_per_gpu", "")
    dp = max(1, world // (tp * pp))
    if micro is None:
        total, steps = (asked.whole(asked.tree, k, "") for k in ("train_batch_size", "gradient_accumulation_steps"))
        micro = max(1, total // (dp * max(1, steps or 1))) if total else 1
    return Plan(
        tp=tp, dp=dp, pp=pp, ep=ep, etp=etp, edp=max(1, world // (ep * etp * pp)), micro_batch_seqs=max(1, micro),
        zero_stage=min(zero, 3), recompute=("full",) if full else (),
    )  # fmt: skip


def _batch(asked: _Reader, plan: Plan) -> int:
    """Sequences of a step: what is said, else the product, as the reader has it; both must agree."""
    said = asked.whole(asked.tree, "train_batch_size", "")
    steps = asked.whole(asked.tree, "gradient_accumulation_steps", "")
    each = plan.micro_batch_seqs * plan.dp
    if said is None:
        return each * (steps or 1)
    if steps is not None and said != each * steps:
        asked.problems.append(
            f"train_batch_size {said} is not micro {plan.micro_batch_seqs} x steps {steps} x dp {plan.dp} = "
            f"{each * steps}; correct one"
        )
    return max(1, said)


def _assumed(asked: _Reader, plan: Plan, batch: int) -> list[str]:
    """Notes on what the training script fills in, and on offload whose device is not modelled."""
    out = []
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    left = [key for key in keys if asked.tree.get(key, "auto") == "auto"]
    if keys[0] in left and len(left) > 1:
        out.append(
            f"{', '.join(left)} left to the training script: taken as {batch} sequences a step in micro-batches of "
            f"{plan.micro_batch_seqs} on {plan.dp} data-parallel ranks; write the numbers"
        )
    elif keys[1] in left and keys[2] in left:
        out.append(
            f"{keys[1]} and {keys[2]} left to the training script: taken as micro-batches of {plan.micro_batch_seqs}"
        )
    zero = asked.part("zero_optimization")
    if _device(zero.get("offload_optimizer")) == "nvme":
        out.append("offload_optimizer to nvme is taken as host memory: reads and writes of the drive are not modelled")
    where = _device(zero.get("offload_param"))
    if where != "none":
        out.append(f"offload_param to {where[:20]} is not modelled: parameters are taken as on the device")
    if "auto" in (asked.part(name).get("enabled") for name in ("bf16", "fp16")):
        out.append("precision left to the training script (auto): taken as bf16")
    return out


def _device(offload: Any) -> str:
    return str(offload.get("device", "none")) if isinstance(offload, dict) else "none"


def _software(asked: _Reader, base: SoftwareProfile, plan: Plan) -> SoftwareProfile:
    """The profile with every switch that the JSON decides; what it has no key for is off."""
    zero = asked.part("zero_optimization")
    back = {value: key for key, value in BACKENDS.items()}
    said = str(asked.part("expert_parallel").get("comm_backend", ""))
    dtype = str(asked.part("data_types").get("grad_accum_dtype") or base.grad_dtype)
    overlap = zero.get("overlap_comm")
    fields: dict[str, Any] = {
        "dispatcher": back.get(said, base.dispatcher if base.dispatcher in BACKENDS else "alltoall"),
        "dp_overlap_grad": bool(overlap) if overlap is not None else plan.zero_stage == 3,
        "grad_dtype": "bf16" if dtype in ("bf16", "bfloat16", "fp16") else "fp32",
        "optimizer_offload": _device(zero.get("offload_optimizer")) in ("cpu", "nvme"),
    }
    return replace(base, **fields)
