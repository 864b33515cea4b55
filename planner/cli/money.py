"""Options of time, money and energy of `moecast plan`: read, searched over counts of devices, printed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from hwprofiles.errors import UserError
from planner.cli.inputs import Problems, Question, one_of
from planner.cli.options import _OUTPUT, Asked, Text, _option

if TYPE_CHECKING:
    from rich.console import Console

    from hwprofiles.specs import ClusterSpec
    from planner.goals import Goal, Reached
    from planner.search import PlanResult

_MONEY = "Time, money and energy of a whole run"
PARETO_SHOWN = 12
_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, kw_only=True)
class AskedPlan(Asked):
    """What the user typed after `plan`: the question, and what a whole run may take."""

    objective: Annotated[
        str, _option("--objective", "throughput, cost, time-to-train or energy. Default: throughput.", "NAME", _MONEY)
    ] = "throughput"  # fmt: skip
    tokens: Annotated[Text, _option("--tokens", "Tokens to train, such as 15T.", "N", _MONEY)] = None
    max_gpus: Annotated[
        Text, _option("--max-gpus", "Try --gpus, doubled up to this.", "N", _MONEY)
    ] = None  # fmt: skip
    deadline: Annotated[Text, _option("--deadline", 'Most time, such as "60 day".', "TIME", _MONEY)] = None
    budget: Annotated[Text, _option("--budget", "Most money in USD, such as 2M.", "USD", _MONEY)] = None
    price: Annotated[
        Text, _option("--price", 'Price of a device, such as "2.5 USD/h". Default: the device\'s.', "PRICE", _MONEY)
    ] = None  # fmt: skip
    mtbf: Annotated[
        Text, _option("--mtbf", 'Mean time between failures of a node, such as "8000 h"; none: no failures.', "TIME",
                      _MONEY)
    ] = None  # fmt: skip
    restart: Annotated[
        Text, _option("--restart", 'From a failure until training goes on, such as "10 min".', "TIME", _MONEY)
    ] = None  # fmt: skip
    storage: Annotated[
        Text, _option("--storage", 'Rate at which all nodes together write a checkpoint, such as "200 GB/s".', "RATE",
                      _MONEY)
    ] = None  # fmt: skip
    checkpoint_cost: Annotated[
        Text, _option("--checkpoint-cost", "Time a checkpoint keeps training waiting. Default: state over --storage.",
                      "TIME", _MONEY)
    ] = None  # fmt: skip
    checkpoint_interval: Annotated[
        Text, _option("--checkpoint-interval", "Work between checkpoints. Default: Daly's optimum.", "TIME", _MONEY)
    ] = None  # fmt: skip
    placement_out: Annotated[
        Text, _option("--placement-out", "Save the placement of the first plan (--placement auto), as `moecast place` "
                      "does.", "FILE", _OUTPUT)
    ] = None  # fmt: skip
    slow_share: Annotated[
        Text, _option("--slow-share", "Share of its time that a node is slow, such as 0.001.", "X", _MONEY)
    ] = None  # fmt: skip
    slow_factor: Annotated[
        Text, _option("--slow-factor", "How much longer a step takes while one is, such as 1.1.", "X", _MONEY)
    ] = None  # fmt: skip


OWN = tuple(item.name for item in fields(AskedPlan) if item.name not in Asked.__dataclass_fields__)
_NEED_TOKENS = ("deadline", "budget", "mtbf", "restart", "storage", "checkpoint_cost", "checkpoint_interval",
                "slow_share", "slow_factor")  # fmt: skip


def asked_for(asked: AskedPlan) -> bool:
    """Whether any of these options was given."""
    return any(getattr(asked, name) not in (None, "throughput") for name in OWN)


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


def read_goal(asked: AskedPlan) -> tuple[Goal, float | None, int | None]:
    """(goal, price of a device in USD per second, most devices) of the options. Raises UserError with all problems."""
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
    deadline, price = measured("deadline", "s"), measured("price", "USD/s")
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
    if most is not None and (asked.nodes or asked.host_map):
        problems.found.append("--max-gpus tries other counts than --nodes or --host-map name; leave one of them out")
    problems.stop()
    terms = None if tokens is None else Terms(tokens=tokens, **terms_of)
    goal = Goal(objective=objective or "throughput", terms=terms, deadline_s=deadline, budget_usd=budget,
                price_usd_per_s=price)  # fmt: skip
    return goal, price, most


def clusters_of(question: Question, where: str, price: float | None, most: int | None) -> list[ClusterSpec]:
    """The cluster in every size that is tried, at the price asked. Raises UserError."""
    from hwprofiles import catalogue
    from planner.goals import counts_between
    from planner.training import with_price

    least, per_node = question.cluster.num_devices, question.cluster.devices_per_node
    if most is None:
        return [with_price(question.cluster, price)]
    if most < least:
        raise UserError(f"--max-gpus {most} is below {least}; give --gpus to start from fewer", where="--max-gpus")
    sizes = counts_between(least, most, per_node)
    return [with_price(catalogue.cluster(where, gpus=count), price) for count in sizes]


def reached(asked: AskedPlan, question: Question, search: Callable[[ClusterSpec, int], PlanResult]) -> Reached:
    """The answer over all counts of devices. search(cluster, lean runs): the search on one of them."""
    from hwprofiles.catalogue import device_of
    from planner.goals import LEAN_RUNS, reach

    goal, price, most = read_goal(asked)
    clusters = clusters_of(question, asked.cluster or "", price, most)
    if (goal.objective == "cost" or goal.budget_usd is not None) and not device_of(clusters[0]).usd_per_s:
        raise UserError("the device has no price; give --price", where="--objective cost, --budget")
    return reach(goal, clusters, lambda cluster: search(cluster, LEAN_RUNS))


def with_goal(data: Mapping[str, Any], found: Reached) -> dict[str, Any]:
    """The plan file with goal, counts, pareto and the run of each plan."""
    out = dict(data) | found.to_json()
    out["plans"] = [
        record | {"training": run} for record, run in zip(data["plans"], found.trainings(), strict=True)
    ]  # fmt: skip
    return out


def question_on(question: Question, result: PlanResult) -> Question:
    """The question with the cluster of the result."""
    return replace(question, cluster=result.cluster)


def print_goal(console: Console, found: Reached) -> None:
    """Counts of devices, the run of the best plan, and the Pareto set."""
    from dashboards.style import seconds_text
    from planner.cli.tables import grid, notes

    goal = found.goal
    whole = goal.terms is not None
    headers = ("# GPUs", "plan", "step", "days" if whole else "s per step", "USD", "MWh" if whole else "kJ",
               "peak GiB", "")  # fmt: skip

    def cells(point: Any, note: str) -> tuple[str, ...]:
        scale = 1 / 86400 if whole else 1.0
        energy = point.energy_j / 3.6e9 if whole else point.energy_j / 1e3
        usd = "" if point.usd is None else f"{point.usd:,.0f}" if whole else f"{point.usd:.4f}"
        return (
            f"{point.devices:,}", point.report.plan.label(), seconds_text(point.report.step_s.value),
            f"{point.time_s * scale:.4g}", usd, f"{energy:,.4g}", f"{point.report.peak_mem_bytes / 2**30:.1f}", note,
        )  # fmt: skip

    if len(found.counts) > 1:
        rows: list[tuple[str, ...]] = []
        for count in found.counts:
            if not count.points:
                rows.append((f"{count.devices:,}", "no plan", "", "", "", "", "", count.why[:60]))
                continue
            from planner.goals import value_of

            best = min(count.points, key=lambda p: (not p.keeps, value_of(p, goal.objective), p.costs))
            note = "chosen" if best is found.point else "" if best.keeps else "beyond deadline or budget"
            rows.append(cells(best, note))
        console.print()
        console.print(grid(f"By number of GPUs (objective: {goal.objective})", headers, rows, left=("plan", "")))
    run = found.point.training
    if run is not None:
        console.print()
        console.print(grid(f"To train {run.tokens:.4g} tokens", ("", "value (80 % interval)"), run_rows(run),
                           left=("value (80 % interval)",)))  # fmt: skip
        if run.assumed:
            notes(console, "Assumed for the run", [", ".join(run.assumed) + " (planner/assumed.toml)"])
    if len(found.pareto) > 1:
        console.print()
        title = "Pareto set of time, memory, USD and GPUs, of the plans simulated"
        shown = [cells(p, "")[:-1] for p in found.pareto[:PARETO_SHOWN]]
        console.print(grid(title, headers[:-1], shown, left=("plan",)))
        if len(found.pareto) > PARETO_SHOWN:
            console.print(f"  ... and {len(found.pareto) - PARETO_SHOWN} more (see --json)")


def run_rows(run: Any) -> list[tuple[str, str]]:
    """(name, value) of a whole run."""

    def days(value: Any) -> str:
        return f"{value.value / 86400:.4g} days ({value.low / 86400:.4g}-{value.high / 86400:.4g})"

    parts = ", ".join(f"{name} {seconds / run.time_s.value:.1%}" for name, seconds in run.parts.items() if seconds)
    energy = run.energy_j
    mwh = [f"{joule / 3.6e9:,.4g}" for joule in (energy.value, energy.low, energy.high)]
    return [
        ("time", days(run.time_s)),
        ("price", f"{run.usd.value:,.0f} USD ({run.usd.low:,.0f}-{run.usd.high:,.0f})"),
        ("energy (modelled)", f"{mwh[0]} MWh ({mwh[1]}-{mwh[2]})"),
        ("steps", f"{run.steps:,}"),
        ("goodput", f"{run.goodput:.1%}"),
        ("of the time", parts),
        ("failures", f"{run.failures:.3g} expected, one every {run.mtbf_s / 3600:.3g} h"),
        ("checkpoint", f"{run.checkpoint_bytes / 1e12:.3g} TB in {run.checkpoint_s:.3g} s, "
                       f"every {run.interval_s / 60:.3g} min"),
    ]  # fmt: skip
