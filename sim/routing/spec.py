"""`--routing`: from the text a user typed to the `Routing` of a model.

    balanced | consecutive
    uniform | zipf:1.0 | lognormal:0.4 | dirichlet:50 | like:mixtral-8x7b | counts.csv | trace.csv

and, behind those of the second line, separated by commas, options: balance=0..1 (a balance loss: shrinks towards
uniform), drift=SPREAD or drift=SPREAD/RATE (AR(1) on log popularity over steps), pad=ROWS (rows of an expert padded to
a multiple), clump=X (variance of rank loads over that of independent tokens; a trace tells its own), repeat (layers
that a file lacks take those it has, in turn).
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.model import ModelSpec, MoESpec
from sim.routing.curve import curve
from sim.routing.loads import ExpertLoads
from sim.routing.popularity import (
    Drift,
    Law,
    balanced,
    counted_inclusion,
    inclusion,
    law_log_weights,
    succession,
    weights_of,
)
from sim.routing.record import Routing
from sim.routing.tables import Counts, Sizes, Trace, clumping, coactivation, read_routing, transition_chances

Floats = NDArray[np.float64]

LAWS: tuple[Law, ...] = get_args(Law)
FORMS = (
    "consecutive, uniform, zipf:1.0, lognormal:0.4, dirichlet:50, like:mixtral-8x7b or a .csv file of counts or a trace"
)
OPTIONS = ("balance", "drift", "pad", "clump")
WHERE = "--routing"
LIKE = "like"  # popularity derived from recorded routing, of `sim/catalogue/routing`
FORCED = "balanced"  # forced balance: what vendor benchmarks run, and the default
CONSECUTIVE = "consecutive"  # forced balance in which every token takes k experts side by side


@dataclass(frozen=True, kw_only=True)
class RoutingSpec:
    """What was typed: a law with its parameter or a file, and options."""

    text: str
    law: Law | None = None
    parameter: float = 0.0
    path: str = ""
    balance: float = 0.0
    drift: Drift = field(default_factory=Drift)
    pad_to: int = 1
    clumping: float | None = None
    repeat: bool = False
    consecutive: bool = False


def parse_routing(text: str) -> RoutingSpec | None:
    """Read the option; None for `balanced` (forced balance). Raises UserError with every problem."""
    head, *rest = [part.strip() for part in text.split(",")]
    problems: list[str] = []
    made: dict[str, Any] = {"text": text.strip()}
    name, colon, value = head.partition(":")
    if head in (FORCED, CONSECUTIVE):
        if rest:
            problems.append(f"{head} takes no options; use uniform for balance up to chance")
        made["consecutive"] = head == CONSECUTIVE
    elif head.lower().endswith(".csv"):
        made["path"] = head
    elif name == LIKE:
        _like(value, made, problems)
    elif name in LAWS:
        made["law"] = name
        made["parameter"] = _float(value, f"the number of {head!r}", problems) if colon else 0.0
        if name != "uniform" and not colon:
            problems.append(f"{name} needs a number, as in {name}:1.0")
        if name == "uniform" and colon:
            problems.append("uniform takes no number")
    else:
        problems.append(f"{head[:60]!r} is not known; give balanced, {FORMS}")
    for part in rest:
        _option(part, made, problems)
    if problems:
        raise UserError(problems, where=WHERE)
    return None if head == FORCED else RoutingSpec(**made)


@cache
def recorded_laws() -> Mapping[str, Mapping[str, Any]]:
    """Laws derived from recorded routing, by name: lognormal (spread of log weights), clumping, source."""
    path = resources.files("sim") / "catalogue" / "routing" / "measured.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _like(name: str, made: dict[str, Any], problems: list[str]) -> None:
    found = recorded_laws().get(name)
    if found is None:
        problems.append(f"no recorded routing is like {name[:40]!r}; use one of: {', '.join(recorded_laws())}")
        return
    made |= {"law": "lognormal", "parameter": found["lognormal"], "clumping": found["clumping"]}


def _option(part: str, made: dict[str, Any], problems: list[str]) -> None:
    name, _, value = part.partition("=")
    if part == "repeat":
        made["repeat"] = True
    elif name == "balance":
        made["balance"] = _float(value, name, problems)
    elif name == "clump":
        made["clumping"] = _float(value, name, problems)
    elif name == "pad":
        rows = _float(value, name, problems)
        made["pad_to"] = int(rows)
        if rows != int(rows):
            problems.append(f"pad is {value[:30]!r}; give a whole number of rows")
    elif name == "drift":
        spread, slash, rate = value.partition("/")
        numbers = _float(spread, "drift", problems), _float(rate, "drift rate", problems) if slash else 1.0
        try:
            made["drift"] = Drift(spread=numbers[0], rate=numbers[1])
        except UserError as error:
            problems.extend(error.problems)
    else:
        problems.append(f"option {part[:40]!r} is not known; use {', '.join(f'{o}=...' for o in OPTIONS)} or repeat")


def _float(text: str, what: str, problems: list[str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or value < 0.0:
        problems.append(f"{what} is {text[:30]!r}; give a number >= 0")
        return 0.0
    return value


def moe_layers(model: ModelSpec) -> dict[MoESpec, list[int]]:
    """Layer numbers of each kind of routed layer, in model order. Layers that a table routes are of the kind that they
    would be without: they have loads of their own, but the same experts."""
    kinds: dict[MoESpec, list[int]] = {}
    hashed = any(layer.moe is not None and layer.moe.hash_routed for layer in model.layers)
    for i, layer in enumerate(model.layers):
        if layer.moe is not None:
            moe = layer.moe
            # only the correction of scores, which a table needs none of, tells the two apart otherwise
            kinds.setdefault(replace(moe, hash_routed=False, router_bias=False) if hashed else moe, []).append(i)
    return kinds


def resolve(spec: RoutingSpec | None, model: ModelSpec, *, seed: int = 0) -> Routing:
    """The routing of a model. Dense models have none. Raises UserError with every problem."""
    kinds = moe_layers(model)
    if spec is None:
        return Routing()
    if not kinds:
        raise UserError(f"{model.name} has no routed experts; leave the option out", where=WHERE)
    if spec.consecutive:
        return Routing(consecutive=True, source="forced balance, consecutive experts")
    problems: list[str] = []
    digest = ""
    recorded: Counts | Trace | None = None
    if spec.path:
        path = Path(spec.path)
        if not path.is_file():
            raise UserError(f"no file {spec.path}; give {FORMS}", where=WHERE)
        sizes = Sizes(layers=len(model.layers), experts=max(moe.num_experts for moe in kinds))
        recorded = read_routing(path, model=model.name, sizes=sizes)
        digest = f" (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"
    order = sorted(layer for layers in kinds.values() for layer in layers)
    problems += recorded.beyond if recorded is not None else ()
    made = []
    for number, (moe, layers) in enumerate(kinds.items()):
        try:
            made.append(_loads(spec, moe, *_chances(spec, recorded, moe, layers, order, seed + number)))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems, where=spec.path or WHERE)
    worst = max(curve(loads, seed=seed).rank_over_mean[-1][-1] for loads in made)
    return Routing(
        max_over_mean=worst, source=spec.text + digest, loads=tuple(made), seed=seed,
        recorded_tokens=_tokens(recorded, made), notes=_notes(recorded),
    )  # fmt: skip


def _tokens(recorded: Counts | Trace | None, made: list[ExpertLoads]) -> float:
    """Tokens of the layer of which fewest were recorded; 0 without a file."""
    if isinstance(recorded, Trace):
        return float(min(len(chosen) for chosen in recorded.chosen.values()))
    if recorded is None:
        return 0.0
    layers = recorded.counts.items()
    return min(recorded.tokens.get(name, 0.0) or sum(row.values()) / made[0].top_k for name, row in layers)


def _notes(recorded: Counts | Trace | None) -> tuple[str, ...]:
    if not isinstance(recorded, Trace) or not recorded.empty:
        return ()
    return (f"{recorded.empty:,} cells of the trace are empty: taken as not recorded",)


def _loads(
    spec: RoutingSpec, moe: MoESpec, chance: Floats, joint: Floats | None, after: Floats | None, clump: float
) -> ExpertLoads:
    if spec.balance > 0.0:
        chance = inclusion(balanced(weights_of(chance), spec.balance), moe.top_k)
        joint = after = None
    return ExpertLoads(
        chance=chance, top_k=moe.top_k, joint=joint, transitions=after, num_groups=moe.num_groups,
        top_k_groups=moe.top_k_groups, drift=spec.drift, pad_to=max(1, spec.pad_to), source=spec.text,
        clumping=clump if spec.clumping is None else spec.clumping,
    )  # fmt: skip


def _chances(
    spec: RoutingSpec, recorded: Counts | Trace | None, moe: MoESpec, layers: list[int], order: list[int], seed: int
) -> tuple[Floats, Floats | None, Floats | None, float]:
    """chance[layer, expert] and, from a trace, joint and transitions [layer, e, f] and how tokens clump."""
    if spec.law is not None:
        log_w = law_log_weights(spec.law, spec.parameter, layers=len(layers), experts=moe.num_experts, seed=seed)
        return succession(log_w, moe.top_k), None, None, 1.0
    assert recorded is not None
    have = recorded.chosen if isinstance(recorded, Trace) else recorded.counts
    names = _file_layers(have, layers, order, spec.repeat)
    if isinstance(recorded, Trace):
        chance, joint = _of_trace(recorded, names, moe)
        clumps = [clumping(recorded.chosen[name], moe.num_experts) for name in sorted(set(names))]
        after = transition_chances(recorded, names, chance, moe.top_k)
        return chance, joint, after, float(np.median(clumps))
    return _of_counts(recorded, names, moe), None, None, 1.0


def _file_layers(have: Mapping[int, Any], layers: list[int], order: list[int], repeat: bool) -> list[int]:
    """The file's layer for each layer of a kind; a file numbers all layers of a model, or its MoE layers from 0."""
    known = sorted(have)
    own = {layer: layer for layer in order} if set(order) <= set(known) else {x: i for i, x in enumerate(order)}
    if all(own[layer] in have for layer in layers):
        return [own[layer] for layer in layers]
    if repeat:
        return [known[order.index(layer) % len(known)] for layer in layers]
    missing = [own[layer] for layer in layers if own[layer] not in have]
    text = ", ".join(map(str, missing[:20])) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
    raise UserError(
        f"{len(missing)} of {len(layers)} MoE layers are missing: {text}; record them, or add ,repeat to give them "
        "the popularity of the layers there are"
    )


