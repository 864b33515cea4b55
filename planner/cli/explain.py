"""`moecast explain`: why a saved plan was chosen and what was ruled out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwprofiles.errors import UserError
from planner.cli import output
from planner.cli.taking import JSON_OPTION

if TYPE_CHECKING:
    from planner.elastic import Gain
    from planner.wish import Wish


Text = str | None


def explain(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN.json", help="File written by `moecast plan --out`.")],
    wish: Annotated[Text, typer.Option("--wish", metavar="NAME=N,...", help="What would have to be true for this "
                                       "configuration, such as tp=1,pp=8.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The file alone: simulate nothing again.")] = False,
    model: Annotated[Text, typer.Option("--model", metavar="NAME|FILE", help="The model, where the plan was made "
                                        "from a file.", show_default=False)] = None,
    cluster: Annotated[Text, typer.Option("--cluster", metavar="NAME|FILE", help="The cluster, where the plan was "
                                          "made from a file.", show_default=False)] = None,
    software: Annotated[Text, typer.Option("--software", metavar="NAME|FILE", help="The trainer release, where the "
                                           "plan was made from a file.", show_default=False)] = None,
    routing: Annotated[Text, typer.Option("--routing", metavar="LAW|FILE", help="Popularity of experts, where the "
                                          "plan was made with a file.", show_default=False)] = None,
    json: Annotated[str | None, JSON_OPTION] = None,
) -> None:  # fmt: skip
    """Say why the best plan of a file was chosen, what more of each rate would give, and what was ruled out."""
    output.check_targets(json=json)
    from planner.explain import explain as explanation_of
    from planner.mixed.mixfile import is_mixed, mixed_from
    from planner.planfile import load_plan, read_json

    if quick and wish:
        raise UserError("a wish is simulated; leave out --quick", where="--wish")
    data = read_json(plan_file)
    if is_mixed(data):
        if wish:
            raise UserError("a wish is searched on one cluster; stages on several have none", where="--wish")
        _show_mixed(mixed_from(data, where=plan_file), json)
        return
    data = load_plan(plan_file)
    try:
        explanation = explanation_of(data)
    except UserError as error:
        raise UserError(error.problems, where=error.where or plan_file) from None
    with output.progress("simulating again") as bar:
        more = None if quick else again(data, wish, bar, model=model, cluster=cluster, software=software,
                                        routing=routing)  # fmt: skip
    out = explanation.to_json() | ({} if more is None else asdict(more))
    if json:
        output.write_text(json, output.json_text(out), "--json")
    if json == output.STDOUT:
        return
    from planner.cli import tables, tables_explain

    tables.print_explanation(output.console(), explanation)
    if more is not None:
        tables_explain.print_again(output.console(), more)


def _show_mixed(data: Mapping[str, Any], json: str | None) -> None:
    """An answer of `mix` as it was printed; as JSON it is the file."""
    from planner.cli.tables_mix import print_mixed

    if json:
        output.write_text(json, output.json_text(data), "--json")
    if json != output.STDOUT:
        print_mixed(data)


@dataclass(frozen=True, kw_only=True)
class Again:
    """What was simulated again; notes: why something was not."""

    gains: tuple[Gain, ...]
    wish: Wish | None
    notes: tuple[str, ...]


def again(data: Mapping[str, Any], wished: str | None, bar: output.Progress, **names: Any) -> Again:
    """Gains and wish of the plan of a file. What cannot be read again is a note, and an error only for a wish."""
    from planner.elastic import rate_gains, size_gains
    from planner.reask import asked_again
    from planner.wish import read_wish
    from planner.wish import wish as granted

    wanted = None if wished is None else read_wish(wished)
    step_s = float(data["plans"][0]["step_s"]["value"])
    try:
        asked = asked_again(data, **names)
    except UserError as error:
        if wanted is not None or any(names.values()):
            raise
        return Again(gains=(), wish=None, notes=(f"not simulated again: {error.problems[0]}",))
    bar.update("simulating with more of each rate")
    gains = list(rate_gains(asked, step_s))
    bar.update("searching with more memory and nodes")
    gains += size_gains(asked, step_s)
    said = (f"{asked.stale}: gains are of what was read",) if asked.stale else ()
    bar.update("searching the wish")
    return Again(gains=tuple(gains), wish=None if wanted is None else granted(asked, wanted, step_s), notes=said)
