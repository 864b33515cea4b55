"""What a whole run takes, as tables of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from planner.goals import Reached

PARETO_SHOWN = 12


def print_goal(console: Console, found: Reached) -> None:
    """Counts of devices, the run of the best plan, and the Pareto set."""
    from dashboards.style import seconds_text
    from planner.cli.tables import grid, notes

    goal = found.goal
    whole = goal.terms is not None
    types = len({count.cluster for count in found.counts}) > 1
    headers = ("# GPUs", *(("cluster",) if types else ()), "plan", "step", "days" if whole else "s per step", "USD",
               "MWh" if whole else "kJ", "peak GiB", "")  # fmt: skip

    def cells(point: Any, note: str) -> tuple[str, ...]:
        scale = 1 / 86400 if whole else 1.0
        energy = point.energy_j / 3.6e9 if whole else point.energy_j / 1e3
        usd = "" if point.usd is None else f"{point.usd:,.0f}" if whole else f"{point.usd:.4f}"
        return (
            f"{point.devices:,}", *((point.report.cluster,) if types else ()), point.report.plan.label(),
            seconds_text(point.report.step_s.value),
            f"{point.time_s * scale:.4g}", usd, f"{energy:,.4g}", f"{point.report.peak_mem_bytes / 2**30:.1f}", note,
        )  # fmt: skip

    if len(found.counts) > 1:
        rows: list[tuple[str, ...]] = []
        for count in found.counts:
            if not count.points:
                where = (count.cluster,) if types else ()
                rows.append((f"{count.devices:,}", *where, "no plan", "", "", "", "", "", count.why[:60]))
                continue
            from planner.goals import value_of

            best = min(count.points, key=lambda p: (not p.keeps, value_of(p, goal.objective), p.costs))
            note = "chosen" if best is found.point else "" if best.keeps else "beyond deadline or budget"
            rows.append(cells(best, note))
        console.print()
        console.print(
            grid(f"By number of GPUs (objective: {goal.objective})", headers, rows, left=("cluster", "plan", ""))
        )
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
        console.print(grid(title, headers[:-1], shown, left=("cluster", "plan")))
        if len(found.pareto) > PARETO_SHOWN:
            console.print(f"  ... and {len(found.pareto) - PARETO_SHOWN} more (see --json)")
    gap = found.front_gap
    if gap is not None:
        said = "is exact over the tables" if gap <= 0.0 else (
            f"may miss plans up to {gap:.1%} faster than a simulated one of no more memory on as many GPUs"
        )  # fmt: skip
        console.print(f"\nThe Pareto set {said}.")
    if goal.objective == "energy":
        least = found.energy_gap
        console.print("No plan of the tables takes less energy." if least == 0.0 else
                      "The energy is the least of the plans simulated, not proven." if least is None else
                      f"A plan that takes up to {least:.1%} less energy may be among those not simulated.")  # fmt: skip


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
