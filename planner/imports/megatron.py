"""Megatron-LM's flags as a plan: what a launch script asks for, with the traps of its parser said aloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner.export.megatron_settings import GRAPH_MODULES
from planner.imports.layout_text import stages_of
from planner.imports.megatron_checks import doubts, other_model, refused, unpriced
from planner.imports.shell_script import read_script
from planner.imports.shell_words import flags_of
from planner.imports.training import training_fields
from planner.rules.megatron import RANK_ORDERS
from sim.build.stages import layers_per_stage
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.plan import RECOMPUTE_MODULES, Plan
from sim.workload import Workload

MAX_DEGREE = 10**6
_FP8 = {"delayed": "fp8", "tensorwise": "fp8", "blockwise": "fp8_block", "mxfp8": "mxfp8"}
_IMPL = {True: "native", False: "te"}  # of the fused loss, by whether its logits are in fp32
_BACKEND = {True: "auto", False: "unfused"}
_PLAIN_ATTENTION = ("unfused", "local")
_DISPATCHERS = {"alltoall": "alltoall", "allgather": "allgather", "alltoall_seq": "alltoall"}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a script asks for, of which target. notes: what its parser would do silently."""

    plan: Plan
    ranks: RankMap
    workload: Workload
    software: SoftwareProfile
    notes: tuple[str, ...]
    target: str = "megatron-lm"


class Flags:
    """Typed access to flags, collecting problems."""

    def __init__(self, given: Mapping[str, list[str]]) -> None:
        self.given = given
        self.problems: list[str] = []

    def whole(self, name: str, default: int | None = None) -> int | None:
        """A whole number of at least 1."""
        values = self.given.get(name)
        if not values:
            return default
        if not values[0].isdecimal() or not 1 <= int(values[0][:12]) <= MAX_DEGREE:
            self.problems.append(f"--{name} {values[0][:40]!r} is not a whole number; write the number itself")
            return default
        return int(values[0])

    def text(self, name: str, default: str = "") -> str:
        """The first value."""
        values = self.given.get(name)
        return values[0] if values else default

    def on(self, name: str) -> bool:
        """Whether the flag is there."""
        return name in self.given


def world_of(path: str) -> int | None:
    """Devices a script names in its torchrun line or, failing that, to Slurm; None where it does not say."""
    script = read_script(path)
    flags = flags_of(script.words)
    asked = script.directives
    nodes = _whole(flags, "nnodes") or _whole(asked, "nodes", "N")
    each = _whole(flags, "nproc-per-node", "nproc_per_node")
    each = each or _whole(asked, "gpus-per-node", "gres", "ntasks-per-node")
    return None if nodes is None or each is None else nodes * each


def _whole(given: Mapping[str, list[str]], *names: str) -> int | None:
    """The first of these flags that ends in a whole number: 8, gpu:8, gpu:h100:8."""
    for name in names:
        text = (given.get(name) or [""])[0].rpartition(":")[2]
        if text.isdecimal() and 0 < int(text[:12]) <= MAX_DEGREE:
            return int(text)
    return None


def read_launch(path: str, model: ModelSpec, software: SoftwareProfile, world: int) -> Launch:
    """The launch script or file of flags at `path`, asked of `model` on `world` devices.

    software: the profile whose switches the flags change. Raises UserError with all problems, where degrees do not
    divide the devices or values cannot be read.
    """
    script = read_script(path)
    flags = Flags(flags_of(script.words))
    if not any(name in flags.given for name in ("micro-batch-size", "tensor-model-parallel-size", "global-batch-size")):
        raise UserError(
            [
                "no flag of Megatron-LM in it; give the file that holds them: the script that calls pretrain_gpt.py, "
                "with what it sources beside it",
                *script.notes,
            ],
            where=path,
        )
    flags.problems += refused(flags.given) + other_model(flags.given, model)
    launch = launch_of(flags, model, software, world, path)
    unsure = doubts(script.unsure, script.used)
    return replace(launch, notes=(*launch.notes, *unpriced(flags.given), *script.notes, *unsure))


