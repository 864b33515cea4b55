"""Event runs in a search: plans per second for every schedule, candidates taken in order of their bound.

    python -m benchmarks.bench_search_runs [--plans 40]

DeepSeek-V3 on 2,048 H800, MTP on, every rank order of the layout rules, the schedule fixed: the table is screened as
`find_plans` does it, then the first candidates are simulated one after the other as the search would if none of them
ended it, from plan to report. GPipe holds every micro-batch, so that only a small batch fits. CPU time of this one
process. The engine's figure: the same steps, run with and without their events.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import figures

MODEL, CLUSTER, GPUS, SOFTWARE, TARGET = "DeepSeek-V3", "h800", 2048, "megatron-lm", "layout"
SEQS_PER_STEP, SEQS_OF_GPIPE = 15_360, 2048
PLANS, COMPARED = 40, 8


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """Candidates of one schedule by bound, and what prices them by rank map."""

    candidates: list[Any]
    layings: dict[Any, Any]


def ordered(schedule: str, count: int) -> Ordered:
    """The first `count` candidates of a schedule that fit, in the order in which a search simulates them."""
    from hwprofiles import catalogue
    from planner.ranks import Laying, Question, maps_that_differ, rank_maps, spread
    from planner.rules import rules_of
    from planner.space import clean_fixed, space
    from planner.table import build_table, in_order_of_parts
    from sim.families import load_model
    from sim.routing import Routing
    from sim.workload import Workload

    model, machines, trainer = load_model(MODEL), catalogue.cluster(CLUSTER, gpus=GPUS), catalogue.software(SOFTWARE)
    batch = SEQS_OF_GPIPE if schedule == "gpipe" else SEQS_PER_STEP
    work = Workload(seq_tokens=4096, global_batch_seqs=batch, precision="fp8_block", with_mtp=True)
    asked = Question(model=model, cluster=machines, software=trainer, workload=work, routing=Routing())
    layings = {each: Laying(ranks=each, question=asked) for each in maps_that_differ(rank_maps(TARGET), machines)}
    first, *others = layings.values()
    blocks = space(model, machines, work, clean_fixed({"schedule": schedule}), trainer)
    table = build_table(blocks, first.ctx, rules_of(TARGET), first.screen, None, others, spread)
    return Ordered(candidates=in_order_of_parts(table, first.ranks, count)[:count], layings=layings)


def seconds(call: Any, *given: Any) -> float:
    """CPU seconds of a call."""
    begin = time.process_time()
    call(*given)
    return time.process_time() - begin


def measure(out: figures.Figures, plans: int = PLANS) -> None:
    """The figures."""
    from sim.build.lanes import simulate_lanes
    from sim.build.schedule import SCHEDULES
    from sim.build.tasks import simulate_step
    from sim.run import Simulation

    for schedule in SCHEDULES:
        asked = ordered(schedule, plans)
        reports, taken_s = [], []
        for each in asked.candidates:
            begin = time.process_time()
            reports.append(asked.layings[each.ranks].simulate(each.plan))
            taken_s.append(time.process_time() - begin)
        shapes = {(r.plan.pp, r.plan.vpp, r.num_micro_batches) for r in reports}
        stages, micro_batches = ([shape[i] for shape in shapes] for i in (0, 2))
        out.add(
            f"{schedule}: plans simulated", len(reports) / sum(taken_s), "/s",
            f"{len(reports)} by bound, {len(shapes)} shapes, PP {min(stages)} to {max(stages)}, "
            f"{min(micro_batches)} to {max(micro_batches)} micro-batches; slowest {1e3 * max(taken_s):.0f} ms",
        )  # fmt: skip
        some = asked.candidates[:: max(1, len(asked.candidates) // COMPARED)]
        profiles = [Simulation(asked.layings[each.ranks].scenario(each.plan)).profile() for each in some]
        lanes_s = sum(seconds(simulate_lanes, profile) for profile in profiles)
        events_s = sum(seconds(simulate_step, profile) for profile in profiles)
        out.add(f"{schedule}: event engine over lane by lane", events_s / lanes_s, "x", f"{len(profiles)} of them")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=PLANS, help="plans of each schedule")
    figures.json_option(parser)
    args, found = parser.parse_args(), figures.Figures()
    measure(found, args.plans)
    found.write(args.json)
