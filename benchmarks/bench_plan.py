"""A question end to end: event run and plan of DeepSeek-V3 on 2,048 H800, and what more data parallelism costs.

    python -m benchmarks.bench_plan

Event run: PP16, 120 micro-batches, cold (first call of the process, tables read) and warm; in full
against with the period jump; 2,048 against 8,192 devices by data parallelism alone, which must cost
about the same because identical ranks are not repeated. Plan: from catalogue names to ranked plans.
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
    """Median seconds of a call."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    """Print the figures, one a line."""
    started = time.perf_counter()
    from sim.run import simulate

    one, four = scenario(GPUS), scenario(4 * GPUS)
    first = simulate(one)
    cold = time.perf_counter() - started
    jump, full = simulate(one, steady=True), simulate(one, steady=False)
    gap = abs(jump.step_s.value / full.step_s.value - 1.0)
    base, more = seconds(lambda: simulate(one)), seconds(lambda: simulate(four))
    print(f"event run cold, imports included      {cold:8.2f} s   (step {first.step_s.value:.1f} s simulated)")
    print(f"event run warm                        {base:8.2f} s")
    print(f"period jump against the full run      {gap:8.1e}   relative difference of the step")
    print(f"4x the devices by data parallelism    {more / base:8.2f} x the time")

    from hwprofiles import catalogue
    from planner import find_plans

    started = time.perf_counter()
    answer = find_plans(
        one.model, catalogue.cluster(CLUSTER, gpus=GPUS), one.software, one.workload, target="megatron-lm", top=5
    )
    took = time.perf_counter() - started
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"plan end to end                       {took:8.2f} s   ({answer.plans[0].report.plan.label()})")
    print(f"peak resident memory                  {rss:8.2f} GiB")


if __name__ == "__main__":
    main()
