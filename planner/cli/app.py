"""The command and its verbs; turns user errors into one screen of text and an exit code.

Exit codes: 0 done, 2 bad input, 3 no plan, 4 the simulated plan does not fit, 130 stopped by Ctrl-C, 141 the
reader of stdout is gone.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from hwprofiles.errors import UserError, error_text
from planner.cli import (
    calibrate,
    compare,
    dashboard,
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


class Verbs(TyperGroup):
    """A group whose verbs may raise UserError."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a user error is printed to stderr and becomes the exit code."""
        try:
            done = super().invoke(ctx)
            sys.stdout.flush()
            return done
        except UserError as error:
            print(error_text(error), file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(output.INTERRUPTED) from None
        except BrokenPipeError:
            output.nobody_reads()
            raise typer.Exit(output.UNREAD) from None


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
app.command("dashboard")(dashboard.dashboard)
app.command("schema")(schema.schema)
app.command("show")(show.show)
app.command("place")(place.place)
app.command("sweep")(sweep.sweep)
app.command("validate")(validate.validate)
app.add_typer(imports.app, name="import")
app.add_typer(calibrate.app, name="calibrate")
