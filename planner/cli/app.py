"""The command and its verbs; turns user errors into one screen of text and an exit code.

Exit codes: 0 done, 2 bad input, 3 no plan, 4 the simulated plan does not fit, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from hwprofiles.errors import UserError
from planner.cli import (
    calibrate,
    compare,
    explain,
    export,
    imports,
    judge,
    mix,
    output,
    place,
    plan,
    scale,
    schema,
    share,
    show,
    simulate,
    stages,
    sweep,
    validate,
)

MAX_PROBLEMS = 16
MAX_PROBLEM_CHARS = 400


def error_text(error: UserError) -> str:
    """What is wrong, where and the remedy, on one screen whatever the input was."""
    shown = [_cut(p) for p in error.problems[:MAX_PROBLEMS]]
    more = len(error.problems) - len(shown)
    head = f"error: {_cut(error.where)}" if error.where else "error"
    if len(shown) == 1 and not more:
        return f"{head}: {shown[0]}"
    tail = [f"  ... and {more} more"] if more > 0 else []
    return "\n".join([f"{head}: {len(error.problems)} problems", *(f"  - {p}" for p in shown), *tail])


def _cut(text: str) -> str:
    flat = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return flat if len(flat) <= MAX_PROBLEM_CHARS else flat[: MAX_PROBLEM_CHARS - 3] + "..."


class Verbs(TyperGroup):
    """A group whose verbs may raise UserError."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a user error is printed to stderr and becomes the exit code."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            print(error_text(error), file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(output.INTERRUPTED) from None


app = typer.Typer(
    name="moecast",
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Predict step time and memory of Mixture-of-Experts training on a cluster, and plan its layout.",
    epilog="Exit codes: 0 done, 2 bad input, 3 no plan found, 4 the plan does not fit, 130 stopped.",
)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("scale")(scale.scale)
app.command("stages")(stages.stages)
app.command("mix")(mix.mix)
app.command("share")(share.share)
app.command("explain")(explain.explain)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("judge")(judge.judge)
app.command("schema")(schema.schema)
app.command("show")(show.show)
app.command("place")(place.place)
app.command("sweep")(sweep.sweep)
app.command("validate")(validate.validate)
app.add_typer(imports.app, name="import")
app.add_typer(calibrate.app, name="calibrate")
