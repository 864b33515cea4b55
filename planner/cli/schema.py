"""`moecast schema`: the JSON Schema of plan files and of answers of `mix`, and whether a file keeps it."""

from __future__ import annotations

from typing import Annotated

import typer

from hwprofiles.errors import UserError
from planner.cli import output


def schema(
    check: Annotated[str | None, typer.Option("--check", metavar="PLAN.json", help="Say whether a file keeps it "
                                              "(older formats are brought up to date first).",
                                              show_default=False)] = None,
    of: Annotated[str, typer.Option("--of", metavar="plan|mix", help="Which schema: of files of `plan`, or of "
                                    "answers of `mix`.")] = "plan",
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write the schema to a file.",
                                            show_default=False)] = None,
) -> None:  # fmt: skip
    """Print the JSON Schema of plan files."""
    output.check_targets(out=out)
    from planner.mixed.mixfile import is_mixed
    from planner.planfile import FORMAT, load_plan, read_json
    from planner.schema import MIX_FORMAT, check_mixed, check_plan, schema_text

    if of not in ("plan", "mix"):
        raise UserError(f"{of[:40]!r} is not known; use plan or mix", where="--of")
    if out:
        output.write_text(out, schema_text(of), "--out")
    if check is not None:
        data = read_json(check)
        if is_mixed(data):
            check_mixed(data, where=check, closed=True)
            said = f"an answer of `moecast mix`, format {MIX_FORMAT}"
        else:
            check_plan(load_plan(check), where=check)
            said = f"a plan file, readable as format {FORMAT}"
        output.console().print(f"{check}: {said}", markup=False)
    elif not out:
        output.write_text(output.STDOUT, schema_text(of), "schema")
