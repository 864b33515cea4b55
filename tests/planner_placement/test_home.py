"""Home nodes: classes live where their experts are, every node is home to as many tokens, and counts agree."""

from __future__ import annotations

import numpy as np
import pytest

from hwprofiles.errors import UserError
from planner.placement.home import home_nodes, place_with_homes
from planner.placement.records import Instance, Placement


def classes(rng: np.random.Generator, layers: int = 2, experts: int = 16, kinds: int = 4) -> np.ndarray:
    """Counts [class, layer, expert] of classes that favour a quarter of the experts each."""
    own = np.arange(experts)[None, None, :] % kinds == np.arange(kinds)[:, None, None]
    return rng.poisson(np.where(own, 400.0, 20.0) * np.ones((kinds, layers, experts))).astype(float)


def question(counts: np.ndarray, **changes: object) -> Instance:
    pairs = np.einsum("cle,clf->lef", counts, counts)
    sizes = {"gpus": 8, "gpus_per_node": 2, "slots_per_gpu": 2} | changes
    return Instance(loads=counts.sum(axis=0), coactivation=pairs, **sizes)  # type: ignore[arg-type]


def test_classes_live_where_their_experts_are() -> None:
    counts = classes(np.random.default_rng(1))
    instance = question(counts)
    placement = Placement.of_ranks(np.broadcast_to((np.arange(16) % 4) * 2 + np.arange(16) // 8, (2, 16)), 8)
    homes = home_nodes(instance, counts, placement, top_k=2)
    assert homes.share.argmax(axis=1).tolist() == [0, 1, 2, 3]
    tokens = counts.sum(axis=(1, 2)) / counts.sum()
    assert tokens @ homes.share == pytest.approx(np.full(4, 0.25))
    assert homes.remote < 0.75 * homes.remote_spread


def test_remote_nodes_against_drawn_tokens() -> None:
    """Two choices of every token, drawn from its class: the nodes other than its home, counted."""
    rng = np.random.default_rng(2)
    counts = classes(rng, layers=1)
    instance = question(counts)
    placement = Placement.of_ranks((np.arange(16) % 8)[None], 8)
    homes = home_nodes(instance, counts, placement, top_k=2)
    node = np.arange(16) % 8 // 2
    remote = total = 0.0
    for kind, weight in enumerate(counts.sum(axis=(1, 2))):
        chosen = node[rng.choice(16, size=(20_000, 2), p=counts[kind, 0] / counts[kind, 0].sum())]
        home = rng.choice(4, size=20_000, p=homes.share[kind])
        distinct = 1 + (chosen[:, 0] != chosen[:, 1])
        remote += weight * float((distinct - (chosen == home[:, None]).any(axis=1)).mean())
        total += weight
    assert remote / total == pytest.approx(homes.remote, rel=0.02)


def test_turns_never_lose() -> None:
    counts = classes(np.random.default_rng(3))
    instance = question(counts)
    targets = instance.loads.sum(axis=1) / 8 * 1.1
    placement, homes = place_with_homes(instance, counts, top_k=2, targets=targets)
    assert homes.remote <= home_nodes(instance, counts, placement, top_k=2).remote + 1e-12
    scattered = home_nodes(instance, counts, Placement.of_ranks(np.tile(np.arange(16) % 8, (2, 1)), 8), top_k=2)
    assert homes.remote < scattered.remote


def test_bad_counts_are_refused() -> None:
    counts = classes(np.random.default_rng(4))
    instance = question(counts)
    placement = Placement.of_ranks(np.tile(np.arange(16) % 8, (2, 1)), 8)
    with pytest.raises(UserError, match="shape"):
        home_nodes(instance, counts[:, :1], placement, top_k=2)
    with pytest.raises(UserError, match="negative"):
        home_nodes(instance, -counts, placement, top_k=2)
