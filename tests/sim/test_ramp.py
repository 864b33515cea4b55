"""Batch ramp-up and drawn packs: sequences are conserved, and the sum of their steps is the time of the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from sim.families import load_model
from sim.lengths import read_lengths
from sim.packs import draw_met, drawn_packs, waiting_ranks
from sim.plan import Plan
from sim.ramp import ramp_time
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Lengths, RampUp, Workload

PLAN = Plan(dp=8, edp=8)


def scenario(plan: Plan = PLAN, model: str = "Llama3-8B", batch: int = 128, **work: Any) -> Scenario:
    return Scenario(
        model=load_model(model), cluster=catalogue.cluster("dgx-h100", gpus=plan.num_devices),
        software=catalogue.software("megatron-lm", device="H100"), plan=plan,
        workload=Workload(seq_tokens=8192, global_batch_seqs=batch, **work),
    )  # fmt: skip


def step_s(batch: int) -> float:
    return simulate(scenario(batch=batch), trace=False).step_s.value


def test_each_batch_size_lasts_an_equal_share_of_the_sequences() -> None:
    """32 to 128 by 32: three sizes below the full one, 9600 sequences each."""
    found = ramp_time(scenario(ramp_up=RampUp(start=32, increment=32, samples=28800, train_samples=100_000)))
    steps = [(x.global_batch_seqs, x.steps) for x in found.levels]
    assert steps == [(32, 300), (64, 150), (96, 100), (128, 557)]  # 71,200 sequences are left: 556.25 steps
    assert found.samples == 28800 + 557 * 128 == sum(b * n for b, n in steps)
    assert found.seconds == pytest.approx(sum(n * step_s(b) for b, n in steps))
    assert found.full_batch_s == pytest.approx(found.samples / 128 * step_s(128))


def test_a_ramp_costs_time_and_no_ramp_costs_none() -> None:
    ramp = RampUp(start=8, increment=40, samples=24000)
    found = ramp_time(scenario(ramp_up=ramp))
    assert found.seconds > found.full_batch_s
    none = ramp_time(scenario(ramp_up=replace(ramp, start=128, samples=0, train_samples=12800)))
    assert none.seconds == pytest.approx(none.full_batch_s) and none.steps == 100


def test_the_ramp_alone_is_the_head_of_the_training() -> None:
    ramp = RampUp(start=64, increment=64, samples=6400)
    alone, whole = (ramp_time(scenario(ramp_up=replace(ramp, train_samples=n))) for n in (0, 64000))
    assert whole.levels[: len(alone.levels)] == alone.levels
    assert [x.steps for x in alone.levels] == [100]


@pytest.mark.parametrize(
    ("ramp", "said"),
    [
        (RampUp(start=256, increment=8, samples=10), "start 256"), (RampUp(start=32, increment=40, samples=10), "96"),
        (RampUp(start=12, increment=4, samples=10), "multiples of micro-batch"),
        (RampUp(start=64, increment=64, samples=1000, train_samples=10), "end within"),
    ],
)  # fmt: skip
def test_a_ramp_that_cannot_be_run_says_why(ramp: RampUp, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ramp_time(scenario(ramp_up=ramp))


# ---------------------------------------------------------------- drawn packs


def test_documents_fill_every_sequence() -> None:
    """Equal documents that divide the sequence leave no remainder, others a last one that is cut."""
    assert np.all(draw_met(Lengths(tokens=(1024.0,), source=""), 8192, (4, 5), seed=1) == 1024)
    met = draw_met(Lengths(tokens=(3000.0,), source=""), 8192, (3,), seed=1)
    assert met == pytest.approx((2 * 3000**2 + 2192**2) / 8192)
    law = read_lengths("lognormal:400:1.0", 8192)
    drawn = draw_met(law, 8192, (400, 10), seed=3)
    assert np.all((drawn >= 1) & (drawn <= 8192))
    assert np.array_equal(drawn, draw_met(law, 8192, (400, 10), seed=3))


def test_even_packs_cost_nothing() -> None:
    packs = drawn_packs(scenario(lengths=Lengths(tokens=(1024.0,), source="")))
    assert packs.cost_share == pytest.approx(0.0, abs=1e-9)


def test_uneven_packs_cost_more_the_more_uneven_they_are() -> None:
    shares = [drawn_packs(scenario(lengths=read_lengths(f"lognormal:1500:{x}", 8192))).cost_share for x in (0.3, 1.5)]
    assert 0.0 < shares[0] < shares[1] < 0.5


def test_ranks_that_wait_in_every_micro_batch_wait_longer() -> None:
    """Expert parallelism makes ranks meet in each layer; without it they meet once a step."""
    law = read_lengths("lognormal:1500:1.5", 8192)
    moe = [Plan(dp=8, ep=ep, edp=8 // ep) for ep in (1, 8)]
    scenarios = [scenario(p, "Qwen3-30B-A3B", lengths=law) for p in moe]
    assert [waiting_ranks(s) for s in scenarios] == [1, 8]
    apart, together = (drawn_packs(s) for s in scenarios)
    assert together.cost_share > apart.cost_share
    assert waiting_ranks(scenario(replace(PLAN, zero_stage=3))) == 8
