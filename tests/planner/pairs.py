"""Plan and simulate one model of every family on a cluster of every device (`make test-pairs`, about five minutes).

The suite takes every family on one device and every device with two models; this is the whole table.
"""

from __future__ import annotations

import math
import sys

from hwprofiles import catalogue
from planner import find_plans
from sim.model import ModelSpec, total_params
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Precision, Workload
from tests.planner.test_every_family import STATE_BYTES, smallest

FIXED = {"cp": 1, "micro_batch_seqs": 1, "etp": 1, "schedule": "1f1b"}


def problem(device: str, model: ModelSpec) -> str:
    """What is wrong with a small search and its simulated plan on as many devices as hold the model; "" if nothing."""
    spec = catalogue.device(device)
    precision: Precision = "bf16" if "bf16" in spec.peak_flop_per_s else "fp16"
    least = total_params(model) * STATE_BYTES / spec.mem_bytes
    gpus = max(catalogue.cluster(device).devices_per_node, 2 ** math.ceil(math.log2(max(least, 1.0))))
    cluster, kind = catalogue.cluster(device, gpus=gpus), "moe" if model.is_moe else "dense"
    software = catalogue.software("megatron-lm", device=device, model=model.name, arch=kind, precision=precision)
    work = Workload(seq_tokens=min(4096, model.max_positions or 4096), global_batch_seqs=2 * gpus, precision=precision)
    found = find_plans(model, cluster, software, work, target="layout", top=1, max_simulated=1, fixed=FIXED)
    best = found.plans[0].report
    again = simulate(Scenario(model=model, cluster=cluster, software=software, workload=work, plan=best.plan))
    if not math.isclose(again.step_s.value, best.step_s.value, rel_tol=1e-9):
        return f"planned {best.step_s.value} s, simulated {again.step_s.value} s"
    return "" if 0.005 < best.mfu.value < 0.9 else f"MFU {best.mfu.value:.3f}"


def main() -> int:
    """Try every pair; the exit code is 1 where one fails."""
    failed = 0
    for device in catalogue.names("devices"):
        for family, model in smallest().items():
            try:
                said = problem(device, model)
            except Exception as error:  # a pair that fails is a finding, and the others are still tried
                said = f"{type(error).__name__}: {error}"
            if said:
                failed += 1
                sys.stdout.write(f"{device} x {family} ({model.name}): {said}\n")
        sys.stdout.write(f"{device}: {len(smallest())} families\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
