"""`--price`: one price of a device, or one for each type of nodes by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hwprofiles.errors import UserError

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec

Prices = float | Mapping[str, float]  # USD per second of a device; by name of a cluster or of its device
BARE_UNIT = "USD/h"


def read_prices(text: str | None) -> Prices | None:
    """USD per second of a device; a bare number is USD per hour. Raises UserError with all problems.

    >>> read_prices("3.6 USD/h")
    0.001
    >>> read_prices("dgx-h100=3.6,h800=1.8 USD/h")
    {'dgx-h100': 0.001, 'h800': 0.0005}
    """
    if text is None:
        return None
    if "=" not in text:
        return _price(text)
    found, problems = dict[str, float](), []
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals:
            problems.append(f"{part.strip()[:40]!r}: write NAME=PRICE for every type, such as dgx-h100=2.5,h800=2.0")
            continue
        if name.lower() in found:
            problems.append(f"{name[:40]!r} has two prices; leave one of them out")
            continue
        try:
            found[name.lower()] = _price(value)
        except UserError as error:
            problems += [f"{name[:40]}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems, where="--price")
    return found


def _price(text: str) -> float:
    from hwprofiles.units import quantity

    said = text.strip()
    number, _, unit = said.partition(" ")
    try:
        value: float | None = float(number)
    except ValueError:
        value = None  # a unit without a space, or no number: the reader of quantities says which
    if value is not None and not 0.0 < value < math.inf:
        raise UserError(f"{said[:40]!r}: must be a finite price above zero, such as 2.5 (USD/h)", where="--price")
    try:
        price = quantity(said if value is None or unit.strip() else f"{said} {BARE_UNIT}", "USD/s")
    except UserError as error:
        raise UserError(error.problems, where="--price") from None
    if not 0.0 < price < math.inf:
        raise UserError(f"{said[:40]!r}: must be a finite price above zero, such as 2.5 (USD/h)", where="--price")
    return price


def refuse_unknown(prices: Prices | None, clusters: Sequence[ClusterSpec]) -> None:
    """Raise UserError where a price names nothing that is tried, or one price is of several types."""
    names = list(dict.fromkeys(cluster.name for cluster in clusters))
    if prices is None:
        return
    if not isinstance(prices, Mapping):
        if len(names) > 1:
            example = ",".join(f"{name}={value}" for name, value in zip(names, (2.5, 2.0), strict=False))
            raise UserError(
                f"one price for {len(names)} types of nodes; write one for each, such as --price {example}",
                where="--price, --node-types",
            )
        return
    known = {name.lower() for cluster in clusters for name in (cluster.name, cluster.device)}
    problems = [f"{name[:40]!r} is not tried here; name some of {', '.join(sorted(known))}" for name in prices
                if name not in known]  # fmt: skip
    if problems:
        raise UserError(problems, where="--price")
