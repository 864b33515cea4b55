"""What `moecast explain` prints of the plan simulated again: gains and the wish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from dashboards.style import seconds_text
from planner.cli.tables import grid, notes

if TYPE_CHECKING:
    from planner.cli.explain import Again
    from planner.wish import Wish


def print_again(console: Console, found: Again) -> None:
    """Gains of each rate, the wish, and what could not be done."""
    if found.gains:
        rows = [
            (
                gain.what, f"+{100 * (gain.factor - 1):.3g} %",
                "" if gain.step_s is None else seconds_text(gain.step_s),
                "" if gain.gain is None else f"{gain.gain:+.2%}",
                "" if gain.elasticity is None else f"{gain.elasticity + 0.0:.3f}",
                gain.of, gain.note or (gain.label if gain.of == "new search" else ""),
            )
            for gain in found.gains
        ]  # fmt: skip
        headers = ("more of", "by", "step", "tokens/s", "elasticity", "of", "plan then")
        console.print()
        console.print(grid("What more would give", headers, rows, left=("of", "plan then")))
    if found.wish is not None:
        print_wish(console, found.wish)
    notes(console, "Notes", found.notes)


def print_wish(console: Console, found: Wish) -> None:
    """The wished configuration and what would have to be true."""
    wished = ", ".join(f"{name}={_said(value)}" for name, value in found.wished.items())
    step = "" if found.step_s is None else f", step {seconds_text(found.step_s)} against {seconds_text(found.best_s)}"
    console.print(f"\n[bold]Wish {escape(wished)}[/bold]: {found.verdict}; {escape(found.label)}{step}")
    notes(console, "Each of these alone would do" if found.verdict == "slower" else "What would have to be true",
          [need.text for need in found.needs], 12)  # fmt: skip


def _said(value: object) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
