"""What choosing stages costs and proves: CPU seconds of plans with `--stages auto` and `ilp`, steps and gaps.

    python -m benchmarks.bench_stages [--way auto ilp] [--json FILE]

CPU time of this one process for each search, model and cluster read before; the trainer is the catalogue's default of
the device, rules those of Megatron-LM, but for one question that asks for every schedule under the layout rules.
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question. every: all schedules, under the layout rules."""

    model: str
    cluster: str
    gpus: int
    batch: int
    precision: Any = "bf16"
    every: bool = False

    @property
    def label(self) -> str:
        """Short name."""
        return f"{self.model} on {self.gpus:,} of {self.cluster}" + (", every schedule" if self.every else "")


QUESTIONS = (
    Asked(model="DeepSeek-V3", cluster="h800", gpus=2048, batch=15_360, precision="fp8_block"),
    Asked(model="DeepSeek-V3", cluster="h800", gpus=2048, batch=15_360, precision="fp8_block", every=True),
    Asked(model="Mixtral-8x22B", cluster="dgx-h100", gpus=128, batch=256),
    Asked(model="Qwen3-235B-A22B", cluster="dgx-h100", gpus=256, batch=2048),
    Asked(model="GLM-4.5", cluster="dgx-h100", gpus=512, batch=4096),
    Asked(model="Kimi-K2", cluster="dgx-h100", gpus=1024, batch=8192),
)


def ask(asked: Asked, way: str) -> tuple[float, str]:
    """(CPU seconds, what was found) of one question."""
    from hwprofiles import catalogue
    from planner import find_plans
    from sim.build.schedule import SCHEDULES
    from sim.families import load_model
    from sim.workload import Workload

    model, machines = load_model(asked.model), catalogue.cluster(asked.cluster, gpus=asked.gpus)
    software = catalogue.software(
        catalogue.default_software(machines.device), device=machines.device, model=model.name, arch="moe"
    )
    work = Workload(
        seq_tokens=4096, global_batch_seqs=asked.batch, precision=asked.precision, with_mtp=model.mtp_layers > 0
    )  # fmt: skip
    options: dict[str, Any] = {"target": "megatron-lm"}
    if asked.every:
        options = {"target": "layout", "fixed": {"schedule": tuple(SCHEDULES)}}
    started = time.process_time()
    found = find_plans(model, machines, software, work, stages=way, **options)
    took_s, stages = time.process_time() - started, found.stages
    assert stages is not None
    best = found.plans[0].report
    said = (
        f"step {best.step_s.value:.2f} s ({stages.even_s:.2f} s with even stages), gap {found.search.gap:.1%}, "
        f"{len(stages.rows)} layouts chosen, {stages.bounded} bounded, {best.plan.label()}"
    )
    return took_s, said


def main() -> None:
    """Print the figures, one a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", nargs="+", default=["auto", "ilp"], choices=["auto", "ilp"])
    figures.json_option(parser)
    args, out = parser.parse_args(), figures.Figures()
    for asked in QUESTIONS:
        for way in args.way:
            took_s, said = ask(asked, way)
            out.add(f"{asked.label}, {way}", took_s, "s", said)
    out.write(args.json)


if __name__ == "__main__":
    main()
