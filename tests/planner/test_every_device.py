"""A dense and an MoE model plan on every device of the catalogue that has the memory."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hwprofiles import catalogue
from planner import find_plans
from sim.families import load_model
from sim.model import total_params
from sim.workload import Workload

DEVICES = catalogue.names("devices")
STATE_BYTES = 18 * 1.6  # per parameter: weights, gradients and Adam, with room for activations


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_plans(name: str) -> None:
    """The fastest plan of a dense and an MoE model on as many devices as hold it."""
    device = catalogue.device(name)
    precision: Any = "bf16" if "bf16" in device.peak_flop_per_s else "fp16"
    for model in ("Llama3-8B", "Mixtral-8x7B"):
        spec = load_model(model)
        least = total_params(spec) * STATE_BYTES / device.mem_bytes
        gpus = max(catalogue.cluster(name).devices_per_node, 2 ** math.ceil(math.log2(max(least, 1.0))))
        software = catalogue.software(
            catalogue.default_software(name), device=name, arch="moe" if spec.is_moe else "dense", precision=precision
        )
        found = find_plans(
            spec, catalogue.cluster(name, gpus=gpus), software,
            Workload(seq_tokens=4096, global_batch_seqs=64, precision=precision), top=1, max_simulated=1,
            fixed={"cp": 1, "micro_batch_seqs": 1, "etp": 1},
        )  # fmt: skip
        report = found.plans[0].report
        assert 0.1 < report.mfu.value < 0.9
        assert report.step_s.low < report.step_s.value < report.step_s.high
        assert report.usd_per_step is None or report.usd_per_step > 0
