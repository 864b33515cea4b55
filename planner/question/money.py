"""Options of time, money and energy of a plan: read, and searched over counts of devices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from hwprofiles.errors import UserError
from planner.question.asked import OUTPUT, Option, Text
from planner.question.prices import Prices, read_prices, refuse_unknown
from planner.question.read import Problems, Question, one_of
from planner.question.sizes import grown, read_counts, refuse_allocation, several
from planner.question.space import AskedSpace

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.energy import EnergyAsk
    from planner.goals import Goal, Reached
    from planner.search import PlanResult

_MONEY = "Time, money and energy of a whole run"
_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, kw_only=True)
class AskedPlan(AskedSpace):
    """What the user typed after `plan`: the question, and what a whole run may take."""

    objective: Annotated[
        str, Option("--objective", "throughput, cost, time-to-train or energy. Default: throughput.", "NAME", _MONEY)
    ] = "throughput"  # fmt: skip
    tokens: Annotated[Text, Option("--tokens", "Tokens to train, such as 15T.", "N", _MONEY)] = None
    max_gpus: Annotated[
        Text, Option("--max-gpus", "Try --gpus, doubled up to this.", "N", _MONEY)
    ] = None  # fmt: skip
    node_types: Annotated[
        Text, Option("--node-types", "Other clusters to try beside --cluster, with commas, such as dgx-h200,dgx-b200.",
                      "NAMES", _MONEY)
    ] = None  # fmt: skip
    deadline: Annotated[Text, Option("--deadline", 'Most time, such as "60 day".', "TIME", _MONEY)] = None
    budget: Annotated[Text, Option("--budget", "Most money in USD, such as 2M.", "USD", _MONEY)] = None
    price: Annotated[
        Text, Option("--price", 'Price of a device, such as "2.5 USD/h", or of each type, such as '
                      "dgx-h100=2.5,h800=2.0 (bare numbers: USD per hour). Default: the device's.", "PRICE", _MONEY)
    ] = None  # fmt: skip
    mtbf: Annotated[
        Text, Option("--mtbf", 'Mean time between failures of a node, such as "8000 h"; none: no failures.', "TIME",
                      _MONEY)
    ] = None  # fmt: skip
    restart: Annotated[
        Text, Option("--restart", 'From a failure until training goes on, such as "10 min".', "TIME", _MONEY)
    ] = None  # fmt: skip
    storage: Annotated[
        Text, Option("--storage", 'Rate at which all nodes together write a checkpoint, such as "200 GB/s".', "RATE",
                      _MONEY)
    ] = None  # fmt: skip
    checkpoint_cost: Annotated[
        Text, Option("--checkpoint-cost", "Time a checkpoint keeps training waiting. Default: state over --storage.",
                      "TIME", _MONEY)
    ] = None  # fmt: skip
    checkpoint_interval: Annotated[
        Text, Option("--checkpoint-interval", "Work between checkpoints. Default: Daly's optimum.", "TIME", _MONEY)
    ] = None  # fmt: skip
    placement_out: Annotated[
        Text, Option("--placement-out", "Save the placement of the first plan (--placement auto), as `moecast place` "
                      "does.", "FILE", OUTPUT)
    ] = None  # fmt: skip
    slow_share: Annotated[
        Text, Option("--slow-share", "Share of its time that a node is slow, such as 0.001.", "X", _MONEY)
    ] = None  # fmt: skip
    slow_factor: Annotated[
        Text, Option("--slow-factor", "How much longer a step takes while one is, such as 1.1.", "X", _MONEY)
    ] = None  # fmt: skip


OWN = tuple(item.name for item in fields(AskedPlan) if item.name not in AskedSpace.__dataclass_fields__)
_NEED_TOKENS = ("deadline", "budget", "mtbf", "restart", "storage", "checkpoint_cost", "checkpoint_interval",
                "slow_share", "slow_factor")  # fmt: skip


def asked_for(asked: AskedPlan) -> bool:
    """Whether any of these options was given."""
    return several(asked) or any(getattr(asked, name) not in (None, "throughput") for name in OWN)


def amount(text: str, option: str) -> float:
    """A number with k, M, B (or G) or T. Raises UserError.

    >>> amount("15T", "--tokens")
    15000000000000.0
    """
    found = re.fullmatch(r"\s*(\d[\d_,]*\.?\d*(?:[eE]\d+)?)\s*([kMBGT]?)\s*", text)
    value = float(found[1].replace("_", "").replace(",", "")) * _PREFIX[found[2]] if found else 0.0
    if not 0.0 < value < math.inf:
        raise UserError(f"{text[:40]!r} is no number; write 15T, 2.5M or 1e12", where=option)
    return value


def read_goal(asked: AskedPlan) -> tuple[Goal, Prices | None, int | None]:
    """(goal, prices of devices in USD per second, most devices) of the options. Raises UserError with all problems."""
    from hwprofiles.units import quantity
    from planner.goals import OBJECTIVES, Goal
    from planner.training import Terms

    problems = Problems()

    def measured(name: str, unit: str) -> float | None:
        text = getattr(asked, name)
        if text is None:
            return None
        option = "--" + name.replace("_", "-")
        found = problems.attempt(lambda: _quantity(text, unit, option))
        if found is not None and found <= 0.0 and unit != "1" and name != "restart":
            problems.found.append(f"{option} {text!r}: must be more than zero")
        return found

    def _quantity(text: str, unit: str, option: str) -> float:
        bare = unit == "1" and re.fullmatch(r"[\d.eE+-]+", text.strip())
        try:
            return quantity(float(text) if bare else text, unit)
        except (UserError, ValueError) as error:
            raise UserError(str(error), where=option) from None

    objective = problems.attempt(lambda: one_of(asked.objective, OBJECTIVES, "--objective"))
    tokens_text, budget_text = asked.tokens, asked.budget
    tokens = None if tokens_text is None else problems.attempt(lambda: amount(tokens_text, "--tokens"))
    budget = None if budget_text is None else problems.attempt(lambda: amount(budget_text, "--budget"))
    no_failures = asked.mtbf is not None and asked.mtbf.strip().lower() == "none"
    mtbf = math.inf if no_failures else measured("mtbf", "s")
    terms_of = {
        "node_mtbf_s": mtbf, "restart_s": measured("restart", "s"), "storage_bytes_per_s": measured("storage", "B/s"),
        "checkpoint_s": measured("checkpoint_cost", "s"), "interval_s": measured("checkpoint_interval", "s"),
        "slow_share": measured("slow_share", "1"), "slow_factor": measured("slow_factor", "1"),
    }  # fmt: skip
    deadline, price = measured("deadline", "s"), problems.attempt(lambda: read_prices(asked.price))
    most = problems.whole(asked.max_gpus, "--max-gpus")
    share, factor = terms_of["slow_share"], terms_of["slow_factor"]
    if share is not None and share > 1.0:
        problems.found.append(f"--slow-share {share:g}: give a share from 0 to 1")
    if factor is not None and factor < 1.0:
        problems.found.append(f"--slow-factor {factor:g}: give 1 or more")
    if tokens_text is None:
        given = [f"--{name.replace('_', '-')}" for name in _NEED_TOKENS if getattr(asked, name) is not None]
        if asked.objective == "time-to-train":
            given.append("--objective time-to-train")
        if given:
            problems.found.append(
                f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} of a whole run; add --tokens"
            )
    spread = most is not None or asked.node_types is not None or several(asked)
    problems.attempt(lambda: refuse_allocation(asked, spread))
    if most is not None and several(asked):
        problems.found.append("--gpus names several counts already; leave --max-gpus out")
    problems.stop()
    terms = None if tokens is None else Terms(tokens=tokens, **terms_of)
    goal = Goal(objective=objective or "throughput", terms=terms, deadline_s=deadline, budget_usd=budget,
                price_usd_per_s=price)  # fmt: skip
    return goal, price, most


def clusters_of(asked: AskedPlan, questions: Mapping[str, Question], price: Prices | None, most: int | None
                ) -> list[ClusterSpec]:  # fmt: skip
    """The clusters in every size that is tried, at the prices asked. Raises UserError."""
    from planner.goals import counts_between
    from planner.training import with_price

    refuse_unknown(price, [question.cluster for question in questions.values()])
    first = next(iter(questions.values())).cluster
    least, counts = first.num_devices, read_counts(asked.gpus) if several(asked) else ()
    if most is not None:
        if most < least:
            raise UserError(f"--max-gpus {most} is below {least}; give --gpus to start from fewer", where="--max-gpus")
        counts = counts_between(least, most, first.devices_per_node)
    names = [asked.cluster or "", *(part.strip() for part in (asked.node_types or "").split(",") if part.strip())]
    found = [
        each
        for name, question in zip(names, questions.values(), strict=True)
        for each in (grown(question.cluster, name, counts) if counts else [question.cluster])
    ]
    return [with_price(cluster, price) for cluster in found]


def reached(
    asked: AskedPlan,
    questions: Mapping[str, Question],
    search: Callable[[ClusterSpec, int, EnergyAsk | None], PlanResult],
) -> Reached:
    """The answer over all counts of devices and clusters. search(cluster, lean runs, energy runs): the search on one
    of them."""
    from hwprofiles.catalogue import device_of
    from planner.energy import EnergyAsk
    from planner.goals import ENERGY_RUNS, LEAN_RUNS, reach

    goal, price, most = read_goal(asked)
    clusters = clusters_of(asked, questions, price, most)
    unpriced = [c.device for c in clusters if not device_of(c).usd_per_s]
    if (goal.objective == "cost" or goal.budget_usd is not None) and unpriced:
        raise UserError(
            f"{', '.join(dict.fromkeys(unpriced))}: the device has no price; give --price (NAME=PRICE,... by type)",
            where="--objective cost, --budget",
        )
    energy = EnergyAsk(terms=goal.terms, runs=ENERGY_RUNS) if goal.objective == "energy" else None
    return reach(goal, clusters, lambda cluster: search(cluster, LEAN_RUNS, energy))


def with_goal(data: Mapping[str, Any], found: Reached) -> dict[str, Any]:
    """The plan file with goal, counts, pareto and the run of each plan."""
    out = dict(data) | found.to_json()
    out["plans"] = [
        record | {"training": run} for record, run in zip(data["plans"], found.trainings(), strict=True)
    ]  # fmt: skip
    return out
