"""`moecast compare`: two plans or two studies side by side, or a plan beside what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwprofiles.errors import UserError
from planner.cli import output
from planner.cli.taking import JSON_OPTION

if TYPE_CHECKING:
    from rich.console import Console

    from planner.compare import Comparison, Line, StudyComparison

Text = str | None
MOST = 20
ROUNDING = 1e-7  # relative; a smaller change is no change to look at


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="File of `plan --out` (FILE#2: its second plan), of `simulate "
                                     "--json`, or a database of `sweep`.")],
    b: Annotated[Text, typer.Argument(metavar="B", help="The other one; not with --measured.",
                                      show_default=False)] = None,
    measured: Annotated[Text, typer.Option("--measured", metavar="TRACES", help="Compare A, the plan that ran, with "
                                           "PyTorch profiler traces: a folder, one a rank, or a file.",
                                           show_default=False)] = None,
    ident: Annotated[Text, typer.Option("--id", metavar="TEXT", help="Name of the measured run. Default: measured.",
                                        show_default=False)] = None,
    model: Annotated[Text, typer.Option("--model", metavar="NAME|FILE", help="Of a measured run: the model, where its "
                                        "plan was made from a file.", show_default=False)] = None,
    cluster: Annotated[Text, typer.Option("--cluster", metavar="NAME|FILE", help="The cluster, likewise.",
                                          show_default=False)] = None,
    software: Annotated[Text, typer.Option("--software", metavar="NAME|FILE", help="The release, likewise.",
                                           show_default=False)] = None,
    out: Annotated[Text, typer.Option("--out", metavar="FILE", help="The measured run as a row for `moecast "
                                      "validate`.", show_default=False)] = None,
    json: Annotated[Text, JSON_OPTION] = None,
) -> None:  # fmt: skip
    """Show two results side by side, or a plan beside profiler traces of its run, and where the difference lies.

    Example: [bold]moecast compare plan.json#1 plan.json#2[/bold]

    Example: [bold]moecast compare --measured traces/ plan.json --out run.csv[/bold]
    """
    if measured is not None:
        if b is not None:
            raise UserError("traces are compared with one plan; leave one of the two files out", where="--measured")
        from planner.cli.compare_measured import Renamed, trace

        names = Renamed(model=model, cluster=cluster, software=software)
        trace(measured, a, ident=ident or "measured", names=names, out=out, json=json)
        return
    of_traces = {"--id": ident, "--model": model, "--cluster": cluster, "--software": software, "--out": out}
    alone = [name for name, value in of_traces.items() if value is not None]
    if alone:
        raise UserError(f"{', '.join(alone)}: of a measured run; add --measured TRACES or leave out", where="compare")
    if b is None:
        raise UserError("one result; give a second one, or --measured TRACES of the run of this plan", where=a)
    output.check_targets(json=json)
    from planner import compare as comparing

    kinds = [comparing.is_database(side) for side in (a, b)]
    if kinds[0] != kinds[1]:
        for side in (a, b):
            if not Path(side.partition("#")[0]).exists():
                raise UserError("no such file; give a plan file, a report or a study's database", where=side)
        raise UserError("one is a database of a study, the other is not; compare like with like", where=f"{a}, {b}")
    found: Comparison | StudyComparison
    if all(kinds):
        found = comparing.compare_studies(a, b)
    else:
        found = comparing.compare(comparing.read_side(a), comparing.read_side(b))
    if json:
        output.write_text(json, output.json_text(found.to_json()), "--json")
    if json == output.STDOUT:
        return
    if isinstance(found, comparing.StudyComparison):
        print_studies(output.console(), found)
    else:
        print_plans(output.console(), found)


def print_plans(screen: Console, found: Comparison) -> None:
    """A table per part that has lines."""
    from dashboards.style import class_name, gib_text, seconds_text, significant
    from planner.cli.tables import grid

    def figure(name: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _text(value)
        if name.endswith("_s") and "per_s" not in name:
            return seconds_text(value, 4)
        return gib_text(value) if name.endswith("_bytes") else significant(value, 4)

    parts: tuple[tuple[str, Sequence[Line], Callable[[str, Any], str]], ...] = (
        ("Asked", found.asked, lambda _, value: _text(value)),
        ("Plan", found.plan, lambda _, value: _text(value)),
        ("Figures", found.figures, figure),
        ("Where the time goes", found.breakdown, lambda _, value: seconds_text(value)),
        ("Exposed communication", found.exposed, lambda _, value: seconds_text(value)),
        ("Memory of the fullest stage", found.memory, lambda _, value: gib_text(value)),
        ("Use of links", found.links, lambda _, value: f"{value:.1%}"),
        ("Whole run", found.run, figure),
    )

    def name_of(title: str, name: str) -> str:
        timed = title in ("Where the time goes", "Exposed communication")
        return class_name(name) if timed else name if title == "Plan" else name.replace("_", " ")

    screen.print(f"A {found.a}\nB {found.b}", markup=False)
    for title, lines, text in parts:
        if not lines:
            continue
        rows = [
            (name_of(title, line.name), text(line.name, line.a), text(line.name, line.b),
             _change(title, line, text))
            for line in lines
        ]  # fmt: skip
        screen.print()
        screen.print(grid(title, ("", "A", "B", "B against A"), rows))


def _change(title: str, line: Line, text: Callable[[str, Any], str]) -> str:
    """Of shares of one whole, degrees and counts the difference, else the ratio."""
    if line.change is None or abs(line.change) <= ROUNDING * max(abs(line.a), abs(line.b)):
        return ""
    if title in ("Where the time goes", "Exposed communication", "Memory of the fullest stage"):
        return ("+" if line.change >= 0 else "-") + text(line.name, abs(line.change))
    if isinstance(line.a, int) and isinstance(line.b, int) and not isinstance(line.a, bool):
        return f"{line.change:+,.0f}"  # degrees, micro-batches, devices: twice as many is no gain of 100 %
    if title == "Use of links":
        return f"{100 * line.change:+.1f} points"
    return "" if line.ratio is None else f"{line.ratio - 1:+.2%}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return ",".join(map(str, value)) or "-" if isinstance(value, list | tuple) else str(value)


def print_studies(screen: Console, found: StudyComparison) -> None:
    """Counts, the median ratio, and the cases that moved most."""
    from dashboards.style import seconds_text
    from planner.cli.tables import grid

    ratio = "" if found.ratio is None else f"; step of B over A, median: {found.ratio:.4f}"
    screen.print(f"A {found.a}\nB {found.b}", markup=False)
    screen.print(f"{found.both:,} cases in both, {found.only_a:,} in A alone, {found.only_b:,} in B alone; "
                 f"{len(found.moved):,} differ{ratio}", markup=False)  # fmt: skip
    if not found.moved:
        return

    def said(value: Any) -> str:
        return seconds_text(value, 4) if isinstance(value, float) else str(value)

    rows = [
        (line.name, said(line.a), said(line.b), "" if line.ratio is None else f"{line.ratio - 1:+.2%}")
        for line in found.moved[:MOST]
    ]
    screen.print()
    screen.print(grid("Largest changes", ("case", "A", "B", "B against A"), rows))
    if len(found.moved) > MOST:
        screen.print(f"  ... and {len(found.moved) - MOST} more (see --json)")
