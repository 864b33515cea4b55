"""What pipeline schedules ask of a layout, whoever runs it."""

from __future__ import annotations

from functools import partial

from planner.rules.base import Context, Mask, Rule
from sim.build.order import DUAL, SPLIT_SCHEDULES
from sim.build.schedule import group_runs
from sim.columns import Columns

VERSION = "megatron-core 0.19.2"
ORDERS = "layout; Qi et al. 2023 (zero bubble), DeepSeek-AI 2024 (DualPipe)"

_rule = partial(Rule, target="layout", version=VERSION)


def _split_pp(c: Columns, x: Context) -> Mask | bool:
    if c.schedule not in SPLIT_SCHEDULES:
        return True
    out: Mask = c.pp > 1
    return out


def _group_runs(c: Columns, x: Context) -> Mask | bool:
    if c.micro_batch_group == 0:
        return True
    m = x.micro_batches(c)
    out: Mask = group_runs(c.micro_batch_group, schedule=c.schedule, pp=c.pp, num_micro_batches=m)
    return out


def _two_ways(c: Columns, x: Context) -> Mask | bool:
    if c.schedule not in DUAL:
        return True
    m = x.micro_batches(c)
    out: Mask = m >= 2 * c.pp
    if c.schedule == "dualpipe":
        out = out & (m % 2 == 0) & (c.pp % 2 == 0)
    return out


SCHEDULE_RULES: tuple[Rule, ...] = (
    _rule(
        id="split-needs-pp",
        text="schedules that split the backward or run micro-batches both ways need a pipeline",
        where="--schedule, --pp",
        remedy="raise pp, or use schedule 1f1b",
        source=ORDERS,
        ok=_split_pp,
        say=lambda p, x: f"schedule {p.schedule} with pp {p.pp}",
    ),
    _rule(
        id="micro-batch-group",
        text="groups of the interleaved schedule, the last one too, hold pp micro-batches or more",
        where="--micro-batch-group, --schedule, --pp, --global-batch, --micro-batch",
        remedy="give pp or a larger size whose remainder is 0 or at least pp, with schedule interleaved",
        source="layout; megatron-core 0.19.2 megatron/core/pipeline_parallel/schedules.py",
        ok=_group_runs,
        say=lambda p, x: (
            f"groups of {p.micro_batch_group}: schedule {p.schedule}, pp {p.pp}, "
            f"{p.num_micro_batches(x.workload.global_batch_seqs)} micro-batches"
        ),
    ),
    _rule(
        id="two-way-micro-batches",
        text="dualpipe and dualpipe-v need 2 pp micro-batches; dualpipe an even number of them, and an even pp",
        where="--schedule, --pp, --global-batch, --micro-batch",
        remedy="lower pp or the micro-batch, or use another schedule",
        source=ORDERS,
        ok=_two_ways,
        say=lambda p, x: (
            f"schedule {p.schedule}: pp {p.pp}, {p.num_micro_batches(x.workload.global_batch_seqs)} micro-batches"
        ),
    ),
)