def _of_counts(recorded: Counts, names: list[int], moe: MoESpec) -> Floats:
    problems = []
    counts = np.zeros((len(names), moe.num_experts))
    tokens = np.zeros(len(names))
    for i, name in enumerate(names):
        row = recorded.counts[name]
        beyond = sorted(e for e in row if e >= moe.num_experts)
        if beyond:
            problems.append(
                f"layer {name}: expert {beyond[0]} is out of range, the model has {moe.num_experts} "
                f"(0..{moe.num_experts - 1}); is it a table of another model?"
            )
            continue
        counts[i, list(row)] = list(row.values())
        total = counts[i].sum()
        stated = recorded.tokens.get(name, 0.0)
        tokens[i] = stated or total / moe.top_k
        if total <= 0.0:
            problems.append(f"layer {name}: all counts are 0; record some tokens")
        elif abs(total - moe.top_k * tokens[i]) > 1e-6 * total:
            problems.append(
                f"layer {name}: {total:g} choices of {tokens[i]:g} tokens are {total / tokens[i]:.3g} each, the model "
                f"chooses {moe.top_k}; correct the counts or tokens_in_layer"
            )
        elif counts[i].max() > tokens[i] * (1.0 + 1e-9):
            problems.append(
                f"layer {name}: expert {int(counts[i].argmax())} has {counts[i].max():g} tokens of {tokens[i]:g} "
                f"({'tokens_in_layer' if stated else f'{total:g} choices over top_k = {moe.top_k}'}); a token holds an "
                "expert once"
            )
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return _renormed(counted_inclusion(counts, tokens, moe.top_k), moe.top_k)


