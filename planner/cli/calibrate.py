"""`moecast calibrate`: measure the device of this machine, and fit a profile to what was measured."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import output
from planner.cli.calibrate_check import check
from planner.question.read import Problems

app = typer.Typer(no_args_is_help=True, help="Measure kernels on a device of this machine, and fit a profile to them.")


@app.callback()
def calibrate() -> None:
    """Measure kernels on a device of this machine, and fit a profile to them."""


@app.command("measure")
def measure(
    device: Annotated[str, typer.Option(metavar="cuda|cuda:N|cpu", help="Device to measure.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder; rows go to DIR/<device>/rows.csv.")],
    suite: Annotated[str, typer.Option(metavar="tiny|quick|full", help="How much to measure.")] = "quick",
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this family of kernels; may be repeated.")
    ] = None,
    ranks: Annotated[
        str | None, typer.Option(metavar="N", help="Ranks of a group (default: all GPUs, 2 on a CPU); 1: none.")
    ] = None,
    seed: Annotated[str, typer.Option(metavar="N", help="Seed of the measured tensors.")] = "0",
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Measure every point again.")] = False,
) -> None:
    """Time kernels, copies, collectives, MoE blocks and training steps; needs the extra `calibrate` (torch).

    Rows are kept as they are made: after Ctrl-C the same command goes on where it stopped.
    """
    from pathlib import Path

    from hwprofiles.errors import UserError

    problems = Problems()
    number = problems.whole(seed, "--seed", lowest=0, highest=2**32 - 1)
    group = problems.whole(ranks, "--ranks")
    _named(problems, out)
    problems.stop("calibrate measure")
    assert number is not None
    with output.progress("measuring") as bar:
        from calibration.measure import measure as run
        from calibration.measure import overview

        try:
            folder = run(
                device,
                Path(out),
                suite=suite,  # type: ignore[arg-type]  # checked, with its remedy, by `measure`
                families=family or None,
                ranks=group,
                seed=number,
                progress=lambda done, total, label: bar.update(label, done, total),
                resume=not no_resume,
            )
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; give a writable folder", where="--out") from None
    text = output.console()
    text.print(overview(folder / "rows.csv"), markup=False)
    text.print(f"\nNext: moecast calibrate fit {folder} --out PROFILE", markup=False, soft_wrap=True)


@app.command("fit")
def fit(
    out: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Folder that is written; with --runs only where given.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Argument(metavar="[ROWS_DIR]", help="What `measure` wrote; without it the shipped devices are refitted."),
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNS.csv|shipped",
            help="Fit clocks and host times to measured runs instead; may be repeated; shipped: the published ones.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Name of the device (default: its driver's name for it).")
    ] = None,
    price: Annotated[
        str | None, typer.Option(metavar="PRICE", help='Price of one device, such as "2.5 USD/h".')
    ] = None,
) -> None:
    """Turn measured rows into a profile (device, cluster, tables) for every other command, and show its errors.

    Without ROWS_DIR the kernel families of the shipped devices are fitted anew from the shipped tables. With --runs the
    few whole-run parameters are fitted to measured runs, and shown; they are written only where --out is given.
    """
    from pathlib import Path

    from hwprofiles.errors import UserError
    from hwprofiles.units import quantity
    from planner.cli import listings_fit

    problems = Problems()
    usd_per_s = None if price is None else problems.attempt(lambda: quantity(price, "USD/s"))
    if usd_per_s is not None and usd_per_s < 0.0:
        problems.found.append(f"--price {price}: give zero or more")
    if name is not None and not name.strip():
        problems.found.append("--name is empty; give the name that tables and reports shall show")
    if rows is None and (name is not None or price is not None):
        problems.found.append("--name and --price describe a measured device; give ROWS_DIR with them")
    if runs and (rows is not None or name is not None or price is not None):
        problems.found.append("--runs fits clocks and host times alone; leave out ROWS_DIR, --name and --price")
    if not runs and out is None:
        problems.found.append("no --out; give the folder of the profile that is written")
    if out is not None:
        _named(problems, out)
    problems.stop("calibrate fit")
    text = output.console()
    if runs:
        _fit_runs(runs, out)
        return
    assert out is not None
    with output.progress("fitting") as bar:
        try:
            if rows is None:
                from calibration.refit import refit

                changes = refit(Path(out), lambda done, total, label: bar.update(label, done, total))
            else:
                from calibration.profile import build

                made = build(Path(rows), Path(out), name=name, usd_per_s=usd_per_s, progress=bar.update)
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; give a writable folder", where="--out") from None
    if rows is None:
        listings_fit.print_refit(text, changes)
    else:
        listings_fit.print_profile(text, made)


def _named(problems: Problems, out: str) -> None:
    """An empty folder would be the current one."""
    if not out.strip():
        problems.found.append("--out is empty; give a folder to write to, such as --out measured")


def _fit_runs(runs: list[str], out: str | None) -> None:
    """`fit --runs`: parameters, what they rest on, and where they were written."""
    from pathlib import Path

    from hwprofiles.errors import UserError
    from planner.cli import listings_fit

    with output.progress("reading") as bar:
        from calibration.fit_runs import fit_runs

        try:
            found = fit_runs(
                runs,
                out=None if out is None else Path(out),
                progress=lambda done, total, label: bar.update(label, done, total),
            )
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; give a writable folder", where="--out") from None
    listings_fit.print_runs(output.console(), found)


app.command("check")(check)
