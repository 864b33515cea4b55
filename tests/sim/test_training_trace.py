"""DeepSeek's published training trace: an overlapped pair of one forward and one backward chunk.

H800, expert parallel over 64, 4,096 tokens of 7,168, four MoE layers a chunk, routing forced balanced; the GPU span is
129.0 ms, of which 4.2 ms are exposed communication (deepseek-ai/profile-data, train.json).
"""

from __future__ import annotations

import pytest

from calibration.training_trace import trace_data, trace_scenario, training_trace
from sim.detail import simulate_layers
from sim.report import Span
from sim.run import Simulation

SPAN_S, EXPOSED_S, MICRO_BATCHES = 129.0e-3, 8e-3, 3


def test_span_and_exposed_communication_of_the_overlapped_pair() -> None:
    found = training_trace()
    assert found.measured_span_s == pytest.approx(SPAN_S, rel=1e-3)
    assert found.measured_exposed_s == pytest.approx(4.2e-3, rel=1e-2)
    assert found.span_s == pytest.approx(SPAN_S, rel=0.10)
    assert found.span_error == pytest.approx(found.span_s / SPAN_S - 1.0, abs=1e-3)
    # compute beside communication runs on what SMs are left; what the span has beyond that is exposed
    assert found.exposed_s < EXPOSED_S


def test_span_and_exposed_communication_of_the_pair_in_the_layer_level_run() -> None:
    """The same four layers as events: the last backward and forward that run in turns."""
    scenario = trace_scenario(micro_batches=MICRO_BATCHES)
    trace = simulate_layers(scenario)
    pair = [s for s in trace.spans if s.name.startswith(("B1 ", "F2 ")) and s.kind in IN_LAYERS]
    begin_s = min(s.start_s for s in pair if s.kind != "wgrad")  # the head's weight gradient stands before the layers
    layers = [s for s in pair if s.start_s >= begin_s]
    assert sum(s.stream == "ep" for s in layers) == 4 * len(scenario.model.layers) == 4 * trace_data()["run"]["layers"]
    span_s = max(s.end_s for s in layers) - min(s.start_s for s in layers)
    # as events the run has eight nodes whose ranks wait for each other; the trace is of ranks in step
    assert span_s / Simulation(scenario).step.stragglers == pytest.approx(SPAN_S, rel=0.10)
    assert span_s == pytest.approx(union_s(layers))
    exposed_s = span_s - union_s([s for s in layers if s.stream == "compute"])
    assert exposed_s < EXPOSED_S


IN_LAYERS = ("attention", "router", "experts", "shared", "unpermute", "wgrad", "ep")


def union_s(spans: list[Span]) -> float:
    """Seconds in which any of the spans runs."""
    total_s = until_s = 0.0
    for start_s, end_s in sorted((s.start_s, s.end_s) for s in spans):
        total_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return total_s
