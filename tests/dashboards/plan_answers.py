"""Answers of a search by hand, as JSON: three plans, two of them on the front, and what was ruled out."""

from __future__ import annotations

from typing import Any

from planner.compare import Side

GIB = 2.0**30


def plan_of(**changes: Any) -> dict[str, Any]:
    """Fields of a plan; all degrees 1 but those given."""
    plan: dict[str, Any] = dict.fromkeys(("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch_seqs"), 1)
    return plan | {"schedule": "1f1b", "recompute": [], "zero_stage": 1} | changes


def record_of(step_s: float, gib: float, **changes: Any) -> dict[str, Any]:
    """A plan record with its figures in proportion to the step."""
    record = {
        "rank": 1, "label": "TP1 PP2", "plan": plan_of(), "step_s": {"value": step_s, "low": 0.9 * step_s,
        "high": 1.1 * step_s}, "tokens_per_s_per_gpu": {"value": 8192 / step_s / 8, "low": 1.0, "high": 9e9},
        "mfu": {"value": 0.4, "low": 0.3, "high": 0.5}, "tflops_per_gpu": 400.0, "usd_per_step": 0.1 * step_s,
        "peak_mem_bytes": gib * GIB, "usable_mem_bytes": 75 * GIB, "mem_capacity_bytes": 80 * GIB,
        "bubble_fraction": 0.1, "exposed_comm_s": {"ep": 0.1 * step_s},
        "breakdown": {"gemm": 0.5 * step_s, "experts": 0.3 * step_s, "ep": 0.1 * step_s, "bubble": 0.1 * step_s},
        "memory": [], "fits": gib <= 75, "peak_mem_interval_bytes": [0.9 * gib * GIB, 1.2 * gib * GIB],
    }  # fmt: skip
    return record | changes


def answer_json() -> dict[str, Any]:
    """8 GPUs, 2 sequences of 4096 tokens: the answer (fast, full), a lean one, and one that both beat."""
    fast, beaten = record_of(1.0, 70.0), record_of(1.5, 72.0, rank=2, label="TP8 PP1", plan=plan_of(tp=8))
    lean = {
        "devices": 8, "label": "TP2 PP4", "plan": plan_of(tp=2, pp=4, recompute=["full"]), "rank_order": None,
        "step_s": 2.0, "peak_mem_bytes": 30 * GIB, "time_s": 2.0, "usd": 0.2, "energy_j": 1.0, "keeps": True,
    }  # fmt: skip
    return {
        "inputs": {"devices": 8, "workload": {"seq_tokens": 4096, "global_batch_seqs": 2}},
        "plans": [fast, beaten], "pareto": [lean], "goal": None,
        "search": {"raw": 1000, "legal": 100, "fits": 40, "simulated": 3, "certificate": "exact", "gap": 0.0,
                   "rejected": {"world-product": 800, "<b>rule</b>": 100, "out of memory": 60}},
        "rules": {"world-product": {"text": "degrees fill the world", "remedy": "lower one", "source": "layout",
                                    "where": "", "version": ""}},
    }  # fmt: skip


def side_of(name: str, step_s: float = 1.0, gib: float = 70.0, **changes: Any) -> Side:
    """A scenario of 8 GPUs for `dashboards.figures_compare`."""
    return Side(where=name, record=record_of(step_s, gib, **changes), asked={"devices": 8, "model": "toy"})
