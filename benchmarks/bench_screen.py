"""Screening speed: candidates per second and core for DeepSeek-V3 on 2,048 H800.

    python -m benchmarks.bench_screen

Times generation and rules alone, then the whole screening (rules, memory, lower bound), on one
thread, and the peak resident memory. Rates count raw candidates: rejecting one is work too; the
rate over legal candidates, which alone are screened, stands beside it. Last the table of a plan with
every schedule and rank order, as a search builds it in a process of its own: nothing is known beforehand.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import resource
import subprocess
import sys
import time

from benchmarks import figures

MODEL, CLUSTER, GPUS, SOFTWARE = "DeepSeek-V3", "h800", 2048, "megatron-lm"
SEQ_TOKENS, GLOBAL_BATCH_SEQS = 4096, 15_360


UNEVEN = "lognormal:0.4"
TABLE_TRAINER = "megatron-bridge-26.06"
REPEATS = 3  # the best counts: other work on the machine only ever takes time


def measure(out: figures.Figures) -> None:
    """Rates over the candidate table."""
    from hwprofiles.catalogue import cluster, software
    from planner.rules import apply, context, rules_of
    from planner.space import space
    from sim.columns import Columns
    from sim.families import load_model
    from sim.routing import Routing, parse_routing, resolve
    from sim.screen import Screener
    from sim.workload import Workload

    model, machines, trainer = load_model(MODEL), cluster(CLUSTER, gpus=GPUS), software(SOFTWARE)
    work = Workload(seq_tokens=SEQ_TOKENS, global_batch_seqs=GLOBAL_BATCH_SEQS, precision="fp8_block")
    ctx, rules = context(model, machines, trainer, work), rules_of("megatron-lm")

    def ruled() -> tuple[list[Columns], float, float]:
        started = time.process_time()
        blocks = list(space(model, machines, work, None, trainer))
        generated = time.process_time()
        for block in blocks:
            block.take(apply(block, ctx, rules)[0])
        return blocks, generated - started, time.process_time() - generated

    def screened(rows: list[Columns], routing: Routing) -> tuple[int, float]:
        """Candidates that fit and seconds of a fresh screener, which prices anew."""
        screener, kept = Screener(model, machines, trainer, work, routing=routing), [r for r in rows if len(r)]
        started = time.process_time()
        for block in kept:
            screener.expect(block)
        return sum(int(screener(block).fits.sum()) for block in kept), time.process_time() - started

    tried = [ruled() for _ in range(REPEATS)]
    blocks = tried[0][0]
    raw = sum(map(len, blocks))
    rows = [block.take(apply(block, ctx, rules)[0]) for block in blocks]
    legal, before_s = sum(map(len, rows)), min(t[1] + t[2] for t in tried)
    out.add("candidates in the table", raw, note=f"{legal:,} of them legal")
    out.add("rules of a candidate", min(t[2] for t in tried) / raw, "s")
    fits, first_s = screened(rows, Routing())
    out.add("rules, memory and lower bound, the first question of a process", raw / (before_s + first_s), "/s")
    best_s = min(screened(rows, Routing())[1] for _ in range(2 * REPEATS))
    out.add("rules, memory and lower bound", raw / (before_s + best_s), "/s", f"{fits:,} fit")
    out.add("memory and lower bound of legal candidates", legal / best_s, "/s")
    uneven = resolve(parse_routing(UNEVEN), model)
    screened(rows, uneven)  # load curves of a popularity are worked out once
    uneven_s = min(screened(rows, uneven)[1] for _ in range(REPEATS))
    out.add(f"rules, memory and lower bound, routing {UNEVEN}", raw / (before_s + uneven_s), "/s")
    command = "from benchmarks.bench_screen import whole_table; print(*whole_table())"
    said = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout
    table_raw, table_legal, table_s = (float(word) for word in said.split())
    note = f"{table_legal:,.0f} of {table_raw:,.0f} candidates legal, {table_s:.2f} s"
    out.add("table of every schedule and rank order: legal candidates", table_legal / table_s, "/s", note)
    out.add("peak resident memory", 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes")


def whole_table() -> tuple[int, int, float]:
    """(raw and legal candidates, CPU seconds) of the table of every schedule and rank order."""
    from hwprofiles.catalogue import cluster, software
    from planner.ranks import Laying, Question, rank_maps, spread
    from planner.rules import rules_of
    from planner.space import space
    from planner.table import build_table
    from sim.build.schedule import SCHEDULES
    from sim.families import load_model
    from sim.routing import Routing
    from sim.workload import Workload

    model, machines, trainer = load_model(MODEL), cluster(CLUSTER, gpus=GPUS), software(TABLE_TRAINER)
    work = Workload(seq_tokens=SEQ_TOKENS, global_batch_seqs=GLOBAL_BATCH_SEQS, precision="fp8_block")
    asked = Question(model=model, cluster=machines, software=trainer, workload=work, routing=Routing())
    first, *others = (Laying(ranks=ranks, question=asked) for ranks in rank_maps("layout"))
    started = time.process_time()
    blocks = space(model, machines, work, {"schedule": SCHEDULES}, trainer)
    table = build_table(blocks, first.ctx, rules_of("layout"), first.screen, None, others, spread)
    return table.raw, table.legal, time.process_time() - started


if __name__ == "__main__":
    figures.run(measure, __doc__)
