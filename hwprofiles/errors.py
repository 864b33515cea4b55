"""Errors meant for the user: what is wrong, where, and what would fix it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


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
