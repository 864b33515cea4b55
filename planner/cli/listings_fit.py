"""What `moecast calibrate fit` shows: errors by family, what was left out, and the next command."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

from planner.cli.tables import grid

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.fit_runs import RunsFit
    from calibration.profile import Profile
    from calibration.refit import Refit

SHOWN = 5  # rows named per reason
LEFT_OUT = {
    "pair": "shapes (n, k)",
    "top_decade": "the largest tenth",
    "config": "head configurations",
    "batch_heads": "batch x heads",
    "uneven": "uneven rows",
    "size": "sizes inside",
    "end_size": "smallest, largest size",
}


def print_profile(console: Console, made: Profile) -> None:
    """Errors of the fit in-sample and left out, notes, and how to use the profile."""
    lines = []
    for family in made.families:
        for kind, e in family.in_sample.items():
            lines.append((family.name, kind, "nothing", f"{e.cases}", f"{e.median:.1%}", f"{e.p90:.1%}"))
        for held in family.left_out:
            left = LEFT_OUT.get(held.kind, held.kind)
            cells = (f"{held.cases}", f"{held.median:.1%}", f"{held.p90:.1%}")
            lines.append((family.name, held.dtype_or_kind, left, *cells))
    header = ("family", "kind", "left out of the fit", "points", "median", "p90")
    console.print(grid(f"Errors of the fit, {made.device}", header, lines))
    for family in made.families:
        for note in family.notes:
            console.print(f"{family.name}: {note}", markup=False, soft_wrap=True)
        for why, count in family.skipped.items():
            console.print(f"{family.name}: {count} points {why}", markup=False, soft_wrap=True)
    for note in made.notes:
        console.print(note, markup=False, soft_wrap=True)
    out = made.folder
    console.print(f"\nwrote {out} (device.toml, cluster.toml, tables, fit.json)", markup=False, soft_wrap=True)
    console.print("Next:", markup=False)
    for command in (
        f"moecast show devices {out}/device.toml",
        f"moecast plan --model MODEL --cluster {out}/cluster.toml",
    ):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def print_refit(console: Console, made: Refit) -> None:
    """Which files of the shipped devices came out differently."""
    console.print(f"wrote {len(made.written)} files under {made.folder}", markup=False, soft_wrap=True)
    if not made.changed:
        console.print("all equal to the shipped ones")
        return
    console.print(f"{len(made.changed)} differ from the shipped ones:")
    for name in made.changed:
        console.print(f"  {name}", markup=False, soft_wrap=True)


def print_runs(console: Console, found: RunsFit) -> None:
    """The parameters of `fit --runs`, rows that were no use, and what was written."""
    rows = [
        (
            p.name, f"{p.value:.4g}" + (" (at its bound)" if p.at_bound else ""), f"{p.shipped:.4g}",
            f"{p.prior[0]:.4g} x/: {exp(p.prior[1]):.2f}", f"{p.bounds[0]:g} to {p.bounds[1]:g}",
            f"{p.spread[0]:.4g} to {p.spread[1]:.4g}",
        )
        for p in found.parameters
    ]  # fmt: skip
    header = ("parameter", "value", "shipped", "prior", "bounds", f"one {found.left_out} left out")
    title = f"{len(rows)} parameters fitted to {found.runs} runs"
    console.print(grid(title, header, rows))
    console.print(f"mean |log error| {found.before:.2%} as shipped, {found.after:.2%} fitted (of the runs fitted to)")
    reasons: dict[str, list[str]] = {}
    for ident, reason in found.unusable:
        reasons.setdefault(reason, []).append(ident)
    for reason, rows_ in reasons.items():
        more = f" and {len(rows_) - SHOWN} more" if len(rows_) > SHOWN else ""
        which = f"row {rows_[0]}" if len(rows_) == 1 else f"rows {', '.join(rows_[:SHOWN])}{more}"
        console.print(f"no use: {which}: {reason}", markup=False, soft_wrap=True)
    for path in found.written:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    if not found.written:
        console.print("nothing was written; --out PROFILE puts the values into a profile")
