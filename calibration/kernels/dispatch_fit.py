"""Parameters of one dispatch or combine kernel from measured times: least squares on their logarithms.

The parameters of one scale-up domain are fitted to rows of one domain, then those of several to the rest, with
the first held. `dispatch_start.toml` says where the search begins and what bounds it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from calibration.kernels.base import Floats
from hwprofiles.forms.dispatch import ACROSS, Exchange, form_of

NOISE = 0.05  # relative; where the loss turns from squares to absolute values
EVALUATIONS = 150
Named = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What is known of a device before anything is fitted."""

    multiprocessors: float
    nvlink_bytes_per_s: float


@cache
def _start(table: str) -> tuple[tuple[str, ...], Floats]:
    """Names, and rows of (centre, width, low, high), all but the width in natural logarithms."""
    path = resources.files("calibration") / "kernels" / "dispatch_start.toml"
    entries = tomllib.loads(path.read_text(encoding="utf-8"))[table]
    numbers = [[e["value"], e["low"], e["high"], e["width"]] for e in entries.values()]
    columns = np.array(numbers).T
    columns[:3] = np.log(columns[:3])
    return tuple(entries), columns


def exchange(rows: pd.DataFrame, payload: str, *, even: bool) -> Exchange:
    """The measured rows of one payload as columns."""
    names = {"tokens": "tokens", "hidden": "hidden", "top_k": "topk", "experts": "experts", "ranks": "ep",
             "domains": "nodes", "sms": "sms", "group_limit": "group_limit"}  # fmt: skip
    columns: dict[str, Any] = {name: rows[column].to_numpy(float) for name, column in names.items()}
    return Exchange(payload=payload, even=even, **columns)


def predicted_s(mode: str, named: Mapping[str, Any], rows: pd.DataFrame) -> Floats:
    """Seconds of `rows` under these parameters of the form."""
    form = form_of(mode, named)
    time_s = np.zeros(len(rows))
    for payload in rows.payload.unique():
        own = (rows.payload == payload).to_numpy()
        time_s[own] = form.parts(exchange(rows[own], str(payload), even=mode == "rack")).total_s
    return time_s


def fit_named(mode: str, rows: pd.DataFrame, chip: Chip) -> Named:
    """Parameters of the form, those of several domains under "across" where `rows` has any."""
    inside = rows.nodes == 1

    def of(numbers: Mapping[str, float]) -> Named:
        known = {**numbers, "multiprocessors": chip.multiprocessors}
        return {**known, "nvlink_bytes_per_s": numbers["nvlink_share"] * chip.nvlink_bytes_per_s}

    def alone(numbers: Mapping[str, float], part: pd.DataFrame) -> Floats:
        return predicted_s(mode, of(numbers), part)

    named = of(_search(mode, rows[inside], alone))
    del named["nvlink_share"]
    if mode not in ACROSS or inside.all():
        return named

    def beyond(numbers: Mapping[str, float], part: pd.DataFrame) -> Floats:
        return predicted_s(mode, {**named, "across": numbers}, part)

    return {**named, "across": _search(f"{mode}_across", rows[~inside], beyond)}


def fit_nic(mode: str, named: Mapping[str, Any], rows: pd.DataFrame) -> float:
    """The NIC rate that `rows` show with everything else held, bytes/s."""

    def at(rate: float) -> Floats:
        return predicted_s(mode, {**named, "across": {**named["across"], "nic_bytes_per_s": rate}}, rows)

    time_s = rows.time_s.to_numpy(float)
    first = np.log(named["across"]["nic_bytes_per_s"])

    def residuals(logs: Floats) -> Floats:
        off: Floats = np.log(at(float(np.exp(logs[0]))) / time_s) / NOISE
        return off

    found = least_squares(residuals, [first], loss="soft_l1")
    return float(np.exp(found.x[0]))


def _search(
    table: str, rows: pd.DataFrame, predict: Callable[[Mapping[str, float], pd.DataFrame], Floats]
) -> dict[str, float]:
    names, (centre, low, high, width) = _start(table)
    time_s = rows.time_s.to_numpy(float)

    def residuals(logs: Floats) -> Floats:
        off = np.log(predict(dict(zip(names, np.exp(logs), strict=True)), rows) / time_s) / NOISE
        return np.concatenate([off, (logs - centre) / width])

    found = least_squares(residuals, centre, bounds=(low, high), loss="soft_l1", max_nfev=EVALUATIONS)
    return dict(zip(names, (float(x) for x in np.exp(found.x)), strict=True))
