"""Megatron-LM's pipeline layout text, read back: `Et*3|(tt|)*2tL` is four virtual stages of 3, 2, 2 and 1 layers."""

from __future__ import annotations

import re

from hwprofiles.errors import UserError

MAX_ITEMS = 100_000
_TOKEN = re.compile(r"\s*([EtmL|()]|\*\d{1,5}|,)")


def stages_of(text: str) -> tuple[int, ...]:
    """Layers (t) per virtual stage in model order. Raises UserError for text that is no layout.

    >>> stages_of("Et*3|(tt|)*2tL")
    (3, 2, 2, 1)
    """
    flat = _expand(text)
    return tuple(part.count("t") for part in flat.strip("|").split("|"))


def counts_of(text: str, where: str) -> tuple[int, ...]:
    """Layers per virtual stage from counts ("3,4*14,2") or a layout text. Raises UserError for neither.

    >>> counts_of("3,4*2,2", "--stages")
    (3, 4, 4, 2)
    """
    if not re.fullmatch(r"[\d*,\s]+", text):
        return stages_of(text)
    out: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,5})\s*(?:\*\s*(\d{1,5})\s*)?", part)
        if not found:
            raise UserError(f"{part.strip()!r} is no count; write counts such as 3,4*14,2", where=where)
        out += [int(found[1])] * int(found[2] or 1)
    return tuple(out)


def _wrong(text: str, why: str) -> UserError:
    return UserError(
        f"{text[:60]!r} is no pipeline layout ({why}); write E, t, m, L, |, (...)*N",
        where="--pipeline-model-parallel-layout",
    )


def _expand(text: str) -> str:
    """The layout without products; at most MAX_ITEMS letters, so that nested products cannot grow without end."""
    stack: list[list[str]] = [[]]
    at = 0
    clean = text.strip()
    while at < len(clean):
        found = _TOKEN.match(clean, at)
        if not found:
            raise _wrong(text, f"at {clean[at : at + 8]!r}")
        token, at = found[1], found.end()
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise _wrong(text, "a bracket closes that none opened")
            stack[-2].append("".join(stack.pop()))
        elif token.startswith("*"):
            if not stack[-1]:
                raise _wrong(text, "nothing to repeat")
            times = int(token[1:])
            if len(stack[-1][-1]) * times > MAX_ITEMS:
                raise _wrong(text, "too long")
            stack[-1][-1] *= times
        elif token != ",":
            stack[-1].append(token)
        if sum(map(len, stack[-1])) > MAX_ITEMS:
            raise _wrong(text, "too long")
    if len(stack) != 1:
        raise _wrong(text, "a bracket is not closed")
    return "".join(stack[0])
