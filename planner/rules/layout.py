"""Rules of the layout itself: without them the plan does not describe a step at all.

They hold for every trainer; each also stands in Megatron-LM's or torchtitan's own checks, which
the source names where one was read.
"""

from __future__ import annotations

from functools import partial

from planner.rules.base import Context, Mask, Rule
from planner.rules.inputs import IMAGE_TOKENS, OUTPUT_GROUPS
from planner.rules.mixers import MIXER_HEADS
from planner.rules.schedules import SCHEDULE_RULES
from sim.build.order import V_SHAPED, has_chunks
from sim.build.schedule import SCHEDULES
from sim.columns import Columns
from sim.mesh import DEFAULT_ORDER, pipelines_agree
from sim.plan import RECOMPUTE_MODULES, Plan

__all__ = ["LAYOUT_RULES", "RANK_ORDERS", "SCHEDULES"]

# Rank orders that are tried where no trainer restricts them, the default first: pp outermost, and dp outermost.
RANK_ORDERS: dict[str, str] = {DEFAULT_ORDER: "", "tp-cp-ep-pp-dp": ""}

LAYOUT_SOURCE = "layout"
PARALLEL_STATE = "layout; megatron/core/parallel_state.py"
ARGUMENTS = "layout; megatron/training/arguments.py validate_args"
VERSION = "megatron-core 0.19.2"

_rule = partial(Rule, target="layout", version=VERSION)


def _positive(c: Columns, x: Context) -> Mask:
    smallest = c.tp.copy()
    for other in (c.cp, c.dp, c.pp, c.vpp, c.ep, c.etp, c.edp, c.micro_batch_seqs):
        smallest = smallest.clip(max=other)
    out: Mask = smallest >= 1
    return out


def _dense_grid(c: Columns, x: Context) -> Mask:
    out: Mask = c.tp * c.cp * c.dp * c.pp == x.world
    return out


def _expert_grid(c: Columns, x: Context) -> Mask:
    out: Mask = c.etp * c.ep * c.edp * c.pp == x.world
    return out


def _experts(c: Columns, x: Context) -> Mask:
    out: Mask = x.experts % c.ep == 0 if x.moe else (c.ep == 1) & (c.etp == 1)
    return out


def _stages(c: Columns, x: Context) -> Mask:
    out: Mask = c.pp * c.vpp <= x.layers + (x.end_items if c.account_ends else 0)
    return out


def _vpp(c: Columns, x: Context) -> Mask:
    # an unknown schedule is refused by its name
    out: Mask = ((c.vpp == 1) | (c.pp > 1)) & has_chunks(c.schedule, c.vpp)
    return out


def _say_vpp(p: Plan, x: Context) -> str:
    """By the rule of the schedule that the plan names."""
    wanted = {"interleaved": "2 virtual stages or more", **dict.fromkeys(V_SHAPED, "2 virtual stages (down and back)")}
    mine = wanted.get(p.schedule, "no virtual stages")
    return f"schedule {p.schedule} has {mine} on each stage: vpp is {p.vpp}, pp {p.pp}"


def _batch(c: Columns, x: Context) -> Mask:
    out: Mask = x.workload.global_batch_seqs % (c.micro_batch_seqs * c.dp) == 0
    return out


def _heads(c: Columns, x: Context) -> Mask:
    out: Mask = x.heads % c.tp == 0
    return out


def _widths(c: Columns, x: Context) -> Mask:
    out: Mask = (x.dense_width % c.tp == 0) & (x.shared_width % c.tp == 0) & (x.expert_width % c.etp == 0)
    return out


def _seq_cp(c: Columns, x: Context) -> Mask:
    out: Mask = (c.cp == 1) | (x.workload.seq_tokens % (2 * c.cp) == 0)
    return out


def _seq_tp(c: Columns, x: Context) -> Mask:
    shards = c.tp * c.cp if x.software.sequence_parallel else c.cp
    out: Mask = x.workload.seq_tokens % shards == 0
    return out


def _positions(c: Columns, x: Context) -> bool:
    return x.model.max_positions == 0 or x.workload.seq_tokens <= x.model.max_positions


def _top_k(c: Columns, x: Context) -> bool:
    return not x.moe or x.top_k <= x.min_experts


def _recompute_known(c: Columns, x: Context) -> bool:
    if "operators" in c.recompute:
        return c.recompute == ("operators",) and x.software.selective_by_operator
    return c.recompute == ("full",) or set(c.recompute) <= set(RECOMPUTE_MODULES)


def missing_modules(recompute: tuple[str, ...], x: Context) -> tuple[str, ...]:
    """Modules named for recompute that the model does not have."""
    there = {
        "mla_up_proj": x.mla,
        "moe": x.moe,
        "moe_act": x.moe,
        "shared_experts": x.shared_width > 0,
        "mlp": x.dense_width > 0,
    }
    return tuple(m for m in recompute if not there.get(m, True))


