"""How well uneven experts are priced: the penalty of power-law routing on the fullest of several ranks.

The measured rows state a law, not loads. Its collector draws one load per expert from x^-alpha on
1 <= x <= CUT tokens, scales them to tokens x topk rows, and times the rank whose experts hold most.
What that rank holds on average goes through the fitted grouped GEMM (`hwprofiles.forms.grouped`) and the rest of
the fused layer; nothing is fitted to these rows. Penalty: time over that of balanced routing at the same ep.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from itertools import combinations

import numpy as np
import pandas as pd

from calibration.kernels.base import Errors, Floats, errors
from calibration.kernels.grouped_fit import LayerRest, layer_s
from hwprofiles.errors import UserError
from hwprofiles.folders import fitted_file
from hwprofiles.forms.grouped import grouped_forms

CUT = 0.8  # largest load as a share of the tokens
DRAWS = 256
NOISE = 0.1  # relative; below it the order of two measured penalties is chance
HAND_OUTS = 4  # rounds of giving on what an expert cannot take, as no token has it twice
CELL = ["dtype", "hidden", "ffn", "topk", "experts", "alpha"]


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """Means over draws: rows of the fullest rank and of the fullest expert on it, and rows of the mean rank."""

    rows: float
    fullest: float
    mean: float

    @property
    def max_over_mean(self) -> float:
        """Rows of the fullest rank over the mean rank."""
        return self.rows / self.mean


@dataclass(frozen=True, kw_only=True)
class ImbalanceScore:
    """penalty: errors of predicted over measured penalty; cell: of their medians per (layer, law, ep) over tokens.

    order: share of pairs of ep, per layer and law, whose medians are in the measured order; pairs: how many.
    clear_order, clear_pairs: the same of pairs that were measured more than NOISE apart, as each row is few draws.
    """

    device: str
    penalty: Errors
    cell: Errors
    order: float
    pairs: int
    clear_order: float
    clear_pairs: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well the measured penalties of two devices agree: a yardstick for a form, not a limit.

    No row is shipped twice, so that repeatability itself is not known; near-alike devices still differ in memory.

    rows: errors of one over the other; order, clear_order and their pairs: as in `ImbalanceScore`.
    """

    rows: Errors
    order: float
    pairs: int
    clear_order: float
    clear_pairs: int


@cache
def power_law_load(alpha: float, tokens: int, experts: int, topk: int, ep: int) -> RankLoad:
    """Load of the fullest of `ep` ranks under a power law; deterministic."""
    rng = np.random.default_rng(0)
    power, top = 1.0 - alpha, max(CUT * tokens, 2.0)
    load = ((top**power - 1.0) * rng.random((DRAWS, experts)) + 1.0) ** (1.0 / power)
    total = float(tokens * topk)
    load *= total / load.sum(axis=1, keepdims=True)
    for _ in range(HAND_OUTS):
        load = np.minimum(load, tokens)
        room = tokens - load
        left = total - load.sum(axis=1, keepdims=True)
        load = load + left * room / np.maximum(room.sum(axis=1, keepdims=True), 1e-9)
    ranks = load.reshape(DRAWS, ep, -1)
    hottest = ranks[np.arange(DRAWS), ranks.sum(axis=2).argmax(axis=1)]
    return RankLoad(rows=float(hottest.sum(axis=1).mean()), fullest=float(hottest.max(axis=1).mean()), mean=total / ep)


def points(folder: str) -> pd.DataFrame:
    """Measured rows of a shipped device with `rows`, `m_max` (what the law puts on the rank) and `groups`.

    Raises UserError where the device has none.
    """
    path = resources.files("hwprofiles") / "measured" / folder / "moe_ranks.csv"
    if not path.is_file():
        raise UserError(f"no measured ranks under power laws of {folder!r}: {path} is missing", where="measured")
    with path.open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    columns = zip(frame.alpha, frame.tokens, frame.experts, frame.topk, frame.ep, strict=True)
    loads = [power_law_load(float(a), int(t), int(e), int(k), int(ep)) for a, t, e, k, ep in columns]
    return frame.assign(
        rows=[load.rows for load in loads], m_max=[load.fullest for load in loads], even_rows=[x.mean for x in loads],
        groups=frame.experts / frame.ep,
    )  # fmt: skip


def penalties(folder: str, measured: pd.DataFrame) -> pd.DataFrame:
    """`measured` with columns predicted and penalty: time under the law over time under balanced routing."""
    rest = _rests(folder)
    forms = grouped_forms(folder)
    parts = []
    for dtype, part in measured.groupby("dtype"):
        name = str(dtype)
        if name not in forms or name not in rest:
            continue
        even = part.assign(rows=part.even_rows, m_max=part.even_rows / part.groups)
        predicted: Floats = layer_s(forms[name], rest[name], part) / layer_s(forms[name], rest[name], even)
        parts.append(part.assign(predicted=predicted, penalty=part.time_s / part.even_s))
    return pd.concat(parts)


def _rests(folder: str) -> Mapping[str, LayerRest]:
    data = tomllib.loads(fitted_file(folder, "grouped.toml").read_text(encoding="utf-8"))
    names = {field.name for field in fields(LayerRest)}
    found = {name: section["layer"] for name, section in data.items() if "layer" in section}
    return {name: LayerRest(**{k: v for k, v in layer.items() if k in names}) for name, layer in found.items()}


def score(folder: str) -> ImbalanceScore:
    """Errors of the penalty and whether it rises with ep as measured, of one device."""
    seen = penalties(folder, points(folder))
    cells = seen.groupby([*CELL, "ep"])[["predicted", "penalty"]].median()
    order, pairs, clear_order, clear_pairs = _order(cells)
    return ImbalanceScore(
        device=folder,
        penalty=errors(seen.predicted.to_numpy(float), seen.penalty.to_numpy(float)),
        cell=errors(cells.predicted.to_numpy(float), cells.penalty.to_numpy(float)),
        order=order,
        pairs=pairs,
        clear_order=clear_order,
        clear_pairs=clear_pairs,
    )


def agreement(folder: str, other: str) -> Agreement:
    """Penalties measured on `other` against those on `folder`, rows that both have; near-alike devices differ by
    how a row was drawn, which kernel its library chose, and their memory."""
    keys = [*CELL, "ep", "tokens"]
    a, b = (frame.set_index(keys) for frame in (points(folder), points(other)))
    both = pd.DataFrame({"penalty": a.time_s / a.even_s, "predicted": b.time_s / b.even_s}).dropna()
    order, pairs, clear_order, clear_pairs = _order(both.groupby([*CELL, "ep"]).median())
    return Agreement(
        rows=errors(both.predicted.to_numpy(float), both.penalty.to_numpy(float)),
        order=order, pairs=pairs, clear_order=clear_order, clear_pairs=clear_pairs,
    )  # fmt: skip


def _order(cells: pd.DataFrame) -> tuple[float, int, float, int]:
    """(share of pairs of ep in the measured order, pairs, the same of clear pairs) of medians penalty, predicted."""
    right, clear = [], []
    for _, cell in cells.groupby(level=CELL):
        for (_, a), (_, b) in combinations(cell.iterrows(), 2):
            right.append((a.penalty < b.penalty) == (a.predicted < b.predicted))
            clear.append(max(a.penalty, b.penalty) > (1.0 + NOISE) * min(a.penalty, b.penalty))
    kept = [r for r, c in zip(right, clear, strict=True) if c]
    return float(np.mean(right)), len(right), float(np.mean(kept)), len(kept)
