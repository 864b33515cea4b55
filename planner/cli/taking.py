"""The options of a question as a command line takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from planner.question.asked import ANCHOR, JSON, STRICT, Asked, AskedStep, Option

Record = TypeVar("Record", bound=Asked)


def typed(option: Option) -> Any:
    """An option for typer; one without a metavar is a switch."""
    return typer.Option(
        option.name, help=option.text, metavar=option.metavar or None, rich_help_panel=option.panel,
        show_default=not option.metavar,
    )  # fmt: skip


JSON_OPTION, STRICT_OPTION, ANCHOR_OPTION = typed(JSON), typed(STRICT), typed(ANCHOR)


def takes_question(verb: Callable[[Asked], None]) -> Callable[..., None]:
    """Give a verb of one `Asked` argument the options of its fields."""
    return _takes(Asked, verb)


def takes_step(verb: Callable[[AskedStep], None]) -> Callable[..., None]:
    """Give a verb of one `AskedStep` argument the options of its fields."""
    return _takes(AskedStep, verb)


def takes(record: type[Record]) -> Callable[[Callable[[Record], None]], Callable[..., None]]:
    """Give a verb of one argument of this record the options of its fields."""
    return lambda verb: _takes(record, verb)


def _takes(record: type[Record], verb: Callable[[Record], None]) -> Callable[..., None]:
    hints = get_type_hints(record, include_extras=True)
    parameters = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if item.default is MISSING else item.default,
            annotation=_annotation(hints[item.name]),
        )
        for item in fields(record)
    ]

    @wraps(verb)
    def run(**values: Any) -> None:
        verb(record(**values))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _annotation(hint: Any) -> Any:
    """The annotation of a field with its option in typer's words."""
    bare, *parts = get_args(hint)
    return Annotated[(bare, *(typed(part) if isinstance(part, Option) else part for part in parts))]
