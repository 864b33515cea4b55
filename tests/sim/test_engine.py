"""The event core against theory: longest paths, processor sharing, conservation, memory."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import DeadlockError, Engine, Task, run, water_fill

RATE = 100.0
BEGIN = -1


def task(i: int, **fields: object) -> Task:
    base: dict[str, object] = {"id": i, "name": f"t{i}", "kind": "k", "lane": 0, "stream": f"s{i}"}
    return Task(**{**base, **fields})  # type: ignore[arg-type]


def ends(tasks: list[Task], rate: float = RATE) -> dict[int, float]:
    engine = Engine(tasks, {"net": rate, "bus": rate})
    engine.run()
    return {t.id: end for t, end in zip(tasks, engine.end_s, strict=True)}


def net(size: float) -> tuple[tuple[str, float], ...]:
    return (("net", size),)


# -- order ------------------------------------------------------------------------------------


def test_a_stream_runs_in_order_and_other_streams_run_beside_it() -> None:
    got = ends(
        [
            task(0, stream="compute", busy_s=2.0),
            task(1, stream="compute", busy_s=3.0, latency_s=0.5),
            task(2, stream="copy", busy_s=1.0),
            task(3, stream="copy", busy_s=1.0, after=(1,)),
            task(4, stream="copy", busy_s=1.0),
        ]
    )
    assert got == {0: 2.0, 1: 5.5, 2: 1.0, 3: 6.5, 4: 7.5}


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ([task(0, after=(1,)), task(1, after=(0,))], ["t0", "t1"]),
        ([task(0, stream="q", after=(1,)), task(1, stream="q")], ["t0", "t1"]),
        ([task(0, after=(0,)), task(1)], ["t0"]),
    ],
    ids=["cycle", "head waits for its own tail", "itself"],
)
def test_deadlock_names_the_stuck_tasks(tasks: list[Task], names: list[str]) -> None:
    with pytest.raises(DeadlockError) as error:
        run(tasks, {})
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize(
    "tasks",
    [
        [task(0), task(0)],
        [task(0, after=(7,))],
        [task(0, flows=net(1.0))],
        [task(0, busy_s=-1.0)],
        [task(0, busy_s=float("nan"))],
    ],
    ids=["same id twice", "unknown predecessor", "unknown link", "negative", "nan"],
)
def test_malformed_tasks_are_refused(tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match=r"unique|waits for|link|busy_s"):
        run(tasks, {"other": RATE})


def test_a_link_without_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="net"):
        run([], {"net": 0.0})


def test_nothing_to_do() -> None:
    trace = run([], {})
    assert (trace.makespan_s, trace.spans, trace.num_events) == (0.0, (), 0)


# -- links ------------------------------------------------------------------------------------


def test_alone_a_transfer_takes_latency_plus_bytes_over_rate() -> None:
    assert ends([task(0, latency_s=0.25, flows=net(300.0))])[0] == pytest.approx(3.25)


def test_two_equal_transfers_halve_the_rate() -> None:
    assert ends([task(0, flows=net(200.0)), task(1, flows=net(200.0))]) == {0: 4.0, 1: 4.0}


def test_what_one_leaves_the_other_takes() -> None:
    # 0 and 1 share until 1 has moved its 100 bytes at t = 2; 0 then has 200 left at the full rate.
    assert ends([task(0, flows=net(300.0)), task(1, flows=net(100.0))]) == {0: 4.0, 1: 2.0}


def test_background_traffic_within_the_link_costs_nothing() -> None:
    got = ends([task(0, busy_s=5.0, flows=net(250.0)), task(1, busy_s=4.0, flows=net(200.0))])
    assert got == {0: 5.0, 1: 4.0}


def test_a_capped_flow_leaves_the_rest_of_the_link() -> None:
    # 20 bytes/s in the background leave 80 to the transfer; the background is not slowed.
    assert ends([task(0, busy_s=10.0, flows=net(200.0)), task(1, flows=net(400.0))]) == pytest.approx({0: 10.0, 1: 5.0})


def test_background_traffic_stretches_when_the_link_is_oversubscribed() -> None:
    # Both want 80 of 100: they drain at 50, 160 bytes take 3.2 s instead of 2.
    got = ends([task(0, busy_s=2.0, flows=net(160.0)), task(1, busy_s=2.0, flows=net(160.0))])
    assert got == pytest.approx({0: 3.2, 1: 3.2})


def test_a_lower_priority_gets_what_is_left_and_delays_only_itself() -> None:
    # 80 of 100 for 2 s, then all of it: 40 + 120 bytes.
    got = ends([task(0, busy_s=2.0, flows=net(160.0)), task(1, flows=net(160.0), priority=1)])
    assert got == pytest.approx({0: 2.0, 1: 3.2})
    # nothing is left at first; two of the lower priority then share what is
    got = ends([task(0, flows=net(100.0)), *(task(i, flows=net(50.0), priority=1) for i in (1, 2))])
    assert got == pytest.approx({0: 1.0, 1: 2.0, 2: 2.0})
    # the higher one comes later
    got = ends([task(0, latency_s=1.0, flows=net(100.0)), task(1, flows=net(150.0), priority=1)])
    assert got == pytest.approx({0: 2.0, 1: 2.5})


@given(jobs=st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(1.0, 500.0), st.integers(0, 2)), min_size=1, max_size=8))
def test_a_priority_never_feels_the_ones_below(jobs: list[tuple[float, float, int]]) -> None:
    made = [task(i, latency_s=at, flows=net(size), priority=p) for i, (at, size, p) in enumerate(jobs)]
    every = ends(made)
    for most in range(3):
        some = ends([t for t in made if t.priority <= most])
        assert {i: every[i] for i in some} == pytest.approx(some, rel=1e-9)


def test_background_traffic_above_the_link_rate_lasts_as_long_as_its_bytes() -> None:
    assert ends([task(0, busy_s=1.0, flows=net(250.0))])[0] == pytest.approx(2.5)


def test_flows_on_two_links_run_side_by_side_and_each_leaves_when_drained() -> None:
    # "bus" is free from t = 1 on, so the late task does not meet task 0 there.
    got = ends(
        [
            task(0, flows=(("net", 300.0), ("bus", 100.0))),
            task(1, latency_s=1.0, flows=(("bus", 100.0),)),
            task(2, latency_s=2.0, flows=net(25.0)),
        ]
    )
    assert got == pytest.approx({0: 3.25, 1: 2.0, 2: 2.5})


def test_a_link_is_busy_only_while_it_carries_something() -> None:
    tasks = [task(0, flows=(("net", 300.0), ("bus", 100.0))), task(1, latency_s=2.5, flows=(("bus", 100.0),))]
    assert run(tasks, {"net": RATE, "bus": RATE}).link_busy_s == pytest.approx({(0, "net"): 3.0, (0, "bus"): 2.0})


def test_lanes_do_not_share_links() -> None:
    got = ends([task(0, lane=0, flows=net(200.0)), task(1, lane=1, flows=net(200.0))])
    assert got == {0: 2.0, 1: 2.0}


@given(
    caps=st.lists(st.floats(min_value=0.1, max_value=100.0), min_size=1, max_size=12),
    capacity=st.floats(min_value=1.0, max_value=300.0),
)
def test_water_filling_is_max_min_fair(caps: list[float], capacity: float) -> None:
    rates = water_fill(caps, capacity)
    assert all(0.0 < rate <= cap * (1 + 1e-12) for rate, cap in zip(rates, caps, strict=True))
    assert sum(rates) == pytest.approx(min(capacity, sum(caps)))
    top = max(rates)
    # A flow below its cap has the largest rate of all: no one could give it more.
    assert all(rate >= top * (1 - 1e-9) for rate, cap in zip(rates, caps, strict=True) if rate < cap * (1 - 1e-9))


@given(
    jobs=st.lists(
        st.tuples(
            st.floats(min_value=0.0, max_value=5.0),
            st.floats(min_value=1.0, max_value=500.0),
            st.sampled_from([0.0, 0.5, 3.0]),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_processor_sharing_keeps_every_byte_and_is_work_conserving(jobs: list[tuple[float, float, float]]) -> None:
    tasks = [task(i, latency_s=at, busy_s=busy, flows=net(size)) for i, (at, size, busy) in enumerate(jobs)]
    trace = run(tasks, {"net": RATE})
    total = sum(size for _, size, _ in jobs)
    assert trace.link_bytes[0, "net"] == pytest.approx(total)
    assert trace.link_busy_s[0, "net"] >= total / RATE * (1 - 1e-9)
    assert trace.link_busy_s[0, "net"] <= trace.makespan_s * (1 + 1e-9)
    if all(busy == 0.0 for _, _, busy in jobs):
        # Uncapped flows always fill the link: its busy time is exactly the bytes over the rate.
        assert trace.link_busy_s[0, "net"] == pytest.approx(total / RATE)


@given(sizes=st.lists(st.floats(min_value=1.0, max_value=500.0), min_size=1, max_size=8))
def test_equal_shares_finish_in_order_of_size(sizes: list[float]) -> None:
    # Closed form of processor sharing from a common start: the k-th smallest of n ends at
    # (sum of the smaller ones + (n - k + 1) * its size) / rate.
    got = ends([task(i, flows=net(size)) for i, size in enumerate(sizes)])
    order = sorted(sizes)
    for i, size in enumerate(sizes):
        assert got[i] == pytest.approx(sum(min(size, other) for other in order) / RATE)


# -- whole graphs -----------------------------------------------------------------------------

graphs = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["compute", "copy"]),
        st.floats(min_value=0.0, max_value=4.0),
        st.floats(min_value=0.0, max_value=1.0),
        st.sets(st.integers(1, 6), max_size=3),
        st.sampled_from([0.0, 0.0, 30.0, 250.0]),
    ),
    min_size=1,
    max_size=30,
)
GraphRows = list[tuple[int, str, float, float, set[int], float]]


def graph_tasks(rows: GraphRows, *, flows: bool) -> list[Task]:
    return [
        task(
            i, lane=lane, stream=stream, busy_s=busy, latency_s=latency,
            after=tuple(i - back for back in sorted(backs) if back <= i),
            flows=net(size) if flows else (),
        )
        for i, (lane, stream, busy, latency, backs, size) in enumerate(rows)
    ]  # fmt: skip


def alone_s(t: Task) -> float:
    return t.latency_s + max(t.busy_s, *(size / RATE for _, size in t.flows), 0.0)


def longest_path_s(tasks: list[Task]) -> float:
    """Longest path of the precedence graph with the stream order as edges, by networkx."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from([BEGIN, *(t.id for t in tasks)])
    last: dict[tuple[int, str], int] = {}
    for t in tasks:
        before = [*t.after, *([last[t.lane, t.stream]] if (t.lane, t.stream) in last else [])]
        for other in before or [BEGIN]:
            graph.add_edge(other, t.id, weight=alone_s(t))
        last[t.lane, t.stream] = t.id
    return float(nx.dag_longest_path_length(graph))


