"""Batch ramp-up: the batch grows over the first sequences of a training, and small batches are slow.

As Megatron-LM's --rampup-batch-size: from `start` by `increment` to the global batch, each batch size for an equal
share of the ramp's sequences. The time of the training is the sum over batch sizes of steps times the step at that
size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hwprofiles.errors import UserError
from sim.run import Simulation
from sim.scenario import Scenario
from sim.workload import RampUp


@dataclass(frozen=True, kw_only=True)
class RampLevel:
    """`steps` steps of `global_batch_seqs` sequences, `step_s` seconds each."""

    global_batch_seqs: int
    steps: int
    step_s: float


@dataclass(frozen=True, kw_only=True)
class RampTime:
    """A training with its ramp. levels: in order, the full batch last where it is trained at all.

    full_batch_s: the same sequences at the full batch all along.
    """

    levels: tuple[RampLevel, ...]
    samples: int
    full_batch_s: float

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return math.fsum(level.steps * level.step_s for level in self.levels)

    @property
    def steps(self) -> int:
        """Of all batch sizes."""
        return sum(level.steps for level in self.levels)


def batch_sizes(ramp: RampUp, global_batch_seqs: int) -> tuple[int, ...]:
    """Batch sizes below the full one, in order."""
    return tuple(range(ramp.start, global_batch_seqs, ramp.increment))


def ramp_problems(scenario: Scenario) -> list[str]:
    """Why a ramp cannot be run on a plan."""
    ramp, plan, full = scenario.workload.ramp_up, scenario.plan, scenario.workload.global_batch_seqs
    assert ramp is not None
    problems = []
    if not 0 < ramp.start <= full:
        problems.append(f"start {ramp.start} is not between 1 and the global batch {full}")
    elif ramp.increment < 1 or (full - ramp.start) % ramp.increment:
        problems.append(
            f"{full - ramp.start} sequences from start {ramp.start} to the global batch {full} are not a multiple of "
            f"the increment {ramp.increment}; change one of them"
        )
    unit = plan.micro_batch_seqs * plan.dp
    uneven = [size for size in (ramp.start, ramp.increment) if size % unit]
    if uneven:
        problems.append(
            f"batches of {ramp.start} and further {ramp.increment} are not multiples of micro-batch "
            f"{plan.micro_batch_seqs} x dp {plan.dp} = {unit}; use multiples of it or less data parallelism"
        )
    if ramp.train_samples and ramp.train_samples < ramp.samples:
        problems.append(f"{ramp.train_samples} training sequences end within the ramp of {ramp.samples}; train longer")
    return problems


def ramp_time(scenario: Scenario) -> RampTime:
    """Time of the workload's ramp and of the training behind it. Raises UserError where a batch cannot be laid out."""
    ramp, full = scenario.workload.ramp_up, scenario.workload.global_batch_seqs
    assert ramp is not None, "only a workload with a ramp has its time"
    problems = ramp_problems(scenario)
    if problems:
        raise UserError(problems, where="--rampup-batch-size")
    cost = Simulation(scenario).cost

    def step_s(batch: int) -> float:
        work = replace(scenario.workload, global_batch_seqs=batch)
        try:
            return Simulation(replace(scenario, workload=work), cost=cost).report(trace=False).step_s.value
        except UserError as error:
            raise UserError([f"batch {batch} of the ramp: {p}" for p in error.problems], where="plan") from None

    sizes = batch_sizes(ramp, full)
    levels: list[RampLevel] = []
    done = 0
    for number, size in enumerate(sizes, start=1):
        until = ramp.samples * number / len(sizes)
        steps = max(0, math.ceil((until - done) / size))
        done += steps * size
        levels.append(RampLevel(global_batch_seqs=size, steps=steps, step_s=step_s(size)))
    whole_s = step_s(full)
    rest = math.ceil(max(0, ramp.train_samples - done) / full)
    if rest:
        levels.append(RampLevel(global_batch_seqs=full, steps=rest, step_s=whole_s))
    samples = done + rest * full
    return RampTime(levels=tuple(levels), samples=samples, full_batch_s=samples / full * whole_s)
