"""Whole pipeline steps against closed forms, longest paths and conservation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.tasks import simulate_step, step_tasks
from sim.engine import Task
from sim.report import Trace

RATE = 100.0
BEGIN = -1


def profile(
    pp: int = 4,
    vpp: int = 1,
    m: int = 8,
    *,
    chunk: ChunkProfile | None = None,
    tail: StageTail | None = None,
    **fields: object,
) -> StepProfile:
    one = chunk or ChunkProfile(forward_s=1.0, backward_s=2.0)
    base: dict[str, object] = {
        "pp": pp,
        "vpp": vpp,
        "schedule": "interleaved" if vpp > 1 else "1f1b",
        "num_micro_batches": m,
        "chunks": ((one,) * vpp,) * pp,
        "tails": (tail or StageTail(),) * pp,
        "links": {"out": RATE},
    }
    return StepProfile(**{**base, **fields})  # type: ignore[arg-type]


def full(p: StepProfile) -> Trace:
    return simulate_step(p, steady=False)


def longest_path_s(tasks: list[Task]) -> float:
    """Longest path with stream order as edges; each flow alone on its link."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    last: dict[tuple[int, str], int] = {}
    for t in tasks:
        alone_s = t.latency_s + max([t.busy_s, *(size / RATE for _, size in t.flows)])
        before = [*t.after, *([last[t.lane, t.stream]] if (t.lane, t.stream) in last else [])]
        for other in before or [BEGIN]:
            graph.add_edge(other, t.id, weight=alone_s)
        last[t.lane, t.stream] = t.id
    return float(nx.dag_longest_path_length(graph))


def idle_s(trace: Trace) -> list[float]:
    return [trace.makespan_s - busy for busy in trace.lane_busy_s]


# -- closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("pp", "m"), [(1, 1), (1, 6), (2, 2), (4, 3), (4, 16), (8, 8)])
def test_equal_stages_take_m_plus_p_minus_one_rounds(schedule: str, pp: int, m: int) -> None:
    trace = full(profile(pp, 1, m, schedule=schedule))
    assert trace.makespan_s == pytest.approx((m + pp - 1) * 3.0)
    assert idle_s(trace) == pytest.approx([(pp - 1) * 3.0] * pp)


@pytest.mark.parametrize(("pp", "vpp", "m"), [(2, 2, 4), (4, 2, 8), (4, 3, 4), (8, 4, 16)])
def test_interleaving_divides_the_bubble_by_the_virtual_stages(pp: int, vpp: int, m: int) -> None:
    # Narayanan et al. 2021, section 2.2: bubble / ideal = (p - 1) / (v m).
    trace = full(profile(pp, vpp, m))
    ideal_s = 3.0 * m * vpp
    for idle in idle_s(trace):
        assert idle / ideal_s == pytest.approx((pp - 1) / (vpp * m))


def test_interleaving_with_a_remainder_keeps_the_bubble() -> None:
    # 11 micro-batches on 4 stages: groups of 6 and 5, both above the depth, so nothing stalls.
    trace = full(profile(4, 2, 11))
    assert trace.makespan_s == pytest.approx(3.0 * 11 * 2 + 3 * 3.0)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_send_delays_the_first_and_the_last_micro_batch(overlap: bool) -> None:
    # One micro-batch: p - 1 sends forward and p - 1 back, each latency + bytes / rate.
    trace = full(profile(4, 1, 1, p2p=(SendProfile(flows=(("out", 30.0),), latency_s=0.2),) * 4, p2p_overlap=overlap))
    assert trace.makespan_s == pytest.approx(4 * 3.0 + 6 * 0.5)
    assert trace.link_bytes == pytest.approx({(0, "out"): 30.0, (1, "out"): 60.0, (2, "out"): 60.0, (3, "out"): 30.0})


def test_sends_that_block_compute_count_in_every_round() -> None:
    fields: dict[str, Any] = {"p2p": (SendProfile(flows=(("out", 10.0),)),) * 4}
    hidden = full(profile(4, 1, 32, **fields)).makespan_s
    blocking = full(profile(4, 1, 32, p2p_overlap=False, **fields)).makespan_s
    assert blocking >= 32 * (3.0 + 2 * 0.1)
    assert hidden < blocking


