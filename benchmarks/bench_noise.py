"""What routing noise costs: a step with it over one without, for two plans of 32 micro-batches.

    python -m benchmarks.bench_noise

plain: one simulated step. block: the same with the imbalance block (twin under forced balance, closed-form and sampled
quantiles). drawn: one event run in which every micro-batch has its own load, so that no period can be jumped.
CPU seconds; ratios are over plain; the best of several runs each, tables and load curves already read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks import figures
from hwprofiles.catalogue import cluster, software
from sim.families import load_model
from sim.imbalance import with_imbalance
from sim.plan import Plan
from sim.routing import parse_routing, resolve
from sim.run import Simulation
from sim.scenario import Scenario
from sim.workload import Workload

MICRO_BATCHES, SEQ_TOKENS, REPEATS = 32, 4096, 7
PLANS = (
    ("Qwen3-30B-A3B", "dgx-h100", 32, Plan(pp=2, ep=8, dp=16, edp=2, micro_batch_seqs=4)),
    ("DeepSeek-V3", "h800", 1024, Plan(pp=16, ep=32, dp=64, edp=2)),
)
ROUTINGS = ("lognormal:0.4", "lognormal:0.4,drift=0.1")


def scenario(name: str, machines: str, gpus: int, plan: Plan, text: str) -> Scenario:
    """A plan of 32 micro-batches under a routing."""
    model = load_model(name)
    work = Workload(seq_tokens=SEQ_TOKENS, global_batch_seqs=MICRO_BATCHES * plan.dp * plan.micro_batch_seqs)
    return Scenario(
        model=model, cluster=cluster(machines, gpus=gpus), software=software("megatron-lm"), workload=work, plan=plan,
        routing=resolve(parse_routing(text), model),
    )  # fmt: skip


def best_s(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Least CPU seconds of each call over a few repeats, taken in turn."""
    seconds = []
    for _ in range(REPEATS):
        for call in calls:
            begin = time.process_time()
            call()
            seconds.append(time.process_time() - begin)
    return [min(seconds[i :: len(calls)]) for i in range(len(calls))]


def block(some: Scenario) -> None:
    """A simulated step with its imbalance block."""
    run = Simulation(some)
    with_imbalance(run.report(trace=False), some, run=run)


def measure(out: figures.Figures) -> None:
    """Ratios by plan and routing."""
    for name, machines, gpus, plan in PLANS:
        for text in ROUTINGS:
            some = scenario(name, machines, gpus, plan, text)
            block(some)
            plain_s, block_s, drawn_s = best_s(
                (
                    lambda some=some: Simulation(some).report(trace=False),
                    lambda some=some: block(some),
                    lambda some=some: Simulation(some).report(trace=False, noise=True),
                )
            )
            out.add(f"{name} {text}: plain step", plain_s, "s")
            out.add(f"{name} {text}: with the imbalance block", block_s / plain_s, "x", "the plain step")
            out.add(f"{name} {text}: drawn step", drawn_s / plain_s, "x", "the plain step")


if __name__ == "__main__":
    figures.run(measure, __doc__)
