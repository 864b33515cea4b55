"""What planning costs as questions grow: CPU seconds, plans simulated and memory, and a figure of cost against GPUs.

    python -m benchmarks.bench_plan_scale [--out docs/images/plan-cost.svg]

DeepSeek-V3 on 256 to 16,384 H800 with everything on (every schedule, every rank order of the layout rules, MTP,
both stage splits, every recompute choice), some of them with every dispatcher, offload and recompute setting besides,
and Mixtral-8x22B on 128 H100 as `moecast plan` asks by default. CPU time of this one process, so that other work on
the machine does not count; the catalogue is read before the first.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import figures

SOFTWARE = "megatron-lm"
GPUS = (256, 512, 1024, 2048, 4096, 8192, 16_384)
DEFAULT_GPUS = (2048, 16_384)
SEQS_PER_STEP = 15_360
VARIANTS = ("dispatcher", "offload", "recompute")
BESIDES = (("DeepSeek-V3", "h800", 2048), ("DeepSeek-V3", "h800", 16_384), ("Mixtral-8x22B", "dgx-h100", 128))
WIDTH, HEIGHT, MARGIN = 560, 380, 64


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One question answered: CPU seconds, raw candidates, event runs, certificate and the chosen layout."""

    gpus: int
    cpu_s: float
    raw: int
    simulated: int
    certificate: str
    plan: str


def ask(model: str, cluster: str, gpus: int, batch: int, *, everything: bool, besides: Sequence[str] = ()) -> Cost:
    """Plan one question; everything: all schedules under the layout rules alone instead of the target's own. besides:
    what is searched besides degrees (`planner.variants.DIMENSIONS`)."""
    from hwprofiles import catalogue
    from planner import find_plans
    from planner.variants import axes_of
    from sim.build.schedule import SCHEDULES
    from sim.families import load_model
    from sim.workload import Workload

    spec, machines, trainer = load_model(model), catalogue.cluster(cluster, gpus=gpus), catalogue.software(SOFTWARE)
    work = Workload(
        seq_tokens=4096, global_batch_seqs=batch, precision="fp8_block" if everything else "bf16", with_mtp=everything
    )  # fmt: skip
    options: dict[str, Any] = {"target": "megatron-lm"}
    if everything:
        options = {"target": "layout", "fixed": {"schedule": tuple(SCHEDULES)}}
    if besides:
        options["axes"] = axes_of(besides, spec, machines, trainer, work, options.get("fixed", {}))
    started = time.process_time()
    answer = find_plans(spec, machines, trainer, work, **options)
    found = answer.search
    return Cost(
        gpus=gpus, cpu_s=time.process_time() - started, raw=found.raw, simulated=found.simulated,
        certificate=found.certificate, plan=answer.plans[0].report.plan.label(),
    )  # fmt: skip


def slope(costs: Sequence[Cost]) -> float:
    """Least-squares exponent of CPU seconds over GPUs: 1 is linear."""
    x = [math.log(c.gpus) for c in costs]
    y = [math.log(c.cpu_s) for c in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def figure(costs: Sequence[Cost]) -> str:
    """CPU seconds against GPUs as SVG, both logarithmic, with the line a linear cost would take from the first."""
    low_x, high_x = math.log2(costs[0].gpus), math.log2(costs[-1].gpus)
    linear = costs[0].cpu_s * costs[-1].gpus / costs[0].gpus
    low_y = math.floor(math.log10(min(c.cpu_s for c in costs)))
    high_y = math.ceil(math.log10(max(linear, *(c.cpu_s for c in costs))))

    def at(gpus: float, cpu_s: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (math.log2(gpus) - low_x) / (high_x - low_x)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (math.log10(cpu_s) - low_y) / (high_y - low_y)
        return x, y

    def line(points: Sequence[tuple[float, float]], style: str) -> str:
        return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" {style}/>'

    first, last = costs[0].gpus, costs[-1].gpus
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        "<title>CPU seconds of planning DeepSeek-V3 against the number of GPUs</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in range(low_y, high_y + 1):
        (left, y), (right, _) = at(first, 10.0**power), at(last, 10.0**power)
        out.append(line(((left, y), (right, y)), 'stroke="#dddddd"'))
        out.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for cost in costs:
        x, _ = at(cost.gpus, 1.0)
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{cost.gpus:,}</text>')
    out.append(line((at(first, costs[0].cpu_s), at(last, linear)), 'stroke="#8c8c8c" stroke-dasharray="5 4"'))
    out.append(line([at(c.gpus, c.cpu_s) for c in costs], 'stroke="#0072b2" stroke-width="2"'))
    for cost in costs:
        x, y = at(cost.gpus, cost.cpu_s)
        said = f"{cost.gpus:,} GPUs: {cost.cpu_s:.1f} s, {cost.simulated} simulated, {cost.plan}"
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#0072b2"><title>{said}</title></circle>')
    x, y = at(last, linear)
    out += [
        f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="#666666">linear</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">GPUs</text>',
        f'<text x="{WIDTH / 2}" y="28" text-anchor="middle">Planning DeepSeek-V3: CPU seconds, everything on</text>',
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def main() -> None:
    """Print the figures, one a line, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figure (SVG) here")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS, help="sizes of the DeepSeek-V3 questions")
    figures.json_option(parser)
    args, out = parser.parse_args(), figures.Figures()

    def say(name: str, cost: Cost) -> None:
        out.add(name, cost.cpu_s, "s", f"{cost.simulated} of {cost.raw:,} candidates simulated, {cost.certificate}")

    say("default: Mixtral-8x22B on 128 H100", ask("Mixtral-8x22B", "dgx-h100", 128, 1024, everything=False))
    for gpus in DEFAULT_GPUS:
        say(
            f"default: DeepSeek-V3 on {gpus:,} H800",
            ask("DeepSeek-V3", "h800", gpus, max(SEQS_PER_STEP, gpus), everything=False),
        )
    costs = []
    for gpus in sorted(args.gpus):
        costs.append(ask("DeepSeek-V3", "h800", gpus, max(SEQS_PER_STEP, gpus), everything=True))
        say(f"everything on: DeepSeek-V3 on {gpus:,} H800", costs[-1])
    for model, cluster, gpus in BESIDES:
        cost = ask(model, cluster, gpus, max(SEQS_PER_STEP, gpus), everything=True, besides=VARIANTS)
        say(f"everything on, and {', '.join(VARIANTS)}: {model} on {gpus:,} of {cluster}", cost)
    if len(costs) > 1:
        out.add("everything on: power of GPUs with which CPU seconds grow", slope(costs))
    out.add("peak resident memory", 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes")
    out.write(args.json)
    if args.out is not None and len(costs) > 1:
        args.out.write_text(figure(costs), encoding="utf-8")
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
