"""Honest scores of a placement: on counts it was not made from, with their sampling error, and in simulated steps.

A placement without replicas is an order of the experts, and with replicas an order of the slots: popularity given in
this order makes the simulator's neighbouring experts those that share a GPU, in loads, traffic and noise alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwprofiles.errors import UserError
from planner.placement.read import read_loads
from planner.placement.records import Floats, Instance, Placement, Range, gpu_time
from sim.routing import ExpertLoads, Routing
from sim.run import simulate
from sim.scenario import Scenario

RESAMPLES = 200
QUANTILES = (0.1, 0.9)


def load_gain(held_out: Instance, before: Placement, after: Placement, *, seed: int = 0) -> Range:
    """Gain in the load of the fullest GPU, mean over layers, on counts that neither placement was made from.

    1 - after / before; a gain that does not count (`Range.counts`) is none. The interval resamples the counts of every
    layer (multinomial, as many choices as were counted), the same for both.
    """
    rng = np.random.default_rng(seed)

    def gain(loads: Floats) -> float:
        seen = replace(held_out, loads=loads)
        first, second = (float(gpu_time(seen, p).max(axis=1).sum()) for p in (before, after))
        return 1.0 - second / first

    drawn = []
    for _ in range(RESAMPLES):
        again = [rng.multinomial(round(float(row.sum())), row / row.sum()) for row in held_out.loads]
        drawn.append(gain(np.array(again, dtype=np.float64)))
    low, high = np.quantile(drawn, QUANTILES).tolist()
    return Range.about(gain(held_out.loads), low, high)


def check_held_out(instance: Instance, held_out: Instance) -> None:
    """Raise UserError unless held-out counts are of the same layers, experts and GPUs."""
    _check_counts(instance, held_out.layers, held_out.num_experts)


def read_held_out(path: str | Path, instance: Instance) -> Instance:
    """The instance with the counts of another file of loads, without pairs and flows. Raises UserError as `read_loads`
    does, and unless layers and experts are the same."""
    loads, layers = read_loads(path)
    _check_counts(instance, layers, loads.shape[1])
    return replace(instance, loads=loads, transitions=None, coactivation=None, source=Path(path).name)


def _check_counts(instance: Instance, layers: tuple[int, ...], experts: int) -> None:
    if (layers, experts) == (instance.layers, instance.num_experts):
        return
    theirs, ours = _counted(layers, experts), _counted(instance.layers, instance.num_experts)
    raise UserError(
        f"held-out loads have {theirs}, the loads {ours}; give another part of the same trace", where="--held-out"
    )


def _counted(layers: tuple[int, ...], experts: int) -> str:
    return f"{experts} experts in {len(layers)} layers ({layers[0]} to {layers[-1]})"


def thinned(instance: Instance, *, seed: int = 0) -> tuple[Instance, Instance]:
    """Counts dealt to two halves by chance, one to plan on, one to score on; independent where counts are Poisson.

    Pairs and flows stay whole with the first half: the second one is scored by its loads.
    """
    rng = np.random.default_rng(seed)
    whole = np.round(instance.loads).astype(np.int64)
    first = rng.binomial(whole, 0.5)
    return (
        replace(instance, loads=first.astype(np.float64)),
        replace(instance, loads=(whole - first).astype(np.float64), transitions=None, coactivation=None),
    )


def halves(chosen: np.ndarray, num_experts: int) -> tuple[Floats, Floats]:
    """Counts [E] of the first and the second half of a trace chosen [token, k]: one to plan on, one to score on."""
    middle = len(chosen) // 2
    parts = (chosen[:middle], chosen[middle:])
    first, second = (np.bincount(p.ravel(), minlength=num_experts).astype(np.float64) for p in parts)
    return first, second


def routing_instance(
    routing: Routing, *, gpus: int, gpus_per_node: int, slots_per_gpu: int | None = None, tokens: float = 1e6
) -> Instance:
    """The placement question of a routing's first kind of layer: expected loads of `tokens` tokens, and transitions.

    slots_per_gpu: None gives the fewest. Raises UserError where no popularity is known.
    """
    if not routing.loads:
        raise UserError("the routing is balanced, so every placement is alike; give a popularity", where="placement")
    loads = routing.loads[0]
    flow = None
    if loads.transitions is not None and loads.transitions.size:
        flow = loads.chance[:-1, :, None] * loads.transitions * tokens
    pairs = None if loads.joint is None else loads.joint * tokens
    return Instance(
        loads=loads.chance * tokens, transitions=flow, coactivation=pairs, gpus=gpus, gpus_per_node=gpus_per_node,
        slots_per_gpu=-(-loads.num_experts // gpus) if slots_per_gpu is None else slots_per_gpu, source=loads.source,
    )  # fmt: skip


def placed_routing(routing: Routing, placement: Placement) -> Routing:
    """The same routing with its first kind of layer in the order of the slots of a placement.

    Groups of a router are then no neighbours any more and are left out of the noise. Memory of replicas is not counted.
    Raises UserError where layers or experts differ.
    """
    if not routing.loads:
        raise UserError("the routing is balanced, so every placement is alike; give a popularity", where="placement")
    sums = hashlib.sha256(placement.experts.astype("<i8").tobytes() + placement.share.astype("<f8").tobytes())
    return replace(
        routing, loads=(placed_loads(routing.loads[0], placement), *routing.loads[1:]),
        eps=(placement.experts.shape[1],),
        source=f"{routing.source}, placed ({sums.hexdigest()[:12]})",
    )  # fmt: skip


def placed_loads(loads: ExpertLoads, placement: Placement) -> ExpertLoads:
    """Popularity of slots instead of experts: a replica takes its share, and no token holds two of one expert."""
    layers = len(placement.experts)
    order, share = placement.experts.reshape(layers, -1), placement.share.reshape(layers, -1)
    placed = len(np.unique(order[order >= 0]))
    if layers != loads.num_layers or placed != loads.num_experts:
        raise UserError(
            f"the placement has {layers} layers of {placed} experts, the routing {loads.num_layers} of "
            f"{loads.num_experts}; place the same model",
            where="placement",
        )
    chance = np.take_along_axis(loads.chance, order, axis=1) * share
    joint = transitions = None
    if loads.joint is not None:
        joint = np.stack(
            [pairs[np.ix_(o, o)] * np.outer(s, s) for pairs, o, s in zip(loads.joint, order, share, strict=True)]
        )
        joint[order[:, :, None] == order[:, None, :]] = 0.0
        joint[:, np.arange(order.shape[1]), np.arange(order.shape[1])] = chance
    if loads.transitions is not None:
        transitions = np.zeros((layers - 1, order.shape[1], order.shape[1]))
        for i, table in enumerate(loads.transitions):
            transitions[i] = table[np.ix_(order[i], order[i + 1])] * share[i + 1]
    return replace(
        loads, chance=chance, joint=joint, transitions=transitions, num_groups=1, top_k_groups=1,
        placed=True, source=f"{loads.source}, placed",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Simulated step in seconds with neighbouring experts together and with the placement; interval of the latter."""

    before_s: float
    after_s: float
    after_low_s: float
    after_high_s: float

    @property
    def gain(self) -> float:
        """1 - after / before."""
        return 1.0 - self.after_s / self.before_s


def simulated_steps(scenario: Scenario, placement: Placement) -> Steps:
    """Event runs of a scenario before and after a placement on its `ep` ranks. Raises UserError on another size."""
    ep = scenario.plan.ep
    if placement.experts.shape[1] != ep:
        raise UserError(
            f"the placement is for {placement.experts.shape[1]} GPUs and the plan has ep = {ep}; place for as many",
            where="placement",
        )
    before = simulate(scenario)
    after = simulate(replace(scenario, routing=placed_routing(scenario.routing, placement)))
    step = after.step_s
    return Steps(before_s=before.step_s.value, after_s=step.value, after_low_s=step.low, after_high_s=step.high)
