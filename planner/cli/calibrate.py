"""`moecast calibrate`: measure the device of this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import output
from planner.cli.inputs import Problems

app = typer.Typer(no_args_is_help=True, help="Measure kernels on a device of this machine.")


@app.callback()
def calibrate() -> None:
    """Measure kernels on a device of this machine."""


@app.command("measure")
def measure(
    device: Annotated[str, typer.Option(metavar="cuda|cuda:N|cpu", help="Device to measure.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder; rows go to DIR/<device>/rows.csv.")],
    suite: Annotated[str, typer.Option(metavar="tiny|quick|full", help="How much to measure.")] = "quick",
    seed: Annotated[str, typer.Option(metavar="N", help="Seed of the measured tensors.")] = "0",
) -> None:
    """Time GEMM, grouped GEMM, attention, launches and one MoE block; needs the extra `calibrate` (torch).

    Rows are kept as they are made: after Ctrl-C the same command goes on where it stopped.
    """
    from pathlib import Path

    from hwprofiles.errors import UserError

    problems = Problems()
    number = problems.whole(seed, "--seed", lowest=0, highest=2**32 - 1)
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
                seed=number,
                progress=lambda done, total, label: bar.update(label, done, total),
            )
        except OSError as error:
            raise UserError(f"cannot write {out}: {error.strerror}; give a writable folder", where="--out") from None
    output.console().print(overview(folder / "rows.csv"), markup=False)
