"""Instances with a known structure, drawn: topics that prefer experts, and tokens that carry a topic through layers.

K topics have the prior pt ~ rank^-0.7. In each layer an expert has a popularity m (lognormal) and a topic t chooses it
with p(e|t) ~ m(e) exp(alpha N(0,1) + plant [home(e) = t]), scaled in turn so that rows sum to one and sum_t pt p(e|t) =
m(e). Topics drift between layers by M = (1 - drift) diag(pt) + drift pt pt^T, which gives Poisson flows with mean
tokens k P_l^T M P_{l+1} and loads with mean tokens k pt P_l.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.placement.records import Floats, Instance, Ints

PRIOR_POWER = 0.7
SCALINGS = 60


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Strength of the structure: spread of topic preferences (alpha) and the weight of planted homes (plant)."""

    alpha: float
    plant: float
    topics: int = 32
    sigma: float = 0.4
    drift: float = 0.1
    tokens: int = 500_000
    top_k: int = 8


STRUCTURES = {
    "weak": Structure(alpha=0.7, plant=0.0),
    "medium": Structure(alpha=2.0, plant=0.0),
    "strong": Structure(alpha=0.7, plant=4.0),
}


def topic_chances(structure: Structure, layers: int, experts: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(prior [K], chance [L, K, E] that a choice of a token of topic t in layer l falls on e)."""
    topics = structure.topics
    prior = np.arange(1, topics + 1, dtype=np.float64) ** -PRIOR_POWER
    prior /= prior.sum()
    out = np.empty((layers, topics, experts))
    for layer in range(layers):
        popularity = np.exp(structure.sigma * rng.standard_normal(experts))
        popularity /= popularity.sum()
        home = rng.permutation(experts) % topics
        taste = structure.alpha * rng.standard_normal((topics, experts))
        taste += structure.plant * (home[None, :] == np.arange(topics)[:, None])
        p = popularity * np.exp(taste)
        for _ in range(SCALINGS):
            p /= p.sum(axis=1, keepdims=True)
            p *= popularity / (prior @ p)
        out[layer] = p / p.sum(axis=1, keepdims=True)
    return prior, out


def chain_instance(
    structure: Structure, *, layers: int, experts: int, gpus: int, gpus_per_node: int, slots_per_gpu: int, seed: int
) -> Instance:
    """Loads and flows of a chain of layers."""
    rng = np.random.default_rng(seed)
    prior, chance = topic_chances(structure, layers, experts, rng)
    drift = (1.0 - structure.drift) * np.diag(prior) + structure.drift * np.outer(prior, prior)
    choices = structure.tokens * structure.top_k
    flows = np.stack([rng.poisson(choices * (chance[i].T @ drift @ chance[i + 1])) for i in range(layers - 1)])
    loads = rng.poisson(choices * (prior @ chance))
    return Instance(
        loads=loads.astype(np.float64), transitions=flows.astype(np.float64), gpus=gpus, gpus_per_node=gpus_per_node,
        slots_per_gpu=slots_per_gpu, source=f"drawn chain, seed {seed}",
    )  # fmt: skip


def draw_tokens(chance: Floats, prior: Floats, top_k: int, tokens: int, rng: np.random.Generator) -> Ints:
    """Experts [token, k] of tokens of one layer: a topic, then Gumbel top-k on log chance [K, E]."""
    topic = rng.choice(len(prior), size=tokens, p=prior)
    keys = np.log(np.maximum(chance, 1e-300))[topic] + rng.gumbel(size=(tokens, chance.shape[1]))
    return np.argpartition(-keys, top_k - 1, axis=1)[:, :top_k].astype(np.int64)


def coactivation_of(chosen: Ints, experts: int) -> Floats:
    """Tokens [E, E] that hold both experts, from chosen [token, k]; the diagonal counts the tokens of an expert."""
    hits = np.zeros((len(chosen), experts), dtype=np.float32)
    np.put_along_axis(hits, chosen, 1.0, axis=1)
    out: Floats = (hits.T @ hits).astype(np.float64)
    return out


def load_instance(*, layers: int, experts: int, gpus: int, slots_per_gpu: int, sigma: float, seed: int) -> Instance:
    """Lognormal loads without further structure, one node."""
    rng = np.random.default_rng(seed)
    loads = np.exp(sigma * rng.standard_normal((layers, experts)))
    return Instance(
        loads=np.round(loads * 10_000), gpus=gpus, gpus_per_node=gpus, slots_per_gpu=slots_per_gpu,
        source=f"drawn loads, seed {seed}",
    )  # fmt: skip
