"""Shapes laid out once, the clock, spans made on demand, and SimPy as a second opinion of the engine."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Generator
from dataclasses import replace
from random import Random

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.tasks import laid_out, simulate_step, step_tasks
from sim.build.work import StepWork
from sim.engine import Engine, Task
from sim.engine.clock import Clock
from sim.engine.deferred import Deferred
from sim.engine.quiet import collector_paused

PP, M = 4, 12
LINKS = {"out": 10.0}


def profile(seed: int, schedule: str = "1f1b", vpp: int = 1, **fields: object) -> StepProfile:
    """Stages of random seconds and bytes; all seeds have one shape."""
    draw = Random(seed).uniform

    def chunk() -> ChunkProfile:
        forward_s = draw(1.0, 2.0)
        return ChunkProfile(
            forward_s=forward_s, backward_s=2.0 * forward_s, paired_s=2.7 * forward_s, wgrad_s=0.8 * forward_s,
            forward_flows=(("out", draw(1.0, 9.0)),), backward_flows=(("out", draw(1.0, 9.0)),),
            saved_bytes=draw(1.0, 2.0), deferred_bytes=draw(0.5, 3.0), working_bytes=draw(0.1, 0.5),
        )  # fmt: skip

    tail = StageTail(
        grad_flows=(("out", draw(5.0, 9.0)),), param_flows=(("out", draw(2.0, 4.0)),), buckets=3,
        optimizer_s=draw(0.1, 0.5), fixed_s=draw(0.0, 0.1) + 0.1,
    )  # fmt: skip
    base = StepProfile(
        pp=PP, vpp=vpp, schedule=schedule, num_micro_batches=M, chunks=tuple((chunk(),) * vpp for _ in range(PP)),
        tails=(tail,) * PP, links=LINKS, p2p=(SendProfile(flows=(("out", draw(0.5, 2.0)),), latency_s=0.01),) * PP,
        static_bytes=({"weights": draw(1.0, 5.0)},) * PP,
    )  # fmt: skip
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "vpp"), [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2), ("dualpipe", 2)]
)
def test_a_graph_of_another_plan_with_new_work_is_the_graph_of_the_plan(schedule: str, vpp: int) -> None:
    first, second = profile(1, schedule, vpp), profile(2, schedule, vpp)
    group = 2 if schedule == "dualpipe" else PP if vpp == 2 and schedule == "interleaved" else 1
    shape = laid_out(first, M, group)
    assert laid_out(second, M, group) is shape
    for each in (second, first):
        got = Engine(shape.pipeline(StepWork(each)).tasks, LINKS, each.static_bytes).run()
        want = Engine(step_tasks(each, num_micro_batches=M, group=group), LINKS, each.static_bytes).run()
        assert got == want


@pytest.mark.parametrize(
    "other",
    [
        {"p2p": ()},
        {"p2p_overlap": False},
        {"tails": (StageTail(),) * PP},
        {"tails": (replace(profile(1).tails[0], buckets=2),) * PP},
        {"tails": (replace(profile(1).tails[0], overlap_grad=False),) * PP},
        {"tails": (replace(profile(1).tails[0], overlap_param=False),) * PP},
        {"tails": (replace(profile(1).tails[0], optimizer_s=0.0),) * PP},
        {"tails": (replace(profile(1).tails[0], grad_flows=()),) * PP},
    ],
    ids=["no sends", "blocking sends", "no ends", "buckets", "gradients last", "parameters first", "no update", "dp 1"],
)
def test_what_changes_the_tasks_changes_the_shape(other: dict[str, object]) -> None:
    plain, changed = profile(1), profile(1, **other)  # type: ignore[arg-type]
    simulate_step(plain)
    got = Engine(laid_out(changed, M, 1).pipeline(StepWork(changed)).tasks, LINKS, changed.static_bytes).run()
    assert got == Engine(step_tasks(changed, num_micro_batches=M), LINKS, changed.static_bytes).run()


def test_the_clock_keeps_the_order_of_equal_times() -> None:
    clock, seen = Clock(), []

    def note(name: str) -> None:
        seen.append((clock.now, name))
        if name == "a":
            clock.after(0.0, note, "later")

    for delay_s, name in ((2.0, "z"), (1.0, "a"), (1.0, "b"), (0.0, "first")):
        clock.after(delay_s, note, name)
    clock.run()
    assert seen == [(0.0, "first"), (1.0, "a"), (1.0, "b"), (1.0, "later"), (2.0, "z")]


def test_deferred_is_made_once_and_is_the_tuple_it_becomes() -> None:
    made = []

    def make() -> list[int]:
        made.append(1)
        return [3, 1, 2]

    late = Deferred(make)
    assert not made
    assert (late, len(late), late[1], late[:2], list(late)) == ((3, 1, 2), 3, 1, (3, 1), [3, 1, 2])
    assert (late == Deferred(make), hash(late) == hash((3, 1, 2)), repr(late)) == (True, True, "(3, 1, 2)")
    assert pickle.loads(pickle.dumps(late)) == (3, 1, 2)
    assert len(made) == 2  # once for each of the two


def test_spans_of_a_lane_are_the_lanes_part_of_all_spans() -> None:
    trace = simulate_step(profile(3))
    for lane in range(PP):
        assert trace.spans_of(lane) == [span for span in trace.spans if span.lane == lane]
    assert replace(trace, spans=tuple(trace.spans)).spans_of(1) == trace.spans_of(1)


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_as_it_was_after_a_run_even_one_that_fails(on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(ValueError, match="contradicts"), collector_paused():
            assert not gc.isenabled()
            raise ValueError("contradicts itself")
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_streams_without_flows_end_when_simpy_says(seed: int) -> None:
    """The same tasks as SimPy processes: a stream runs its tasks one by one, each waits for the ends it needs."""
    draw = Random(seed)
    tasks = [
        Task(
            id=i, name=f"t{i}", kind="k", lane=draw.randrange(3), stream=draw.choice("ab"),
            busy_s=draw.choice((0.0, 0.5, draw.random())), latency_s=draw.choice((0.0, 0.25)),
            after=tuple(sorted(draw.sample(range(i), min(i, draw.randrange(3))))),
        )
        for i in range(40)
    ]  # fmt: skip
    env = simpy.Environment()
    ended = [env.event() for _ in tasks]
    end_s = [0.0] * len(tasks)

    def stream(mine: list[Task]) -> Generator[simpy.Event, None, None]:
        for task in mine:
            for other in task.after:
                yield ended[other]
            yield env.timeout(task.latency_s + task.busy_s)
            end_s[task.id] = env.now
            ended[task.id].succeed()

    for at in {(t.lane, t.stream) for t in tasks}:
        env.process(stream([t for t in tasks if (t.lane, t.stream) == at]))
    env.run()
    engine = Engine(tasks, {})
    engine.run()
    assert engine.end_s == pytest.approx(end_s)
