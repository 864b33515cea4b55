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
