"""The candidate table of a question: every layout worth asking the rules about.

Blocks of columns, one per combination of discrete choices (recompute, ZeRO stage, schedule, ends).
Rows need not be legal: `planner.rules` counts what it throws away, so the user sees why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.build.order import V_SHAPED, has_chunks
from sim.build.schedule import SCHEDULES
from sim.build.stages import layers_per_stage
from sim.columns import BLOCK_FIELDS, DEGREE_FIELDS, Columns
from sim.model import LayerSpec, ModelSpec
from sim.plan import RECOMPUTE_MODULES
from sim.workload import Workload

MAX_ROWS = 1 << 16  # rows of one block: a few tens of MB while it is screened
MAX_TP = 16
MAX_CP = 16
DEFAULT_SCHEDULES = ("1f1b", "interleaved")
LONG_SEQ_TOKENS = 16_384  # from here context parallelism is tried up to MAX_CP
MEDIUM_SEQ_TOKENS = 8_192  # from here up to 2
MICRO_BATCHES = (1, 2, 4, 8)
IMAGE_BATCH_TOKENS = 32_768  # of a micro-batch of images: that of eight sequences of 4096
FREE_FIELDS = DEGREE_FIELDS + BLOCK_FIELDS


def powers_of_two(limit: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `limit`."""
    return tuple(1 << i for i in range(max(1, limit).bit_length()))


