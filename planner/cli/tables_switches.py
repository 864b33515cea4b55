"""Switches of the trainer that help the plans of a search, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from planner.switches import Tried

SHOWN = 4


def print_switches(screen: Console, tried: Tried | None) -> None:
    """What helps, by how much, and what is known of it."""
    if tried is None or not (tried.tried or tried.applied):
        return
    from dashboards.style import seconds_text
    from planner.cli.tables import notes

    trials = list(tried.singles[:SHOWN])
    if tried.best is not None and tried.best not in trials:
        trials.append(tried.best)
    lines = [
        f"{', '.join(trial.said)}: {seconds_text(trial.step_s, 4)}, {trial.gain:.1%} of the step saved"
        + (f" (plan {trial.rank}, {trial.label})" if trial.rank > 1 else "")
        for trial in trials
    ]
    notes(screen, "Switches of the trainer", [*lines, tried.certificate])
