"""Event runs lane by lane against the event engine: the same step, to rounding, whatever the profile."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from sim.build.lanes import simulate_lanes
from sim.build.order import V_SHAPED, Step
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.programs import NotInOrder, programs_of
from sim.build.repeats import loop_of
from sim.build.schedule import SCHEDULES, lane_order, repeats_after
from sim.build.tasks import simulate_step
from sim.engine.graph import Work
from sim.engine.lane_links import Alone, Flow, leading
from sim.engine.lane_programs import Op, Program, Stuck
from sim.engine.lanewise import Lanewise
from sim.families import load_model
from sim.plan import Plan
from sim.report import Trace
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Workload

LINKS = {"near": 300.0, "out": 100.0, "spine": 60.0}
REL = 1e-9


def stages_of(schedule: str, rng: random.Random) -> tuple[int, int]:
    """(pp, vpp) that a schedule runs on."""
    if schedule in ("dualpipe",):
        return rng.choice([2, 4, 6]), 2
    if schedule in V_SHAPED:
        return rng.choice([2, 3, 4]), 2
    return rng.choice([2, 3, 5]) if schedule != "gpipe" else rng.choice([1, 3]), 2 if schedule == "interleaved" else 1


def profile_of(seed: int, schedule: str, *, m: int | None = None) -> StepProfile:
    """A random profile: chunks that fill a link to more than a half or more than it has, sends over one link, several
    or none, with and without latency, that hold their stage up or not; uneven ends in pieces or at once."""
    rng = random.Random(seed)
    pp, vpp = stages_of(schedule, rng)
    fill = rng.choice([0.0, 0.4, 0.9, 1.3])
    several = rng.random() < 0.4

    def flows(seconds: float) -> tuple[tuple[str, float], ...]:
        names = [name for name in LINKS if rng.random() < 0.7]
        return tuple((name, rng.uniform(0.3, 1.0) * fill * LINKS[name] * seconds) for name in names)

    def chunk() -> ChunkProfile:
        forward_s, backward_s = rng.uniform(0.5, 1.5), rng.uniform(1.0, 3.0)
        return ChunkProfile(
            forward_s=forward_s, backward_s=backward_s, wgrad_s=0.4 * backward_s,
            paired_s=0.9 * (forward_s + backward_s) if rng.random() < 0.5 else None,
            forward_flows=flows(forward_s), backward_flows=flows(0.6 * backward_s),
            saved_bytes=rng.choice([0.0, rng.uniform(1.0, 5.0)]), deferred_bytes=rng.uniform(0.5, 4.0),
            working_bytes=rng.choice([0.0, 1.0]),
        )  # fmt: skip

    def tail() -> StageTail:
        return StageTail(
            grad_flows=(("out", rng.choice([0.0, 300.0])), ("spine", rng.choice([0.0, 100.0]))),
            grad_latency_s=rng.choice([0.0, 0.2]), param_flows=(("out", rng.choice([0.0, 200.0])),),
            param_latency_s=rng.choice([0.0, 0.1]), param_wire_s=rng.choice([0.0, 2.5]),
            overlap_grad=rng.random() < 0.6, overlap_param=rng.random() < 0.6, buckets=rng.choice([1, 2, 3]),
            optimizer_s=rng.choice([0.0, 0.5]), fixed_s=rng.choice([0.0, 0.1]),
        )  # fmt: skip

    def send() -> SendProfile:
        used = [("out", rng.uniform(5.0, 90.0)), ("spine", rng.uniform(1.0, 50.0)), ("near", 9.0)]
        kept = used[: rng.choice([2, 3])] if several else rng.choice([used[:1], used[2:], []])
        return SendProfile(
            flows=tuple(kept), latency_s=rng.choice([0.0, 0.05]), wire_s=rng.choice([0.0, 0.0, 0.4])
        )  # fmt: skip

    shared = chunk() if rng.random() < 0.3 else None
    return StepProfile(
        pp=pp, vpp=vpp, schedule=schedule, num_micro_batches=m or 2 * rng.randint(pp, pp + 6),
        chunks=tuple(tuple(shared or chunk() for _ in range(vpp)) for _ in range(pp)),
        tails=tuple(tail() for _ in range(pp)), links=LINKS,
        p2p=() if rng.random() < 0.1 else tuple(send() for _ in range(pp)), p2p_overlap=rng.random() < 0.8,
        static_bytes=({"weights": 10.0, "activations": 1.0},) * pp,
    )  # fmt: skip


def assert_same_step(ours: Trace, theirs: Trace) -> None:
    """Totals of the whole step."""
    assert ours.makespan_s == pytest.approx(theirs.makespan_s, rel=REL)
    assert ours.lane_busy_s == pytest.approx(theirs.lane_busy_s, rel=REL)
    assert ours.link_bytes == pytest.approx(theirs.link_bytes, rel=REL)
    for mine, other in zip(ours.peak_bytes, theirs.peak_bytes, strict=True):
        assert sum(mine.values()) == pytest.approx(sum(other.values()), rel=REL)


@given(seed=st.integers(0, 10**6), schedule=st.sampled_from(SCHEDULES))
@settings(max_examples=60, deadline=None)
def test_lanes_end_when_the_event_engine_says(seed: int, schedule: str) -> None:
    profile = profile_of(seed, schedule)
    ours, theirs = simulate_lanes(profile), simulate_step(profile, steady=False)
    assert_same_step(ours, theirs)
    if ours.periods_skipped == 0:
        spans, others = sorted(ours.spans), sorted(theirs.spans)
        assert [span[:6] for span in spans] == [span[:6] for span in others]
        assert [span[6:] for span in spans] == [pytest.approx(span[6:], rel=REL, abs=REL) for span in others]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whole_periods_left_out_change_nothing(schedule: str, seed: int) -> None:
    profile = profile_of(seed, schedule, m=96)
    assert_same_step(simulate_lanes(profile), simulate_step(profile, steady=False))


def even(schedule: str, pp: int, vpp: int, m: int) -> StepProfile:
    """Equal stages, a link that chunks and sends share."""
    chunk = ChunkProfile(
        forward_s=1.0, backward_s=2.0, wgrad_s=1.0, paired_s=2.9, forward_flows=(("out", 55.0),),
        backward_flows=(("out", 70.0),), saved_bytes=1.0, deferred_bytes=0.5,
    )  # fmt: skip
    return StepProfile(
        pp=pp, vpp=vpp, schedule=schedule, num_micro_batches=m, chunks=((chunk,) * vpp,) * pp,
        tails=(StageTail(param_flows=(("out", 90.0),), grad_flows=(("out", 90.0),), buckets=2, optimizer_s=0.1),) * pp,
        links=LINKS, p2p=(SendProfile(flows=(("out", 12.0),), latency_s=0.01),) * pp,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp"),
    [("1f1b", 4, 1), ("interleaved", 4, 2), ("zb-h1", 4, 1), ("zb-h2", 4, 1), ("zb-v", 4, 2), ("dualpipe", 4, 2),
     ("dualpipe-v", 4, 2)],
)  # fmt: skip
def test_a_long_step_is_run_at_the_cost_of_a_short_one(schedule: str, pp: int, vpp: int) -> None:
    """What is run does not grow with the micro-batches, and what is left out is right."""
    short, long = (simulate_lanes(even(schedule, pp, vpp, m)) for m in (240, 480))
    assert_same_step(long, simulate_step(even(schedule, pp, vpp, 480), steady=False))
    # as many as long as one period more, at most
    assert 480 - long.periods_skipped < 200
    assert abs((480 - long.periods_skipped) - (240 - short.periods_skipped)) < 100


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_a_program_with_its_loop_is_the_order_of_the_step(schedule: str, data: st.DataObject) -> None:
    """The programs of a short step, their loops run more often, are those of the orders of a long one."""
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    pp, vpp = stages_of(schedule, rng)
    m = 2 * rng.randint(pp, 4 * pp + 20)
    profile = replace(even(schedule, pp, vpp, m), tails=(StageTail(),) * pp)
    group = repeats_after(schedule, pp=pp, vpp=vpp, num_micro_batches=m)
    programs, loops = programs_of(profile, group)
    for stage, program in enumerate(programs.of_stage):
        order = lane_order(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m, group=group)
        ran = [programs.kinds[op.work] for op in (*program.first, *program.loop * loops, *program.last)]
        said = [("step", stage, s.kind, s.chunk, s.paired, s.split, 1.0, 1, 0) for s in order]
        assert ran == said


@given(seed=st.integers(0, 10**6), schedule=st.sampled_from(SCHEDULES))
@settings(max_examples=20, deadline=None)
def test_sends_over_the_levels_of_a_network_follow_their_slowest_link(seed: int, schedule: str) -> None:
    """A send that takes as long on every level, beside chunks that use one of them most: its flow there leads."""
    rng = random.Random(seed)
    base = profile_of(seed, schedule)
    share = rng.uniform(0.3, 0.95)

    def like(chunk: ChunkProfile) -> ChunkProfile:
        def flows(seconds: float) -> tuple[tuple[str, float], ...]:
            return ("out", share * LINKS["out"] * seconds), ("spine", 0.4 * share * LINKS["spine"] * seconds)

        lasting_s = (chunk.backward_s - chunk.wgrad_s) * chunk.pair_factor
        return replace(chunk, forward_flows=flows(chunk.forward_s * chunk.pair_factor), backward_flows=flows(lasting_s))

    sends_s = rng.uniform(0.05, 0.8)
    send = SendProfile(
        flows=(("out", sends_s * LINKS["out"]), ("spine", sends_s * LINKS["spine"])), latency_s=0.02, wire_s=sends_s
    )
    profile = replace(
        base, chunks=tuple(tuple(map(like, row)) for row in base.chunks), p2p=(send,) * base.pp, p2p_overlap=True
    )
    assert_same_step(simulate_lanes(profile), simulate_step(profile, steady=False))


def test_the_leading_flow_is_the_one_that_drains_last_beside_every_op() -> None:
    capacity = (10.0, 10.0)
    sent = (0.0, 1.0, (Flow(0, 10.0, 10.0), Flow(1, 10.0, 10.0)))

    def op(*caps: float) -> Alone:
        return 0.0, 1.0, tuple(Flow(link, cap, cap) for link, cap in enumerate(caps))

    assert leading(sent, [op(4.0, 2.0), op(3.0, 3.0)], capacity) == 0
    assert leading(sent, [op(1.0, 2.0)], capacity) == 1
    # now the one, now the other; and one that slows an op down on the link that does not lead
    assert leading(sent, [op(4.0, 2.0), op(1.0, 2.0)], capacity) is None
    assert leading((0.0, 1.0, (Flow(0, 10.0, 10.0), Flow(1, 3.0, 3.0))), [op(4.0, 6.0)], capacity) == 0
    assert leading(sent, [op(6.0, 7.0)], capacity) is None
    # a flow that is drained before its send is over does not lead
    assert leading((0.0, 1.0, (Flow(0, 10.0, 5.0), Flow(1, 10.0, 10.0))), [op(4.0, 2.0)], capacity) is None


def test_the_loop_is_where_the_windows_of_the_event_engine_are() -> None:
    assert loop_of("gpipe", pp=4, vpp=1, num_micro_batches=100, group=1) is None
    assert loop_of("1f1b", pp=4, vpp=1, num_micro_batches=5, group=1) is None
    loop = loop_of("1f1b", pp=4, vpp=1, num_micro_batches=50, group=1)
    assert loop is not None
    assert (loop.firsts, loop.length, loop.count, loop.width) == ((5, 6, 7, 8), 2, 45, 4)


def test_what_overtakes_on_its_way_is_left_to_the_event_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that takes micro-batches in another order than the one before gives them has no program."""

    def swapped(schedule: str, **asked: int) -> tuple[Step, ...]:
        order = lane_order(schedule, **asked)
        return order if asked["stage"] else (order[1], order[0], *order[2:])

    monkeypatch.setattr("sim.build.programs.lane_order", swapped)
    profile = replace(even("gpipe", 2, 1, 3), links={**LINKS, "own": 1.0})
    programs_of.__globals__["_made"].cache_clear()
    with pytest.raises(NotInOrder):
        programs_of(profile, 1)
    assert simulate_lanes(profile) == simulate_step(profile)
    programs_of.__globals__["_made"].cache_clear()