@given(rows=graphs)
@settings(max_examples=60)
def test_without_shared_links_the_makespan_is_the_longest_path(rows: GraphRows) -> None:
    tasks = graph_tasks(rows, flows=False)
    trace = run(tasks, {})
    assert trace.makespan_s == pytest.approx(longest_path_s(tasks))
    assert trace.num_events == len(tasks)


@given(rows=graphs)
@settings(max_examples=60)
def test_with_shared_links_it_is_bounded_and_repeats(rows: GraphRows) -> None:
    tasks = graph_tasks(rows, flows=True)
    trace = run(tasks, {"net": RATE})
    streams: dict[tuple[int, str], float] = {}
    for t in tasks:
        streams[t.lane, t.stream] = streams.get((t.lane, t.stream), 0.0) + alone_s(t)
    low = max(longest_path_s(tasks), max(streams.values()))
    assert trace.makespan_s >= low * (1 - 1e-9)
    assert trace.makespan_s <= sum(alone_s(t) for t in tasks) + sum(t.busy_s for t in tasks) + 1e-9
    for lane in range(3):
        sent = sum(size for t in tasks if t.lane == lane for _, size in t.flows)
        assert trace.link_bytes.get((lane, "net"), 0.0) == pytest.approx(sent)
    assert trace == run(tasks, {"net": RATE})


