"""Schedules that split the backward or run micro-batches both ways, against the closed forms of their papers.

F, B, W: forward, whole backward and weight-gradient time of a stage; b = B - W the input gradient; pp stages, m
micro-batches. Qi et al. 2023 write T_B for our b; DeepSeek-AI 2024 (table 2) write B and W as here.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from sim.account import carried_s
from sim.build.order import (
    DUAL,
    SPLIT_SCHEDULES,
    V_SHAPED,
    Step,
    boundary_of,
    passes_of,
    place_of,
    placement,
    slot_of,
    source_of,
    target_of,
)
from sim.build.pipeline import pipeline_s
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.schedule import check_order, check_schedule, in_flight, lane_order
from sim.build.split import steady_part
from sim.build.tasks import simulate_step
from sim.report import Trace

TWO_CHUNKS = (*V_SHAPED, "dualpipe")
LAYOUTS = [(2, 8), (4, 8), (4, 13), (6, 24), (8, 40)]


def chunks_of(schedule: str) -> int:
    return 2 if schedule in TWO_CHUNKS else 1


def equal_stages(
    schedule: str, pp: int, m: int, *, f: float = 1.0, b: float = 1.0, w: float = 1.0, pair: float | None = None
) -> StepProfile:
    """Equal stages of F = f, b = b, W = w; chunks of a V are half of a stage."""
    vpp = 2 if schedule == "interleaved" else chunks_of(schedule)
    part = 0.5 if schedule in V_SHAPED or schedule == "interleaved" else 1.0
    chunk = ChunkProfile(
        forward_s=part * f, backward_s=part * (b + w), wgrad_s=part * w, saved_bytes=1.0, deferred_bytes=1.0,
        paired_s=None if pair is None else part * pair,
    )  # fmt: skip
    return StepProfile(
        pp=pp, vpp=vpp, schedule=schedule, num_micro_batches=m, chunks=((chunk,) * vpp,) * pp,
        tails=(StageTail(),) * pp, links={"out": 100.0},
    )  # fmt: skip


def bubble_s(profile: StepProfile, run: Trace, *, post_validation: bool = False) -> float:
    """Idle time of the busiest stage."""
    step_s = run.makespan_s - carried_s(replace(profile, post_validation=post_validation), run)
    return step_s - max(run.lane_busy_s)


def layouts_of(schedule: str) -> list[tuple[int, int]]:
    return [(pp, m) for pp, m in LAYOUTS if schedule != "dualpipe" or m % 2 == 0 if schedule not in DUAL or m >= 2 * pp]


# -- orders ------------------------------------------------------------------------------------------------------------


def play(schedule: str, pp: int, m: int) -> int:
    """Steps that can be played, brute force over virtual stages in model order."""
    vpp, placed = chunks_of(schedule), placement(schedule)
    orders = [lane_order(schedule, pp=pp, vpp=vpp, stage=s, num_micro_batches=m) for s in range(pp)]
    last = pp * (2 if placed == "v" else 1) - 1
    at, done, moved = [0] * pp, set(), True

    def ready(stage: int, step: Step) -> bool:
        kind, mb, chunk = step.kind, step.micro_batch, step.chunk
        slot = slot_of(stage, chunk, pp=pp, placed=placed)
        if kind == "W":
            return ("B", mb, slot) in done
        if kind == "F":
            return slot == 0 or ("F", mb, slot - 1) in done
        return ("F", mb, slot) in done and (slot == last or ("B", mb, slot + 1) in done)

    while moved:
        moved = False
        for stage, order in enumerate(orders):
            while at[stage] < len(order):
                steps = order[at[stage] : at[stage] + 1 + order[at[stage]].joint]
                if not all(ready(stage, step) for step in steps):
                    break
                for step in steps:
                    done.add((step.kind, step.micro_batch, slot_of(stage, step.chunk, pp=pp, placed=placed)))
                at[stage] += len(steps)
                moved = True
    return sum(at)


@settings(max_examples=60, deadline=None)
@given(schedule=st.sampled_from(SPLIT_SCHEDULES), half=st.integers(1, 5), odd=st.booleans(), extra=st.integers(0, 23))
def test_every_order_is_sound_and_can_be_played(schedule: str, half: int, odd: bool, extra: int) -> None:
    pp = 2 * half + (odd and schedule != "dualpipe")
    m = (2 * pp if schedule in DUAL else 1) + (2 * extra if schedule == "dualpipe" else extra)
    vpp = chunks_of(schedule)
    steps = 0
    for stage in range(pp):
        order = lane_order(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m)
        assert check_order(order, schedule=schedule, vpp=vpp, num_micro_batches=m) == []
        assert order == lane_order(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m)
        for step, after in pairwise(order):
            if step.joint:  # of the other way, so never of the same micro-batch
                assert (after.kind, after.paired) == ("B", True) and after.chunk != step.chunk
                assert after.micro_batch != step.micro_batch
        steps += len(order)
    assert play(schedule, pp, m) == steps


@pytest.mark.parametrize("schedule", SPLIT_SCHEDULES)
def test_the_part_said_to_repeat_repeats(schedule: str) -> None:
    for pp, m in layouts_of(schedule):
        m = 4 * m
        for stage in range(pp):
            order = lane_order(schedule, pp=pp, vpp=chunks_of(schedule), stage=stage, num_micro_batches=m)
            part = steady_part(schedule, pp=pp, stage=stage, num_micro_batches=m)
            assert part.end - part.start > m // 8 // (m // passes_of(schedule, m))
            slots = [order[part.first + i * part.length :][: part.length] for i in range(part.end - part.start)]
            for i, slot in enumerate(slots):
                moved = [step._replace(micro_batch=step.micro_batch + i) for step in slots[0]]
                assert list(slot) == moved


def test_where_a_step_gets_its_input_and_where_its_output_goes() -> None:
    for placed, vpp in (("loop", 1), ("loop", 3), ("v", 2), ("both", 2)):
        for stage in range(4):
            for chunk in range(vpp):
                for kind in "FB":
                    target = target_of(kind, stage, chunk, pp=4, vpp=vpp, placed=placed)
                    if target is not None:
                        assert source_of(kind, *target, pp=4, vpp=vpp, placed=placed) == (stage, chunk)
                        step = 1 if kind == "F" else -1
                        here, there = (slot_of(*at, pp=4, placed=placed) for at in ((stage, chunk), target))
                        assert there - here == step
                        assert boundary_of(kind, stage, chunk, placed=placed) % 4 in (stage, (stage - 1) % 4)
                assert source_of("W", stage, chunk, pp=4, vpp=vpp, placed=placed) is None
    assert [place_of(v, pp=3, placed="v") for v in range(6)] == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1)]


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SPLIT_SCHEDULES)
def test_activations_held_are_the_closed_form_on_every_stage(schedule: str) -> None:
    for pp, m in layouts_of(schedule):
        m = max(m, 2 * pp)
        run = simulate_step(equal_stages(schedule, pp, m))
        held = [sum(tags.values()) for tags in run.peak_bytes]
        want = in_flight(schedule, pp=pp, vpp=chunks_of(schedule), stage=0, num_micro_batches=m)
        assert held == [want] * pp, (pp, m)
    assert in_flight("zb-h1", pp=8, vpp=1, stage=3, num_micro_batches=64) == 8
    assert in_flight("zb-h2", pp=8, vpp=1, stage=3, num_micro_batches=64) == 15
    assert in_flight("dualpipe", pp=8, vpp=2, stage=3, num_micro_batches=64) == 9


@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (1.0, 1.5, 0.5), (1.2, 1.0, 0.9)])
@pytest.mark.parametrize(("pp", "m"), LAYOUTS)
def test_bubbles_of_zero_bubble_schedules(pp: int, m: int, times: tuple[float, float, float]) -> None:
    f, b, w = times  # w <= f, w <= b: else weight gradients are too long for the gaps they fill
    m = max(m, 2 * pp)
    kinds = {"1f1b": f + b + w, "zb-h1": f + b - w, "zb-h2": f + b - 2 * w, "zb-v": b - w}
    for schedule, each in kinds.items():
        profile = equal_stages(schedule, pp, m, f=f, b=b, w=w)
        run = simulate_step(profile)
        # step after step, without a stop in between
        free = schedule in ("zb-h2", "zb-v")
        got = bubble_s(profile, run, post_validation=free)
        if schedule != "zb-v" or f <= b:
            assert got == pytest.approx((pp - 1) * each, abs=1e-9), schedule
        assert max(run.lane_busy_s) == pytest.approx(m * (f + b + w))


@pytest.mark.parametrize(("pp", "m"), [(2, 8), (4, 8), (4, 20), (8, 16), (8, 40)])
def test_bubbles_of_two_way_schedules(pp: int, m: int) -> None:
    # F = b = W, so F&B + B - 3W = 2 F with nothing hidden; DualPipeV has 2 pp half stages
    run = simulate_step(profile := equal_stages("dualpipe", pp, m))
    assert bubble_s(profile, run) == pytest.approx((pp / 2 - 1) * 2.0)
    run = simulate_step(profile := equal_stages("dualpipe-v", pp, m))
    assert bubble_s(profile, run) == pytest.approx((pp - 1) * 2.0 / 2)


@pytest.mark.parametrize("times", [(1.0, 1.2, 0.8), (1.0, 1.5, 0.5), (1.0, 1.0, 0.9)])
@pytest.mark.parametrize("hidden", [0.0, 0.15, 0.3])
def test_two_way_bubbles_stay_within_the_papers(hidden: float, times: tuple[float, float, float]) -> None:
    f, b, w = times
    pair = (1.0 - hidden) * (f + b + w)
    for pp, m in [(4, 20), (8, 40)]:
        for schedule, depth in (("dualpipe", pp / 2 - 1), ("dualpipe-v", (pp - 1) / 2)):
            run = simulate_step(profile := equal_stages(schedule, pp, m, f=f, b=b, w=w, pair=pair))
            assert 0.0 < bubble_s(profile, run) <= depth * (pair + (b + w) - 3.0 * w) + 1e-9


def test_who_beats_whom_and_by_how_much() -> None:
    pp, m = 8, 32
    step = {s: simulate_step(equal_stages(s, pp, m)).makespan_s for s in ("1f1b", "interleaved", *SPLIT_SCHEDULES)}
    assert step["1f1b"] - step["zb-h1"] == pytest.approx((pp - 1) * 2.0)  # two W of pp - 1 stages
    assert step["1f1b"] - step["dualpipe"] == pytest.approx((pp - 1) * 3.0 - (pp - 2))
    assert step["zb-h1"] - step["dualpipe"] == pytest.approx(1.0)
    # stages wait for each other at the end: the second depth of warm-up gives nothing then
    assert step["zb-h2"] == pytest.approx(step["zb-h1"])
    assert step["zb-v"] == pytest.approx(3.0 * m + (pp - 1) / 2)
    hidden = {s: simulate_step(equal_stages(s, pp, m, pair=2.0)).makespan_s for s in ("1f1b", "dualpipe", "zb-h1")}
    assert hidden["zb-h1"] == step["zb-h1"]  # it pairs nothing
    assert hidden["dualpipe"] < hidden["1f1b"] < step["1f1b"]


def test_post_validation_takes_the_fill_off_the_steps_that_follow() -> None:
    pp, m = 6, 30
    for schedule in ("1f1b", "zb-h1"):  # their first stage ends last as it began first
        profile = equal_stages(schedule, pp, m)
        assert carried_s(replace(profile, post_validation=True), simulate_step(profile)) == pytest.approx(0.0)
    profile = equal_stages("zb-h2", pp, m)
    run = simulate_step(profile)
    assert carried_s(profile, run) == 0.0
    assert carried_s(replace(profile, post_validation=True), run) == pytest.approx(pp - 1)
    gathers = replace(profile, post_validation=True, tails=(StageTail(param_flows=(("out", 200.0),)),) * pp)
    # each stage gathers for 2 s before its first forward
    assert carried_s(gathers, simulate_step(gathers)) == pytest.approx(pp - 1)
    assert pipeline_s(replace(profile, post_validation=True)) == pytest.approx(3.0 * m)


# -- the event run -----------------------------------------------------------------------------------------------------


def uneven(schedule: str, pp: int, m: int, seed: int, *, overlap: bool) -> StepProfile:
    """Stages, sends and tails that all differ."""
    vpp = chunks_of(schedule)

    def chunk(i: int) -> ChunkProfile:
        wave = 1.0 + 0.3 * ((seed + 7 * i) % 5) / 5
        return ChunkProfile(
            forward_s=wave, backward_s=2.1 * wave, wgrad_s=0.9 * wave, paired_s=2.6 * wave, saved_bytes=3.0 + i % 2,
            deferred_bytes=2.0 + seed % 3, working_bytes=0.5, forward_flows=(("out", 9.0 * wave),),
            backward_flows=(("out", 15.0 * wave),),
        )  # fmt: skip

    chunks = [tuple(chunk(vpp * s + c) for c in range(vpp)) for s in range(pp)]
    if schedule == "dualpipe":
        chunks = [(row[0], chunks[pp - 1 - s][0]) for s, row in enumerate(chunks)]
    tail = StageTail(
        grad_flows=(("out", 90.0),), param_flows=(("out", 60.0),), buckets=3, optimizer_s=0.4, fixed_s=0.1,
        overlap_grad=bool(seed % 2), overlap_param=bool(seed % 2),
    )  # fmt: skip
    return StepProfile(
        pp=pp, vpp=vpp, schedule=schedule, num_micro_batches=m, chunks=tuple(chunks), tails=(tail,) * pp,
        links={"out": 50.0}, p2p=(SendProfile(flows=(("out", 4.0),), latency_s=0.02),) * pp, p2p_overlap=overlap,
    )  # fmt: skip


@pytest.mark.parametrize("schedule", SPLIT_SCHEDULES)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("contention", [True, False])
def test_the_jump_over_whole_periods_changes_nothing(schedule: str, overlap: bool, contention: bool) -> None:
    jumps = 0
    for seed, (pp, m) in enumerate([(2, 90), (4, 96)]):
        profile = uneven(schedule, pp, m, seed, overlap=overlap)
        if not contention:
            profile = without_flows(profile)
        jumped, full = simulate_step(profile), simulate_step(profile, steady=False)
        assert jumped.makespan_s == pytest.approx(full.makespan_s, rel=1e-6)
        assert jumped.lane_busy_s == pytest.approx(full.lane_busy_s, rel=1e-6)
        assert jumped.link_bytes == pytest.approx(full.link_bytes)
        assert [sum(t.values()) for t in jumped.peak_bytes] == pytest.approx([sum(t.values()) for t in full.peak_bytes])
        free = replace(profile, post_validation=True)
        assert carried_s(free, jumped) == pytest.approx(carried_s(free, full), abs=1e-6 * full.makespan_s)
        jumps += jumped.periods_skipped > 0
    assert jumps == 2


def without_flows(profile: StepProfile) -> StepProfile:
    bare = (tuple(replace(c, forward_flows=(), backward_flows=()) for c in row) for row in profile.chunks)
    return replace(profile, chunks=tuple(bare))


@pytest.mark.parametrize("schedule", SPLIT_SCHEDULES)
def test_a_step_does_all_work_once_and_gives_all_memory_back(schedule: str) -> None:
    pp, m = 4, 16
    profile = uneven(schedule, pp, m, 1, overlap=True)
    run = simulate_step(profile, steady=False)
    again = simulate_step(profile, steady=False)
    assert run.spans == again.spans
    passes = {(s.lane, s.kind, s.micro_batch, s.chunk) for s in run.spans if s.micro_batch >= 0 and s.kind != "p2p"}
    whole = {key[:1] + key[2:] for key in passes if key[1] == "backward"}
    assert whole == {key[:1] + key[2:] for key in passes if key[1] == "forward"}
    assert len(whole) == pp * profile.vpp * profile.passes
    assert {key[:1] + key[2:] for key in passes if key[1] == "wgrad"} <= whole
    for memory in run.memory:
        assert memory[-1][1] == pytest.approx(0.0)
    # no contention: the pipeline without events takes as long
    alone = replace(without_flows(profile), p2p=(), tails=(StageTail(),) * pp)
    assert pipeline_s(alone) == pytest.approx(simulate_step(alone).makespan_s)


def test_what_cannot_be_laid_out_is_refused_with_every_reason() -> None:
    with pytest.raises(UserError) as error:
        check_schedule("dualpipe", pp=3, vpp=1, num_micro_batches=5)
    assert len(error.value.problems) == 3
    for schedule in SPLIT_SCHEDULES:
        with pytest.raises(UserError, match="single stage"):
            check_schedule(schedule, pp=1, vpp=chunks_of(schedule), num_micro_batches=8)
    with pytest.raises(UserError, match="no virtual stages"):
        check_schedule("zb-h1", pp=4, vpp=2, num_micro_batches=8)
    with pytest.raises(UserError, match="two chunks"):
        check_schedule("zb-v", pp=4, vpp=3, num_micro_batches=8)
