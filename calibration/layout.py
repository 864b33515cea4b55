"""Pipeline layout strings of Megatron-LM: E embedding, t decoder layer, m MTP block, L loss, | between stages.

`Et*4|(t*4|)*14|tmL` is: embedding and four layers, fourteen stages of four, then one layer, MTP and loss.
"""

from __future__ import annotations

import re

from hwprofiles.errors import UserError

_GROUP = re.compile(r"\(([^()]*)\)\*(\d+)")
_REPEAT = re.compile(r"([A-Za-z])\*(\d+)")


def stages_of(text: str) -> tuple[int, ...]:
    """Decoder layers on each virtual stage.

    >>> stages_of("Et*2|(tt|)*2|tmL")
    (2, 2, 2, 1)

    Raises UserError on any other letter.
    """
    plain = text
    while _GROUP.search(plain):
        plain = _GROUP.sub(lambda m: m.group(1) * int(m.group(2)), plain)
    plain = _REPEAT.sub(lambda m: m.group(1) * int(m.group(2)), plain)
    stages = [s for s in plain.split("|") if s]
    bad = {c for s in stages for c in s} - set("EtmL")
    if bad or not stages:
        raise UserError(f"layout {text!r} holds {sorted(bad)}; write it with E, t, m, L and |", where="pp_layout")
    return tuple(s.count("t") for s in stages)