def test_spans_of_a_stream_do_not_overlap_and_busy_time_is_their_sum() -> None:
    rows: GraphRows = [(i % 2, "compute", 1.0 + i % 3, 0.1, {3}, 0.0) for i in range(20)]
    trace = run(graph_tasks(rows, flows=False), {})
    for lane in (0, 1):
        spans = [s for s in trace.spans if s.lane == lane]
        assert all(one.end_s <= two.start_s for one, two in pairwise(spans))
        assert trace.lane_busy_s[lane] == pytest.approx(sum(s.end_s - s.start_s for s in spans))


# -- memory -----------------------------------------------------------------------------------


def test_memory_is_taken_at_the_start_and_given_back_at_the_end() -> None:
    tasks = [
        task(0, stream="q", busy_s=1.0, alloc=(("act", 10.0), ("work", 5.0)), free=(("work", 5.0),)),
        task(1, stream="q", busy_s=1.0, after=(0,)),
        task(2, stream="q", busy_s=2.0, alloc=(("work", 2.0),), free=(("act", 10.0), ("work", 2.0))),
    ]
    trace = run(tasks, {}, [{"weights": 100.0}, {"weights": 7.0}])
    assert trace.memory[0] == ((0.0, 115.0), (1.0, 110.0), (2.0, 112.0), (4.0, 100.0))
    assert trace.peak_bytes[0] == {"weights": 100.0, "act": 10.0, "work": 5.0}
    assert trace.memory[1] == ((0.0, 7.0),)
    assert trace.peak_bytes[1] == {"weights": 7.0}