def divisors(number: int) -> tuple[int, ...]:
    """All divisors in rising order.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def clean_fixed(fixed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that are given (not None); an unknown name or a non-integer degree is a UserError."""
    given = {name: value for name, value in (fixed or {}).items() if value is not None}
    problems = [
        f"unknown option {name!r}; fix one of: {', '.join(FREE_FIELDS)}" for name in given if name not in FREE_FIELDS
    ]
    for name in (*DEGREE_FIELDS, "zero_stage", "fsdp_shard", "micro_batch_group"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            problems.append(f"{name} = {value!r} is not a whole number; give an integer of 1 or more")
        elif name in DEGREE_FIELDS and value < 1:
            problems.append(f"{name} = {value} is impossible; give an integer of 1 or more, or leave it free")
    if isinstance(given.get("recompute"), str):
        problems.append("recompute is a list of module names; give a tuple such as ('moe_act', 'layernorm')")
    if "schedule" in given and (isinstance(given["schedule"], str) or given["schedule"]):
        asked = given["schedule"]
        given["schedule"] = (asked,) if isinstance(asked, str) else tuple(asked)
    elif "schedule" in given:
        problems.append(f"schedule is empty; give one or more of {', '.join(SCHEDULES)}")
    if problems:
        raise UserError(problems, where="plan options")
    for name in (*DEGREE_FIELDS, "zero_stage", "fsdp_shard", "micro_batch_group"):
        if name in given:
            given[name] = int(given[name])
    if "recompute" in given:
        given["recompute"] = tuple(given["recompute"])
    return given


def split_heads(layer: LayerSpec) -> int:
    """What tensor parallelism divides in the mixing half of a layer: its heads, channels where it has no heads, 0
    where the layer has no such half."""
    if layer.mixer is None:
        return layer.attention.heads
    return layer.mixer.heads if layer.mixer.heads > 1 else layer.mixer.inner_dim


def micro_batch_choices(model: ModelSpec, workload: Workload) -> tuple[int, ...]:
    """Sequences of a micro-batch worth trying. Images are short sequences: up to as many tokens as otherwise."""
    sizes: tuple[int, ...] = MICRO_BATCHES
    if model.image is not None:
        sizes = powers_of_two(max(MICRO_BATCHES[-1], IMAGE_BATCH_TOKENS // workload.seq_tokens))
    return tuple(m for m in sizes if m <= workload.global_batch_seqs)


def recompute_choices(model: ModelSpec, software: SoftwareProfile) -> tuple[tuple[str, ...], ...]:
    """Recompute settings worth trying, from nothing to everything; modules in their canonical order.

    Of a release that recomputes few modules by name, those: the whole MoE layer where its activation alone cannot be.
    """
    mla = any(layer.attention.kind == "mla" for layer in model.layers)
    dense = any(layer.ffn_dim for layer in model.layers)
    named = software.recompute_modules
    wanted: list[set[str]] = [set()]
    if not software.flash_attention:
        wanted.append({"core_attn"})
    if model.is_moe:
        wanted += [{"moe_act", "layernorm"}, {"moe"}] if named is not None else [{"moe_act", "layernorm"}]
    if mla:
        wanted.append({"mla_up_proj"})
        wanted += [{"mla_up_proj", "mlp"}] if dense else []
        wanted += [{"mla_up_proj", "moe_act", "layernorm"}] if model.is_moe else []
    if dense and not model.is_moe:
        wanted.append({"mlp"})
    can = [chosen for chosen in wanted if named is None or chosen <= set(named)]
    modules = [tuple(m for m in RECOMPUTE_MODULES if m in chosen) for chosen in can]
    return (*modules, ("full",))


SHARDING_TRAINERS = ("fsdp", "torchtitan", "llm-foundry", "automodel")


def is_fsdp(software: SoftwareProfile) -> bool:
    """True for trainers whose data parallelism shards parameters by default."""
    said = f"{software.name} {software.trainer}".lower()
    return any(trainer in said for trainer in SHARDING_TRAINERS)


def end_items(model: ModelSpec, workload: Workload) -> int:
    """Items beside the layers when ends are accounted: embedding, loss, and the MTP block if trained."""
    return 3 if workload.with_mtp and model.mtp_layers else 2


def vpp_choices(layers: int, pp: int, account_ends: bool, end_items: int = 2) -> tuple[int, ...]:
    """Virtual stages per rank: divisors of layers/stage, or one per distinct chunk size when ends count.

    With ends there are n = L + end_items items to lay out; c items a chunk need ceil(n / (pp c))
    chunks, and two counts with the same c differ only in how unevenly they fill: the smaller stands.
    """
    if pp == 1:
        return (1,)
    if not account_ends:
        return divisors(layers // pp) if layers % pp == 0 else (1,)
    items = layers + end_items
    counts = {-(-items // (pp * size)) for size in range(1, items // pp + 2)}
    return tuple(sorted(v for v in counts if pp * v <= items))


def _chunk_choices(schedule: str, layers: int, pp: int, account_ends: bool, end_items: int) -> tuple[int, ...]:
    if schedule not in V_SHAPED:
        return vpp_choices(layers, pp, account_ends, end_items)
    fits = 2 * pp <= layers + end_items if account_ends else layers % (2 * pp) == 0
    return (2,) if pp > 1 and fits else ()


def cp_choices(seq_tokens: int) -> tuple[int, ...]:
    """Context-parallel degrees of a table."""
    if seq_tokens >= LONG_SEQ_TOKENS:
        return powers_of_two(MAX_CP)
    return (1, 2) if seq_tokens >= MEDIUM_SEQ_TOKENS else (1,)


def left_out(seq_tokens: int, fixed: Mapping[str, Any] | None = None) -> str:
    """What no table at this sequence length holds, in words; empty where it holds every degree."""
    most = cp_choices(seq_tokens)[-1]
    if most == MAX_CP or "cp" in (fixed or {}):
        return ""
    tried = f"up to {most}" if most > 1 else "1 alone"
    return f"The table holds context parallelism {tried} at {seq_tokens:,} tokens a sequence; --cp asks for another."


def _grid(axes: Sequence[Sequence[tuple[int, ...]]]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Columns of the cartesian product of axes whose points are tuples."""
    index = np.indices([len(axis) for axis in axes]).reshape(len(axes), -1)
    out: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for axis, rows in zip(axes, index, strict=True):
        points = np.array(axis, dtype=np.int64)
        out += [points[rows, column] for column in range(points.shape[1])]
    return out


def _one(fixed: Mapping[str, Any], name: str, free: Sequence[int]) -> tuple[int, ...]:
    return (int(fixed[name]),) if name in fixed else tuple(free)


def _same_either_way(layers: int, slots: int, *, mtp: bool) -> bool:
    """True where counting the ends as layers changes no stage."""
    return layers_per_stage(layers, slots, mtp=mtp) == layers_per_stage(layers, slots, account_ends=True, mtp=mtp)


def space(
    model: ModelSpec,
    cluster: ClusterSpec,
    workload: Workload,
    fixed: Mapping[str, Any] | None,
    software: SoftwareProfile,
) -> Iterator[Columns]:
    """Blocks of candidates; `fixed` pins any field of FREE_FIELDS (None or absent = free).

    Ranges: tp powers of two within the scale-up domain and the heads; cp powers of two for long
    sequences; pp divisors of the world that leave no stage empty; ep divisors of the experts; etp
    powers of two up to tp; virtual stages run interleaved unless schedules are given (one or several);
    dp and edp are the quotients. A pinned value is never dropped here: the rules refuse it with a
    reason. Raises UserError on unknown or
    impossible options.
    """
    given = clean_fixed(fixed)
    world, layers = cluster.num_devices, len(model.layers)
    heads = min((h for h in map(split_heads, model.layers) if h), default=1)
    experts = gcd(*(layer.moe.num_experts for layer in model.layers if layer.moe is not None), 0)
    tps = _one(given, "tp", powers_of_two(min(MAX_TP, cluster.domain_devices, heads, world)))
    tp_etp = [(tp, etp) for tp in tps for etp in _one(given, "etp", powers_of_two(tp) if experts else (1,))]
    eps = _one(given, "ep", [e for e in divisors(experts) if e <= world] if experts else (1,))
    cps = _one(given, "cp", cp_choices(workload.seq_tokens))
    sizes = _one(given, "micro_batch_seqs", micro_batch_choices(model, workload))
    ends = end_items(model, workload)
    pps = _one(given, "pp", [p for p in divisors(world) if p <= layers + ends])
    recomputes = (tuple(given["recompute"]),) if "recompute" in given else recompute_choices(model, software)
    zero_stage = int(given.get("zero_stage", 3 if is_fsdp(software) else 1))
    schedules = given.get("schedule", DEFAULT_SCHEDULES)
    fsdp_shard = int(given.get("fsdp_shard", 0))
    grouped = int(given.get("micro_batch_group", 0))
    ends_choices = (bool(given["account_ends"]),) if "account_ends" in given else (False, True)
    for account_ends, recompute, schedule in product(ends_choices, recomputes, schedules):
        # One stage has no ends to lighten: without a pin the even block already holds these rows.
        stages = [p for p in pps if p > 1 or not account_ends or "account_ends" in given]
        pp_vpp = [
            (p, v) for p in stages for v in _one(given, "vpp", _chunk_choices(schedule, layers, p, account_ends, ends))
        ]
        if not ("vpp" in given and "schedule" in given and len(schedules) == 1):  # a pair pinned whole: see the rules
            pp_vpp = [(p, v) for p, v in pp_vpp if has_chunks(schedule, v)]
        if "account_ends" not in given:
            # One layout is one candidate: written as even where it divides, as counting the ends where it does not.
            pp_vpp = [
                (p, v) for p, v in pp_vpp
                if p == 1 or account_ends == (layers % (p * v) != 0)
                or not _same_either_way(layers, p * v, mtp=ends == 3)
            ]  # fmt: skip
        if not pp_vpp:
            continue
        axes = (tp_etp, [(c,) for c in cps], pp_vpp, [(e,) for e in eps], [(m,) for m in sizes])
        tp, etp, cp, pp, vpp, ep, mbs = _grid(axes)
        dp = np.full_like(tp, given["dp"]) if "dp" in given else np.maximum(1, world // (tp * cp * pp))
        edp = np.full_like(tp, given["edp"]) if "edp" in given else np.maximum(1, world // (etp * ep * pp))
        block = Columns(
            tp=tp, cp=cp, dp=dp, pp=pp, vpp=vpp, ep=ep, etp=etp, edp=edp, micro_batch_seqs=mbs,
            recompute=recompute, zero_stage=zero_stage, schedule=schedule, fsdp_shard=fsdp_shard,
            account_ends=account_ends, micro_batch_group=grouped if schedule == "interleaved" else 0,
        )  # fmt: skip
        for start in range(0, len(block), MAX_ROWS):
            yield block.take(np.arange(start, min(start + MAX_ROWS, len(block))))