def _recompute_there(c: Columns, x: Context) -> bool:
    return not missing_modules(c.recompute, x)


def _zero(c: Columns, x: Context) -> bool:
    return c.zero_stage in (0, 1, 2, 3)


def _shard(c: Columns, x: Context) -> Mask | bool:
    if c.fsdp_shard == 0:
        return True
    if c.zero_stage != 3 or c.fsdp_shard < 0:
        return False
    out: Mask = (c.dp * c.cp) % c.fsdp_shard == 0
    return out


def _schedule(c: Columns, x: Context) -> bool:
    return c.schedule in SCHEDULES


def _pipelines(c: Columns, x: Context) -> Mask | bool:
    if x.ranks.order.endswith("pp"):
        return True  # both meshes then divide the same ranks inside a stage
    out: Mask = pipelines_agree(c, x.ranks)
    return out


def _say_widths(p: Plan, x: Context) -> str:
    parts = [("dense FFN", x.dense_width, "tp", p.tp), ("shared experts", x.shared_width, "tp", p.tp)]
    parts.append(("expert FFN", x.expert_width, "etp", p.etp))
    return "; ".join(f"{name} width {w} is not a multiple of {d} {n}" for name, w, d, n in parts if w % n)


def _say_experts(p: Plan, x: Context) -> str:
    if not x.moe:
        return f"{x.model.name} has no experts, so ep {p.ep} and etp {p.etp} split nothing"
    return f"{x.experts} experts do not divide over ep {p.ep}"


