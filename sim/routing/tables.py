"""Recorded routing: counts per expert, and traces of the experts that single tokens chose.

Files are CSV with a header:

- counts: `layer, expert, count`, optionally `tokens_in_layer`, `model` and `dataset` (rows of one layer and
  expert add up over datasets);
- traces, one token a row: either one column per layer, `L0, L1, ...` (a cell left empty was not recorded), or
  `topk_ids` with an optional `layer`; experts are joined by `|`.

All problems of a file are found before it is refused, with row numbers (the header is row 1).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError

MAX_FILE_BYTES = 2**28

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RUN = 128  # tokens in a row that are taken to come from one text
FEWEST_RUNS = 4
SHOWN = 20  # problems named one by one; the rest is counted
COUNT_COLUMNS = ("layer", "expert", "count")
LAYER_COLUMN = re.compile(r"L(\d+)$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """counts[layer][expert] of the layers that were recorded, tokens[layer] behind them (0: not stated).

    beyond: what is wrong with layers that the model lacks.
    """

    counts: Mapping[int, Mapping[int, float]]
    tokens: Mapping[int, float]
    beyond: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """chosen[layer]: experts [token, k] of the layers that were recorded; rows[layer]: the file's row of each.

    empty: cells of layer columns left empty, not recorded. beyond: as of `Counts`.
    """

    chosen: Mapping[int, Ints]
    rows: Mapping[int, Ints]
    empty: int = 0
    beyond: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Layers and experts of the model a file is read for; what lies beyond is a mistake."""

    layers: int
    experts: int


