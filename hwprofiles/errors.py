"""Errors meant for the user: what is wrong, where, and what would fix it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_PROBLEMS = 16
MAX_PROBLEM_CHARS = 400


class UserError(Exception):
    """Bad input. `problems` lists every broken rule at once, each with its remedy."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str], *, where: str = "") -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.where = where
        head = f"{where}: " if where else ""
        super().__init__("\n".join(head + p for p in self.problems))


class NoPlanError(UserError):
    """No candidate survives; the message counts the candidates lost per rule, `search` holds the counts."""

    exit_code = 3

    def __init__(
        self, problems: str | Sequence[str], *, where: str = "", search: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(problems, where=where)
        self.search = dict(search or {})


class OutOfMemoryError(UserError):
    """A plan that does not fit: lane, tag, need and have."""

    exit_code = 4


def error_text(error: UserError) -> str:
    """What is wrong, where and the remedy, on one screen whatever the input was."""
    shown = [_cut(p) for p in error.problems[:MAX_PROBLEMS]]
    more = len(error.problems) - len(shown)
    head = f"error: {_cut(error.where)}" if error.where else "error"
    if len(shown) == 1 and not more:
        return f"{head}: {shown[0]}"
    tail = [f"  ... and {more} more"] if more > 0 else []
    return "\n".join([f"{head}: {len(error.problems)} problems", *(f"  - {p}" for p in shown), *tail])


def _cut(text: str) -> str:
    flat = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return flat if len(flat) <= MAX_PROBLEM_CHARS else flat[: MAX_PROBLEM_CHARS - 3] + "..."