def launch_of(flags: Flags, model: ModelSpec, software: SoftwareProfile, world: int, path: str) -> Launch:
    """What flags ask for, wherever they stood. Raises UserError with all problems."""
    notes: list[str] = []
    degrees = _degrees(flags, world, notes)
    plan = _plan(flags, degrees, model, notes)
    workload = _workload(flags, plan, model)
    if flags.problems:
        raise UserError(flags.problems, where=path)
    order = [name for name, flag in RANK_ORDERS.items() if flag and flags.on(flag[2:])]
    return Launch(
        plan=plan,
        ranks=RankMap(order=order[0]) if order else DEFAULT_MAP,
        workload=workload,
        software=_software(flags, software, plan),
        notes=tuple(notes),
    )


def _degrees(flags: Flags, world: int, notes: list[str]) -> dict[str, int]:
    tp = flags.whole("tensor-model-parallel-size", 1) or 1
    cp = flags.whole("context-parallel-size", 1) or 1
    pp = flags.whole("pipeline-model-parallel-size", 1) or 1
    ep = flags.whole("expert-model-parallel-size", 1) or 1
    etp = flags.whole("expert-tensor-parallel-size")
    if etp is None:
        etp = tp
        if tp > 1 and flags.on("num-experts"):
            notes.append(f"--expert-tensor-parallel-size is not given: it becomes the tensor-parallel degree, {tp}")
    if not flags.on("num-experts") and ep == 1:
        etp = 1
    for name, inner in (("tp x cp x pp", tp * cp * pp), ("etp x ep x pp", etp * ep * pp)):
        if world % inner:
            flags.problems.append(f"{name} = {inner} does not divide {world} devices; give --gpus, or change a degree")
    if flags.on("sequence-parallel") and tp == 1:
        notes.append("--sequence-parallel with one tensor-parallel rank is switched off silently")
    dp, edp = max(1, world // (tp * cp * pp)), max(1, world // (etp * ep * pp))
    return {"tp": tp, "cp": cp, "dp": dp, "pp": pp, "ep": ep, "etp": etp, "edp": edp}


def _plan(flags: Flags, degrees: dict[str, int], model: ModelSpec, notes: list[str]) -> Plan:
    layers = len(model.layers)
    said = flags.whole("num-layers")
    if said is not None and said != layers:
        flags.problems.append(f"--num-layers {said} is not {model.name}, which has {layers}; give its --model")
    pp = degrees["pp"]
    vpp = flags.whole("num-virtual-stages-per-pipeline-rank", 1) or 1
    each = flags.whole("num-layers-per-virtual-pipeline-stage")
    if each is not None:
        vpp = max(1, layers // pp // each)
    stages: tuple[int, ...] | None = None
    ends = flags.on("account-for-embedding-in-pipeline-split") or flags.on("account-for-loss-in-pipeline-split")
    layout = flags.text("pipeline-model-parallel-layout")
    mtp = (flags.whole("mtp-num-layers") or 0) > 0
    if layout:
        try:
            stages = stages_of(layout)
        except UserError as error:
            flags.problems += error.problems
        if stages is not None:
            vpp = max(1, len(stages) // pp)
    first = flags.whole("decoder-first-pipeline-num-layers")
    last = flags.whole("decoder-last-pipeline-num-layers")
    if (first or last) and pp > 1 and stages is None:
        stages = _uneven(layers, pp, first, last)
    fields: dict[str, Any] = dict(degrees)
    if stages is not None and len(stages) == pp * vpp and pp > 1:
        if layers % (pp * vpp) == 0 and stages == layers_per_stage(layers, pp * vpp, mtp=mtp):
            stages = None
        elif stages == layers_per_stage(layers, pp * vpp, account_ends=True, mtp=mtp):
            stages, ends = None, True
    elif pp == 1:
        stages = None
    recompute = _recompute(flags, notes)
    zero, shard = _sharding(flags, degrees)
    grouped = (flags.whole("microbatch-group-size-per-virtual-pipeline-stage") or 0) if vpp > 1 else 0
    return Plan(
        **fields, vpp=vpp, micro_batch_group=0 if grouped == pp else grouped,
        micro_batch_seqs=flags.whole("micro-batch-size", 1) or 1,
        schedule="interleaved" if vpp > 1 else "1f1b", recompute=recompute, zero_stage=zero, fsdp_shard=shard,
        stages=stages, account_ends=ends and pp > 1,
    )  # fmt: skip


def _uneven(layers: int, pp: int, first: int | None, last: int | None) -> tuple[int, ...]:
    """Stages with a first and a last count; the middle shares the rest evenly."""
    ends = (first is not None) + (last is not None)
    rest = layers - (first or 0) - (last or 0)
    middle = [rest // (pp - ends)] * (pp - ends) if pp > ends else []
    return tuple([*([first] if first is not None else []), *middle, *([last] if last is not None else [])])


def _recompute(flags: Flags, notes: list[str]) -> tuple[str, ...]:
    granularity = flags.text("recompute-granularity", "selective" if flags.on("recompute-activations") else "")
    if granularity == "full":
        if not (flags.on("recompute-method") and flags.on("recompute-num-layers")):
            flags.problems.append(
                "--recompute-granularity full needs --recompute-method and --recompute-num-layers; add them"
            )
        count = flags.whole("recompute-num-layers", 1)
        if flags.text("recompute-method") == "block" or (count or 1) > 1:
            notes.append("full recompute of a part of the layers is read as recompute of all of them")
        return ("full",)
    if granularity == "selective":
        if flags.on("recompute-method"):
            flags.problems.append("--recompute-method is not for selective recompute; leave it out")
        modules = flags.given.get("recompute-modules") or ["core_attn"]
        unknown = [name for name in modules if name not in RECOMPUTE_MODULES]
        if unknown:
            flags.problems.append(f"--recompute-modules {', '.join(unknown)[:60]}: use {', '.join(RECOMPUTE_MODULES)}")
        return tuple(name for name in RECOMPUTE_MODULES if name in modules)
    return ()


def _sharding(flags: Flags, degrees: dict[str, int]) -> tuple[int, int]:
    zero = 1 if flags.on("use-distributed-optimizer") else 0
    if flags.on("use-torch-fsdp2"):
        zero = 3
    if flags.on("use-megatron-fsdp"):
        strategy = flags.text("data-parallel-sharding-strategy", "optim_grads_params")
        zero = {"no_shard": 0, "optim": 1, "optim_grads": 2}.get(strategy, 3)
    instances = flags.whole("num-distributed-optimizer-instances", 1) or 1
    shard = degrees["dp"] * degrees["cp"] // instances if instances > 1 and zero == 3 else 0
    return zero, shard


def _workload(flags: Flags, plan: Plan, model: ModelSpec) -> Workload:
    seq = flags.whole("seq-length")
    if seq is None:
        flags.problems.append("no --seq-length in the script; add it")
    batch = flags.whole("global-batch-size", plan.micro_batch_seqs * plan.dp)
    precision = "fp16" if flags.on("fp16") else "bf16"
    if flags.on("fp4-format"):
        precision = "nvfp4"
    elif flags.on("fp8-format"):
        precision = _FP8.get(flags.text("fp8-recipe", "delayed"), "fp8")
    mtp = (flags.whole("mtp-num-layers") or 0) > 0 and model.mtp_layers > 0
    fields: dict[str, Any] = {"seq_tokens": seq or 1, "global_batch_seqs": batch, "precision": precision}
    return Workload(**fields, **training_fields(flags.given, flags.problems), with_mtp=mtp)


def _software(flags: Flags, base: SoftwareProfile, plan: Plan) -> SoftwareProfile:
    """The profile with every switch that a flag decides."""
    kind = flags.text("moe-token-dispatcher-type", "allgather" if flags.on("num-experts") else base.dispatcher)
    dispatcher = _DISPATCHERS.get(kind, base.dispatcher)
    if kind == "flex":
        backend = flags.text("moe-flex-dispatcher-backend", "deepep")
        dispatcher = backend if backend in ("deepep", "hybridep") else "deepep"
    capacity = flags.text("moe-expert-capacity-factor")
    fields: dict[str, Any] = {
        "dispatcher": dispatcher,
        "sequence_parallel": flags.on("sequence-parallel") or plan.tp == 1,
        "permute_fusion": flags.on("moe-permute-fusion"),
        "a2a_overlap": flags.on("overlap-moe-expert-parallel-comm"),
        "delay_wgrad": flags.on("delay-wgrad-compute"),
        "shared_expert_overlap": flags.on("moe-shared-expert-overlap"),
        "tp_overlap": flags.on("tp-comm-overlap"),
        "dp_overlap_grad": flags.on("overlap-grad-reduce") or plan.zero_stage == 3,
        "dp_overlap_param": flags.on("overlap-param-gather") or plan.zero_stage == 3,
        "grad_dtype": "bf16" if _reduced_narrow(flags) else "fp32",
        "precision_aware_optimizer": flags.on("use-precision-aware-optimizer"),
        "fp8_amax": _amax(flags, base),
        "optimizer_offload": False,  # the workload says what share
        "activation_offload_layers": flags.whole("cpu-offloading-num-layers", 0) or 0,
        "p2p_overlap": not flags.on("no-overlap-p2p-communication"),
        "fused_loss": flags.on("cross-entropy-loss-fusion"),
        "loss_fp32_logits": flags.text("cross-entropy-fusion-impl", _IMPL[base.loss_fp32_logits]) != "te",
        "flash_attention": flags.text("attention-backend", _BACKEND[base.flash_attention]) not in _PLAIN_ATTENTION,
        "fp8_param_gather": flags.on("fp8-param-gather") if flags.on("fp8-format") else base.fp8_param_gather,
        "cuda_graph": _graphs(flags),
        "router_padding": flags.on("moe-router-padding-for-quantization") or flags.on("moe-router-padding-for-fp8"),
        "capacity_factor": float(capacity) if _is_number(capacity) else None,
    }
    return replace(base, **fields)


def _graphs(flags: Flags) -> tuple[str, ...]:
    """Modules whose launches come from a captured graph; all that is known of them where the flags name none."""
    kind = flags.text("cuda-graph-impl", "local" if flags.on("enable-cuda-graph") else "none")
    if flags.on("external-cuda-graph"):
        kind = "transformer_engine"
    if kind == "none":
        return ()
    named = flags.given.get("cuda-graph-modules") or flags.given.get("cuda-graph-scope") or []
    if kind == "full_iteration" or "full_iteration" in named:
        return ("full_iteration",)
    known = tuple(GRAPH_MODULES)
    return tuple(name for name in known if name in named) or known


def _reduced_narrow(flags: Flags) -> bool:
    """Whether gradients are reduced in 16 bits, which fp16 does unless asked not to and bf16 only when asked to."""
    if flags.on("fp16"):
        return not flags.on("accumulate-allreduce-grads-in-fp32")
    return flags.on("grad-reduce-in-bf16")


def _amax(flags: Flags, base: SoftwareProfile) -> str:
    """How per-tensor scaling finds its maximum: delayed scaling has it of earlier steps."""
    if not flags.on("fp8-format"):
        return base.fp8_amax
    if flags.text("fp8-recipe", "delayed") == "delayed":
        return "history"
    return "producer" if base.fp8_amax == "history" else base.fp8_amax


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < MAX_DEGREE
    except ValueError:
        return False
