"""What `moecast calibrate fit` shows: errors by family, what was left out, and the next command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cli.tables import grid

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.profile import Profile
    from calibration.refit import Refit

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
