"""Routing noise of a step, micro-batch by micro-batch: loads drawn by seed, and what they do to the pipeline.

Within a layer the ranks of an expert-parallel group wait for their hottest one, so the load of a virtual stage in a
micro-batch is the sum over its layers of the hottest rank's: its mean and variance are those of
`sim.routing.distribution.layer_moments`, and as a sum over layers it is drawn normal. Durations move with it on the
line from forced balance to the expected load. The `edp` groups run pipelines of their own and meet at the gradient
reduction: the slowest counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.build.order import place_of, placement
from sim.build.pipeline import pipeline_s
from sim.build.profile import ChunkProfile, StepProfile
from sim.build.stages import StageContent, in_model_order
from sim.routing import ExpertLoads, Routing
from sim.routing.curve import DRIFT_STEPS, steps_of
from sim.routing.distribution import layer_moments
from sim.routing.layers import kind_loads
from sim.routing.spec import moe_layers
from sim.scenario import Scenario

Floats = NDArray[np.float64]

LEAST = 1e-9  # load over forced balance below which a stage has no line to draw
GROUPS = 256  # groups drawn at most: the slowest of many more is little later


@dataclass(frozen=True, kw_only=True, eq=False)
class StageLoads:
    """Hottest rank over the mean, summed over the layers of each virtual stage.

    expected[stage, chunk]: what the profile is priced at. balanced: the same under forced balance. mean, variance
    [drift step, stage, chunk]: of one micro-batch.
    """

    expected: Floats
    balanced: Floats
    mean: Floats
    variance: Floats


def balanced_twin(scenario: Scenario) -> Scenario:
    """The same plan under forced balance; a capacity that holds the mean then drops nothing and pads nothing."""
    factor, software = scenario.software.capacity_factor, scenario.software
    if factor is not None and factor >= 1.0 and scenario.routing.loads:
        software = replace(software, capacity_factor=None)
    return replace(scenario, routing=Routing(), software=software)


def has_noise(scenario: Scenario) -> bool:
    """Whether routing differs from micro-batch to micro-batch: popularity is known and layers are routed."""
    return bool(scenario.routing.loads) and scenario.model.is_moe


def stage_loads(
    scenario: Scenario, contents: tuple[tuple[StageContent, ...], ...], *, most_steps: int = DRIFT_STEPS
) -> StageLoads:
    """Loads of the virtual stages of a plan, contents[stage][chunk].

    most_steps: steps of a drifting popularity that are wanted.
    """
    routing, plan, ctx = scenario.routing, scenario.plan, scenario.context()
    tokens, factor = float(ctx.group_tokens), scenario.software.capacity_factor
    layers = len(scenario.model.layers)
    # each layer: expected, balanced, then mean and variance per drift step
    known: dict[ExpertLoads, tuple[Floats, Floats]] = {}
    expected, balanced = np.zeros(layers), np.zeros(layers)
    count = min(most_steps, max(len(steps_of(loads, routing.seed)) for loads in routing.loads))
    mean, variance = np.zeros((count, layers)), np.zeros((count, layers))
    for moe, places in moe_layers(scenario.model).items():
        loads = routing.loads_of(moe.num_experts, moe.top_k)
        assert loads is not None
        by_layer, overall = kind_loads(routing, moe, plan.ep, tokens, factor)
        if loads not in known:
            found = [layer_moments(step, plan.ep, tokens, factor) for step in steps_of(loads, routing.seed)[:count]]
            known[loads] = np.array([m for m, _ in found]), np.array([v for _, v in found])
        each, spread = known[loads]
        own = loads.num_layers == len(places)
        expected[places] = by_layer if own else overall
        balanced[places] = 1.0 if factor is None else min(1.0, factor)
        # a popularity that does not drift is the same in all steps
        mean[:, places] = each if own else each.mean(axis=1, keepdims=True)
        variance[:, places] = spread if own else spread.mean(axis=1, keepdims=True)
    return StageLoads(
        expected=_per_stage(expected, contents, plan.schedule), mean=_per_stage(mean, contents, plan.schedule),
        balanced=_per_stage(balanced, contents, plan.schedule),
        variance=_per_stage(variance, contents, plan.schedule),
    )  # fmt: skip


def _per_stage(values: Floats, contents: tuple[tuple[StageContent, ...], ...], schedule: str) -> Floats:
    """values[..., layer] added up per virtual stage: [..., stage, chunk]."""
    pp, placed = len(contents), placement(schedule)
    order = in_model_order(contents, schedule)
    ends = np.cumsum([0, *(content.num_layers for content in order)])
    total = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    each = np.diff(total[..., ends], axis=-1)
    out: Floats = np.empty((*values.shape[:-1], pp, len(contents[0])))
    for slot in range(len(order)):
        stage, chunk = place_of(slot, pp=pp, placed=placed)
        out[..., stage, chunk] = each[..., slot]
    if placed == "both":
        out[..., 1] = out[..., ::-1, 0]
    return out


def drawn_stretch(
    profile: StepProfile, even: StepProfile, loads: StageLoads, *, draws: int, groups: int, seed: int
) -> Floats:
    """Durations over the expected ones [draw, group, stage, chunk, micro-batch, way]; see `StepProfile.stretch`.

    even: the profile under forced balance. Draws of a drifting popularity go through its steps in turn; all groups
    and micro-batches of a step share one.
    """
    rng = np.random.default_rng(seed)
    steps = np.arange(draws) % len(loads.mean)
    shape = (draws, min(groups, GROUPS), *loads.expected.shape, profile.num_micro_batches)
    mean, spread = loads.mean[steps][:, None, ..., None], np.sqrt(loads.variance[steps])[:, None, ..., None]
    load = mean + spread * rng.standard_normal(shape)
    away = (load - loads.expected[..., None])[..., None]
    out: Floats = np.maximum(1.0 + away * _slopes(profile, even, loads)[..., None, :], 0.0)
    return out


def _slopes(profile: StepProfile, even: StepProfile, loads: StageLoads) -> Floats:
    """Share of its duration that a chunk gains per unit of load [stage, chunk, way]."""
    over = loads.expected - loads.balanced
    out = np.zeros((*over.shape, 3))
    for stage, (hot, cold) in enumerate(zip(profile.chunks, even.chunks, strict=True)):
        for chunk, (a, b) in enumerate(zip(hot, cold, strict=True)):
            if abs(over[stage, chunk]) > LEAST:
                ratios = [x / y if y > 0.0 else 1.0 for x, y in zip(_seconds(b), _seconds(a), strict=True)]
                out[stage, chunk] = (1.0 - np.array(ratios)) / over[stage, chunk]
    return out


def _seconds(chunk: ChunkProfile) -> tuple[float, float, float]:
    alone = chunk.forward_s + chunk.backward_s
    return chunk.forward_s, chunk.backward_s, alone if chunk.paired_s is None else chunk.paired_s


def slowest_group(profile: StepProfile, stretch: Floats) -> StepProfile:
    """The profile of the group that ends last, of stretch[group, ...]: the others wait for it at the reduction."""
    return replace(profile, stretch=stretch[int(np.argmax(pipeline_s(profile, stretch)))])