def _of_trace(recorded: Trace, names: list[int], moe: MoESpec) -> tuple[Floats, Floats]:
    problems = []
    e = moe.num_experts
    counts = np.zeros((len(names), e))
    tokens = np.zeros(len(names))
    joint = np.zeros((len(names), e, e))
    for i, name in enumerate(names):
        chosen = recorded.chosen[name]
        if chosen.shape[1] != moe.top_k:
            problems.append(
                f"layer {name}: {chosen.shape[1]} experts per token, the model chooses {moe.top_k}; give its own trace"
            )
        if chosen.max() >= e:
            first = int(np.argmax(chosen.max(axis=1) >= e))
            problems.append(
                f"row {recorded.rows[name][first]}, layer {name}: expert {chosen[first].max()} is out of range, the "
                f"model has {e} (0..{e - 1}); is it a trace of another model?"
            )
        if problems:
            continue
        tokens[i] = len(chosen)
        joint[i] = coactivation(chosen, e) / tokens[i]
        counts[i] = np.diagonal(joint[i]) * tokens[i]
    if problems:
        raise UserError(list(dict.fromkeys(problems))[:20])
    seen = counts / tokens[:, None]
    chance = _renormed(counted_inclusion(counts, tokens, moe.top_k), moe.top_k)
    # what choices have in common beyond their popularity, around the popularity with the noise taken out
    joint = np.clip(joint - seen[:, :, None] * seen[:, None, :] + chance[:, :, None] * chance[:, None, :], 0.0, 1.0)
    return chance, joint


def _renormed(chance: Floats, top_k: int) -> Floats:
    """Exactly top_k per layer; clipping at 1 is undone where it cut."""
    out = chance * (top_k / chance.sum(axis=1, keepdims=True))
    return inclusion(weights_of(out), top_k) if out.max() > 1.0 else out
