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
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, pair_s, part_time
from sim.families import load_model
from sim.plan import Plan
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


def training_trace() -> TraceScore:
    """Predict the pair of the published trace; seconds.

    Exposed is what the span has beyond computation, the latter slowed while communication holds its multiprocessors.
    """
    path = resources.files("calibration") / "published" / FILE
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    run, measured = data["run"], data["measured"]
    switches: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in data["software"].items() if k != "base"
    }
    software = replace(catalogue.software(data["software"]["base"]), **switches)
    model = load_model(run["model"])
    cost = CostModel(catalogue.cluster(run["cluster"], gpus=run["gpus"]), software)
    workload = Workload(seq_tokens=run["seq_tokens"], global_batch_seqs=run["gpus"], precision=run["precision"])
    context = Context(model=model, workload=workload, plan=Plan(dp=run["gpus"], ep=run["ep"]), software=software)
    layer = next(layer for layer in model.layers if layer.moe is not None)
    part = part_time(cost, context, layer_ops(context, layer), layer.moe)
    layers = run["layers"]
    span_s = layers * float(pair_s(cost, part))
    compute_s = layers * float(part.compute_s(FORWARD) + part.compute_s(BACKWARD))
    steal = cost.factors.overlap_sms[software.dispatcher] / cost.device.num_sms
    comm_s = layers * sum(float(seconds) for seconds in part.ep.values())
    beside_s = min(comm_s, compute_s / (1.0 - steal))
    return TraceScore(
        span_s=span_s, exposed_s=max(0.0, span_s - (compute_s + steal * beside_s)),
        measured_span_s=measured["span_s"], measured_exposed_s=measured["exposed_s"],
    )  # fmt: skip
