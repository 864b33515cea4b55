"""The period jump against full runs, and what must stop it."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from sim.build.alike import simulate_once
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.tasks import simulate_step
from sim.engine import Task, run
from sim.report import Trace

RATE = 100.0


def random_profile(seed: int, *, pp: int, vpp: int, m: int, contention: bool) -> StepProfile:
    """Uneven stages, tails, sends; with contention the chunks fill up to 90 % of the link the sends use."""
    rng = random.Random(seed)

    def chunk() -> ChunkProfile:
        forward_s, backward_s = rng.uniform(0.5, 1.5), rng.uniform(1.0, 3.0)
        share = rng.uniform(0.2, 0.9) if contention else 0.0
        return ChunkProfile(
            forward_s=forward_s,
            backward_s=backward_s,
            paired_s=0.9 * (forward_s + backward_s) if seed % 2 else None,
            forward_flows=(("out", share * RATE * forward_s),),
            backward_flows=(("out", share * RATE * backward_s),),
            saved_bytes=rng.uniform(1.0, 5.0),
            working_bytes=1.0,
        )

    def tail() -> StageTail:
        return StageTail(
            grad_flows=(("out", rng.uniform(0.0, 500.0)),),
            param_flows=(("out", rng.uniform(0.0, 500.0)),),
            overlap_grad=rng.random() < 0.5,
            overlap_param=rng.random() < 0.5,
            buckets=rng.choice([1, 3]),
            optimizer_s=0.5,
            fixed_s=0.1,
        )

    return StepProfile(
        pp=pp,
        vpp=vpp,
        schedule="interleaved" if vpp > 1 else "1f1b",
        num_micro_batches=m,
        chunks=tuple(tuple(chunk() for _ in range(vpp)) for _ in range(pp)),
        tails=tuple(tail() for _ in range(pp)),
        links={"out": RATE},
        p2p=tuple(
            SendProfile(flows=(("out", rng.uniform(5.0, 40.0)),), latency_s=rng.choice([0.0, 0.05])) for _ in range(pp)
        ),
        p2p_overlap=rng.random() < 0.7,
        static_bytes=({"weights": 10.0},) * pp,
    )


def assert_same_totals(jumped: Trace, full: Trace) -> None:
    assert jumped.makespan_s == pytest.approx(full.makespan_s, rel=1e-3)
    assert jumped.lane_busy_s == pytest.approx(full.lane_busy_s, rel=1e-3)
    assert jumped.link_bytes == pytest.approx(full.link_bytes, rel=1e-6)
    assert jumped.link_busy_s == pytest.approx(full.link_busy_s, rel=1e-3)
    for ours, theirs in zip(jumped.peak_bytes, full.peak_bytes, strict=True):
        assert sum(ours.values()) == pytest.approx(sum(theirs.values()))


LAYOUTS = [(1, 1, 60), (2, 1, 60), (4, 1, 97), (8, 1, 96), (2, 2, 64), (4, 2, 80), (3, 3, 61), (4, 2, 107)]


@pytest.mark.parametrize("contention", [False, True])
def test_the_jump_agrees_with_the_full_run(contention: bool) -> None:
    jumps = 0
    for seed, (pp, vpp, m) in enumerate(LAYOUTS):
        profile = random_profile(seed, pp=pp, vpp=vpp, m=m, contention=contention)
        jumped, full = simulate_step(profile), simulate_step(profile, steady=False)
        assert_same_totals(jumped, full)
        assert full.periods_skipped == 0
        jumps += jumped.periods_skipped > 0
    # Most of these become periodic within the first half of the step.
    assert jumps >= len(LAYOUTS) - 3


def even(m: int, pp: int = 4, vpp: int = 1, **tail: float) -> StepProfile:
    chunk = ChunkProfile(forward_s=1.0, backward_s=2.0)
    return StepProfile(
        pp=pp,
        vpp=vpp,
        schedule="interleaved" if vpp > 1 else "1f1b",
        num_micro_batches=m,
        chunks=((chunk,) * vpp,) * pp,
        tails=(StageTail(**tail),) * pp,  # type: ignore[arg-type]
        links={"out": RATE},
    )


@pytest.mark.parametrize("vpp", [1, 2])
def test_events_do_not_grow_with_the_micro_batches(vpp: int) -> None:
    one, two = simulate_step(even(400, vpp=vpp)), simulate_step(even(4000, vpp=vpp))
    assert one.num_events == two.num_events
    assert two.periods_skipped - one.periods_skipped == 3600
    assert two.makespan_s == pytest.approx(3.0 * (4000 * vpp + 3))


def test_short_steps_are_run_in_full() -> None:
    assert simulate_step(even(6)).periods_skipped == 0


def test_a_slow_transient_is_not_taken_for_the_period() -> None:
    """The first stage is 1 % slower, and the interleaved warm-up gives it a lead it loses only slowly.

    Until then the step grows by the quick stage's time per micro-batch: equal increments of the makespan
    are no proof of a period, equal shifts of all lanes are.
    """
    slow, quick = ChunkProfile(forward_s=1.01, backward_s=2.0), ChunkProfile(forward_s=1.0, backward_s=2.0)

    def profile(m: int) -> StepProfile:
        return replace(even(m, pp=2, vpp=2), chunks=((slow,) * 2, (quick,) * 2))

    def full_s(m: int) -> float:
        return simulate_step(profile(m), steady=False).makespan_s

    increments = [full_s(m + 2) - full_s(m) for m in (12, 14, 16)]
    assert increments == pytest.approx([12.0] * 3, rel=1e-9)
    assert full_s(402) - full_s(400) == pytest.approx(12.04)
    for m in (40, 400, 4000):
        assert simulate_step(profile(m)).makespan_s == pytest.approx(full_s(m), rel=1e-9)
    assert simulate_step(profile(4000)).periods_skipped > 3000


def test_a_period_of_several_micro_batches_is_found() -> None:
    """1F1B leaves no slack for sends: all but one in pp micro-batches pay a round trip, so the period is pp."""
    profile = replace(even(300), p2p=(SendProfile(latency_s=0.25),) * 4)
    full, jumped = simulate_step(profile, steady=False), simulate_step(profile)
    longer = [simulate_step(replace(profile, num_micro_batches=m), steady=False).makespan_s for m in range(300, 305)]
    steps = [two - one for one, two in pairwise(longer)]
    assert sorted(steps) == pytest.approx([3.0, 3.5, 3.5, 3.5])
    assert jumped.periods_skipped % 4 == 0
    assert jumped.periods_skipped > 200
    assert_same_totals(jumped, full)
    assert jumped.makespan_s == pytest.approx(full.makespan_s, rel=1e-9)


def test_a_long_parameter_gather_ends_before_the_period_begins() -> None:
    chunk = ChunkProfile(forward_s=0.1, backward_s=0.2, forward_flows=(("out", 8.0),), backward_flows=(("out", 16.0),))
    profile = replace(
        even(400, pp=2, vpp=2),
        chunks=((chunk,) * 2,) * 2,
        tails=(StageTail(param_flows=(("out", 2000.0),), buckets=4),) * 2,
        p2p=(SendProfile(flows=(("out", 1.0),)),) * 2,
    )
    full, jumped = simulate_step(profile, steady=False), simulate_step(profile)
    assert jumped.periods_skipped > 0
    assert_same_totals(jumped, full)
    assert jumped.makespan_s == pytest.approx(full.makespan_s, rel=1e-9)


def test_the_step_does_not_depend_on_the_number_of_identical_ranks() -> None:
    profile = random_profile(3, pp=4, vpp=1, m=40, contention=True)
    one, many = simulate_step(profile), simulate_step(replace(profile, lane_weight=512))
    assert one == many


def test_equal_profiles_are_one_run() -> None:
    profile = random_profile(3, pp=4, vpp=2, m=16, contention=True)
    first, again = simulate_once(profile), simulate_once(replace(profile))
    assert again is first
    assert first.makespan_s == pytest.approx(simulate_step(profile).makespan_s, rel=1e-9)
    other = simulate_once(replace(profile, num_micro_batches=20))
    assert other.makespan_s > first.makespan_s
    even = np.ones((4, 2, 16, 3))
    drawn = simulate_once(replace(profile, stretch=2.0 * even))
    assert drawn.makespan_s > first.makespan_s


def test_levels_of_priority_share_what_the_higher_ones_leave() -> None:
    """Two flows of one level halve the link; one below waits until they are gone."""

    def flow(i: int, size: float, priority: int) -> Task:
        return Task(id=i, name="f", kind="k", lane=0, stream=f"s{i}", flows=(("out", size),), priority=priority)

    trace = run([flow(0, 100.0, 0), flow(1, 200.0, 0), flow(2, 50.0, 1)], {"out": RATE})
    ends = {span.stream: span.end_s for span in trace.spans}
    assert ends["s0"] == pytest.approx(2.0) and ends["s1"] == pytest.approx(3.0)
    assert ends["s2"] == pytest.approx(3.5)
