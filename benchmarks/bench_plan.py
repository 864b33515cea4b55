"""A question end to end: event run and plan of DeepSeek-V3 on 2,048 H800, and what more data parallelism costs.

    python -m benchmarks.bench_plan

Event run: PP16, 120 micro-batches, cold (first call of the process, tables read) and warm; in full
against with the period jump; 2,048 against 8,192 devices by data parallelism alone, which must cost
about the same because identical ranks are not repeated. Plan: from catalogue names to ranked plans. What event runs
cost in a search: `bench_search_runs`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import figures

MODEL, CLUSTER, GPUS, SOFTWARE = "DeepSeek-V3", "h800", 2048, "megatron-lm"
PP, EP, MICRO_BATCHES = 16, 64, 120
REPEATS = 5


def scenario(gpus: int) -> Any:
    """DeepSeek-V3 with PP16, EP64 and 120 micro-batches of one sequence on `gpus` H800."""
    from hwprofiles import catalogue
    from sim import Scenario
    from sim.families import load_model
    from sim.plan import Plan
    from sim.workload import Workload

    dp = gpus // PP
    plan = Plan(pp=PP, dp=dp, ep=EP, edp=dp // EP, recompute=("mla_up_proj",), account_ends=True)
    return Scenario(
        model=load_model(MODEL), cluster=catalogue.cluster(CLUSTER, gpus=gpus), software=catalogue.software(SOFTWARE),
        workload=Workload(seq_tokens=4096, global_batch_seqs=MICRO_BATCHES * dp, precision="fp8_block", with_mtp=True),
        plan=plan,
    )  # fmt: skip


def seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median CPU seconds of a call."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def measure(out: figures.Figures) -> None:
    """The figures."""
    started = time.process_time()
    from sim.run import Simulation, simulate

    one, four = scenario(GPUS), scenario(4 * GPUS)
    simulate(one)
    out.add("event run, cold with imports", time.process_time() - started, "s")

    def run(asked: Any) -> Any:
        return Simulation(asked).report()  # records the links, so that nothing is remembered

    jump, full = run(one), simulate(one, steady=False)
    base, more = seconds(lambda: run(one)), seconds(lambda: run(four))
    out.add("event run, warm", base, "s")
    out.add(
        "period jump against the full run: difference of the step", abs(jump.step_s.value / full.step_s.value - 1.0)
    )
    out.add("four times the devices by data parallelism", more / base, "x", "the time")

    from hwprofiles import catalogue
    from planner import find_plans

    started = time.process_time()
    answer = find_plans(
        one.model, catalogue.cluster(CLUSTER, gpus=GPUS), one.software, one.workload, target="megatron-lm", top=5
    )
    out.add("`plan` end to end", time.process_time() - started, "s", answer.search.certificate)
    out.add("peak resident memory", 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes")


if __name__ == "__main__":
    figures.run(measure, __doc__)