def test_two_flows_of_a_task_on_one_link_are_left_to_the_event_engine() -> None:
    profile = even("1f1b", 2, 1, 4)
    twice = replace(profile.chunks[0][0], forward_flows=(("out", 20.0), ("out", 30.0)))
    odd = replace(profile, chunks=((twice,), (twice,)))
    assert simulate_lanes(odd) == simulate_step(odd)


@pytest.mark.parametrize("schedule", ["zb-v", "dualpipe"])
def test_a_plan_is_reported_alike_with_and_without_its_timeline(schedule: str) -> None:
    """`simulate` without a trace runs lane by lane, with one it is the event engine's."""
    dp = 32
    asked = Scenario(
        model=load_model("DeepSeek-V3"), cluster=catalogue.cluster("h800", gpus=8 * dp),
        software=catalogue.software("megatron-lm"),
        workload=Workload(seq_tokens=4096, global_batch_seqs=40 * dp, with_mtp=True),
        plan=Plan(pp=8, vpp=2 if schedule == "zb-v" else 1, dp=dp, ep=32, schedule=schedule, account_ends=True),
    )  # fmt: skip
    lean, full = simulate(asked, trace=False), simulate(asked)
    assert lean.step_s.value == pytest.approx(full.step_s.value, rel=REL)
    assert lean.bubble_fraction == pytest.approx(full.bubble_fraction, rel=1e-6)
    assert lean.breakdown == pytest.approx(full.breakdown, rel=1e-6, abs=REL)
    assert lean.peak_mem_bytes == pytest.approx(full.peak_mem_bytes, rel=REL)
    for ours, theirs in zip(lean.memory, full.memory, strict=True):
        assert ours == pytest.approx(theirs, rel=REL, abs=1.0)
    for link, use in full.link_use.items():
        assert lean.link_use[link] == pytest.approx(use, rel=REL)


def test_lanes_that_wait_for_each_other_are_stuck() -> None:
    programs = [Program(first=[Op(work=0, waits=(i,), hands=(1 - i,))], loop=[], last=[]) for i in range(2)]
    with pytest.raises(Stuck):
        Lanewise(programs, [Work(busy_s=1.0)], {}, 2, loops=0, width=0).run()


def test_what_a_search_does_not_look_at_is_there_when_it_is_looked_at() -> None:
    profile = even("zb-v", 3, 2, 20)
    ours, theirs = simulate_lanes(profile), simulate_step(profile, steady=False)
    assert ours.link_busy_s == pytest.approx(theirs.link_busy_s, rel=REL)
    assert len(ours.link_busy_s) == len(theirs.link_busy_s)
    whole = simulate_lanes(even("zb-v", 3, 2, 8))
    memory = simulate_step(even("zb-v", 3, 2, 8), steady=False).memory
    assert [steps[-1][1] for steps in whole.memory] == pytest.approx([steps[-1][1] for steps in memory])
    assert [max(used for _, used in steps) for steps in whole.memory] == pytest.approx(
        [max(used for _, used in steps) for steps in memory]
    )