@pytest.mark.parametrize(("pp", "m"), [(1, 4), (4, 8)])
def test_pairs_take_their_paired_time(pp: int, m: int) -> None:
    chunk = ChunkProfile(forward_s=1.0, backward_s=2.0, paired_s=2.4)
    trace = full(profile(pp, 1, m, chunk=chunk))
    for stage, busy in enumerate(trace.lane_busy_s):
        pairs = m - (pp - stage - 1) - 1
        assert busy == pytest.approx(3.0 * m - 0.6 * pairs)


# -- longest paths ----------------------------------------------------------------------------

seconds = st.floats(min_value=0.1, max_value=3.0)


@st.composite
def uneven(draw: st.DrawFn) -> StepProfile:
    pp = draw(st.integers(1, 4))
    schedule = draw(st.sampled_from(["1f1b", "gpipe", "interleaved"]))
    vpp = draw(st.integers(1, 3)) if schedule == "interleaved" and pp > 1 else 1
    chunks = tuple(
        tuple(ChunkProfile(forward_s=draw(seconds), backward_s=draw(seconds)) for _ in range(vpp)) for _ in range(pp)
    )
    tails = tuple(
        StageTail(
            param_latency_s=draw(seconds), grad_latency_s=draw(seconds), optimizer_s=draw(seconds), fixed_s=0.1,
            overlap_grad=draw(st.booleans()), overlap_param=draw(st.booleans()),
        )
        for _ in range(pp)
    )  # fmt: skip
    return profile(
        pp, vpp, draw(st.integers(1, 9)), chunks=chunks, tails=tails, schedule=schedule,
        p2p=tuple(SendProfile(latency_s=draw(st.sampled_from([0.0, 0.3]))) for _ in range(pp)),
        p2p_overlap=draw(st.booleans()),
    )  # fmt: skip


@given(p=uneven())
@settings(max_examples=50, deadline=None)
def test_without_shared_links_a_step_is_the_longest_path(p: StepProfile) -> None:
    trace = full(p)
    assert trace.makespan_s == pytest.approx(longest_path_s(step_tasks(p, num_micro_batches=p.num_micro_batches)))
    for stage, busy in enumerate(trace.lane_busy_s):
        work_s = sum(c.forward_s + c.backward_s for c in p.chunks[stage]) * p.num_micro_batches
        assert work_s <= busy <= trace.makespan_s * (1 + 1e-12)


def test_every_step_is_run_once_on_every_stage() -> None:
    trace = full(profile(3, 2, 7))
    seen = [(s.lane, s.kind, s.micro_batch, s.chunk) for s in trace.spans]
    assert len(seen) == len(set(seen)) == 3 * 2 * 2 * 7


# -- the ends of the step ---------------------------------------------------------------------


def test_events_of_a_small_step_are_pinned() -> None:
    # 2 stages, 3 micro-batches: 12 steps of one event, 6 sends of two (latency, drain).
    trace = full(profile(2, 1, 3, p2p=(SendProfile(flows=(("out", 1.0),), latency_s=0.1),) * 2))
    assert trace.num_events == 12 + 2 * 6


def test_parameters_come_before_the_first_forward_and_gradients_after_the_last_backward() -> None:
    tail = StageTail(
        param_flows=(("out", 200.0),), grad_flows=(("out", 300.0),), grad_latency_s=0.5,
        optimizer_s=0.7, fixed_s=0.3, overlap_grad=False, overlap_param=False,
    )  # fmt: skip
    trace = full(profile(1, 1, 4, tail=tail))
    assert trace.makespan_s == pytest.approx(2.0 + 4 * 3.0 + 0.5 + 3.0 + 0.7 + 0.3)


def test_buckets_hide_parameters_and_gradients_behind_one_forward_and_one_backward() -> None:
    tail = StageTail(param_flows=(("out", 80.0),), grad_flows=(("out", 80.0),), buckets=4)
    trace = full(profile(1, 1, 3, tail=tail))
    # A quarter of each stands out: 0.2 s before the first part and after the last one.
    assert trace.makespan_s == pytest.approx(0.2 + 3 * 3.0 + 0.2)
    assert trace.link_bytes[0, "out"] == pytest.approx(160.0)
    alone = full(profile(1, 1, 3, tail=replace(tail, buckets=1)))
    assert alone.makespan_s == pytest.approx(0.8 + 3 * 3.0 + 0.8)


