"""The load of links over time: it is the engine's own rates, and its integral is the bytes moved."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from sim.build.tasks import simulate_step
from sim.engine import Engine, Task
from sim.families import load_model
from sim.plan import Plan
from sim.report import Trace
from sim.run import Simulation
from sim.scenario import Scenario
from sim.workload import Workload

RATE = 100.0
Steps = tuple[tuple[float, float], ...]


def job(i: int, size: float, *, start_s: float = 0.0, busy_s: float = 0.0) -> Task:
    return Task(id=i, name=f"t{i}", kind="k", lane=0, stream=f"s{i}", latency_s=start_s, busy_s=busy_s,
                flows=(("net", size),))  # fmt: skip


def loads(tasks: list[Task], *, link_series: bool = True) -> Trace:
    return Engine(tasks, {"net": RATE}, link_series=link_series).run()


def integral(steps: Steps) -> float:
    return sum(rate * (end - at) for (at, rate), (end, _) in pairwise(steps))


def test_rates_follow_arrivals_sharing_and_ends() -> None:
    # 20 bytes/s in the background from 0 to 5; 40 bytes at 2 take the other 80 for half a second.
    alone = loads([job(0, 100.0, busy_s=5.0), job(1, 40.0, start_s=2.0)])
    assert alone.link_rates[0, "net"] == ((0.0, 20.0), (2.0, 100.0), (2.5, 20.0), (5.0, 0.0))
    gap = loads([job(0, 50.0), job(1, 200.0, start_s=3.0)])
    assert gap.link_rates[0, "net"] == ((0.0, 100.0), (0.5, 0.0), (3.0, 100.0), (5.0, 0.0))
    assert alone.link_bytes_per_s == {"net": RATE}


def test_nothing_is_recorded_unless_asked_for_and_nothing_else_changes() -> None:
    tasks = [job(0, 100.0, busy_s=5.0), job(1, 300.0, start_s=2.0), job(2, 10.0, start_s=2.0)]
    silent, said = loads(tasks, link_series=False), loads(tasks)
    assert silent.link_rates == {} and said.link_rates
    assert (silent.makespan_s, silent.num_events, silent.spans) == (said.makespan_s, said.num_events, said.spans)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 500.0), st.floats(0.0, 5.0), st.sampled_from([0.0, 0.5, 2.0])),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_the_integral_is_the_bytes_and_no_rate_exceeds_the_link(jobs: list[tuple[float, float, float]]) -> None:
    trace = loads([job(i, size, start_s=at, busy_s=busy) for i, (size, at, busy) in enumerate(jobs)])
    steps = trace.link_rates[0, "net"]
    assert integral(steps) == pytest.approx(sum(size for size, _, _ in jobs), rel=1e-7)
    assert integral(steps) == pytest.approx(trace.link_bytes[0, "net"], rel=1e-7)
    assert steps[-1][1] == 0.0 and max(rate for _, rate in steps) <= RATE * (1 + 1e-6)
    assert all(a[0] < b[0] and a[1] != b[1] for a, b in pairwise(steps))
    assert sum(b[0] - a[0] for a, b in pairwise(steps) if a[1] > 0) == pytest.approx(trace.link_busy_s[0, "net"])


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    """Two nodes, tensor and expert parallel inside, pipeline across."""
    return Simulation(
        Scenario(
            model=load_model("Qwen3-30B-A3B"), cluster=catalogue.cluster("dgx-h100", gpus=16),
            software=catalogue.software("megatron-bridge-26.08"),
            workload=Workload(seq_tokens=4096, global_batch_seqs=128), plan=Plan(tp=2, dp=4, pp=2, ep=4, edp=2),
        )
    )  # fmt: skip


def test_a_report_covers_traffic_inside_chunks_too(simulation: Simulation) -> None:
    report = simulation.report(steady=False)
    trace = report.trace
    assert trace is not None and set(report.link_use) >= {"scale_up", "scale_out"}
    for link, use in report.link_use.items():
        steps = trace.link_rates[int(use["lane"]), link]
        assert integral(steps) == pytest.approx(use["bytes"], rel=1e-6)
        assert steps[-1][1] == 0.0 and steps[-1][0] <= trace.makespan_s
        assert min(rate for _, rate in steps) >= 0.0


def test_a_jumped_step_records_the_part_that_was_run(simulation: Simulation) -> None:
    run = simulate_step(simulation.profile(), link_series=True)
    assert run.periods_skipped > 0
    last_s = max(span.end_s for span in run.spans)
    for key, steps in run.link_rates.items():
        assert steps[-1][1] == 0.0 and steps[-1][0] <= last_s
        # What happens once a step (parameters, gradients) is there in full, what repeats in part.
        share = integral(steps) / run.link_bytes[key]
        assert share < 0.9 if key[1] == "scale_out" else share == pytest.approx(1.0)
