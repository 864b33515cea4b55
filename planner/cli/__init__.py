"""The `moecast` command: one file per verb. Everything heavy is imported inside the verbs."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `moecast` command; ends the process with its exit code."""
    from planner.cli.app import app

    app(prog_name="moecast")
