"""DeepSeek's published training trace: an overlapped pair of one forward and one backward chunk.

H800, expert parallel over 64, 4,096 tokens of 7,168, four MoE layers a chunk, routing forced balanced; the GPU span is
129.0 ms, of which 4.2 ms are exposed communication (deepseek-ai/profile-data, train.json).
"""

from __future__ import annotations

import pytest

from calibration.training_trace import training_trace

SPAN_S, EXPOSED_S = 129.0e-3, 8e-3


def test_span_and_exposed_communication_of_the_overlapped_pair() -> None:
    found = training_trace()
    assert found.measured_span_s == pytest.approx(SPAN_S, rel=1e-3)
    assert found.measured_exposed_s == pytest.approx(4.2e-3, rel=1e-2)
    assert found.span_s == pytest.approx(SPAN_S, rel=0.10)
    assert found.span_error == pytest.approx(found.span_s / SPAN_S - 1.0, abs=1e-3)
    # compute beside communication runs on what SMs are left; what the span has beyond that is exposed
    assert found.exposed_s < EXPOSED_S
