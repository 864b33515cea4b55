"""`moecast explain`: why a saved plan was chosen and what was ruled out."""

from __future__ import annotations

from typing import Annotated

import typer

from hwprofiles.errors import UserError
from planner.cli import output
from planner.cli.options import JSON_OPTION


def explain(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN.json", help="File written by `moecast plan --out`.")],
    json: Annotated[str | None, JSON_OPTION] = None,
) -> None:
    """Say why the best plan of a file was chosen, what came close and what was ruled out."""
    output.check_targets(json=json)
    from planner.explain import explain as explanation_of
    from planner.planfile import load_plan

    data = load_plan(plan_file)
    try:
        explanation = explanation_of(data)
    except UserError as error:
        raise UserError(error.problems, where=error.where or plan_file) from None
    if json:
        output.write_text(json, output.json_text(explanation.to_json()), "--json")
    if json == output.STDOUT:
        return
    from planner.cli import tables

    tables.print_explanation(output.console(), explanation)
