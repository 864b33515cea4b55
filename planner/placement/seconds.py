"""A chain's placement in seconds: within every node, experts change GPU until layers take the least time.

With the nodes of all experts fixed, what a GPU computes, receives from and sends to other nodes is a sum over its
experts. A layer takes w_c max load + w_x (max of what arrives and was sent for it) + w_x (the same on the way out), the
worst-link objective of an exchange, with the weights of `LayerClock`. Maxima are descended as norms of high order, so
that an exchange of experts also counts where another GPU is as full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwprofiles.forms.hits import expected_hits
from planner.placement.chain_bound import kept_by_pair
from planner.placement.clock import LayerClock, Weights
from planner.placement.records import Floats, Instance, Ints, Placement

ORDER = 32  # of the norms; a power of two, so that powers are squares and roots square roots
ROUNDS = 2
SETTLED = 2  # chains that are settled, of several
MOST_STEPS = 200  # of a layer in a round
LEAST = 1e-7  # of a layer's time


def settled(clock: LayerClock, placement: Placement) -> Placement:
    """The placement after exchanges inside nodes, or itself where they gain nothing. No replicas, equal speeds."""
    instance = clock.instance
    if instance.transitions is None or placement.has_replicas or instance.gpus_per_node == 1:
        return placement
    state = _State(clock, placement.experts.copy())
    for round_ in range(ROUNDS):
        order = range(instance.num_layers)
        for i in order if round_ % 2 == 0 else reversed(order):
            state.descend(i)
    found = Placement.even(state.experts, instance.num_experts)
    return found if clock.layer_s(found).sum() < clock.layer_s(placement).sum() else placement


def fastest(clock: LayerClock, candidates: Sequence[Placement]) -> Placement:
    """The placement with the least seconds: of each layer where layers do not meet (dispatch), else of all of them.

    The fastest chains are settled inside their nodes first. Of equals the first.
    """
    if clock.traffic == "chain" and clock.instance.transitions is not None:
        timed = [(float(clock.layer_s(each).sum()), k, each) for k, each in enumerate(candidates)]
        if len(set(clock.instance.speed)) <= 1:
            rising = [each for _, _, each in sorted(timed, key=lambda item: item[:2])[:SETTLED]]
            done = [settled(clock, each) for each in rising]
            timed += [(float(clock.layer_s(each).sum()), k - SETTLED, each) for k, each in enumerate(done)]
        return min(timed, key=lambda item: item[:2])[2]
    best = np.stack([clock.layer_s(each) for each in candidates]).argmin(axis=0)
    return Placement(
        experts=np.stack([candidates[k].experts[i] for i, k in enumerate(best)]),
        share=np.stack([candidates[k].share[i] for i, k in enumerate(best)]),
    )


class _State:
    """experts [L, G, S] and value [L, E, 3]: load, rows that arrive from other nodes, rows sent to them, over their
    means."""

    def __init__(self, clock: LayerClock, experts: Ints) -> None:
        instance = clock.instance
        assert instance.transitions is not None
        self.experts, self.gpus = experts, instance.gpus
        layers, per = instance.num_layers, instance.gpus_per_node
        part = np.empty((layers, instance.num_experts), dtype=np.int64)
        at = np.repeat(np.arange(instance.gpus) // per, instance.slots_per_gpu)
        for i in range(layers):
            part[i, experts[i].ravel()] = at
        self.value = np.zeros((layers, instance.num_experts, 3))
        self.value[:, :, 0] = instance.loads
        for i, flow in enumerate(instance.transitions):
            across = flow * (part[i][:, None] != part[i + 1][None, :])
            self.value[i, :, 2] = across.sum(axis=1)
            self.value[i + 1, :, 1] = across.sum(axis=0)
        mean = self.value.sum(axis=1, keepdims=True) / self.gpus
        self.value /= np.where(mean > 0.0, mean, 1.0)
        scale = np.array([clock.rows / instance.gpus, 0.0, 0.0]) * np.ones((layers, 1))
        total = instance.transitions.sum(axis=(1, 2))
        scale[1:, 1] = scale[:-1, 2] = mean[:-1, 0, 2] * clock.rows / np.where(total > 0.0, total, 1.0)
        w: Weights = clock.weights
        self.weight = scale * np.array([w.compute_s, w.cross_node_s, w.cross_node_s])
        self.held = np.stack([self.value[i][experts[i]].sum(axis=1) for i in range(layers)])  # [L, G, 3]
        first, second = np.triu_indices(per, 1)
        starts = np.arange(0, self.gpus, per)[:, None]
        self.one, self.other = (starts + first).ravel(), (starts + second).ravel()
        every = np.arange(self.gpus)[:, None]
        self.touching = (self.one == every) | (self.other == every)  # [GPU, pair]

    def descend(self, i: int) -> None:
        """Best exchange inside a node, until none helps."""
        slots = self.experts.shape[2]
        beside = self._beside(i)
        held, value = self.held[i], self.value[i]
        was, before, most = held.copy(), self.experts[i].copy(), self._longest(i)
        powers, change = _powered(held), np.empty((len(self.one), slots, slots, 3))
        stale = np.arange(len(self.one))  # pairs whose exchanges have to be weighed anew
        for _ in range(MOST_STEPS):
            one, other = self.one[stale], self.other[stale]
            mine, theirs = value[self.experts[i, one]], value[self.experts[i, other]]
            more = theirs[:, None, :, :] - mine[:, :, None, :]  # [pair, slot, slot, 3]: what `one` takes on
            grown = _powered(np.maximum(held[one][:, None, None] + more, 0.0))
            shrunk = _powered(np.maximum(held[other][:, None, None] - more, 0.0))
            change[stale] = grown + shrunk - (powers[one] + powers[other])[:, None, None]
            sums = powers.sum(axis=0) + beside
            now = float(_root(sums) @ self.weight[i])
            # roots are concave: their slope promises no more than the exchange gains
            slope = self.weight[i] * _root(sums) / np.where(sums > 0.0, sums, 1.0) / ORDER
            gained = (change.reshape(-1, 3) @ slope).reshape(change.shape[:3])
            if not gained.min() < -now * LEAST:
                gained = _root(np.maximum(sums + change, 0.0)) @ self.weight[i] - now
            pair, a, b = (int(x) for x in np.unravel_index(int(gained.argmin()), gained.shape))
            if not gained[pair, a, b] < -now * LEAST:
                break
            g, h = int(self.one[pair]), int(self.other[pair])
            row = self.experts[i]
            took = value[row[h, b]] - value[row[g, a]]
            held[g] += took
            held[h] -= took
            row[g, a], row[h, b] = row[h, b], row[g, a]
            powers[[g, h]] = _powered(held[[g, h]])
            stale = np.flatnonzero(self.touching[g] | self.touching[h])
        if self._longest(i) > most:  # a norm is no maximum
            held[:], self.experts[i] = was, before

    def _longest(self, i: int) -> float:
        """Seconds of the fullest GPU and the slowest exchanges of a layer, as the weights have them."""
        top = self.held[i].max(axis=0)
        if i > 0:
            top[1] = max(top[1], self.held[i - 1, :, 2].max())
        if i + 1 < len(self.held):
            top[2] = max(top[2], self.held[i + 1, :, 1].max())
        return float(self.weight[i] @ top)

    def _beside(self, i: int) -> Floats:
        """What the other side of the two exchanges adds to the norms: sent before, received after."""
        out = np.zeros(3)
        if i > 0:
            out[1] = _powered(self.held[i - 1, :, 2]).sum()
        if i + 1 < len(self.held):
            out[2] = _powered(self.held[i + 1, :, 1]).sum()
        return out


def _powered(x: Floats) -> Floats:
    """x to the power of ORDER."""
    for _ in range(ORDER.bit_length() - 1):
        x = x * x
    return x


def _root(x: Floats) -> Floats:
    """The ORDER-th root of x."""
    for _ in range(ORDER.bit_length() - 1):
        x = np.sqrt(x)
    return x


@dataclass(frozen=True, kw_only=True)
class SecondsBound:
    """Least seconds of all layers, and of which kind the bound is."""

    seconds: float
    kind: str


def seconds_bound(clock: LayerClock, least_load: Floats, kept: Floats | None = None) -> SecondsBound:
    """No placement takes less: the fullest GPU takes its layer's bound, the mean GPU the least flow that must cross.

    least_load [L]: bounds of the fullest GPU in the unit of the loads; kept [L - 1]: flow between two layers that no
    placement keeps on nodes, as `kept_by_pair` has it (None: worked out here; with replicas nothing has to cross).
    Dispatch counts as few nodes per token as can hold its experts.
    """
    instance = clock.instance
    mean = instance.loads.sum(axis=1) / instance.gpus
    total = sum(float(clock.experts_s(least_load / mean, way).sum()) for way in clock.passes)
    if clock.traffic != "chain" or instance.transitions is None:
        one = np.full(instance.num_layers, _least_spread(clock))
        times = [clock.dispatch_time(np.ones(instance.num_layers), one, p) for p in ("dispatch", "combine")]
        exchange = sum(float(np.asarray(t.alone_s).sum()) for t in times)
        return SecondsBound(seconds=total + len(clock.passes) * exchange, kind="combinatorial")
    kind, flow = "combinatorial", instance.transitions
    far = np.zeros(len(flow))
    if instance.num_nodes > 1 and not instance.extra_slots and len(flow):
        if kept is None:
            kept, kind = kept_by_pair(flow, instance.num_nodes)
        else:
            kind = "eig_diag"
        sums = flow.sum(axis=(1, 2))
        share = 1.0 - kept / np.where(sums > 0.0, sums, 1.0)
        far = clock.rows / instance.gpus * np.where(sums > 0.0, np.maximum(share, 0.0), 0.0)
    times_s = float(np.asarray(clock.flow_time(np.zeros(len(flow)), far).alone_s).sum()) if len(flow) else 0.0
    return SecondsBound(seconds=total + len(clock.passes) * times_s, kind=kind)


def _least_spread(clock: LayerClock) -> float:
    """One node per token, or as many as its experts need, over those of uniform routing."""
    instance: Instance = clock.instance
    nodes = instance.num_nodes
    need = -(-clock.moe.top_k // (instance.num_slots // nodes))
    return need / float(expected_hits(clock.moe.top_k, nodes, instance.num_experts))
