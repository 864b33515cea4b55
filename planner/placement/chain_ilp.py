"""Chains by integer programme: small ones as a whole, larger ones a layer at a time.

Whole: x[l, e, n] places an expert, y[l, e, f, n] says that e and the next layer's f share part n. The rows that make
its bound useful are products of the equations with a variable (Sherali and Adams, 1990, SIAM J. Discrete Math. 3): sum
over f of y = S x[l, e, n], sum over e of y = S x[l + 1, f, n], and for the load sum over f of w_f y <= cap x[l, e, n].
With y <= x alone an even split of every expert keeps all flow, and the bound says nothing.

A layer: with its neighbours fixed the kept flow is linear in x, loads are capped by rows, and so is the largest flow
between two parts (t >= the flow from each part to each other), the objective of MoETuner's second stage.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.placement.partition import one_hot
from planner.placement.records import Floats, Ints
from planner.placement.solver import solve

MOST_WHOLE = 80  # experts x parts x layers of a programme for the whole chain
MOST_LAYER = 256  # experts x parts of a programme for a layer
NODES = 200
LAYER_NODES = 20
LAYER_GAP = 1e-3


def whole_chain(
    flow: Floats, load: Floats, cap: Floats, parts: int, *, seed: int = 0
) -> tuple[Ints, float, bool] | None:
    """(part [L, E], most flow that any chain keeps, whether that is proved) of flow [L - 1, E, E] under cap [L].

    None where the programme is too large or no chain within the caps was found.
    """
    import pulp

    layers, experts = load.shape
    if layers * experts * parts > MOST_WHOLE:
        return None
    size, scale = experts // parts, float(flow.sum()) or 1.0
    every = [(i, e, n) for i in range(layers) for e in range(experts) for n in range(parts)]
    x: dict[Any, Any] = {key: pulp.LpVariable("x_{}_{}_{}".format(*key), cat="Binary") for key in every}
    y: dict[Any, Any] = {
        (i, e, f, n): pulp.LpVariable(f"y_{i}_{e}_{f}_{n}", 0.0, 1.0)
        for i, e, n in every if i + 1 < layers for f in range(experts)
    }  # fmt: skip
    problem = pulp.LpProblem("chain", pulp.LpMinimize)
    problem += pulp.lpSum(-float(flow[i, e, f]) / scale * v for (i, e, f, _), v in y.items())
    problem += x[0, 0, 0] == 1, "one_labelling"
    for i in range(layers):
        for e in range(experts):
            problem += pulp.lpSum(x[i, e, n] for n in range(parts)) == 1, f"placed_{i}_{e}"
        for n in range(parts):
            problem += pulp.lpSum(x[i, e, n] for e in range(experts)) == size, f"size_{i}_{n}"
            weight = pulp.lpSum(float(load[i, e]) * x[i, e, n] for e in range(experts))
            problem += weight <= float(cap[i]) * (1.0 + 1e-9), f"load_{i}_{n}"
    for i, e, n in every:
        if i + 1 < layers:
            ahead = [y[i, e, f, n] for f in range(experts)]
            problem += pulp.lpSum(ahead) == size * x[i, e, n], f"ahead_{i}_{e}_{n}"
            heavy = pulp.lpSum(float(load[i + 1, f]) * v for f, v in enumerate(ahead))
            problem += heavy <= float(cap[i + 1]) * (1.0 + 1e-9) * x[i, e, n], f"heavy_{i}_{e}_{n}"
        if i > 0:
            back = [y[i - 1, f, e, n] for f in range(experts)]
            problem += pulp.lpSum(back) == size * x[i, e, n], f"back_{i}_{e}_{n}"
    solved = solve(problem, nodes=NODES, seed=seed)
    if solved.status == "infeasible":
        return None
    put = np.array([x[key].value() for key in every]).reshape(layers, experts, parts)
    return put.argmax(axis=2).astype(np.int64), -solved.bound * scale, solved.status == "optimal"


def layer_programme(
    value: Floats, load: Floats, cap: float, into: Floats, out: Floats, *, worst_link: float = 0.0, seed: int = 0
) -> Ints | None:
    """Part [E] with the most value [E, N] less worst_link times the largest flow between two parts, within `cap`.

    into [N, E]: flow from each part of the layer before to an expert; out [E, N]: from an expert to each part of the
    layer after. None where no assignment within the cap was found.
    """
    import pulp

    experts, parts = value.shape
    scale = float(np.abs(value).sum()) or 1.0
    x: dict[Any, Any] = {
        (e, n): pulp.LpVariable(f"x_{e}_{n}", cat="Binary") for e in range(experts) for n in range(parts)
    }
    problem = pulp.LpProblem("layer", pulp.LpMinimize)
    goal = pulp.lpSum(-float(value[e, n]) / scale * v for (e, n), v in x.items())
    links = [pulp.LpVariable(f"t_{k}", lowBound=0.0) for k in range(2)] if worst_link > 0.0 else []
    problem += goal + worst_link * pulp.lpSum(links)
    for e in range(experts):
        problem += pulp.lpSum(x[e, n] for n in range(parts)) == 1, f"placed_{e}"
    for n in range(parts):
        problem += pulp.lpSum(x[e, n] for e in range(experts)) == experts // parts, f"size_{n}"
        problem += pulp.lpSum(float(load[e]) * x[e, n] for e in range(experts)) <= cap * (1.0 + 1e-9), f"load_{n}"
        for m in range(parts):
            if m != n and links:
                arrives = pulp.lpSum(float(into[m, e]) / scale * x[e, n] for e in range(experts))
                leaves = pulp.lpSum(float(out[e, m]) / scale * x[e, n] for e in range(experts))
                problem += arrives <= links[0], f"into_{m}_{n}"
                problem += leaves <= links[1], f"out_{n}_{m}"
    solved = solve(problem, nodes=LAYER_NODES, gap=LAYER_GAP, seed=seed)
    if solved.status == "infeasible":
        return None
    put = np.array([[x[e, n].value() for n in range(parts)] for e in range(experts)])
    part = put.argmax(axis=1).astype(np.int64)
    return part if np.bincount(part, minlength=parts).max() == experts // parts else None


def programmed_chain(
    flow: Floats, load: Floats, cap: Floats, part: Ints, parts: int, *, worst_link: float = 0.0, seed: int = 0
) -> Ints:
    """Part [L, E] after one sweep of layer programmes from `part`, each kept where it is better.

    Better: more kept flow less worst_link times the largest flows between parts, at the cap or nearer to it.
    """
    part = part.copy()
    none = np.zeros((load.shape[1], parts))
    for i in range(len(load)):
        into = one_hot(part[i - 1], parts).T @ flow[i - 1] if i > 0 else none.T
        out = flow[i] @ one_hot(part[i + 1], parts) if i < len(flow) else none
        value = into.T + out
        top = max(float(cap[i]), float(np.bincount(part[i], weights=load[i], minlength=parts).max()))
        found = layer_programme(value, load[i], top, into, out, worst_link=worst_link, seed=seed)
        if found is None:
            continue
        now, then = (_worth(p, value, into, out, worst_link) for p in (part[i], found))
        if then > now:
            part[i] = found
    return part


def _worth(part: Ints, value: Floats, into: Floats, out: Floats, worst_link: float) -> float:
    x = one_hot(part, value.shape[1])
    arrives, leaves = into @ x, x.T @ out
    np.fill_diagonal(arrives, 0.0)
    np.fill_diagonal(leaves, 0.0)
    return float((value * x).sum()) - worst_link * float(arrives.max() + leaves.max())
