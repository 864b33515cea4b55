"""Predict what was measured with the cost model that `simulate` uses.

Layers go through `part_time`, steps through the event run, memory through the footprint of a stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibration.check_cases import WHOLE, Measured, scenario
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, part_time
from sim.cost.torch_memory import block_peak_bytes
from sim.run import Simulation

# The block returns its weight gradients; it has no main gradients to add them to.
NOT_IN_A_BLOCK = "grad_accumulate"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """seconds; host_s: time of the launching thread for the same work; peak_bytes as in `Measured`, None where the
    row has none; provenance: what the numbers rest on."""

    seconds: float
    host_s: float
    peak_bytes: float | None
    provenance: tuple[str, ...]

    @property
    def host_bound(self) -> bool:
        """Whether launching takes as long as the work."""
        return self.host_s >= self.seconds


def predict(point: Measured, cluster: ClusterSpec, software: SoftwareProfile) -> Predicted:
    """The prediction of one point. Raises UserError where the profile has no table it needs."""
    return _step(point, cluster, software) if point.is_step else _block(point, cluster, software)


def _block(point: Measured, cluster: ClusterSpec, software: SoftwareProfile) -> Predicted:
    case = scenario(point, cluster, software)
    cost, ctx = CostModel(case.cluster, software), case.context()
    layer = case.model.layers[0]
    ops = [op for op in layer_ops(ctx, layer) if op.kernel != NOT_IN_A_BLOCK]
    part = part_time(cost, ctx, ops, layer.moe)
    way = FORWARD if point.part == "forward" else BACKWARD
    seconds = part.device_s(way) if point.launch_hidden else part.duration_s(way)
    peak = block_peak_bytes(ctx, layer, part.saved)[way == BACKWARD] if point.peak_bytes is not None else None
    return Predicted(
        seconds=float(seconds), host_s=0.0 if point.launch_hidden else float(part.launching_s(way)),
        peak_bytes=None if peak is None else float(peak), provenance=cost.provenance(),
    )  # fmt: skip


def _step(point: Measured, cluster: ClusterSpec, software: SoftwareProfile) -> Predicted:
    case = scenario(point, cluster, software)
    simulation = Simulation(case)
    profile = simulation.profile()
    chunk, tail, count = profile.chunks[0][0], profile.tails[0], profile.num_micro_batches
    reduced, _ = simulation.step.data_parallel(simulation.step.params_of(simulation.contents[0][0]))
    parts = {
        "forward": count * chunk.forward_s,
        "backward": count * chunk.backward_s,
        "optimizer": tail.optimizer_s + tail.fixed_s,
        "reduce": float(reduced.alone_s),
    }
    host = {
        way: count
        * sum(n * float(part.launching_s(way)) for n, part in simulation.step.parts_of(simulation.contents[0][0]))
        for way in (FORWARD, BACKWARD)
    }
    report = simulation.report(trace=False)
    whole = point.part == WHOLE
    return Predicted(
        seconds=report.step_s.value if whole else parts[point.part],
        host_s=sum(host.values()) if whole else host.get(point.part, 0.0),
        peak_bytes=report.peak_mem_bytes if point.peak_bytes is not None else None,
        provenance=report.provenance,
    )  # fmt: skip
