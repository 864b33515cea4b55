"""Packs of documents that differ: attention of a micro-batch follows its own documents, and ranks wait for each other.

Every sequence of a step is filled with documents drawn by seed. Ranks that exchange tokens, or gather parameters layer
by layer (ZeRO 3), wait in every micro-batch for the one whose documents are longest; groups of them run pipelines of
their own and meet at the gradient reduction. Ranks of a context-parallel group share every document evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.build.pipeline import pipeline_s
from sim.build.profile import ChunkProfile, StepProfile
from sim.build.tasks import simulate_step
from sim.run import Simulation
from sim.scenario import Scenario
from sim.workload import Lengths

Floats = NDArray[np.float64]
KNOTS = 5  # mean lengths at which a step is priced; straight lines between them


@dataclass(frozen=True, kw_only=True)
class Packs:
    """One drawn step. met_p10, met_p90: quantiles over micro-batches of the mean length a token meets.

    even_step_s: all micro-batches alike; drawn_step_s: each with its own documents, of the group that ends last.
    """

    met_mean: float
    met_p10: float
    met_p90: float
    even_step_s: float
    drawn_step_s: float

    @property
    def cost_share(self) -> float:
        """Time lost to uneven packs (0.1 = 10 %)."""
        return self.drawn_step_s / self.even_step_s - 1.0


def drawn_packs(scenario: Scenario, *, seed: int = 0) -> Packs:
    """The step of `scenario`, whose workload has lengths, with documents drawn by `seed`."""
    plan, work = scenario.plan, scenario.workload
    assert work.lengths is not None, "only a workload with lengths has packs"
    m = plan.num_micro_batches(work.global_batch_seqs)
    met = draw_met(work.lengths, work.seq_tokens, (plan.dp, m, plan.micro_batch_seqs), seed=seed).mean(axis=2)
    waiting = met.reshape(-1, waiting_ranks(scenario), m).max(axis=1)
    knots = np.unique(np.linspace(float(waiting.min()), float(waiting.max()), KNOTS))
    profiles = [_at(scenario, knot) for knot in knots]
    even = _at(scenario, float(met.mean()))
    stretch = np.stack([_stretch(even, profiles, knots, row) for row in waiting])
    slowest = replace(even, stretch=stretch[int(np.argmax(pipeline_s(even, stretch)))])
    return Packs(
        met_mean=float(met.mean()), met_p10=float(np.quantile(met, 0.1)), met_p90=float(np.quantile(met, 0.9)),
        even_step_s=simulate_step(even).makespan_s, drawn_step_s=simulate_step(slowest).makespan_s,
    )  # fmt: skip


def waiting_ranks(scenario: Scenario) -> int:
    """Data-parallel ranks that wait for each other in every micro-batch."""
    plan = scenario.plan
    if plan.zero_stage == 3:
        return plan.dp
    return max(1, plan.ep * plan.etp // (plan.tp * plan.cp)) if scenario.model.is_moe else 1


def draw_met(lengths: Lengths, seq_tokens: int, shape: tuple[int, ...], *, seed: int) -> Floats:
    """Σ l² / Σ l of sequences filled with drawn documents, the last one of each cut at the sequence's end."""
    rng = np.random.default_rng(seed)
    tokens = np.array(lengths.tokens)
    count = int(np.prod(shape))
    left, squares = np.full(count, float(seq_tokens)), np.zeros(count)
    while np.any(left > 0.0):
        document = np.minimum(tokens[rng.integers(len(tokens), size=count)], left)
        left, squares = left - document, squares + document * document
    return (squares / seq_tokens).reshape(shape)


def _at(scenario: Scenario, met: float) -> StepProfile:
    """The step where every document has the length that the mean token meets."""
    lengths = Lengths(tokens=(float(met),), source="drawn")
    return Simulation(replace(scenario, workload=replace(scenario.workload, lengths=lengths))).profile()


def _stretch(even: StepProfile, profiles: list[StepProfile], knots: Floats, met: Floats) -> Floats:
    """`StepProfile.stretch` of one group: stretch[stage, chunk, micro-batch, way]."""
    out = np.ones((even.pp, even.vpp, len(met), 3))
    for stage, row in enumerate(even.chunks):
        for chunk, cost in enumerate(row):
            found = np.array([_seconds(p.chunks[stage][chunk]) for p in profiles])
            for way, alone_s in enumerate(_seconds(cost)):
                if alone_s > 0.0:
                    out[stage, chunk, :, way] = np.interp(met, knots, found[:, way]) / alone_s
    return out


def _seconds(chunk: ChunkProfile) -> tuple[float, float, float]:
    both_s = chunk.forward_s + chunk.backward_s
    return chunk.forward_s, chunk.backward_s, both_s if chunk.paired_s is None else chunk.paired_s
