"""`moecast schema`: the JSON Schema of the plan file, and whether a file keeps it."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import output


def schema(
    check: Annotated[str | None, typer.Option("--check", metavar="PLAN.json", help="Say whether a file keeps it "
                                              "(older formats are brought up to date first).",
                                              show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write the schema to a file.",
                                            show_default=False)] = None,
) -> None:  # fmt: skip
    """Print the JSON Schema of plan files."""
    output.check_targets(out=out)
    from planner.planfile import FORMAT, load_plan
    from planner.schema import check_plan, schema_text

    if out:
        output.write_text(out, schema_text(), "--out")
    if check is not None:
        check_plan(load_plan(check), where=check)
        output.console().print(f"{check}: a plan file, readable as format {FORMAT}", markup=False)
    elif not out:
        output.write_text(output.STDOUT, schema_text(), "schema")
