"""Answers as pandas tables: one row a plan, a class of time, or a pipeline stage. Units are in the names of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sim.report import Report

if TYPE_CHECKING:
    import pandas as pd

    from planner.search import PlanResult

PLAN_COLUMNS = (
    "label", "tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch_seqs", "recompute", "zero_stage",
    "rank_order", "step_s", "step_low_s", "step_high_s", "tokens_per_s_per_gpu", "mfu", "usd_per_step",
    "bubble_fraction", "peak_mem_bytes", "fits",
)  # fmt: skip
_DEGREES = PLAN_COLUMNS[1:10]


def plans_table(answer: PlanResult | Sequence[Report]) -> pd.DataFrame:
    """A row per plan, columns PLAN_COLUMNS. answer: of `find_plans` (index: rank from 1), or reports in order."""
    import pandas as pd

    reports = list(answer) if isinstance(answer, Sequence) else [found.report for found in answer.plans]
    rows = [_row(report) for report in reports]
    index = pd.RangeIndex(1, len(rows) + 1, name="rank")
    return pd.DataFrame(rows, columns=list(PLAN_COLUMNS), index=index)


def _row(report: Report) -> dict[str, Any]:
    plan, step = report.plan, report.step_s
    return {name: getattr(plan, name) for name in _DEGREES} | {
        "label": plan.label(), "recompute": ",".join(plan.recompute), "zero_stage": plan.zero_stage,
        "rank_order": report.ranks.order, "step_s": step.value, "step_low_s": step.low, "step_high_s": step.high,
        "tokens_per_s_per_gpu": report.tokens_per_s_per_gpu.value, "mfu": report.mfu.value,
        "usd_per_step": report.usd_per_step, "bubble_fraction": report.bubble_fraction,
        "peak_mem_bytes": report.peak_mem_bytes, "fits": report.fits,
    }  # fmt: skip


def breakdown_table(report: Report) -> pd.DataFrame:
    """Where the step of the slowest stage goes: index the class of time, columns `seconds` (sum: the step), `share`."""
    import pandas as pd

    seconds = pd.Series(dict(report.breakdown), dtype="float64", name="seconds").rename_axis("part")
    return pd.DataFrame({"seconds": seconds, "share": seconds / seconds.sum()})


def memory_table(report: Report) -> pd.DataFrame:
    """Bytes at the peak: a row per pipeline stage, a column per tag."""
    import pandas as pd

    return pd.DataFrame([dict(stage) for stage in report.memory]).fillna(0.0).rename_axis("stage")
