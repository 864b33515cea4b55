"""Runs the command in this process and keeps stdout, stderr and the exit code."""

from __future__ import annotations

from dataclasses import dataclass

from typer.testing import CliRunner

from planner.cli.app import app

SMALL = ("--model", "Qwen3-30B-A3B", "--cluster", "dgx-h100", "--gpus", "32", "--global-batch", "64")
LAYOUT = ("--ep", "8", "--recompute", "moe_act,layernorm")


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run left behind."""

    code: int
    out: str
    err: str


def moecast(*arguments: str) -> Done:
    """Run `moecast` with these arguments; an unexpected exception is raised, not hidden."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(code=result.exit_code, out=result.stdout, err=result.stderr)