LAYOUT_RULES: tuple[Rule, ...] = (
    _rule(
        id="degrees-positive",
        text="every degree is a whole number of at least 1",
        where="all degrees",
        remedy="give 1 or more, or leave the option free",
        source=LAYOUT_SOURCE,
        ok=_positive,
        say=lambda p, x: f"a degree is below 1 in {p.label()}",
    ),
    _rule(
        id="schedule-known",
        text="the pipeline schedule is one that is simulated",
        where="--schedule",
        remedy=f"use one of: {', '.join(SCHEDULES)}",
        source=LAYOUT_SOURCE,
        ok=_schedule,
        say=lambda p, x: f"schedule {p.schedule!r} is not known",
    ),
    _rule(
        id="recompute-known",
        text="recompute is 'full', a set of known modules, or 'operators' where the trainer goes by operator",
        where="--recompute",
        remedy=f"use full, or modules among: {', '.join(RECOMPUTE_MODULES)}",
        source=ARGUMENTS + " (rule 9)",
        ok=_recompute_known,
        say=lambda p, x: f"recompute {', '.join(p.recompute)} is not a known setting",
    ),
    _rule(
        id="recompute-module-present",
        text="a recomputed module exists in the model",
        where="--recompute",
        remedy="drop the module",
        source=LAYOUT_SOURCE,
        ok=_recompute_there,
        say=lambda p, x: f"{x.model.name} has no {', '.join(missing_modules(p.recompute, x))} to recompute",
    ),
    _rule(
        id="zero-stage",
        text="the ZeRO stage is 0, 1, 2 or 3",
        where="--zero",
        remedy="use 0 (plain), 1 (optimizer sharded), 2 (+ gradients) or 3 (+ parameters)",
        source=LAYOUT_SOURCE,
        ok=_zero,
        say=lambda p, x: f"there is no ZeRO stage {p.zero_stage}",
    ),
    _rule(
        id="top-k",
        text="a token chooses at most as many experts as there are",
        where="model: top_k, num_experts",
        remedy="correct the model file",
        source="layout (megatron-core enforces it nowhere; rule 15)",
        ok=_top_k,
        say=lambda p, x: f"top-k {x.top_k} exceeds {x.min_experts} experts",
    ),
    _rule(
        id="positions",
        text="the sequence fits the learned position table",
        where="--seq-len",
        remedy="shorten the sequence or use a model with a longer table",
        source=ARGUMENTS + " (rule 7)",
        ok=_positions,
        say=lambda p, x: f"sequence {x.workload.seq_tokens} exceeds {x.model.max_positions} learned positions",
    ),
    _rule(
        id="world-product",
        text="tp x cp x dp x pp equals the number of devices",
        where="--gpus, --tp, --cp, --pp",
        remedy="change a degree so that the product divides the devices; dp is the quotient",
        source=PARALLEL_STATE + " (rule 1)",
        ok=_dense_grid,
        say=lambda p, x: f"tp {p.tp} x cp {p.cp} x dp {p.dp} x pp {p.pp} = {p.num_devices}, not {x.world} devices",
    ),
    _rule(
        id="expert-grid-product",
        text="etp x ep x edp x pp equals the number of devices",
        where="--gpus, --ep, --etp, --pp",
        remedy="change ep or etp so that etp x ep x pp divides the devices; edp is the quotient",
        source=PARALLEL_STATE + " (rule 2)",
        ok=_expert_grid,
        say=lambda p, x: (
            f"etp {p.etp} x ep {p.ep} x edp {p.edp} x pp {p.pp} = {p.etp * p.ep * p.edp * p.pp}, not {x.world} devices"
        ),
    ),
    _rule(
        id="rank-order-pipelines",
        text="attention and experts have the same pipelines: in orders that do not end in pp the axes inside pp agree",
        where="--rank-order, --tp, --cp, --ep, --etp",
        remedy="make etp x ep equal tp x cp (edp equal dp), or use an order that ends in pp",
        source=PARALLEL_STATE + " (rule 2)",
        ok=_pipelines,
        say=lambda p, x: (
            f"rank order {x.ranks.order} with tp {p.tp} x cp {p.cp}, etp {p.etp} x ep {p.ep} and pp {p.pp} makes other "
            "pipelines of the experts"
        ),
    ),
    _rule(
        id="experts-over-ep",
        text="experts divide evenly over ep (a dense model has ep = etp = 1)",
        where="--ep, --etp",
        remedy="choose ep among the divisors of the expert count, 1 for a dense model",
        source=ARGUMENTS + " (rule 3)",
        ok=_experts,
        say=_say_experts,
    ),
    _rule(
        id="vpp-needs-pp",
        text="virtual stages need a pipeline and a schedule with them: interleaved 2 or more, zb-v and dualpipe-v 2",
        where="--vpp, --pp, --schedule",
        remedy="use vpp 2 or more with schedule interleaved and pp above 1, 2 with zb-v or dualpipe-v, otherwise vpp 1",
        source=ARGUMENTS + " (rule 5)",
        ok=_vpp,
        say=_say_vpp,
    ),
    *SCHEDULE_RULES,
    _rule(
        id="layers-over-stages",
        text="no virtual stage is empty (embedding, loss and MTP count as a layer each when ends are accounted)",
        where="--pp, --vpp",
        remedy="lower pp or vpp",
        source=ARGUMENTS + " (rule 4)",
        ok=_stages,
        say=lambda p, x: f"pp {p.pp} x vpp {p.vpp} = {p.pp * p.vpp} stages for {x.layers} layers",
    ),
    _rule(
        id="batch-over-dp",
        text="the global batch is a whole number of micro-batches on every data-parallel rank",
        where="--global-batch, --micro-batch, --tp, --cp, --pp",
        remedy="choose micro-batch x dp among the divisors of the global batch",
        source=ARGUMENTS + " (rule 6)",
        ok=_batch,
        say=lambda p, x: (
            f"global batch {x.workload.global_batch_seqs} is not a multiple of "
            f"micro-batch {p.micro_batch_seqs} x dp {p.dp}"
        ),
    ),
    _rule(
        id="heads-over-tp",
        text="attention heads divide over tp",
        where="--tp",
        remedy="choose tp among the divisors of the head count",
        source=ARGUMENTS + " (rule 7)",
        ok=_heads,
        say=lambda p, x: f"{x.heads} attention heads do not divide over tp {p.tp}",
    ),
    _rule(
        id="widths-over-tp",
        text="FFN and shared-expert widths divide over tp, expert widths over etp",
        where="--tp, --etp",
        remedy="lower tp or etp to a divisor of the widths",
        source="layout; megatron/core/tensor_parallel/layers.py divide()",
        ok=_widths,
        say=_say_widths,
    ),
    OUTPUT_GROUPS,
    MIXER_HEADS,
    IMAGE_TOKENS,
    _rule(
        id="seq-over-cp",
        text="the sequence divides over 2 x cp (each rank holds one early and one late piece)",
        where="--seq-len, --cp",
        remedy="lower cp or pad the sequence to a multiple of 2 x cp",
        source=ARGUMENTS + " (rule 7)",
        ok=_seq_cp,
        say=lambda p, x: f"sequence {x.workload.seq_tokens} is not a multiple of 2 x cp {p.cp}",
    ),
    _rule(
        id="seq-over-tp",
        text="the sequence divides over cp, and over tp x cp with sequence parallelism",
        where="--seq-len, --tp, --cp",
        remedy="lower tp or cp, or pad the sequence",
        source="layout (even shards of sequence parallelism)",
        ok=_seq_tp,
        say=lambda p, x: f"sequence {x.workload.seq_tokens} does not split evenly over tp {p.tp} x cp {p.cp}",
    ),
    _rule(
        id="fsdp-shard",
        text="a shard group needs ZeRO 3 and divides dp x cp",
        where="--zero, fsdp_shard",
        remedy="use ZeRO 3 and a divisor of dp x cp, or 0 for the whole group",
        source=LAYOUT_SOURCE,
        ok=_shard,
        say=lambda p, x: f"shard group {p.fsdp_shard} with ZeRO {p.zero_stage} on dp {p.dp} x cp {p.cp}",
    ),
)
