"""Pipeline schedules: every order is sound, never deadlocks, and holds what the closed form says."""

from __future__ import annotations

import pytest

from hwprofiles.errors import UserError
from sim.build.order import Step
from sim.build.pipeline import pipeline_s
from sim.build.profile import ChunkProfile, StageTail, StepProfile
from sim.build.schedule import CLASSIC_SCHEDULES as SCHEDULES
from sim.build.schedule import check_order, check_schedule, group_size, in_flight, lane_order
from sim.build.tasks import simulate_step

LAYOUTS = [
    (schedule, pp, vpp, m)
    for schedule in SCHEDULES
    for pp in (1, 2, 3, 4, 7)
    for vpp in ((1, 2, 3) if schedule == "interleaved" else (1,))
    for m in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 21)
]


def held_at_peak(order: tuple[Step, ...]) -> int:
    held = peak = 0
    for step in order:
        held += 1 if step.kind == "F" else -1
        peak = max(peak, held)
    return peak


def play(schedule: str, pp: int, vpp: int, m: int) -> int:
    """Steps that can be played, brute force: any stage whose next step has its input plays it."""
    orders = [lane_order(schedule, pp=pp, vpp=vpp, stage=s, num_micro_batches=m) for s in range(pp)]
    at = [0] * pp
    done: set[tuple[str, int, int]] = set()  # (kind, micro-batch, model-order virtual stage)
    last = pp * vpp - 1
    moved = True
    while moved:
        moved = False
        for stage in range(pp):
            while at[stage] < len(orders[stage]):
                step = orders[stage][at[stage]]
                place = step.chunk * pp + stage
                if step.kind == "F":
                    ready = place == 0 or ("F", step.micro_batch, place - 1) in done
                else:
                    ready = ("F", step.micro_batch, place) in done and (
                        place == last or ("B", step.micro_batch, place + 1) in done
                    )
                if not ready:
                    break
                done.add((step.kind, step.micro_batch, place))
                at[stage] += 1
                moved = True
    return sum(at)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_orders_are_sound_hold_the_closed_form_and_never_deadlock(schedule: str) -> None:
    layouts = [layout for layout in LAYOUTS if layout[0] == schedule]
    for _, pp, vpp, m in layouts:
        for stage in range(pp):
            order = lane_order(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m)
            assert check_order(order, vpp=vpp, num_micro_batches=m) == []
            held = in_flight(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m)
            assert held == held_at_peak(order), (pp, vpp, m, stage)
        assert play(schedule, pp, vpp, m) == 2 * m * vpp * pp, (pp, vpp, m)


@pytest.mark.parametrize(("pp", "vpp", "m"), [(4, 1, 2), (4, 1, 16), (4, 2, 16), (8, 3, 24)])
def test_in_flight_closed_forms(pp: int, vpp: int, m: int) -> None:
    for stage in range(pp):
        got = in_flight("interleaved", pp=pp, vpp=vpp, stage=stage, num_micro_batches=m)
        if vpp > 1:
            assert got == min(m * vpp, 2 * (pp - stage - 1) + (vpp - 1) * pp + 1)
        else:
            assert got == min(m, pp - stage)
            assert in_flight("1f1b", pp=pp, vpp=1, stage=stage, num_micro_batches=m) == got


def test_interleaved_order_is_megatrons() -> None:
    # Narayanan et al. 2021, figure 4 (bottom): 4 stages, 2 virtual stages, 8 micro-batches.
    order = lane_order("interleaved", pp=4, vpp=2, stage=0, num_micro_batches=8)
    text = "".join(f"{step.kind}{step.micro_batch + 1}{'ab'[step.chunk]} " for step in order)
    assert text.startswith("F1a F2a F3a F4a F1b F2b F3b F4b F5a F6a F7a B1b F8a B2b F5b B3b F6b B4b F7b B1a F8b B2a")
    last = lane_order("interleaved", pp=4, vpp=2, stage=3, num_micro_batches=8)
    text = "".join(f"{step.kind}{step.micro_batch + 1}{'ab'[step.chunk]} " for step in last)
    assert text.startswith("F1a F2a F3a F4a F1b B1b F2b B2b F3b B3b F4b B4b F5a B1a")


@pytest.mark.parametrize(
    ("pp", "m", "size"), [(4, 8, 4), (4, 6, 6), (4, 10, 5), (4, 11, 6), (4, 3, 3), (16, 120, 20), (1, 9, 1)]
)
def test_group_size_leaves_no_remainder_below_the_pipeline_depth(pp: int, m: int, size: int) -> None:
    assert group_size(pp, m) == size


def test_pairs_are_of_different_micro_batches_and_two_short_of_the_steady_phase() -> None:
    for pp, vpp, m in [(1, 1, 1), (1, 1, 5), (4, 1, 8), (4, 2, 8)]:
        for stage in range(pp):
            schedule = "interleaved" if vpp > 1 else "1f1b"
            order = lane_order(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m)
            forwards = [s for s in order if s.paired and s.kind == "F"]
            backwards = [s for s in order if s.paired and s.kind == "B"]
            warmup = next(i for i, s in enumerate(order) if s.kind == "B") - 1
            assert len(forwards) == len(backwards) == m * vpp - warmup - 1
            # Run as Megatron-Core does, with one forward more ahead, each forward meets the backward before it.
            for f, b in zip(forwards, backwards, strict=True):
                assert (f.micro_batch, f.chunk) != (b.micro_batch, b.chunk)


def test_bad_layouts_name_every_broken_rule() -> None:
    with pytest.raises(UserError) as error:
        lane_order("zigzag", pp=0, vpp=1, stage=0, num_micro_batches=0)
    assert len(error.value.problems) == 3
    with pytest.raises(UserError, match="interleaved"):
        lane_order("1f1b", pp=2, vpp=2, stage=0, num_micro_batches=4)


@pytest.mark.parametrize(("pp", "vpp", "m", "group"), [(4, 3, 32, 8), (4, 2, 24, 6), (8, 2, 48, 16), (4, 2, 404, 10)])
def test_wider_groups_hold_more_and_take_as_long(pp: int, vpp: int, m: int, group: int) -> None:
    chunk = ChunkProfile(forward_s=1.0, backward_s=2.0, saved_bytes=1.0)
    profile = StepProfile(
        pp=pp, vpp=vpp, schedule="interleaved", num_micro_batches=m, chunks=((chunk,) * vpp,) * pp,
        tails=(StageTail(),) * pp, links={"out": 1.0}, group=group,
    )  # fmt: skip
    run = simulate_step(profile)
    assert run.makespan_s == pytest.approx(3.0 * (m * vpp + pp - 1)) == pipeline_s(profile)
    assert simulate_step(profile, steady=False).makespan_s == pytest.approx(run.makespan_s)
    held = [sum(tags.values()) for tags in run.peak_bytes]
    assert held == [2 * (pp - stage - 1) + (vpp - 1) * group + 1 for stage in range(pp)]


@pytest.mark.parametrize(
    ("schedule", "group"), [("interleaved", 3), ("interleaved", 30), ("1f1b", 4), ("interleaved", 22)]
)
def test_groups_that_would_stall_are_refused(schedule: str, group: int) -> None:
    with pytest.raises(UserError, match="stall"):
        check_schedule(schedule, pp=4, vpp=1 if schedule == "1f1b" else 2, num_micro_batches=24, group=group)
