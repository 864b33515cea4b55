"""Parameters of the collective forms from measured points: robust least squares on log time, held near the start.

The scale-up links of each device are fitted on its points inside one domain, the fabrics then on points across
domains. The port rate of a source that does not state it is read off its largest message (`line_rates`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from calibration.kernels.base import Floats
from hwprofiles.factors import factors
from hwprofiles.forms.collectives import Algorithm, DomainForm, FabricForm, Span, collective

OUTLIER = 0.1  # relative error beyond which a point counts linearly, not squared
PULL = 0.3  # residual of one width of departure from the start
SCORED_BYTES = 2**20
SMALL_WEIGHT = 0.2  # of points below SCORED_BYTES: they say what waiting is, and are not scored
MAX_CALLS = 60
UNKNOWN = "infiniband"  # what a fabric without points of its own is taken to be
RINGS = ("all_gather", "reduce_scatter", "all_reduce")


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Scale-up links by device, networks by kind."""

    domains: Mapping[str, DomainForm]
    fabrics: Mapping[str, FabricForm]


class Case(NamedTuple):
    """Points alike but for their sizes; `index` are their places among all points."""

    index: Any
    device: str
    fabric: str
    op: str
    algorithm: Algorithm
    nbytes: Floats
    span: Span


@cache
def start() -> dict[str, Any]:
    """The start file as it stands."""
    path = resources.files("calibration.kernels") / "network_start.toml"
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return data


def line_rates(points: pd.DataFrame) -> pd.Series:
    """Bytes/s of one device that a ring gets over the network, per point: one rate per source, set of it and device.

    Read off the largest message: the best bus rate of a ring collective over the devices of a node, or where there is
    none the best message between two devices over the starting share of such messages. Sets of one cluster (settings
    of the library, `|` in the name) share a rate. 1 inside a domain, where no network counts.
    """
    far = points[points.nodes > 1]
    key = [far.source, far.set.where(~far.set.str.contains("|", regex=False), ""), far.device]
    count = far.num_gpus.to_numpy(float)
    bus = far.bytes / far.time_s * np.where(far.op == "all_reduce", 2.0, 1.0) * (count - 1.0) / count
    ring = (bus * far.nodes / far.num_gpus).where(far.op.isin(RINGS))
    pair = (far.bytes / far.time_s / start()["fabric"]["p2p"]["value"]).where(far.op == "p2p")
    largest = far.bytes >= 0.9 * far.bytes.groupby(key).transform("max")
    best = ring.where(largest).groupby(key).transform("max")
    found = best.fillna(pair.where(largest).groupby(key).transform("max"))
    rates: pd.Series = found.reindex(points.index).fillna(1.0)
    return rates


def prepared(points: pd.DataFrame) -> list[Case]:
    """Points by device, fabric, op and algorithm. The `line` of a fabric is 1 here, as the rates are achieved ones."""
    found = []
    for case, index in points.groupby(["device", "fabric", "op", "algorithm"]).indices.items():
        device, fabric, op, algorithm = cast(tuple[str, str, str, str], case)
        part = points.iloc[index]
        count = part.num_gpus.to_numpy(float)
        span = Span(
            size=count,
            intra=count / part.nodes.to_numpy(float),
            up_bytes_per_s=factors(device).scale_up_reference_bytes_per_s,
            out_bytes_per_s=part.rate.to_numpy(float),
        )
        how = cast(Algorithm, algorithm or "library")
        found.append(Case(index, device, fabric, op, how, part.bytes.to_numpy(float), span))
    return found


def predicted_s(cases: Sequence[Case], forms: Forms) -> Floats:
    """Seconds of every point; a fabric that was not fitted is taken to be InfiniBand."""
    result = np.zeros(sum(len(case.index) for case in cases))
    for case in cases:
        network = forms.fabrics.get(case.fabric) or forms.fabrics[UNKNOWN]
        found = collective(case.op, case.nbytes, case.span, forms.domains[case.device], network, case.algorithm)
        result[case.index] = found.alone_s
    return result


def fit_domain(points: pd.DataFrame, device: str, calls: int = MAX_CALLS) -> DomainForm:
    """Scale-up links of one device from its points inside a domain. Raises ValueError where there are none."""
    part = points[(points.nodes == 1) & (points.device == device)]
    if part.empty:
        raise ValueError(f"no collective inside one domain of {device}")
    adds = device not in start()["without_nvls"]
    network = {UNKNOWN: fabric_form(_initial("fabric"))}

    def forms(values: Mapping[str, float]) -> Forms:
        return Forms(domains={device: domain_form(values, nvls=adds)}, fabrics=network)

    return domain_form(_least("domain", part, forms, calls), nvls=adds)


def fit_fabric(
    points: pd.DataFrame, domains: Mapping[str, DomainForm], fabric: str, calls: int = MAX_CALLS
) -> FabricForm:
    """A kind of network from the points across domains on it; the start where there are none."""
    part = points[(points.nodes > 1) & (points.fabric == fabric) & points.fitted]
    if part.empty:
        return fabric_form(_initial("fabric"))

    def forms(values: Mapping[str, float]) -> Forms:
        return Forms(domains=domains, fabrics={UNKNOWN: fabric_form(values), fabric: fabric_form(values)})

    return fabric_form(_least("fabric", part, forms, calls))


def domain_form(values: Mapping[str, float], *, nvls: bool = True) -> DomainForm:
    """The form of named numbers; `extra_s` is long_s - short_s."""
    named = dict(values)
    named["long_s"] = named["short_s"] + named.pop("extra_s")
    if not nvls:
        named |= {"nvls": 0.0, "nvls_s": 0.0}
    return DomainForm(**named)


def fabric_form(values: Mapping[str, float], line: float = 1.0) -> FabricForm:
    """The form of named numbers, with the share of the port's rate that rings reach."""
    named = dict(values)
    named["long_s"] = named["short_s"] + named.pop("extra_s")
    named["message_long_s"] = named["message_s"] + named.pop("message_extra_s")
    return FabricForm(line=line, **named)


def _initial(part: str) -> dict[str, float]:
    return {name: float(entry["value"]) for name, entry in start()[part].items()}


def _least(
    part: str, points: pd.DataFrame, forms: Callable[[Mapping[str, float]], Forms], calls: int
) -> dict[str, float]:
    """Named numbers that fit the points best."""
    entries = start()[part]
    centre = np.log([entry["value"] for entry in entries.values()])
    width = np.array([entry["width"] for entry in entries.values()])
    high = np.log([entry["high"] for entry in entries.values()])
    weight = np.sqrt(np.where(points.bytes >= SCORED_BYTES, 1.0, SMALL_WEIGHT))
    truth, cases = np.log(points.time_s.to_numpy(float)), prepared(points)

    def named(logs: Floats) -> dict[str, float]:
        return dict(zip(entries, np.exp(logs).tolist(), strict=True))

    def residual(logs: Floats) -> Floats:
        off: Floats = (np.log(predicted_s(cases, forms(named(logs)))) - truth) * weight
        return np.concatenate([off, PULL * (logs - centre) / width])

    found = least_squares(
        residual, centre, loss="soft_l1", f_scale=OUTLIER, max_nfev=calls, bounds=(centre - 15.0, high + 1e-9)
    )
    return named(found.x)


def names(form: DomainForm | FabricForm) -> dict[str, float]:
    """The numbers of a form by name."""
    return {field.name: getattr(form, field.name) for field in fields(form)}