def test_gradients_of_a_virtual_stage_go_out_while_the_others_still_run() -> None:
    tail = StageTail(grad_flows=(("out", 200.0),))
    late = StageTail(grad_flows=(("out", 200.0),), overlap_grad=False)
    base = full(profile(2, 2, 4)).makespan_s
    assert full(profile(2, 2, 4, tail=late)).makespan_s == pytest.approx(base + 2.0)
    # The piece of chunk 1 (1 s) hides; that of chunk 0 stands out on the first stage.
    assert full(profile(2, 2, 4, tail=tail)).makespan_s == pytest.approx(base + 1.0)


def test_memory_returns_to_the_static_bytes_and_peaks_at_the_closed_form() -> None:
    chunk = ChunkProfile(forward_s=1.0, backward_s=2.0, saved_bytes=10.0, working_bytes=3.0)
    static = tuple({"weights": 100.0 + stage} for stage in range(4))
    tail = StageTail(grad_flows=(("out", 5.0),), buckets=3)
    trace = full(profile(4, 1, 8, chunk=chunk, tail=tail, static_bytes=static))
    for stage, (steps, peak) in enumerate(zip(trace.memory, trace.peak_bytes, strict=True)):
        assert steps[-1][1] == pytest.approx(100.0 + stage)
        assert peak == {"weights": 100.0 + stage, "activations": 10.0 * (4 - stage), "workspace": 3.0}
        assert sum(peak.values()) == pytest.approx(max(size for _, size in steps))


# -- contention and slack ---------------------------------------------------------------------


def test_a_longer_all_to_all_that_hides_in_the_bubble_does_not_raise_idle_time() -> None:
    # Stage 0 is slow: while the first micro-batch goes down and comes back it runs two more forwards
    # (8 s against 6 s), so 2 s on the last stage hide there and behind its last backwards.
    slow, quick = ChunkProfile(forward_s=4.0, backward_s=4.0), ChunkProfile(forward_s=1.0, backward_s=2.0)

    def with_all_to_all(extra_s: float) -> Trace:
        longer = ChunkProfile(forward_s=1.0, backward_s=2.0, forward_flows=(("out", (1.0 + extra_s) * RATE),))
        return full(profile(3, 1, 12, chunks=((slow,), (quick,), (longer,))))

    base = with_all_to_all(0.0)
    for extra_s in (0.5, 1.5, 2.0):
        trace = with_all_to_all(extra_s)
        assert trace.makespan_s == pytest.approx(base.makespan_s)
        assert idle_s(trace) == pytest.approx([*idle_s(base)[:2], idle_s(base)[2] - 12 * extra_s])
    assert with_all_to_all(2.5).makespan_s > base.makespan_s


def test_flows_within_the_slack_of_their_link_change_nothing() -> None:
    def step(share: float) -> Trace:
        flows = (("out", share * RATE),)
        chunk = ChunkProfile(forward_s=1.0, backward_s=2.0, forward_flows=flows, backward_flows=flows)
        return full(profile(4, 1, 8, chunk=chunk))

    base = step(0.1)
    for share in (0.5, 0.9, 1.0):
        assert step(share).makespan_s == base.makespan_s
        assert idle_s(step(share)) == idle_s(base)
    assert step(1.1).makespan_s > base.makespan_s


def test_background_traffic_slows_the_sends_it_meets() -> None:
    flows = (("out", 0.8 * RATE),)
    busy = ChunkProfile(forward_s=1.0, backward_s=1.0, forward_flows=flows, backward_flows=flows)
    quiet = ChunkProfile(forward_s=1.0, backward_s=1.0)
    fields: dict[str, Any] = {"p2p": (SendProfile(flows=(("out", 20.0),)),) * 4}
    one, two = full(profile(4, 1, 16, chunk=busy, **fields)), full(profile(4, 1, 16, chunk=quiet, **fields))
    assert one.makespan_s > two.makespan_s
    sent = 16 * 2 * 80.0 + 16 * 20.0
    assert one.link_bytes[0, "out"] == pytest.approx(sent)


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match="micro-batches"):
        simulate_step(profile(2, 1, 0))
    with pytest.raises(ValueError, match="stages"):
        simulate_step(replace(profile(2, 1, 4), pp=3))
    with pytest.raises(ValueError, match="bucket"):
        simulate_step(profile(2, 1, 4, tail=StageTail(buckets=0)))
