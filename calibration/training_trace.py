"""DeepSeek's published training trace against the cost of a layer: a forward and a backward chunk, overlapped.

No parameter is fitted to its times. Not blind, though: the multiprocessors that DeepEP takes and one of the two ends
of the NIC's share of a dispatch (`hwprofiles/fitted/common.toml`) are read off the same trace.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from hwprofiles import catalogue
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, comm_sm_share, pair_s, part_time
from sim.families import load_model
from sim.plan import Plan
from sim.scenario import Scenario
from sim.workload import Workload

FILE = "training_trace.toml"


@dataclass(frozen=True, kw_only=True)
class TraceScore:
    """Seconds of the pair: span from first to last kernel; exposed, of it communication that compute does not hide."""

    span_s: float
    exposed_s: float
    measured_span_s: float
    measured_exposed_s: float

    @property
    def span_error(self) -> float:
        """Predicted over measured span - 1."""
        return self.span_s / self.measured_span_s - 1.0


def trace_data() -> dict[str, Any]:
    """The published run, the switches of its software, and what was measured."""
    path = resources.files("calibration") / "published" / FILE
    return tomllib.loads(path.read_text(encoding="utf-8"))


def trace_scenario(*, micro_batches: int = 1) -> Scenario:
    """The published run as a scenario: the model cut to the layers of the trace, all of them with experts."""
    data = trace_data()
    run = data["run"]
    switches: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in data["software"].items() if k != "base"
    }
    model = load_model(run["model"])
    layer = next(layer for layer in model.layers if layer.moe is not None)
    return Scenario(
        model=replace(model, layers=(layer,) * run["layers"]),
        cluster=catalogue.cluster(run["cluster"], gpus=run["gpus"]),
        software=replace(catalogue.software(data["software"]["base"]), **switches),
        workload=Workload(
            seq_tokens=run["seq_tokens"], global_batch_seqs=run["gpus"] * micro_batches, precision=run["precision"]
        ),
        plan=Plan(dp=run["gpus"], ep=run["ep"]),
    )  # fmt: skip


def training_trace() -> TraceScore:
    """Predict the pair of the published trace; seconds.

    Exposed is what the span has beyond computation, the latter slowed while communication holds its multiprocessors.
    """
    scenario, measured = trace_scenario(), trace_data()["measured"]
    cost, context = CostModel(scenario.cluster, scenario.software), scenario.context()
    layers, layer = len(scenario.model.layers), scenario.model.layers[0]
    part = part_time(cost, context, layer_ops(context, layer), layer.moe)
    span_s = layers * float(pair_s(cost, part))
    compute_s = layers * float(part.compute_s(FORWARD) + part.compute_s(BACKWARD))
    steal = comm_sm_share(cost)
    comm_s = layers * sum(float(seconds) for seconds in part.ep.values())
    beside_s = min(comm_s, compute_s / (1.0 - steal))
    return TraceScore(
        span_s=span_s, exposed_s=max(0.0, span_s - (compute_s + steal * beside_s)),
        measured_span_s=measured["span_s"], measured_exposed_s=measured["exposed_s"],
    )  # fmt: skip
