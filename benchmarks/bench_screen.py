"""Screening speed: candidates per second and core for DeepSeek-V3 on 2,048 H800.

    python -m benchmarks.bench_screen

Times generation and rules alone, then the whole screening (rules, memory, lower bound), on one
thread, and the peak resident memory. Rates count raw candidates: rejecting one is work too; the
rate over legal candidates, which alone are screened, stands beside it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import json
import resource
import time

MODEL, CLUSTER, GPUS, SOFTWARE = "DeepSeek-V3", "h800", 2048, "megatron-lm"
SEQ_TOKENS, GLOBAL_BATCH_SEQS = 4096, 15_360


def measure() -> dict[str, float]:
    """Seconds and rates of one pass over the candidate table."""
    from hwprofiles.catalogue import cluster, software
    from planner.rules import apply, context, rules_of
    from planner.space import space
    from sim.families import load_model
    from sim.screen import Screener
    from sim.workload import Workload

    model, machines, trainer = load_model(MODEL), cluster(CLUSTER, gpus=GPUS), software(SOFTWARE)
    work = Workload(seq_tokens=SEQ_TOKENS, global_batch_seqs=GLOBAL_BATCH_SEQS, precision="fp8_block")
    ctx, rules = context(model, machines, trainer, work), rules_of("megatron-lm")

    started = time.perf_counter()
    blocks = list(space(model, machines, work, None, trainer))
    generated = time.perf_counter()
    raw = sum(map(len, blocks))
    rows = [block.take(apply(block, ctx, rules)[0]) for block in blocks]
    ruled = time.perf_counter()
    legal = sum(map(len, rows))
    out: dict[str, float] = {
        "raw": raw,
        "legal": legal,
        "generate_s": generated - started,
        "rules_s": ruled - generated,
        "rules_us_per_candidate": 1e6 * (ruled - generated) / raw,
    }
    kept = [block for block in rows if len(block)]
    for name in ("first", "next"):
        # the first question of a process also imports and compiles; every one prices anew (a fresh screener),
        # with the kernel tables already read
        screener = Screener(model, machines, trainer, work)
        ruled = time.perf_counter()
        for block in kept:
            screener.expect(block)
        out["fits"] = sum(int(screener(block).fits.sum()) for block in kept)
        screen_s = time.perf_counter() - ruled
        out[f"{name}_screen_s"] = screen_s
        out[f"{name}_legal_per_s"] = legal / screen_s
        out[f"{name}_raw_per_s"] = raw / (out["generate_s"] + out["rules_s"] + screen_s)
    out["max_rss_bytes"] = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return out


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
