"""How true and how tight the lower bound is: random feasible candidates of many questions, bound against event run.

    python -m benchmarks.study_bound --count 10000 --seed 1

Every pair of model and cluster below is one question; each gets an equal share of the count, drawn without
repetition from the candidates that keep the rules of the layout and fit in memory. Prints each question's
median and lowest bound/step, the whole study's, and every candidate whose bound exceeds its simulated step (exit 1).
Not part of `make bench`: 10,000 event runs take minutes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import Figures, json_option
from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.rules import apply, context, rules_of
from planner.space import space
from sim.families import load_model
from sim.run import Simulation
from sim.scenario import Scenario
from sim.screen import Screener
from sim.workload import Workload

ROUNDING = 1e-9  # the two sums add the same terms in another order
MODELS = (  # name, sequence length, times the devices of the cluster's line
    ("DeepSeek-V3", 4096, 4),
    ("DeepSeek-V2-Lite", 4096, 1),
    ("Qwen3-30B-A3B", 32_768, 1),
    ("Mixtral-8x7B", 8192, 1),
    ("GPT-OSS-20B", 8192, 1),
    ("Llama2-13B", 4096, 1),
)
CLUSTERS = (  # name, devices, software, precision
    ("h800", 128, "megatron-lm", "bf16"),
    ("dgx-h100", 96, "megatron-bridge-26.04", "bf16"),
    ("dgx-a100-80g", 64, "megatron-core-0.9", "bf16"),
    ("dgx-b200", 128, "megatron-bridge-26.04", "mxfp8"),
    ("gb200-nvl72", 144, "megatron-bridge-25.11", "mxfp8"),
)
SEQS_PER_DEVICE = 5  # an odd factor, so that stages do not always divide the micro-batches


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One candidate: the plan's label, bound and simulated step, in seconds."""

    label: str
    bound_s: float
    step_s: float

    @property
    def ratio(self) -> float:
        """Bound over simulated step; above 1 the bound is not one."""
        return self.bound_s / self.step_s


def samples(asked: tuple[str, int, int], cluster: tuple[str, int, str, str], count: int, seed: int) -> Iterator[Sample]:
    """At most `count` feasible candidates of one question, every one as likely, none twice."""
    model_name, seq_tokens, times = asked
    name, base, trainer_name, precision = cluster
    gpus = base * times
    model, machines = load_model(model_name), catalogue.cluster(name, gpus=gpus)
    trainer = catalogue.software(trainer_name)
    work = Workload(seq_tokens=seq_tokens, global_batch_seqs=SEQS_PER_DEVICE * gpus, precision=precision)
    ctx, rules = context(model, machines, trainer, work), rules_of("layout")
    screener = Screener(model, machines, trainer, work)
    kept = []
    for block in space(model, machines, work, None, trainer):
        legal = block.take(apply(block, ctx, rules)[0])
        if len(legal):
            seen = screener(legal)
            kept += [(legal, int(row), float(seen.bound_s[row])) for row in np.flatnonzero(seen.fits)]
    rng = np.random.default_rng(seed)
    for at in rng.choice(len(kept), size=min(count, len(kept)), replace=False):
        columns, row, bound_s = kept[int(at)]
        plan = columns.plan(row)
        scenario = Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=plan)
        report = Simulation(scenario, cost=screener.cost).report(trace=False)
        yield Sample(label=plan.label(), bound_s=bound_s, step_s=report.step_s.value)


def main() -> int:
    """Print the study; 1 where a bound was above its step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="candidates in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default: %(default)s)")
    json_option(parser)
    args = parser.parse_args()
    share = -(-args.count // (len(MODELS) * len(CLUSTERS)))
    ratios: list[float] = []
    above: list[str] = []
    figures = Figures()
    started = time.process_time()
    for model in MODELS:
        of_model: list[float] = []
        for cluster in CLUSTERS:
            where = f"{model[0]} on {cluster[1] * model[2]} {cluster[0]}"
            try:
                found = list(samples(model, cluster, share, args.seed))
            except UserError as error:
                print(f"{where:44} not asked: {error}", flush=True)
                continue
            if not found:
                print(f"{where:44} no candidate fits", flush=True)
                continue
            mine = [s.ratio for s in found]
            above += [f"{where}: {s.label}, bound {s.bound_s!r} s, step {s.step_s!r} s" for s in found
                      if s.ratio > 1.0 + ROUNDING]  # fmt: skip
            print(f"{where:44} {len(mine):5} candidates, bound/step median {np.median(mine):.3f}, "
                  f"lowest {min(mine):.3f}, highest {max(mine):.6f}", flush=True)  # fmt: skip
            ratios += mine
            of_model += mine
        if of_model:
            figures.add(f"{model[0]}: bound over step, median", float(np.median(of_model)),
                        note=f"{min(of_model):.3f} to {max(of_model):.6f} on {len(of_model):,} candidates")  # fmt: skip
    took = time.process_time() - started
    figures.add("feasible candidates simulated", len(ratios),
                note=f"{len(MODELS)} models, {len(CLUSTERS)} clusters, seed {args.seed}")  # fmt: skip
    figures.add("bounds above their simulated step", len(above))
    figures.add("bound over step, median", float(np.median(ratios)), note="target 0.9")
    figures.add("bound over step, 10th percentile", float(np.quantile(ratios, 0.1)))
    figures.add("candidates bounded and simulated", len(ratios) / took, "/s")
    figures.write(args.json)
    print("\n".join(above), end="\n" if above else "")
    return 1 if above else 0


if __name__ == "__main__":
    raise SystemExit(main())