class _Found:
    """Problems of one file, the first ones in full; `beyond`: those that only a model of these sizes has with it."""

    def __init__(self, path: Path, sizes: Sizes | None) -> None:
        self.path, self.sizes = path, sizes
        self.said: list[str] = []
        self.layers: dict[int, str] = {}
        self.experts: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def layer(self, layer: int, where: str) -> None:
        """A layer, and where it was first met."""
        self.layers.setdefault(layer, where)

    def expert(self, expert: int, where: str) -> None:
        """An expert; what the model lacks is named where the file has other problems, else by who looks it up."""
        if self.sizes is not None and expert >= self.sizes.experts:
            self.experts.append(f"{where}: expert {expert} is out of range 0..{self.sizes.experts - 1}")

    def beyond(self) -> tuple[str, ...]:
        """Layers that the model lacks."""
        if self.sizes is None:
            return ()
        have = f"the model has {self.sizes.layers} (0..{self.sizes.layers - 1})"
        far = [(layer, where) for layer, where in sorted(self.layers.items()) if layer >= self.sizes.layers]
        return tuple(f"{where}: layer {layer} is out of range, {have}" for layer, where in far)

    def stop(self) -> None:
        if self.said:
            # each class of mistakes is seen, whatever there is most of
            classes = ([*self.beyond()], self.experts, self.said)
            few = [len(each[: SHOWN // 4]) for each in classes[:2]]
            shown = [*self.said[: SHOWN - sum(few)], *(text for each in classes[:2] for text in each[: SHOWN // 4])]
            more = sum(map(len, classes)) - len(shown)
            raise UserError([*shown, *([f"and {more} more problems"] if more else [])], where=str(self.path))


def read_routing(path: Path, *, model: str = "", sizes: Sizes | None = None) -> Counts | Trace:
    """Counts or a trace, told by the header. Raises UserError listing every bad row.

    model: rows of other models are left out where the file holds several; it must then name this one.
    """
    try:
        text = read_bounded(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read as text ({error}); give a CSV file", where=str(path)) from None
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if len(rows) < 2:
        what = "is empty" if not rows else "has a header and no rows"
        raise UserError(f"{what}; give counts (layer, expert, count) or a trace (topk_ids)", where=str(path))
    header = [name.strip() for name in rows[0]]
    if all(name in header for name in COUNT_COLUMNS):
        return _counts(_Found(path, sizes), header, rows[1:], model)
    if "topk_ids" in header or any(LAYER_COLUMN.match(name) for name in header):
        return _trace(_Found(path, sizes), header, rows[1:])
    raise UserError(
        f"columns {', '.join(header)[:200]} are neither counts nor a trace; give layer, expert, count for counts, or "
        "topk_ids (with layer) or L0, L1, ... for a trace",
        where=str(path),
    )


def _number(text: str, what: str, row: int, found: _Found) -> float | None:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        found.say(f"row {row}: {what} {text[:30]!r} is not a number; give a whole number >= 0")
        return None
    if value < 0:
        found.say(f"row {row}: {what} {text[:30]} is negative; give a whole number >= 0")
        return None
    return value


def _whole(text: str, what: str, row: int, found: _Found) -> int | None:
    value = _number(text, what, row, found)
    if value is None:
        return None
    if value != int(value):
        found.say(f"row {row}: {what} {text[:30]} is not a whole number; give 0, 1, 2, ...")
        return None
    return int(value)


def _counts(found: _Found, header: Sequence[str], rows: Sequence[Sequence[str]], model: str) -> Counts:
    place = {name: i for i, name in enumerate(header)}
    models = sorted({row[place["model"]] for row in rows if len(row) > place["model"]}) if "model" in place else []
    mine = _same(models, model) if len(models) > 1 else None
    if len(models) > 1 and mine is None:
        found.say(
            f"holds {len(models)} models ({', '.join(models)[:300]}), none of which is {model!r}; keep the rows of one"
        )
        found.stop()
    counts: dict[int, dict[int, float]] = {}
    tokens: dict[tuple[int, str], float] = {}
    seen: dict[tuple[int, int, str], int] = {}
    for number, row in enumerate(rows, 2):
        if len(row) < len(header):
            found.say(f"row {number}: {len(row)} of {len(header)} columns; complete it")
            continue
        if mine is not None and row[place["model"]] != mine:
            continue
        layer = _whole(row[place["layer"]], "layer", number, found)
        expert = _whole(row[place["expert"]], "expert", number, found)
        count = _whole(row[place["count"]], "count", number, found)
        if layer is not None:
            found.layer(layer, f"row {number}")
        if expert is not None:
            found.expert(expert, f"row {number}")
        if layer is None or expert is None or count is None:
            continue
        dataset = row[place["dataset"]] if "dataset" in place else ""
        first = seen.setdefault((layer, expert, dataset), number)
        if first != number:
            found.say(f"row {number}: layer {layer}, expert {expert} again (first in row {first}); keep one")
            continue
        counts.setdefault(layer, {})
        counts[layer][expert] = counts[layer].get(expert, 0.0) + count
        if "tokens_in_layer" in place:
            stated = _whole(row[place["tokens_in_layer"]], "tokens_in_layer", number, found)
            if stated is not None:
                tokens[(layer, dataset)] = stated
    found.stop()
    total = {layer: sum(n for (at, _), n in tokens.items() if at == layer) for layer in counts}
    return Counts(counts=counts, tokens=total, beyond=found.beyond())


def _same(names: Sequence[str], model: str) -> str | None:
    """The one name that means `model`: alike without case, owner and punctuation, or beginning with it."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].lower())

    if not plain(model):
        return None
    exact = [name for name in names if plain(name) == plain(model)]
    near = [name for name in names if plain(name).startswith(plain(model))]
    for fits in (exact, near):
        if len(fits) == 1:
            return fits[0]
    return None


def _trace(found: _Found, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Trace:
    wide = {i: int(m.group(1)) for i, name in enumerate(header) if (m := LAYER_COLUMN.match(name))}
    cell = header.index("topk_ids") if "topk_ids" in header else -1
    layer_at = header.index("layer") if "layer" in header else -1
    chosen: dict[int, list[list[int]]] = {}
    at: dict[int, list[int]] = {}
    empty = 0
    width: tuple[int, int] | None = None  # experts per token, row that first showed it
    for number, row in enumerate(rows, 2):
        if len(row) < len(header):
            found.say(f"row {number}: {len(row)} of {len(header)} columns; complete it")
            continue
        cells = [(layer, row[i]) for i, layer in wide.items() if row[i].strip()]
        empty += len(wide) - len(cells)
        if cell >= 0:
            layer = _whole(row[layer_at], "layer", number, found) if layer_at >= 0 else 0
            cells = [] if layer is None else [(layer, row[cell])]
        for layer, text in cells:
            found.layer(layer, f"row {number}" if layer_at >= 0 else f"column L{layer}")
            experts = _experts(text, layer, number, found)
            if experts is None:
                continue
            width = width or (len(experts), number)
            if len(experts) != width[0]:
                found.say(
                    f"row {number}, layer {layer}: {len(experts)} experts where row {width[1]} has {width[0]}; "
                    "every token chooses the same number"
                )
                continue
            chosen.setdefault(layer, []).append(experts)
            at.setdefault(layer, []).append(number)
    found.stop()
    return Trace(
        chosen={layer: np.asarray(picks, dtype=np.int64) for layer, picks in sorted(chosen.items())},
        rows={layer: np.asarray(numbers, dtype=np.int64) for layer, numbers in sorted(at.items())},
        empty=empty, beyond=found.beyond(),
    )  # fmt: skip


def _experts(text: str, layer: int, row: int, found: _Found) -> list[int] | None:
    parts = [part.strip() for part in text.split("|")]
    if not all(re.fullmatch(r"-?\d{1,9}", part) for part in parts):
        found.say(f"row {row}, layer {layer}: {text[:40]!r} is not experts joined by |, such as 3|17")
        return None
    experts = [int(part) for part in parts]
    if min(experts) < 0:
        found.say(f"row {row}, layer {layer}: expert {min(experts)} is negative; experts are numbered from 0")
        return None
    found.expert(max(experts), f"row {row}, layer {layer}")
    if len(set(experts)) < len(experts):
        found.say(f"row {row}, layer {layer}: {text[:40]} names an expert twice; a token chooses distinct experts")
        return None
    return experts


def coactivation(chosen: Ints, experts: int) -> Floats:
    """Tokens [e, f] that chose both, chosen[token, k] of one layer; the diagonal counts the expert itself."""
    hits = np.zeros((len(chosen), experts))
    np.put_along_axis(hits, chosen, 1.0, axis=1)
    joint: Floats = hits.T @ hits
    return joint


def clumping(chosen: Ints, experts: int) -> float:
    """Variance of an expert's tokens over runs of `RUN` tokens in a row, over that of independent tokens; at least 1.

    Tokens of one text route alike. Pooled over experts; 1 where fewer than `FEWEST_RUNS` runs were recorded.
    """
    runs = len(chosen) // RUN
    if runs < FEWEST_RUNS:
        return 1.0
    cut = chosen[: runs * RUN].reshape(runs, -1)
    counts = np.stack([np.bincount(run, minlength=experts) for run in cut]).astype(np.float64)
    chance = counts.mean(axis=0) / RUN
    alone = RUN * (chance * (1.0 - chance)).sum()
    return float(max(1.0, counts.var(axis=0, ddof=1).sum() / alone)) if alone > 0.0 else 1.0


def transitions(trace: Trace, layer: int, experts: int) -> Floats:
    """Joint counts [e, f]: tokens that chose e in `layer` and f in the next recorded one, of tokens seen in both.

    One row of the file per token, as in traces with a column per layer. Raises UserError where nothing follows.
    """
    after = next((name for name in sorted(trace.chosen) if name > layer), None)
    if layer not in trace.chosen or after is None:
        raise UserError(f"layer {layer} and a layer after it are not both recorded", where="trace")
    _, here, there = np.intersect1d(trace.rows[layer], trace.rows[after], return_indices=True)
    left, right = trace.chosen[layer][here], trace.chosen[after][there]
    out: Floats = np.zeros((experts, experts))
    pairs = np.repeat(left, right.shape[1], axis=1).ravel(), np.tile(right, (1, left.shape[1])).ravel()
    np.add.at(out, pairs, 1.0)
    return out


def transition_chances(trace: Trace, names: Sequence[int], chance: Floats, top_k: int) -> Floats | None:
    """transitions[layer, e, f] of layers that a file calls `names`: chance that a token on e is on f in the next one.

    chance[layer, expert]: what experts that no token chose are followed by, and all where a layer does not come before
    the next one in the file. None where no token was seen in two layers in a row, or only one layer is there.
    """
    experts = chance.shape[1]
    out: Floats = np.repeat(chance[1:, None, :], experts, axis=1)
    seen = 0.0
    for i, (here, after) in enumerate(pairwise(names)):
        following = next((name for name in sorted(trace.chosen) if name > here), None)
        if following != after:
            continue
        joint = transitions(trace, here, experts)
        total = joint.sum(axis=1, keepdims=True)
        out[i] = np.where(total > 0.0, joint * top_k / np.maximum(total, 1.0), out[i])
        seen += float(total.sum())
    return out if seen > 0.0 else None
